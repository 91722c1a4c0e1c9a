//! Rules of the kernel's document (`overlayfs.rst`), and what programs ask of any file system, that
//! no other family has: what lies beside the overlay, and what passes through it to the layers.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{AtFlags, CWD, StatxFlags, inotify};

use crate::common::{
    Carrier, Limit, Tree, cases, fails, plant, sketch, skip, stat, xattr_get, xattr_set,
};

cases! {
    attributes_are_those_of_the_upper_directory,
    lower_on_a_read_only_file_system,
    any_file_system_will_do_without_an_upper,
    layers_on_another_overlay: Limit::Root("the kernel's own overlay nests as root only"),
    layers_are_shared,
    upper_may_change_while_it_is_not_mounted,
    redirects_by_the_machines_setting: Limit::Root("never followed with userxattr"),
    program_that_runs_is_busy,
    locks_and_watches_name_the_number,
    file_handles: Limit::Root("opening a handle needs CAP_DAC_READ_SEARCH"),
    map_of_extents,
    clone_of_a_file,
    creation_time,
    type_of_the_file_system,
    sync_of_the_file_system,
}

fn attributes_are_those_of_the_upper_directory(t: &Tree) {
    t.lower(&["d/f=F"]);
    xattr_set(t.low("d"), "user.low", b"1").unwrap();
    t.upper_has(&["d/g=G"]);
    xattr_set(t.upper("d"), "user.up", b"1").unwrap();
    t.mount();
    assert_eq!(xattr_get(t.at("d"), "user.low"), None);
    assert_eq!(xattr_get(t.at("d"), "user.up").as_deref(), Some(&b"1"[..]));
    assert_eq!(stat(t.at("d")).mtime(), stat(t.upper("d")).mtime());
    assert_eq!(t.sketch(), ["d/", "d/f=F", "d/g=G"]);
}

/// A file system of this type in the directory of a lower layer, as long as it lives.
struct Below<'t>(&'t Tree, usize);

impl<'t> Below<'t> {
    fn new(t: &'t Tree, layer: usize, kind: &str, fill: &[&str]) -> Self {
        let dir = t.layer(layer);
        mount(Some(kind), &dir, Some(kind), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|e| skip(format!("{kind}: {e}")));
        let below = Self(t, layer);
        t.lower_at(layer, fill);
        below
    }

    fn remount(&self, flags: MsFlags) {
        let flags = flags | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &self.0.layer(self.1), None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Below<'_> {
    fn drop(&mut self) {
        let _ = umount2(&self.0.layer(self.1), MntFlags::MNT_DETACH);
    }
}

fn lower_on_a_read_only_file_system(t: &Tree) {
    t.lowers_may_change();
    let below = Below::new(t, 0, "tmpfs", &["a=A", "d/f=F"]);
    below.remount(MsFlags::MS_RDONLY);
    t.mount();
    t.append("a", "+");
    t.append("d/f", "+");
    fs::remove_file(t.at("a")).unwrap();
    t.remount();
    assert_eq!(t.sketch(), ["d/", "d/f=F+"]);
    t.umount();
}

fn any_file_system_will_do_without_an_upper(t: &Tree) {
    t.lowers_may_change();
    // It knows no attributes at all.
    let _top = Below::new(t, 0, "ramfs", &["a=A", "d/f=F"]);
    let _bottom = Below::new(t, 1, "ramfs", &["a=hidden", "d/g=G", "l->a"]);
    t.without_upper();
    t.mount();
    assert_eq!(t.sketch(), ["a=A", "d/", "d/f=F", "d/g=G", "l->a"]);
    t.umount();
}

/// Shows what a further overlay with these options shows while `work` changes it.
fn further(t: &Tree, by: Carrier, options: &str, work: impl FnOnce(&Path)) -> Vec<String> {
    let target = t.beside("further");
    fs::create_dir_all(&target).unwrap();
    let overfall = |args: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_overfall")).args(args).status().unwrap();
        assert!(done.success(), "overfall {args:?}: {done}");
    };
    let path = target.to_str().expect("a path in ASCII");
    match by {
        Carrier::Kernel => {
            let attributes = if t.is_real_root() { "" } else { ",userxattr" };
            let options = format!("{options}{attributes}");
            mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(&*options))
                .unwrap_or_else(|e| panic!("{options}: {e}"));
        }
        Carrier::Fuse => overfall(&["mount", "--backend=fuse", "-o", options, path]),
    }
    let seen = sketch(&target);
    work(&target);
    match by {
        Carrier::Kernel => umount2(path, MntFlags::empty()).unwrap(),
        Carrier::Fuse => overfall(&["umount", path]),
    }
    seen
}

