//! The `overfall` command: parse, dispatch, exit code.
#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic where nothing can be written

fn main() -> std::process::ExitCode {
    overfall::cli::main()
}
