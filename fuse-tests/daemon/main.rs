//! The server's process: how it starts, that it holds on to nothing of its caller's, how it ends,
//! and that nothing is left behind. What it serves is tested elsewhere.
//!
//! Every test runs as the machine's root, who mounts by himself, and as a plain user, who has
//! fusermount3 do it. Names are `WHO::TEST`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ending;
mod namespaces;
mod place;
mod starting;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use place::{Bench, Place, Who};

/// What a test comes to: an error is a failure, a reason is a skip.
type Verdict = Result<Completion, Failed>;
type Case = (&'static str, fn(&Place) -> Verdict);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let bench: &'static Bench = Box::leak(Box::new(Bench::set_up()));
    let cases = [starting::CASES, ending::CASES, namespaces::CASES].concat();
    let mut trials = Vec::new();
    for who in [Who::Root, Who::Plain] {
        for (name, run) in &cases {
            let run = *run;
            trials.push(Trial::ignorable_test(
                format!("{}::{name}", who.name()),
                move || match bench.cannot(who) {
                    Some(reason) => Ok(Completion::ignored_with(reason)),
                    None => run(&bench.place(who)),
                },
            ));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = bench.leftovers();
    if !left.is_empty() {
        eprintln!("left behind by the tests:\n{}", left.join("\n"));
        return ExitCode::FAILURE;
    }
    bench.clear();
    conclusion.exit_code()
}
