//! Where the tests run: as the machine's root, or in a user namespace of a plain user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::tree::{Carrier, Tree};
use super::users::command_as;

/// The uid and gid of the plain user where the suite runs as root. Any number does: it needs no
/// account.
pub(crate) const PLAIN_ID: u32 = 54321;

/// Who runs a case on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Who carries the overlay.
    pub(crate) carrier: Carrier,
    /// As the machine's root; otherwise as root of a user namespace that a plain user made.
    pub(crate) real_root: bool,
    /// What the upper is written in.
    pub(crate) upper: Upper,
}

/// In which form an upper is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upper {
    /// The kernel's.
    Kernels,
    /// The fallback form: no whiteouts can be made (`filter.rs`).
    Dotted,
}

impl Variant {
    /// All of them.
    pub(crate) const ALL: [Variant; 6] = [
        Self::of(Carrier::Kernel, true, Upper::Kernels),
        Self::of(Carrier::Fuse, true, Upper::Kernels),
        Self::of(Carrier::Fuse, true, Upper::Dotted),
        Self::of(Carrier::Kernel, false, Upper::Kernels),
        Self::of(Carrier::Fuse, false, Upper::Kernels),
        Self::of(Carrier::Fuse, false, Upper::Dotted),
    ];

    const fn of(carrier: Carrier, real_root: bool, upper: Upper) -> Self {
        Self {
            carrier,
            real_root,
            upper,
        }
    }

    /// The first part of a test's name.
    pub(crate) fn name(self) -> &'static str {
        match (self.carrier, self.real_root, self.upper) {
            (Carrier::Kernel, true, _) => "kernel",
            (Carrier::Fuse, true, Upper::Kernels) => "fuse",
            (Carrier::Fuse, true, Upper::Dotted) => "dotted",
            (Carrier::Kernel, false, _) => "user_kernel",
            (Carrier::Fuse, false, Upper::Kernels) => "user_fuse",
            (Carrier::Fuse, false, Upper::Dotted) => "user_dotted",
        }
    }

    /// The variant of this name.
    pub(crate) fn named(name: &str) -> Option<Variant> {
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }
}

/// Whether this process is root outside every user namespace.
pub(crate) fn is_real_root() -> bool {
    let whole_range = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && fs::read_to_string("/proc/self/uid_map").is_ok_and(whole_range)
}

/// Gives root a mount namespace of its own, so that nothing which a test leaves reaches the
/// machine. Must run before the first thread.
pub(crate) fn isolate() {
    use nix::mount::{MsFlags, mount};
    if is_real_root() && nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok() {
        for how in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
            // Shared with the plain user's namespaces only, see `run_as_plain_user`.
            let _ = mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | how,
                None::<&str>,
            );
        }
    }
}

/// Why a variant can't run here, found by mounting an empty overlay. To be asked inside the
/// variant's own namespace.
pub(crate) fn probe(variant: Variant, dir: &Path) -> Result<(), String> {
    if variant.carrier == Carrier::Fuse {
        let device = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse");
        // A mount that fails with the device at hand is a failed test, not a reason to skip.
        return device.map(drop).map_err(|e| format!("/dev/fuse: {e}"));
    }
    let tree = Tree::new(dir.to_path_buf(), variant.carrier, variant.real_root);
    let result = tree.try_mount();
    Tree::abandon(dir);
    drop(tree);
    super::suite::remove(dir).map_err(|e| format!("removing the probe's directory: {e}"))?;
    result.map_err(|e| format!("the kernel's overlay can't be mounted here: {e}"))
}

/// Runs this very binary as root of a plain user's fresh user and mount namespace.
pub(crate) fn run_as_plain_user(
    program: &Program,
    vars: &[(&str, &str)],
) -> Result<Output, String> {
    let ids = is_real_root().then_some((PLAIN_ID, PLAIN_ID));
    command_as(ids, "unshare")
        .args(["--user", "--map-root-user", "--mount"])
        // What another test unmounts must not live on here.
        .args(["--propagation", "slave"])
        .arg(&program.tests)
        .env("OVERFALL_BINARY", &program.overfall)
        .envs(vars.iter().copied())
        .current_dir("/")
        .output()
        .map_err(|e| format!("setpriv and unshare (util-linux): {e}"))
}

/// The two binaries, at a place where the plain user can run them.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// This test binary.
    pub(crate) tests: PathBuf,
    /// overfall.
    pub(crate) overfall: PathBuf,
}

impl Program {
    /// Finds them; copies them into `dir` where root's own place is closed to others.
    pub(crate) fn for_plain_user(dir: &Path) -> std::io::Result<Self> {
        let here = Self {
            tests: std::env::current_exe()?,
            overfall: super::suite::overfall_binary(),
        };
        if !is_real_root() || here.is_reachable() {
            return Ok(here);
        }
        let copy = Self {
            tests: dir.join("tests"),
            overfall: dir.join("overfall"),
        };
        fs::copy(&here.tests, &copy.tests)?;
        fs::copy(&here.overfall, &copy.overfall)?;
        Ok(copy)
    }

    fn is_reachable(&self) -> bool {
        super::as_user(PLAIN_ID, PLAIN_ID, || {
            [&self.tests, &self.overfall]
                .iter()
                .all(|path| fs::File::open(path).is_ok())
        })
    }
}