/// The kernel's overlay over ours, and ours over the kernel's: escaped attributes and whiteouts
/// of the inner one are plain ones to the outer.
fn layers_on_another_overlay(t: &Tree) {
    t.lower(&["a=A", "b=B", "d/f=F", "d/g=G", "x/"]);
    t.mount();
    t.write("x/white", "");
    fs::remove_file(t.at("a")).unwrap();
    for (path, suffix, value) in [
        ("x/white", "whiteout", &b""[..]),
        ("x", "opaque", b"x"),
        ("", "opaque", b"x"),
        ("d", "opaque", b"y"),
    ] {
        xattr_set(t.at(path), &t.private(suffix), value).unwrap();
    }
    let dirs = ["base", "up", "work"].map(|name| t.beside(name));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let [base, up, work] = dirs.each_ref().map(|dir| dir.display());
    plant(&dirs[0], &t.private("opaque"), &["a=below", "x/white=W", "x/seen=S", "d/h=H"]);
    let inner = t.at("");
    let options = format!("lowerdir={}:{base},upperdir={up},workdir={work}", inner.display());
    let seen = further(t, Carrier::Kernel, &options, |outer| {
        fs::write(outer.join("b"), "changed").unwrap();
    });
    assert_eq!(seen, ["a=below", "b=B", "d/", "d/f=F", "d/g=G", "x/", "x/seen=S"]);
    let seen = further(t, Carrier::Fuse, &options, |outer| {
        fs::write(outer.join("d/f"), "changed").unwrap();
    });
    assert_eq!(seen, ["a=below", "b=changed", "d/", "d/f=F", "d/g=G", "x/", "x/seen=S"]);
    assert_eq!((t.read("b"), t.read("d/f")), ("B".into(), "F".into()), "lowers are not written to");
}

fn layers_are_shared(t: &Tree) {
    t.lower(&["a=A", "d/f=F"]);
    t.lower_at(1, &["b=B"]);
    t.mount();
    t.write("a", "one");
    let options = format!("lowerdir={}:{}", t.layer(1).display(), t.low("d").display());
    let seen = further(t, t.carrier(), &options, |_| t.append("d/f", "+"));
    assert_eq!(seen, ["b=B", "f=F"]);
    assert_eq!(t.sketch(), ["a=one", "b=B", "d/", "d/f=F+"]);
}

fn upper_may_change_while_it_is_not_mounted(t: &Tree) {
    t.lower(&["a=A", "b=B", "d/f=F"]);
    t.mount();
    t.append("a", "+");
    t.append("d/f", "+");
    fs::remove_file(t.at("b")).unwrap();
    t.umount();
    fs::write(t.upper("a"), "offline").unwrap();
    fs::remove_file(t.upper("b")).unwrap();
    fs::remove_dir_all(t.upper("d")).unwrap();
    t.upper_has(&["new/x=X"]);
    t.mount();
    assert_eq!(t.sketch(), ["a=offline", "b=B", "d/", "d/f=F", "new/", "new/x=X"]);
}

fn redirects_by_the_machines_setting(t: &Tree) {
    t.lower(&["d/top=T"]);
    t.lower_at(1, &["elsewhere/low=L", "d/low=hidden"]);
    xattr_set(t.low("d"), &t.private("redirect"), b"elsewhere").unwrap();
    t.option("redirect_dir=off");
    t.mount();
    let setting = fs::read_to_string("/sys/module/overlay/parameters/redirect_always_follow");
    let setting = setting.unwrap_or_else(|e| skip(format!("the module's setting: {e}")));
    if setting.trim() == "Y" {
        assert_eq!(t.sketch(), ["d/", "d/low=L", "d/top=T", "elsewhere/", "elsewhere/low=L"]);
    } else {
        fails(fs::metadata(t.at("d")), libc::EPERM);
    }
}

fn program_that_runs_is_busy(t: &Tree) {
    t.lower(&[]);
    // By another process, so that no child of another test's thread holds it open for writing.
    let copied = Command::new("cp").arg("/bin/sleep").arg(t.low("sleep")).status();
    assert!(copied.unwrap().success());
    t.mount();
    let mut running = Command::new(t.at("sleep")).arg("60").stdin(Stdio::null()).spawn().unwrap();
    let written = OpenOptions::new().write(true).open(t.at("sleep"));
    let cut = nix::unistd::truncate(&t.at("sleep"), 0);
    running.kill().unwrap();
    running.wait().unwrap();
    fails(written, libc::ETXTBSY);
    fails(cut, libc::ETXTBSY);
}

