//! Inode flags: what lsattr and chattr do.

use std::fs::{self, File};
use std::process::Command;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::common::{Carrier, Limit, Tree, cases, fails, open_rw, skip, stat};

const ROOT: Limit = Limit::Root("append-only and immutable need CAP_LINUX_IMMUTABLE");

cases! {
    flags_of_lower_and_upper,
    flag_on_a_lower_file_copies_it_up,
    flags_of_directories,
    flags_that_a_copy_keeps,
    flags_of_an_unlinked_file,
    flags_that_a_directory_passes_on: ROOT,
    reading_flags_copies_nothing,
    lsattr_and_chattr,
    append_only: ROOT,
    append_only_new_file: ROOT,
    immutable: ROOT,
    append_only_and_immutable_directories: Limit::Fuse("the kernel's overlay forbids what it shows"),
}

fn flags(t: &Tree, path: &str) -> IFlags {
    match ioctl_getflags(File::open(t.at(path)).unwrap()) {
        Err(rustix::io::Errno::NOTTY | rustix::io::Errno::OPNOTSUPP) if unsupported_below(t) => {
            skip("the layers' file system has no inode flags")
        }
        result => result.unwrap(),
    }
}

fn unsupported_below(t: &Tree) -> bool {
    ioctl_getflags(File::open(t.low("")).unwrap()).is_err()
}

fn set(t: &Tree, path: &str, flags: IFlags) -> rustix::io::Result<()> {
    ioctl_setflags(File::open(t.at(path)).unwrap(), flags)
}

fn flags_of_lower_and_upper(t: &Tree) {
    t.lower(&["low=L"]);
    t.mount();
    t.write("up", "U");
    for (name, real) in [("low", t.low("low")), ("up", t.upper("up"))] {
        let below = ioctl_getflags(File::open(real).unwrap()).unwrap_or(IFlags::empty());
        assert_eq!(flags(t, name), below, "{name}");
    }
}

fn flag_on_a_lower_file_copies_it_up(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let before = flags(t, "f");
    set(t, "f", before | IFlags::NODUMP | IFlags::NOATIME).unwrap();
    assert_eq!(flags(t, "f"), before | IFlags::NODUMP | IFlags::NOATIME);
    assert_eq!(t.upper_sketch(), ["f=F"]);
    assert!(!ioctl_getflags(File::open(t.low("f")).unwrap()).unwrap().contains(IFlags::NODUMP));
    t.remount();
    assert!(flags(t, "f").contains(IFlags::NODUMP));
    set(t, "f", before).unwrap();
    assert_eq!(flags(t, "f"), before);
}

fn flags_of_directories(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    let before = flags(t, "d");
    set(t, "d", before | IFlags::NODUMP).unwrap();
    assert!(flags(t, "d").contains(IFlags::NODUMP));
    assert_eq!(t.sketch(), ["d/", "d/f=F"]);
    set(t, "d", before).unwrap();
}

fn flags_that_a_copy_keeps(t: &Tree) {
    let kept = IFlags::SYNC | IFlags::NOATIME;
    t.lower(&["f=F", "d/"]);
    for name in ["f", "d"] {
        let file = File::open(t.low(name)).unwrap();
        let flags = ioctl_getflags(&file);
        if flags.and_then(|flags| ioctl_setflags(&file, flags | kept | IFlags::NODUMP)).is_err() {
            skip("the layers' file system has no such flags");
        }
    }
    t.mount();
    for name in ["f", "d"] {
        crate::common::chmod(t.at(name), 0o700);
        assert_eq!(flags(t, name) & (kept | IFlags::NODUMP), kept, "{name}");
    }
}

fn flags_of_an_unlinked_file(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let before = flags(t, "f");
    t.append("f", "+");
    let file = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    ioctl_setflags(&file, before | IFlags::NODUMP).unwrap();
    assert_eq!(ioctl_getflags(&file).unwrap(), before | IFlags::NODUMP);
}

