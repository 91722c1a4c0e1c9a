//! One carrier's mount of a case's layers: made, mounted cold, taken away.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::cases::Effect;
use crate::grounds::Scale;
use crate::place::Place;
use crate::rivals::{self, Rival};
use crate::supplies::Supply;

/// Who shows the merged tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Carrier {
    /// No overlay: a directory with the same content.
    Plain,
    /// The kernel's overlayfs.
    Kernel,
    /// Our FUSE server.
    Overfall,
    /// The same in another build or with other options, to compare the two.
    Other,
    /// fuse-overlayfs 2.
    Fuse2,
    /// fuse-overlayfs 1.
    Fuse1,
}

impl Carrier {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Carrier::Plain => "plain directory",
            Carrier::Kernel => "kernel",
            Carrier::Overfall => "overfall",
            Carrier::Other => "otherwise, against overfall",
            Carrier::Fuse2 => "fuse-overlayfs 2",
            Carrier::Fuse1 => "fuse-overlayfs 1",
        }
    }

    /// Whether it is there to be compared with, so that it may be left out where it is slow.
    pub(crate) fn is_rival(self) -> bool {
        matches!(self, Carrier::Fuse2 | Carrier::Fuse1)
    }
}

/// The carriers that there are here.
#[derive(Debug)]
pub(crate) struct Tools {
    overfall: PathBuf,
    rivals: Vec<Rival>,
    userxattr: bool,
    supplies: PathBuf,
}

/// What [`Carrier::Other`] is, unless it is as overfall.
const OTHER_BINARY: &str = "OVERFALL_OTHER_BINARY";
const OTHER_OPTIONS: &str = "OVERFALL_OTHER_OPTIONS";

/// The binary under test.
pub(crate) fn overfall_binary() -> PathBuf {
    std::env::var_os("OVERFALL_BINARY").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_overfall")),
        PathBuf::from,
    )
}

impl Tools {
    pub(crate) fn find(place: Place, ours: bool, supplies: &Path) -> Self {
        Self {
            overfall: overfall_binary(),
            rivals: if ours { Vec::new() } else { rivals::find() },
            userxattr: place == Place::User,
            supplies: supplies.to_path_buf(),
        }
    }

    /// What was found, for the reader of the tables.
    pub(crate) fn versions(&self) -> Vec<String> {
        let versions = self.rivals.iter().map(|rival| rival.version.clone());
        versions.collect()
    }

    pub(crate) fn carriers(&self) -> Vec<Carrier> {
        let mut all = vec![Carrier::Plain, Carrier::Kernel, Carrier::Overfall];
        if [OTHER_BINARY, OTHER_OPTIONS]
            .iter()
            .any(|name| std::env::var_os(name).is_some())
        {
            all.push(Carrier::Other);
        }
        all.extend(self.rivals.iter().map(|rival| rival.carrier));
        all
    }
}

/// What has to be done when a mount ends.
#[derive(Debug)]
enum Live {
    /// Nothing is mounted.
    Not,
    /// The kernel does all.
    Kernel,
    /// In the foreground; it says what it served and ends.
    Overfall(Talker),
    /// In the foreground, too.
    Rival(Child),
}

/// A process and what it writes to stderr.
#[derive(Debug)]
struct Talker {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Talker {
    fn new(mut child: Child) -> Outcome<Self> {
        let stderr = BufReader::new(child.stderr.take().ok_or("no pipe")?);
        Ok(Self { child, stderr })
    }

