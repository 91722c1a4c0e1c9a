//! The `overfall` command: parse, dispatch, exit code.

fn main() -> std::process::ExitCode {
    overfall::cli::main()
}
