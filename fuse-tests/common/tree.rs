//! One overlay of one test: its layers, its mount, and what must hold for every test at the end.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::filter::without_whiteouts;
use super::machine::Upper;
use super::refuse::refusing;
use super::watch::Watch;
use super::{Snapshot, plant, sketch};

/// Who carries the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The kernel's overlayfs: the oracle.
    Kernel,
    /// overfall's FUSE server, through the real binary.
    Fuse,
}

/// One overlay. A test prepares the layers, mounts, works below [`Tree::at`] and looks at the
/// upper layer. Paths are relative to the layer or to the mount.
pub(crate) struct Tree {
    dir: PathBuf,
    carrier: Cell<Carrier>,
    pub(super) form: Cell<Upper>,
    real_root: bool,
    userxattr: Cell<bool>,
    read_only: Cell<bool>,
    layers: Cell<usize>,
    data_layers: Cell<usize>,
    options: RefCell<Vec<String>>,
    mounted: Cell<bool>,
    lowers: RefCell<Vec<(PathBuf, Snapshot)>>,
    check_lowers: Cell<bool>,
    small_disk: Cell<bool>,
    /// What the disk is mounted from, if from an image.
    image: RefCell<Option<PathBuf>>,
    foreign_upper: RefCell<Option<PathBuf>>,
    /// System calls that the kernel doesn't have, as far as overfall sees.
    missing_calls: RefCell<Vec<i64>>,
    pub(super) watch: RefCell<Option<Watch>>,
}

impl Tree {
    /// Makes the directories of a case below `dir`, which must not exist.
    pub(crate) fn new(dir: PathBuf, carrier: Carrier, real_root: bool) -> Self {
        for name in ["", "l0", "u", "w", "m"] {
            fs::create_dir(dir.join(name)).expect("the case's directory");
        }
        Self {
            dir,
            carrier: Cell::new(carrier),
            form: Cell::new(Upper::Kernels),
            real_root,
            userxattr: Cell::new(!real_root),
            read_only: Cell::new(false),
            layers: Cell::new(1),
            data_layers: Cell::new(0),
            options: RefCell::default(),
            mounted: Cell::new(false),
            lowers: RefCell::default(),
            check_lowers: Cell::new(true),
            small_disk: Cell::new(false),
            image: RefCell::default(),
            foreign_upper: RefCell::default(),
            missing_calls: RefCell::default(),
            watch: RefCell::default(),
        }
    }

    /// Who carries it now.
    pub(crate) fn carrier(&self) -> Carrier {
        self.carrier.get()
    }

    /// Whether the test runs as the machine's root rather than in a user namespace.
    pub(crate) fn is_real_root(&self) -> bool {
        self.real_root
    }

    /// Has our server write the upper in this form.
    pub(crate) fn write_in(&self, form: Upper) {
        self.form.set(form);
    }

    /// Whether our server writes the upper in the fallback form.
    pub(crate) fn is_dotted(&self) -> bool {
        self.form.get() == Upper::Dotted
    }

    /// Lets somebody else carry the next mount.
    pub(crate) fn carry_by(&self, carrier: Carrier) {
        self.carrier.set(carrier);
    }

    /// Mounts with `userxattr` also as real root.
    pub(crate) fn use_userxattr(&self) {
        self.userxattr.set(true);
    }

    /// Mounts without an upper layer.
    pub(crate) fn without_upper(&self) {
        self.read_only.set(true);
    }

    /// Adds a mount option.
    pub(crate) fn option(&self, option: &str) {
        self.options.borrow_mut().push(option.to_owned());
    }

    /// Has overfall run as on a kernel that lacks these system calls, given by number.
    pub(crate) fn without_calls(&self, calls: &[i64]) {
        *self.missing_calls.borrow_mut() = calls.to_vec();
    }

    /// Takes a mount option back.
    pub(crate) fn without_option(&self, option: &str) {
        self.options.borrow_mut().retain(|other| other != option);
    }

