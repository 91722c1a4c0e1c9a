//! The merged tree on real mounts: every test runs on the kernel's overlay, which proves that it
//! asks for the right thing, and on overfall's FUSE server; as root and as a plain user in a
//! namespace. Names are `VARIANT::MODULE::TEST`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod remove;

fn main() -> std::process::ExitCode {
    common::suite::main(&[("remove", remove::CASES)])
}
