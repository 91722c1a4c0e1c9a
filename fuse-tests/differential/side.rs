//! Mounting a set of layers, by the kernel or by overfall.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::filter::without_whiteouts;
use super::layers::Power;
use super::manner::Manner;
use super::place::Place;

/// Who carries a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Kernel,
    Overfall,
    /// Overfall where no whiteouts can be made.
    Dotted,
}

impl Carrier {
    /// For messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Carrier::Kernel => "kernel",
            Carrier::Overfall | Carrier::Dotted => "overfall",
        }
    }
}

/// The overfall binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("OVERFALL_BINARY").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_overfall")),
        PathBuf::from,
    )
}

/// A mounted set of layers; what is left mounted is torn down.
pub(crate) struct Mounted {
    dir: PathBuf,
    carrier: Carrier,
    live: bool,
}

impl Mounted {
    /// Mounts the layers in `dir` on its `m`.
    pub(crate) fn new(
        dir: &Path,
        carrier: Carrier,
        manner: &Manner,
        lowers: usize,
    ) -> Result<Self, String> {
        let options = options(dir, carrier, manner, lowers);
        let target = dir.join("m");
        match carrier {
            Carrier::Kernel => mount(
                Some("overlay"),
                &target,
                Some("overlay"),
                MsFlags::empty(),
                Some(&*options),
            )
            .map_err(|error| format!("the kernel doesn't mount {options}: {error}"))?,
            Carrier::Overfall => {
                let arguments = ["mount", "--backend", "fuse", "-o", &options];
                let arguments = arguments.iter().map(OsString::from);
                overfall(dir, arguments.chain([target.into()]))?;
            }
            Carrier::Dotted => {
                let arguments = ["mount", "--backend", "fuse", "-o", &options];
                let arguments = arguments.iter().map(OsString::from);
                let arguments = arguments.chain([target.into()]);
                without_whiteouts(|| overfall(dir, arguments))?;
            }
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            carrier,
            live: true,
        })
    }

    /// The merged tree.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("m")
    }

    /// Unmounts; everything is written then.
    pub(crate) fn unmount(mut self) -> Result<(), String> {
        let target = self.root();
        match self.carrier {
            Carrier::Kernel => {
                umount2(&target, MntFlags::empty()).map_err(|e| format!("umount: {e}"))?
            }
            Carrier::Overfall | Carrier::Dotted => {
                overfall(&self.dir, ["umount".into(), target.into()])?
            }
        }
        self.live = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.live {
            abandon(&self.root());
        }
    }
}

/// Takes a mount away, whatever its server does.
pub(crate) fn abandon(target: &Path) {
    let _ = umount2(target, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    let _ = umount2(target, MntFlags::MNT_DETACH);
}

/// Lets everything below `dir` be removed: nothing is append-only or immutable any more.
pub(crate) fn unprotect(dir: &Path) {
    let clear = |path: &Path| -> std::io::Result<()> {
        let file = File::open(path)?;
        let flags = rustix::fs::ioctl_getflags(&file)?;
        let free = flags - rustix::fs::IFlags::APPEND - rustix::fs::IFlags::IMMUTABLE;
        if free != flags {
            rustix::fs::ioctl_setflags(&file, free)?;
        }
        Ok(())
    };
    // The directory itself may be a link.
    let _ = clear(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => unprotect(&entry.path()),
            Ok(kind) if kind.is_file() => drop(clear(&entry.path())),
            _ => {}
        }
    }
}

fn options(dir: &Path, carrier: Carrier, manner: &Manner, lowers: usize) -> String {
    let dir = dir.to_string_lossy();
    let layers: Vec<_> = (0..lowers).map(|index| format!("{dir}/l{index}")).collect();
    let mut options = format!(
        "lowerdir={},upperdir={dir}/u,workdir={dir}/w",
        layers.join(":")
    );
    if manner.power == Power::User {
        options += ",userxattr";
    }
    match (carrier, manner.power) {
        // What the machine's defaults may turn on.
        (Carrier::Kernel, Power::Root) => {
            let given = |name: &str| manner.options.contains(name);
            for (name, usual) in [("index=", "off"), ("metacopy=", "off")] {
                if !given(name) {
                    options += &format!(",{name}{usual}");
                }
            }
            if !given("redirect_dir=") && !given("metacopy=on") {
                options += ",redirect_dir=nofollow";
            }
        }
        (Carrier::Kernel, Power::User) => options += ",index=off",
        (Carrier::Overfall | Carrier::Dotted, Power::Root) => options += ",allow_other",
        (Carrier::Overfall | Carrier::Dotted, Power::User) => {}
    }
    if carrier == Carrier::Kernel && !manner.options.contains("xino=") {
        // Over several file systems its numbers are as firm as ours only with it.
        options += match manner.place {
            Place::Mixed => ",xino=on",
            _ => ",xino=off",
        };
    }
    if !manner.options.is_empty() {
        options += &format!(",{}", manner.options);
    }
    if carrier != Carrier::Kernel && !manner.server_options.is_empty() {
        options += &format!(",{}", manner.server_options);
    }
    options
}

/// Runs the real binary. Its output goes to a file: the server may keep a pipe open.
pub(crate) fn overfall(
    dir: &Path,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(), String> {
    let log = dir.join("overfall.log");
    let output = File::create(&log).map_err(|e| e.to_string())?;
    let status = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(|e| e.to_string())?)
        .stderr(output)
        .status()
        .map_err(|e| format!("overfall: {e}"))?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    Err(format!("overfall: {status}: {}", said.trim()))
}
