//! Inode flags: what lsattr and chattr do.

use std::fs::{self, File};
use std::process::Command;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::common::{Limit, Tree, cases, fails, open_rw, skip, stat};

const ROOT: Limit = Limit::Root("append-only and immutable need CAP_LINUX_IMMUTABLE");

cases! {
    flags_of_lower_and_upper,
    flag_on_a_lower_file_copies_it_up,
    flags_of_directories,
    reading_flags_copies_nothing,
    lsattr_and_chattr,
    append_only: ROOT,
    append_only_new_file: ROOT,
    immutable: ROOT,
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