    /// What it writes until its end.
    fn all_said(mut self) -> Outcome<String> {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        self.child.wait()?;
        Ok(said)
    }
}

/// Waits until our program says that the tree is mounted.
fn until_told(child: Child) -> Outcome<Talker> {
    let mut talker = Talker::new(child)?;
    let mut said = String::new();
    while talker.stderr.read_line(&mut said)? > 0 {
        if said.contains("mounted, carried by") {
            return Ok(talker);
        }
    }
    talker.child.wait()?;
    Err(said.into())
}

/// A mount and its layers.
#[derive(Debug)]
pub(crate) struct Bed<'a> {
    pub(crate) carrier: Carrier,
    tools: &'a Tools,
    lowers: &'a [PathBuf],
    dir: PathBuf,
    root: PathBuf,
    keep_caches: bool,
    live: Live,
    /// What our server served in the mounts that are over.
    served: Vec<(String, u64)>,
}

const MERGED: &str = "merged";
/// Seconds that a mount of fuse-overlayfs may last.
const LONGEST: &str = "300";

impl<'a> Bed<'a> {
    /// Makes the directories; mounts nothing yet.
    pub(crate) fn new(
        carrier: Carrier,
        tools: &'a Tools,
        lowers: &'a [PathBuf],
        dir: &Path,
        scale: Scale,
    ) -> Outcome<Self> {
        for name in ["upper", "work", MERGED] {
            fs::create_dir_all(dir.join(name))?;
        }
        Ok(Self {
            carrier,
            tools,
            lowers,
            dir: dir.to_path_buf(),
            root: dir.join(MERGED),
            keep_caches: scale.keep_caches,
            live: Live::Not,
            served: Vec::new(),
        })
    }

    /// The root of the merged tree.
    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// A path in the merged tree.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// A path in the top lower layer.
    pub(crate) fn lower(&self, name: impl AsRef<Path>) -> PathBuf {
        self.lowers[0].join(name)
    }

    /// A path in the upper layer; `None` for the plain directory, which has no layers.
    pub(crate) fn upper(&self, name: impl AsRef<Path>) -> Option<PathBuf> {
        (self.carrier != Carrier::Plain).then(|| self.dir.join("upper").join(name))
    }

    /// Where something lies that was fetched beforehand.
    pub(crate) fn supply(&self, supply: Supply) -> PathBuf {
        supply.dir(&self.tools.supplies)
    }

    /// Gives the plain directory its content: a copy of what the layers show, or the only layer
    /// itself where nothing is changed.
    pub(crate) fn fill_plain(&mut self, effect: Effect) -> Outcome<()> {
        if let ([only], Effect::Reads) = (self.lowers, effect) {
            self.root.clone_from(only);
            return Ok(());
        }
        for lower in self.lowers.iter().rev() {
            let status = Command::new("cp")
                .arg("-a")
                .arg(lower.join("."))
                .arg(self.root())
                .status()?;
            if !status.success() {
                return Err(format!("cp: {status}").into());
            }
        }
        Ok(())
    }

    /// Mounts, and returns when the tree can be used. A plain directory is always there.
    pub(crate) fn mount(&mut self) -> Outcome<()> {
        let root = self.root();
        self.live = match self.carrier {
            Carrier::Plain => Live::Not,
            Carrier::Kernel => {
                let options = self.options(self.tools.userxattr);
                let none = MsFlags::empty();
                mount(Some("bench"), &root, Some("overlay"), none, Some(&*options))
                    .map_err(|errno| format!("mounting the kernel's overlay: {errno}"))?;
                Live::Kernel
            }
            Carrier::Overfall | Carrier::Other => {
                let (binary, options) = match self.carrier {
                    Carrier::Other => (std::env::var_os(OTHER_BINARY), OTHER_OPTIONS),
                    _ => (None, "OVERFALL_TEST_OPTIONS"),
                };
                let usual = self.tools.overfall.as_os_str();
                let mut command = Command::new(binary.as_deref().unwrap_or(usual));
                if let Some(more) = std::env::var_os(options) {
                    command.args(["mount", "-o"]).arg(more);
                } else {
                    command.arg("mount");
                }
                let child = command
                    .args(["--foreground", "--backend", "fuse", "-o"])
                    .arg(self.options(false))
                    .arg(&root)
                    .env("OVERFALL_LOG", "info")
                    .stderr(Stdio::piped())
                    .spawn()?;
                Live::Overfall(until_told(child)?)
            }
            Carrier::Fuse2 | Carrier::Fuse1 => {
                let ours = |rival: &&Rival| rival.carrier == self.carrier;
                let rival = self.tools.rivals.iter().find(ours);
                // One that hangs is killed, which fails its case alone.
                let child = Command::new("timeout")
                    .args(["--signal=KILL", LONGEST])
                    .arg(&rival.ok_or("no fuse-overlayfs")?.program)
                    .args(["-f", "-o"])
                    .arg(self.options(false))
                    .arg(&root)
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()?;
                Live::Rival(self.until_mounted(child)?)
            }
        };
        Ok(())
    }