    /// Whether a mount option was chosen.
    pub(crate) fn has_option(&self, option: &str) -> bool {
        self.options.borrow().iter().any(|other| other == option)
    }

    /// Leaves out the check that the lower layers are untouched at the end; for tests that change
    /// them on purpose.
    pub(crate) fn lowers_may_change(&self) {
        self.check_lowers.set(false);
    }

    /// Puts upper and work directory on a file system of their own, of this size.
    pub(crate) fn upper_on_a_disk_of(&self, size: &str) {
        let disk = self.disk();
        fs::create_dir(&disk).expect("the disk's directory");
        let options = format!("size={size},mode=755");
        mount(
            Some("tmpfs"),
            &disk,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(&*options),
        )
        .unwrap_or_else(|e| super::skip(format!("tmpfs: {e}")));
        self.disk_is_there();
        if super::xattr_set(disk.join("u"), &self.private("probe"), b"1").is_err() {
            super::skip("tmpfs has no such attributes here");
        }
        super::xattr_remove(disk.join("u"), &self.private("probe")).expect("remove the probe");
    }

    /// Puts upper and work directory on an image with a file system made by `mkfs` (a whole
    /// command, to which the image is added). Needs the machine's root.
    pub(crate) fn upper_on_an_image(&self, mkfs: &[&str], megabytes: u64) {
        let image = self.make_image(mkfs, megabytes);
        self.upper_on(&image);
    }

