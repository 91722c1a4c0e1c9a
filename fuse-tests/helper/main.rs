//! The programs that call a mount helper, and ours behind the names that they call.
//!
//! Everything runs as root in a mount namespace of its own, where the helper's names are in place
//! and a plain user with subordinate ids exists. Names are `FAMILY::TEST`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod callers;
mod mount8;
mod options;
mod place;
mod podman;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use place::{Bench, Place, leftovers};

/// What a test comes to: an error is a failure, a reason is a skip.
type Verdict = Result<Completion, Failed>;
type Case = (&'static str, fn(&Place) -> Verdict);

/// A table of tests by their names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::Case] = &[$((stringify!($name), $name)),*];
    };
}
pub(crate) use cases;

/// What a finished test returns.
const DONE: Verdict = Ok(Completion::Completed);

fn skip(reason: impl Into<String>) -> Verdict {
    Ok(Completion::ignored_with(reason.into()))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let bench: &'static Bench = Box::leak(Box::new(Bench::set_up()));
    let families: &[(&str, &[Case])] = &[
        ("mount8", mount8::CASES),
        ("callers", callers::CASES),
        ("options", options::CASES),
        ("podman", podman::CASES),
    ];
    let mut trials = Vec::new();
    for &(family, cases) in families {
        for &(name, run) in cases {
            trials.push(Trial::ignorable_test(
                format!("{family}::{name}"),
                move || match bench.cannot() {
                    Some(reason) => skip(reason),
                    None => run(&bench.place(name)),
                },
            ));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = bench.leftovers();
    if left.is_empty() {
        bench.clear();
    }
    leftovers::exit_code(&conclusion, &left)
}
