//! The merged tree on real mounts: every test runs on the kernel's overlay, which proves that it
//! asks for the right thing, and on overfall's FUSE server; as root and as a plain user in a
//! namespace. Names are `VARIANT::MODULE::TEST`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[allow(dead_code, unused_imports)] // each test binary uses its part
mod common;

macro_rules! modules {
    ($($name:ident),* $(,)?) => {
        $(mod $name;)*

        fn main() -> std::process::ExitCode {
            common::suite::main(&[$((stringify!($name), $name::CASES)),*])
        }
    };
}

modules! {
    attr, copyup, create, foreign, format, hostile_attributes, hostile_layers, hostile_sizes,
    identity, io, ioctl, layers, link, locks, lookup, missing_calls, open_handles, peers, programs, random,
    readdir, remove, rename, rules, special, tuning, upgrade, xattr,
}