/// What another user makes is made in the work directory and gets none.
fn flags_that_a_directory_passes_on(t: &Tree) {
    t.lower(&["d/"]);
    crate::common::chmod(t.low("d"), 0o777);
    t.mount();
    let before = flags(t, "d");
    set(t, "d", before | IFlags::NODUMP).unwrap();
    fs::create_dir(t.upper("d/beside")).unwrap();
    let inherited = ioctl_getflags(File::open(t.upper("d/beside")).unwrap()).unwrap();
    fs::remove_dir(t.upper("d/beside")).unwrap();
    fs::create_dir(t.at("d/root")).unwrap();
    let path = t.at("d/other");
    crate::common::as_user(1234, 1234, || fs::create_dir(&path).unwrap());
    let others = match t.carrier() {
        Carrier::Kernel => inherited,
        Carrier::Fuse => before,
    };
    for (name, expected) in [("d/root", inherited), ("d/other", others)] {
        assert_eq!(flags(t, name) & IFlags::NODUMP, expected & IFlags::NODUMP, "{name}");
    }
    set(t, "d", before).unwrap();
}

fn reading_flags_copies_nothing(t: &Tree) {
    t.lower(&["f=F", "d/"]);
    t.mount();
    flags(t, "f");
    flags(t, "d");
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn lsattr_and_chattr(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    flags(t, "f");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(t.at("f")).output();
        let output = output.unwrap_or_else(|e| skip(format!("{program}: {e}")));
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run("chattr", &["+d"]);
    assert!(run("lsattr", &[]).split(' ').next().unwrap().contains('d'));
    run("chattr", &["-d"]);
    assert!(!run("lsattr", &[]).split(' ').next().unwrap().contains('d'));
}

/// The kernel refuses the open. Our server isn't asked about opens, so it refuses the write.
fn refused(opened: std::io::Result<fs::File>) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    opened?.write_all_at(b"X", 0)
}

fn append_only(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    check_append_only(t);
}

fn append_only_new_file(t: &Tree) {
    t.mount();
    t.write("f", "F");
    check_append_only(t);
}

fn check_append_only(t: &Tree) {
    let before = flags(t, "f");
    set(t, "f", before | IFlags::APPEND).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        assert!(flags(t, "f").contains(IFlags::APPEND));
        t.append("f", "+");
        fails(refused(fs::OpenOptions::new().write(true).open(t.at("f"))), libc::EPERM);
        fails(fs::remove_file(t.at("f")), libc::EPERM);
    }));
    set(t, "f", before).unwrap();
    outcome.unwrap_or_else(|payload| std::panic::resume_unwind(payload));
    assert_eq!(t.read("f"), "F+");
    open_rw(t.at("f")).set_len(0).unwrap();
}

fn immutable(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let before = flags(t, "f");
    set(t, "f", before | IFlags::IMMUTABLE).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fails(refused(fs::OpenOptions::new().append(true).open(t.at("f"))), libc::EPERM);
        fails(fs::rename(t.at("f"), t.at("g")), libc::EPERM);
        fails(crate::common::xattr_set(t.at("f"), "user.x", b"1"), libc::EPERM);
    }));
    set(t, "f", before).unwrap();
    outcome.unwrap_or_else(|payload| std::panic::resume_unwind(payload));
    t.append("f", "+");
    assert_eq!(stat(t.at("f")).len(), 2);
}

/// The flags are the upper directory's own, so that nothing can be copied up below an immutable one;
/// and a whiteout is a new name, which an append-only directory may get.
fn append_only_and_immutable_directories(t: &Tree) {
    if !t.is_real_root() {
        skip("append-only and immutable need CAP_LINUX_IMMUTABLE");
    }
    t.lower(&["d/s/f=F", "a/f=F"]);
    t.mount();
    let before = flags(t, "d");
    set(t, "d", before | IFlags::IMMUTABLE).unwrap();
    set(t, "a", before | IFlags::APPEND).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fails(fs::write(t.at("d/new"), "N"), libc::EPERM);
        fails(refused(fs::OpenOptions::new().write(true).open(t.at("d/s/f"))), libc::EPERM);
        t.write("a/new", "N");
        fails(fs::remove_file(t.at("a/new")), libc::EPERM);
        fs::remove_file(t.at("a/f")).unwrap();
    }));
    set(t, "d", before).unwrap();
    set(t, "a", before).unwrap();
    outcome.unwrap_or_else(|payload| std::panic::resume_unwind(payload));
    assert_eq!(t.sketch(), ["a/", "a/new=N", "d/", "d/s/", "d/s/f=F"]);
}
