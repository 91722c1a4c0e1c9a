//! Inode flags: what lsattr and chattr do.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{IFlags, RenameFlags, ioctl_getflags, ioctl_setflags};

use crate::common::mmap::Mapping;
use crate::common::{Carrier, Limit, Tree, cases, fails, open_rw, skip, stat, xattr_get, xattr_set};

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
    append_only_and_mapped: ROOT,
    immutable: ROOT,
    append_only_and_immutable_directories: ROOT,
    protection_is_kept_beside_the_object: ROOT,
    protected_in_a_lower_layer: ROOT,
    malformed_protection,
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

fn append_only_and_mapped(t: &Tree) {
    t.mount();
    t.write("f", "F");
    let file = open_rw(t.at("f"));
    let before = flags(t, "f");
    set(t, "f", before | IFlags::APPEND).unwrap();
    let mapped = Mapping::try_new(&file, 1, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let synced = mapped.map(|mapped| {
        mapped.write(b"X");
        mapped.try_sync().map_err(|error| error.raw_os_error())
    });
    set(t, "f", before).unwrap();
    match t.carrier() {
        Carrier::Kernel => fails(synced, libc::EACCES),
        // Nobody is asked about a mapping, but about what it writes.
        Carrier::Fuse => assert_eq!(synced.unwrap(), Err(Some(libc::EPERM))),
    }
    drop(file);
    t.remount();
    assert_eq!(t.read("f"), "F");
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

/// What an upper object has in place of the flags.
fn protattr(t: &Tree, path: &str) -> Option<Vec<u8>> {
    xattr_get(t.upper(path), &t.private("protattr"))
}

/// Takes the flags off again, whatever became of the test: nobody could remove the tree otherwise.
fn with_flags(paths: &[(PathBuf, IFlags)], test: impl FnOnce()) {
    let set = |path: &PathBuf, flags| {
        let file = File::open(path).unwrap();
        let others = ioctl_getflags(&file)? - IFlags::APPEND - IFlags::IMMUTABLE;
        ioctl_setflags(&file, others | flags)
    };
    for (path, flags) in paths {
        set(path, *flags).unwrap_or_else(|errno| skip(format!("setting inode flags: {errno}")));
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
    for (path, _) in paths {
        set(path, IFlags::empty()).unwrap();
    }
    outcome.unwrap_or_else(|payload| std::panic::resume_unwind(payload));
}

fn append_only_and_immutable_directories(t: &Tree) {
    t.lower(&["d/s/f=F", "a/f=F", "a/g=G", "e/f=F"]);
    t.mount();
    let flags = [(t.at("d"), IFlags::IMMUTABLE), (t.at("a"), IFlags::APPEND)];
    with_flags(&flags, || {
        fails(fs::write(t.at("d/new"), "N"), libc::EPERM);
        fails(fs::remove_dir(t.at("d/s")), libc::EPERM);
        fails(fs::rename(t.at("d"), t.at("n")), libc::EPERM);
        fails(fs::rename(t.at("e/f"), t.at("d/f")), libc::EPERM);
        fails(fs::hard_link(t.at("e/f"), t.at("d/f")), libc::EPERM);
        // What is below isn't forbidden anything.
        t.append("d/s/f", "+");
        t.write("a/new", "N");
        fs::hard_link(t.at("e/f"), t.at("a/linked")).unwrap();
        fails(fs::remove_file(t.at("a/new")), libc::EPERM);
        fails(fs::remove_file(t.at("a/f")), libc::EPERM);
        fails(fs::rename(t.at("a/f"), t.at("a/n")), libc::EPERM);
        fails(fs::rename(t.at("e/f"), t.at("a/f")), libc::EPERM);
        fails(crate::common::rename2(&t.at("e/f"), &t.at("a/f"), RenameFlags::EXCHANGE), libc::EPERM);
        fails(fs::set_permissions(t.at("a"), fs::Permissions::from_mode(0o700)), libc::EPERM);
        for (name, letter) in [("d", b"i"), ("a", b"a")] {
            assert_eq!(protattr(t, name).as_deref(), Some(&letter[..]), "{name}");
        }
    });
    assert_eq!((protattr(t, "d"), protattr(t, "a")), (None, None));
    assert_eq!(
        t.sketch(),
        ["a/", "a/f=F", "a/g=G", "a/linked=F", "a/new=N", "d/", "d/s/", "d/s/f=F+", "e/", "e/f=F"]
    );
}

/// The upper object has an attribute for it, in whoever's mount it was set.
fn protection_is_kept_beside_the_object(t: &Tree) {
    t.lower(&["f=F", "d/"]);
    t.mount();
    let both = IFlags::APPEND | IFlags::IMMUTABLE;
    let paths = [(t.at("f"), both), (t.at("d"), IFlags::APPEND)];
    with_flags(&paths, || {
        assert_eq!(protattr(t, "f").as_deref(), Some(&b"ai"[..]));
        for name in ["f", "d"] {
            let real = ioctl_getflags(File::open(t.upper(name)).unwrap()).unwrap();
            assert!(!real.intersects(both), "{name}: {real:?}");
        }
        t.remount();
        assert!(flags(t, "f").contains(both));
        fails(fs::remove_file(t.at("f")), libc::EPERM);
        fails(fs::remove_dir(t.at("d")), libc::EPERM);
    });
}

fn protected_in_a_lower_layer(t: &Tree) {
    t.lower(&["i=I", "a=A", "id/f=F", "ad/f=F", "o=O"]);
    let flag = |name, flag| (t.low(name), flag);
    let paths = [
        flag("i", IFlags::IMMUTABLE),
        flag("id", IFlags::IMMUTABLE),
        flag("a", IFlags::APPEND),
        flag("ad", IFlags::APPEND),
    ];
    with_flags(&paths, || {
        t.mount();
        fails(refused(fs::OpenOptions::new().append(true).open(t.at("i"))), libc::EPERM);
        fails(refused(fs::OpenOptions::new().write(true).open(t.at("a"))), libc::EPERM);
        for name in ["i", "a"] {
            let at = t.at(name);
            fails(fs::remove_file(&at), libc::EPERM);
            fails(fs::rename(&at, t.at("n")), libc::EPERM);
            fails(fs::rename(t.at("o"), &at), libc::EPERM);
            fails(fs::hard_link(&at, t.at("n")), libc::EPERM);
            fails(fs::set_permissions(&at, fs::Permissions::from_mode(0o600)), libc::EPERM);
            fails(crate::common::xattr_set(&at, "user.x", b"1"), libc::EPERM);
            fails(nix::unistd::truncate(&at, 0), libc::EPERM);
            fails(rustix::fs::chown(&at, Some(rustix::fs::Uid::ROOT), None), libc::EPERM);
        }
        fails(fs::remove_file(t.at("id/f")), libc::EPERM);
        fails(fs::remove_file(t.at("ad/f")), libc::EPERM);
        fails(fs::write(t.at("id/n"), "N"), libc::EPERM);
        assert_eq!(t.upper_sketch(), [""; 0]);
        t.append("a", "+");
        t.append("id/f", "+");
        t.write("ad/n", "N");
        assert_eq!(t.upper_sketch(), ["a=A+", "ad/", "ad/n=N", "id/", "id/f=F+"]);
        for (name, letter) in [("a", b"a"), ("ad", b"a"), ("id", b"i")] {
            assert_eq!(protattr(t, name).as_deref(), Some(&letter[..]), "{name}");
        }
        for name in ["a", "ad", "id"] {
            set(t, name, flags(t, name) - IFlags::APPEND - IFlags::IMMUTABLE).unwrap();
        }
        fs::remove_dir_all(t.at("id")).unwrap();
    });
}

/// A value that means nothing forbids nothing.
fn malformed_protection(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    t.append("f", "+");
    t.umount();
    xattr_set(t.upper("f"), &t.private("protattr"), b"x").unwrap();
    t.mount();
    t.append("f", "+");
    fs::remove_file(t.at("f")).unwrap();
}