    /// Makes an image with a file system.
    pub(crate) fn make_image(&self, mkfs: &[&str], megabytes: u64) -> PathBuf {
        let image = self.beside("disk.img");
        let file = File::create_new(&image).expect("the image");
        file.set_len(megabytes << 20).expect("the image's size");
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output();
        let made = made.unwrap_or_else(|e| super::skip(format!("{}: {e}", mkfs[0])));
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr).into_owned();
            super::skip(format!("{}: {}", mkfs[0], why.trim()));
        }
        image
    }

    /// Puts upper and work directory on this image, where they aren't yet.
    pub(crate) fn upper_on(&self, image: &Path) {
        fs::create_dir(self.disk()).expect("the disk's directory");
        if let Err(why) = self.mount_image(image) {
            super::skip(format!("mounting an image: {why}"));
        }
        self.disk_is_there();
    }

    /// Mounts an image, again after [`Tree::umount_disk`].
    pub(crate) fn mount_image(&self, image: &Path) -> Result<(), String> {
        let mut command = Command::new("mount");
        command.args(["-o", "loop"]);
        let mounted = command.arg(image).arg(self.disk()).output();
        let mounted = mounted.map_err(|e| e.to_string())?;
        if mounted.status.success() {
            *self.image.borrow_mut() = Some(image.to_path_buf());
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&mounted.stderr).trim().to_owned())
        }
    }

    /// Unmounts the disk that upper and work directory are on; returns when it is unmounted
    /// everywhere.
    pub(crate) fn umount_disk(&self) {
        // A server that was killed still has it open for a moment, and a copy of the mount after
        // that. An image that is mounted again before would be the same file system as before.
        wait_until("umount of the disk", || {
            match umount2(&self.disk(), MntFlags::empty()) {
                Ok(()) => true,
                Err(errno) => {
                    assert_eq!(errno, nix::errno::Errno::EBUSY, "umount of the disk");
                    false
                }
            }
        });
        if let Some(image) = self.image.take() {
            wait_until("the end of the loop device", || {
                !is_on_a_loop_device(&image)
            });
        }
    }

    /// The root of the disk that upper and work directory are on.
    pub(crate) fn disk(&self) -> PathBuf {
        self.beside("disk")
    }

    fn disk_is_there(&self) {
        self.small_disk.set(true);
        for name in ["u", "w"] {
            fs::create_dir(self.disk().join(name)).expect("a directory on the disk");
        }
    }

    /// Uses another tree's upper and work directory.
    pub(crate) fn share_upper_of(&self, other: &Tree) {
        *self.foreign_upper.borrow_mut() = Some(other.upper_base());
    }

    fn upper_base(&self) -> PathBuf {
        if let Some(base) = &*self.foreign_upper.borrow() {
            base.clone()
        } else if self.small_disk.get() {
            self.dir.join("disk")
        } else {
            self.dir.clone()
        }
    }

    /// The process that serves the mount; only with our server.
    pub(crate) fn server(&self) -> rustix::process::Pid {
        let target = self.at("").into_os_string().into_vec();
        let serves = |entry: &fs::DirEntry| {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|word| word == target)
        };
        let found = fs::read_dir("/proc").expect("/proc").flatten().find(serves);
        let pid = found.and_then(|entry| entry.file_name().to_str()?.parse().ok());
        pid.and_then(rustix::process::Pid::from_raw)
            .expect("a process with the target in its arguments")
    }

    /// Takes away a mount whose server has died.
    pub(crate) fn drop_dead_mount(&self) {
        umount2(&self.at(""), MntFlags::MNT_DETACH).expect("umount of the dead mount");
        self.mounted.set(false);
    }

    /// Notes that the server has unmounted by itself.
    pub(crate) fn was_unmounted(&self) {
        self.mounted.set(false);
    }

    /// The private attribute with this suffix, `opaque` for example.
    pub(crate) fn private(&self, suffix: &str) -> String {
        let prefix = if self.userxattr.get() {
            "user"
        } else {
            "trusted"
        };
        format!("{prefix}.overlay.{suffix}")
    }

    /// A path beside the layers, for scratch files on the same file system.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Lower layer `index`, 0 the topmost; made when it's first asked for.
    pub(crate) fn layer(&self, index: usize) -> PathBuf {
        let path = self.dir.join(format!("l{index}"));
        for missing in self.layers.get()..=index {
            fs::create_dir(self.dir.join(format!("l{missing}"))).expect("a layer");
            self.layers.set(missing + 1);
        }
        path
    }

    /// Data-only layer `index`, 0 the topmost; made when it's first asked for.
    pub(crate) fn data_layer(&self, index: usize) -> PathBuf {
        let path = self.dir.join(format!("d{index}"));
        for missing in self.data_layers.get()..=index {
            fs::create_dir(self.dir.join(format!("d{missing}"))).expect("a layer");
            self.data_layers.set(missing + 1);
        }
        path
    }

    /// Plants entries (see [`plant`]) in the only lower layer, or the topmost.
    pub(crate) fn lower(&self, entries: &[&str]) {
        self.lower_at(0, entries);
    }

    /// Plants entries in lower layer `index`.
    pub(crate) fn lower_at(&self, index: usize, entries: &[&str]) {
        plant(&self.layer(index), &self.private("opaque"), entries);
    }

    /// Plants entries in the upper layer, before the mount.
    pub(crate) fn upper_has(&self, entries: &[&str]) {
        assert!(
            !self.mounted.get(),
            "the upper layer of a live mount is not ours"
        );
        if self.form.get() == Upper::Dotted {
            return self.plant_dotted(entries);
        }
        plant(&self.upper(""), &self.private("opaque"), entries);
    }

    /// A path in the topmost lower layer.
    pub(crate) fn low(&self, path: &str) -> PathBuf {
        join(&self.dir.join("l0"), path)
    }

    /// A path in the upper layer.
    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        join(&self.upper_base().join("u"), path)
    }

    /// A path in the work directory.
    pub(crate) fn work(&self, path: &str) -> PathBuf {
        join(&self.upper_base().join("w"), path)
    }

    /// A path in the merged tree.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        assert!(self.mounted.get(), "not mounted");
        join(&self.dir.join("m"), path)
    }

    /// The merged tree as the language of [`plant`] shows it.
    pub(crate) fn sketch(&self) -> Vec<String> {
        sketch(&self.at(""))
    }

    /// What the upper layer holds, after everything was written.
    pub(crate) fn upper_sketch(&self) -> Vec<String> {
        self.flush();
        if self.form.get() == Upper::Dotted {
            return self.upgraded_sketch();
        }
        sketch(&self.upper(""))
    }

    /// Text of a file in the merged tree.
    #[track_caller]
    pub(crate) fn read(&self, path: &str) -> String {
        let bytes = fs::read(self.at(path)).unwrap_or_else(|e| panic!("reading {path}: {e}"));
        String::from_utf8(bytes).expect("text")
    }

    /// Makes or overwrites a file in the merged tree.
    #[track_caller]
    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap_or_else(|e| panic!("writing {path}: {e}"));
    }

    /// Appends to a file in the merged tree.
    #[track_caller]
    pub(crate) fn append(&self, path: &str, text: &str) {
        use std::io::Write;
        let file = fs::OpenOptions::new().append(true).open(self.at(path));
        let mut file = file.unwrap_or_else(|e| panic!("opening {path}: {e}"));
        file.write_all(text.as_bytes())
            .unwrap_or_else(|e| panic!("appending {path}: {e}"));
    }

    /// Whether the merged tree has this name.
    pub(crate) fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(path)).is_ok()
    }

    /// Mounts; remembers what the lower layers hold.
    #[track_caller]
    pub(crate) fn mount(&self) {
        if let Err(why) = self.try_mount() {
            panic!("mount: {why}");
        }
    }

    /// As [`Tree::mount`], with the error as text.
    pub(crate) fn try_mount(&self) -> Result<(), String> {
        assert!(!self.mounted.get(), "mounted already");
        if self.check_lowers.get() && self.lowers.borrow().is_empty() {
            let data = (0..self.data_layers.get()).map(|index| self.dir.join(format!("d{index}")));
            let lowers = (0..self.layers.get()).map(|index| self.dir.join(format!("l{index}")));
            let lowers = lowers.chain(data);
            *self.lowers.borrow_mut() = lowers.map(|l| (l.clone(), Snapshot::of(&l))).collect();
        }
        match self.carrier.get() {
            Carrier::Kernel => self.mount_kernel()?,
            Carrier::Fuse => self.mount_fuse()?,
        }
        self.mounted.set(true);
        Ok(())
    }

    /// Unmounts and mounts again.
    #[track_caller]
    pub(crate) fn remount(&self) {
        self.umount();
        self.mount();
    }

    /// Unmounts; everything is written then.
    #[track_caller]
    pub(crate) fn umount(&self) {
        let target = self.at("");
        let mut patience = 500;
        let done = loop {
            let done = match self.carrier.get() {
                Carrier::Kernel => umount2(&target, MntFlags::empty()).map_err(|e| e.to_string()),
                Carrier::Fuse => self.overfall(&[OsString::from("umount"), target.clone().into()]),
            };
            // Another test's thread may be between fork and exec, and its child then holds a copy
            // of every descriptor for a moment.
            let busy = done.as_ref().is_err_and(|why| why.contains("busy"));
            if !busy || patience == 0 {
                break done;
            }
            patience -= 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        // A child of another test may hold a copy of the mount for as long as it runs; a watched
        // server is waited for below.
        let elsewhere = |why: &String| why.contains("in a mount namespace of its own");
        match done {
            Err(why) if self.watch.borrow().is_some() && elsewhere(&why) => {}
            Err(why) if elsewhere(&why) => wait_for_server(&why),
            Err(why) => panic!("umount: {why}"),
            Ok(()) => {}
        }
        self.mounted.set(false);
        if let Some(watch) = &mut *self.watch.borrow_mut() {
            watch.wait();
        }
    }

    /// Takes the lower layers as they are at the next mount for what they were.
    pub(super) fn forget_lowers(&self) {
        self.lowers.borrow_mut().clear();
    }

    /// Writes the merged tree's dirty data to the layers.
    pub(crate) fn flush(&self) {
        if self.mounted.get() {
            let root = File::open(self.at("")).expect("the mount's root");
            rustix::fs::syncfs(root).expect("syncfs");
        }
    }

    /// What must hold after every test: it unmounts, the work directory is clean and no lower
    /// layer has changed.
    pub(crate) fn finish(&self) {
        if self.mounted.get() {
            self.umount();
        }
        self.assert_no_panic();
        for (path, before) in self.lowers.borrow().iter() {
            before.assert_same("lower before", &Snapshot::of(path), "lower after");
        }
        if self.carrier.get() == Carrier::Fuse && self.work("work").exists() {
            let mut left = sketch(&self.work("work"));
            if self.form.get() == Upper::Dotted {
                left.retain(|line| !line.starts_with("incompat"));
            }
            assert_eq!(left, [""; 0], "left in the work directory");
        }
        if self.small_disk.replace(false) {
            self.umount_disk();
        }
    }

    /// Ends what a stuck or failed test left: never blocks.
    pub(crate) fn abandon(dir: &Path) {
        let target = dir.join("m");
        let _ = umount2(&target, MntFlags::MNT_FORCE);
        let _ = umount2(&target, MntFlags::MNT_DETACH);
        for below in ["disk", "served"] {
            let _ = umount2(&dir.join(below), MntFlags::MNT_DETACH);
        }
    }

    fn layer_options(&self) -> Vec<(&'static str, OsString)> {
        let lowers =
            (0..self.layers.get()).map(|i| self.dir.join(format!("l{i}")).into_os_string());
        let lowers: Vec<_> = lowers.map(OsString::into_vec).collect();
        let mut lowers = lowers.join(&b':');
        for index in 0..self.data_layers.get() {
            lowers.extend_from_slice(b"::");
            let layer = self.dir.join(format!("d{index}"));
            lowers.extend_from_slice(layer.as_os_str().as_bytes());
        }
        let mut options = vec![("lowerdir", OsString::from_vec(lowers))];
        if !self.read_only.get() {
            options.push(("upperdir", self.upper_base().join("u").into()));
            options.push(("workdir", self.upper_base().join("w").into()));
        }
        options
    }

    fn option_string(&self, extra: &[&str]) -> OsString {
        let mut options: Vec<Vec<u8>> = self
            .layer_options()
            .into_iter()
            .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
            .collect();
        options.extend(
            self.options
                .borrow()
                .iter()
                .map(|option| option.clone().into_bytes()),
        );
        options.extend(extra.iter().map(|option| option.as_bytes().to_vec()));
        options.extend(
            self.plain_options()
                .map(|option| option.as_bytes().to_vec()),
        );
        if self.userxattr.get() {
            options.push(b"userxattr".to_vec());
        }
        OsString::from_vec(options.join(&b','))
    }

    /// What a machine's defaults may turn on, unless the test has chosen.
    fn plain_options(&self) -> impl Iterator<Item = &'static str> {
        let chosen = self.options.borrow().join(",");
        let userxattr = self.userxattr.get();
        let plain = [
            "index=off",
            "xino=off",
            "redirect_dir=nofollow",
            "metacopy=off",
        ];
        plain.into_iter().filter(move |option| {
            let (name, _) = option.split_once('=').expect("a value");
            let implied = name == "redirect_dir" && chosen.contains("metacopy=on");
            let forbidden = userxattr && matches!(name, "redirect_dir" | "metacopy");
            !implied && !forbidden && !chosen.contains(&format!("{name}="))
        })
    }

    fn mount_kernel(&self) -> Result<(), String> {
        let target = self.dir.join("m");
        let options = self.option_string(&[]);
        if options.len() > 4000 {
            return self
                .mount_kernel_by_parts(&target)
                .map_err(|e| e.to_string());
        }
        // Another test's server may still hold a copy of the mount that was here before.
        let mut patience = 1000;
        loop {
            let kind = Some("overlay");
            let options = Some(&*options);
            match mount(kind, &target, kind, MsFlags::empty(), options) {
                Err(nix::errno::Errno::EBUSY) if patience > 0 => patience -= 1,
                result => return result.map_err(|e| e.to_string()),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// mount(2) takes one page of options; more layers than that go through fsconfig(2).
    fn mount_kernel_by_parts(&self, target: &Path) -> rustix::io::Result<()> {
        let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for index in 0..self.layers.get() {
            let layer = self.dir.join(format!("l{index}"));
            rustix::mount::fsconfig_set_string(&fs, "lowerdir+", layer.as_os_str())?;
        }
        for (name, value) in &self.layer_options()[1..] {
            rustix::mount::fsconfig_set_string(&fs, *name, value.as_os_str())?;
        }
        if self.userxattr.get() {
            rustix::mount::fsconfig_set_flag(&fs, "userxattr")?;
        }
        rustix::mount::fsconfig_create(&fs)?;
        let mount =
            rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", CWD, target, flags)
    }

    fn mount_fuse(&self) -> Result<(), String> {
        let extra: &[&str] = if self.real_root {
            &["allow_other"]
        } else {
            &[]
        };
        let mut arguments: Vec<OsString> =
            ["mount", "--backend", "fuse"].map(OsString::from).into();
        // A whole run with other options: with the kernel's write-back cache, for example.
        if let Some(more) = std::env::var_os("OVERFALL_TEST_OPTIONS") {
            arguments.extend(["-o".into(), more]);
        }
        arguments.push("-o".into());
        arguments.extend([self.option_string(extra), self.dir.join("m").into()]);
        match &mut *self.watch.borrow_mut() {
            Some(watch) => {
                arguments.insert(1, "--foreground".into());
                match self.form.get() {
                    Upper::Kernels => watch.start(&arguments),
                    Upper::Dotted => without_whiteouts(|| watch.start(&arguments)),
                }
            }
            None if self.form.get() == Upper::Dotted => {
                let log = self.dir.join("overfall.log");
                let missing = self.missing_calls.borrow();
                let missing = missing.as_slice();
                without_whiteouts(|| overfall(&log, &arguments, missing))
            }
            None => self.overfall(&arguments),
        }
    }

    /// Runs the real binary. Its output goes to a file: a server that keeps the descriptor must
    /// not hang the test that waits for the end of a pipe.
    pub(super) fn overfall(&self, arguments: &[OsString]) -> Result<(), String> {
        let missing = self.missing_calls.borrow();
        overfall(&self.dir.join("overfall.log"), arguments, &missing)
    }
}

fn overfall(log: &Path, arguments: &[OsString], missing: &[i64]) -> Result<(), String> {
    let output = File::create(log).map_err(|e| e.to_string())?;
    let mut command = Command::new(super::suite::overfall_binary());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(|e| e.to_string())?)
        .stderr(output);
    let status = if missing.is_empty() {
        command.status()
    } else {
        let calls = missing.iter().map(|call| (*call, Vec::new()));
        refusing(calls, rustix::io::Errno::NOSYS, || command.status())
    };
    let status = status.map_err(|e| format!("overfall: {e}"))?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(log).unwrap_or_default();
    Err(format!("overfall: {status}: {}", said.trim()))
}

impl Drop for Tree {
    /// Of a test that failed: what is still mounted goes, so that the next test finds no trace.
    fn drop(&mut self) {
        if self.mounted.get() {
            Self::abandon(&self.dir);
        }
        if let Some(watch) = &mut *self.watch.borrow_mut() {
            watch.wait();
        }
    }
}

/// Waits for the server that an error names.
fn wait_for_server(why: &str) {
    let number = why.split("its server (process ").nth(1);
    let number = number.and_then(|rest| rest.split(')').next());
    let place = Path::new("/proc").join(number.expect("a server's number"));
    wait_until(why, || !place.exists());
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < end, "{what}: it takes too long");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn is_on_a_loop_device(image: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut files = devices.map(|device| device.path().join("loop/backing_file"));
    files.any(|file| {
        fs::read(file).is_ok_and(|name| name.trim_ascii_end() == image.as_os_str().as_bytes())
    })
}

fn join(root: &Path, path: &str) -> PathBuf {
    if path.is_empty() {
        root.to_path_buf()
    } else {
        root.join(path)
    }
}
