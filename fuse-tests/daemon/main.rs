//! The server's process: how it starts, that it holds on to nothing of its caller's, how it ends,
//! and that nothing is left behind. What it serves is tested elsewhere.
//!
//! Every test runs as the machine's root, who mounts by himself, and as a plain user, who has
//! fusermount3 do it. Names are `WHO::TEST`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod ending;
mod lying;
mod namespaces;
mod place;
mod shedding;
mod starting;
mod telling;

use std::process::ExitCode;

use parking_lot::RwLock;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use place::{Bench, Place, Who, leftovers};

/// What a test comes to: an error is a failure, a reason is a skip.
type Verdict = Result<Completion, Failed>;
type Case = (&'static str, fn(&Place) -> Verdict);

/// Root works in a mount namespace of its own, out of the machine's way. Before the first thread.
fn isolate() {
    use nix::mount::{MsFlags, mount};
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok() {
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        // Copies of others' mounts would keep their servers alive, and be unmounted with ours.
        for (kind, target) in place::mounts_below("/".as_ref()) {
            if kind == "fuse.overfall" || kind == "overlay" {
                let _ = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}

/// A new mount namespace has copies of all mounts, which keep their servers alive: the tests that
/// make one run alone, and so do those that unmount everything.
static COPIES: RwLock<()> = RwLock::new(());

fn trial(
    bench: &'static Bench,
    who: Who,
    name: &str,
    run: impl FnOnce() -> Verdict + Send + 'static,
) -> Trial {
    Trial::ignorable_test(format!("{}::{name}", who.name()), move || {
        match bench.cannot(who) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => run(),
        }
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    isolate();
    let bench: &'static Bench = Box::leak(Box::new(Bench::set_up()));
    let cases: Vec<Case> = [
        starting::CASES,
        ending::CASES,
        telling::CASES,
        shedding::CASES,
    ]
    .concat();
    let mut trials = Vec::new();
    for who in [Who::Root, Who::Plain] {
        for &(name, run) in &cases {
            trials.push(trial(bench, who, name, move || {
                let _others = COPIES.read();
                run(&bench.place(who))
            }));
        }
        for (name, run) in namespaces::CASES
            .iter()
            .chain(telling::ALONE)
            .chain(lying::ALONE)
        {
            trials.push(trial(bench, who, name, move || {
                let _alone = COPIES.write();
                run(&bench.place(who))
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = bench.leftovers();
    if left.is_empty() {
        bench.clear();
    }
    leftovers::exit_code(&conclusion, &left)
}