fn locks_and_watches_name_the_number(t: &Tree) {
    t.lower(&["f=F", "d/x=X"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let number = format!(":{} ", stat(t.at("f")).ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    assert!(locks.contains(&number), "{number} isn't in {locks}");
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, t.at("d"), inotify::WatchFlags::ALL_EVENTS).unwrap();
    let info = format!("/proc/self/fdinfo/{}", watch.as_raw_fd());
    let info = fs::read_to_string(info).unwrap();
    let number = format!("ino:{:x} ", stat(t.at("d")).ino());
    assert!(info.contains(&number), "{number} isn't in {info}");
    t.write("d/new", "N");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let event = events.next().expect("an event");
    assert_eq!(event.file_name().map(|name| name.to_bytes()), Some(&b"new"[..]));
}

fn file_handles(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let root = File::open(t.at("")).unwrap();
    let handle = overfall::sys::handle::of(root.as_fd(), "f".as_ref());
    match t.carrier() {
        Carrier::Kernel => assert_eq!(handle.unwrap_err(), rustix::io::Errno::OPNOTSUPP),
        Carrier::Fuse => {
            // Good for as long as the server knows the object, not for an NFS server.
            t.append("f", "+");
            let opened = overfall::sys::handle::open(root.as_fd(), &handle.unwrap()).unwrap();
            assert_eq!(rustix::fs::fstat(&opened).unwrap().st_ino, stat(t.at("f")).ino());
        }
    }
}

fn map_of_extents(t: &Tree) {
    t.lower(&["f=content"]);
    t.mount();
    t.append("f", "+");
    t.flush();
    let seen = Command::new("filefrag").arg("-v").arg(t.at("f")).output();
    let seen = seen.unwrap_or_else(|e| skip(format!("filefrag: {e}")));
    let all = [seen.stdout, seen.stderr].concat();
    let all = String::from_utf8_lossy(&all);
    let below = Command::new("filefrag").arg("-v").arg(t.upper("f")).output().unwrap();
    if !String::from_utf8_lossy(&below.stdout).contains("1 extent found") {
        skip("the layers' file system maps no extents");
    }
    let mapped = all.contains("1 extent found");
    assert_eq!(mapped, t.carrier() == Carrier::Kernel, "{all}");
}

fn clone_of_a_file(t: &Tree) {
    t.lower(&["f=content"]);
    t.mount();
    let (from, to) = (File::open(t.at("f")).unwrap(), File::create(t.at("clone")).unwrap());
    let cloned = rustix::fs::ioctl_ficlone(&to, &from);
    let below = (File::open(t.low("f")).unwrap(), File::create(t.beside("clone")).unwrap());
    let possible = rustix::fs::ioctl_ficlone(&below.1, &below.0).is_ok();
    assert_eq!(cloned.is_ok(), possible && t.carrier() == Carrier::Kernel, "{cloned:?}");
    // What programs do without being told to clone works everywhere.
    let copied = Command::new("cp").arg("--reflink=auto").args([t.at("f"), t.at("copy")]).status();
    assert!(copied.unwrap().success());
    assert_eq!(t.read("copy"), "content");
}

fn creation_time(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let known = |path| {
        let seen = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BTIME).unwrap();
        StatxFlags::from_bits_retain(seen.stx_mask).contains(StatxFlags::BTIME)
    };
    if !known(t.low("f")) {
        skip("the layers' file system has no creation times");
    }
    assert_eq!(known(t.at("f")), t.carrier() == Carrier::Kernel);
}

fn type_of_the_file_system(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let seen = rustix::fs::statfs(t.at("f")).unwrap();
    let expected = match t.carrier() {
        Carrier::Kernel => libc::OVERLAYFS_SUPER_MAGIC,
        Carrier::Fuse => libc::FUSE_SUPER_MAGIC,
    };
    assert_eq!(seen.f_type, expected);
    assert_eq!(seen.f_namelen, 255);
    let fsid = nix::sys::statvfs::statvfs(&t.at("f")).unwrap().filesystem_id();
    assert_eq!(fsid == 0, t.carrier() == Carrier::Fuse, "f_fsid {fsid}");
    let below = rustix::fs::statfs(t.upper("")).unwrap();
    assert_eq!((seen.f_blocks, seen.f_files), (below.f_blocks, below.f_files));
}

fn sync_of_the_file_system(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    t.append("f", "+");
    rustix::fs::syncfs(File::open(t.at("")).unwrap()).unwrap();
    assert_eq!(fs::read(t.upper("f")).unwrap(), b"F+");
}