    fn until_mounted(&self, mut child: Child) -> Outcome<Child> {
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        let outside = device(&self.dir)?;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if device(&self.root()).is_ok_and(|inside| inside != outside) {
                return Ok(child);
            }
            if child.try_wait()?.is_some() {
                return Err(Talker::new(child)?.all_said()?.into());
            }
            thread::sleep(Duration::from_micros(200));
        }
        // `timeout` passes this on.
        if let Some(pid) = rustix::process::Pid::from_raw(child.id().try_into()?) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let said = Talker::new(child)?.all_said()?;
        Err(format!("not mounted after 10 s: {said}").into())
    }

    fn options(&self, userxattr: bool) -> OsString {
        let mut text = OsString::from("lowerdir=");
        for (index, lower) in self.lowers.iter().enumerate() {
            if index > 0 {
                text.push(":");
            }
            text.push(lower);
        }
        for name in ["upper", "work"] {
            text.push(format!(",{name}dir="));
            text.push(self.dir.join(name));
        }
        if userxattr {
            text.push(",userxattr");
        }
        text
    }

    /// A fresh mount, with nothing of the layers in memory where that can be had.
    pub(crate) fn cold(&mut self) -> Outcome<()> {
        self.unmount()?;
        if !self.keep_caches {
            // Only the machine's root may; elsewhere cold means a fresh mount.
            let _ = fs::write("/proc/sys/vm/drop_caches", "3");
        }
        self.mount()
    }

    pub(crate) fn unmount(&mut self) -> Outcome<()> {
        let live = std::mem::replace(&mut self.live, Live::Not);
        if matches!(live, Live::Not) {
            return Ok(());
        }
        let root = self.root();
        let refused = umount2(&root, MntFlags::empty());
        if refused.is_err() {
            umount2(&root, MntFlags::MNT_DETACH)?;
        }
        match live {
            Live::Not | Live::Kernel => {}
            Live::Overfall(talker) => {
                let said = talker.all_said()?;
                self.listen(&said);
            }
            Live::Rival(child) => drop(Talker::new(child)?.all_said()?),
        }
        refused.map_err(|errno| format!("unmounting: {errno}").into())
    }

    /// Takes the counters of our server over, and passes on what else it said.
    fn listen(&mut self, said: &str) {
        for line in said.lines() {
            if let Some((_, counts)) = line.split_once("served: ") {
                for count in counts.split(", ") {
                    let Some((op, number)) = count.split_once(' ') else {
                        continue;
                    };
                    let number: u64 = number.parse().unwrap_or(0);
                    match self.served.iter_mut().find(|(known, _)| known == op) {
                        Some((_, sum)) => *sum += number,
                        None => self.served.push((op.to_owned(), number)),
                    }
                }
            } else if !line.contains(": info: ") {
                eprintln!("{line}");
            }
        }
    }

    /// Unmounts; returns what our server served, all mounts together.
    pub(crate) fn finish(mut self) -> Vec<(String, u64)> {
        if let Err(error) = self.unmount() {
            eprintln!("{}: {error}", self.carrier.name());
        }
        std::mem::take(&mut self.served)
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        // After a panic; otherwise nothing is left to do.
        let _ = self.unmount();
    }
}
