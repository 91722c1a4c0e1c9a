//! `Snapshot`: the same on the kernel's overlay, on FUSE, and as a copy.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use overfall::Snapshot;
use overfall::snapshot::{Made, Means, MountedSnapshot, Progress};

use crate::bench::{By, Case, Place, Way, mounts_below, skip, until};
use crate::planted::{look, odd_name, plant};

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] = &[$((stringify!($name), $name)),*];
    };
}

cases! {
    it_shows_what_was_there,
    changes_go_with_it,
    past_the_size_is_enospc,
    only_changes_count,
    a_tiny_one_works,
    another_source,
    other_owners,
    nothing_else_shows,
    a_dropped_one_unmounts,
    one_can_be_left_to_its_namespace,
    two_at_once,
    hard_links_stay_links,
    killed_while_it_is_made,
    one_of_a_snapshot,
    what_is_mounted_below_is_not_part,
    auto_takes_the_first_that_works,
    bad_input_is_one_line,
}

impl Place {
    fn snapshot(&self, target: &Path) -> Snapshot {
        let means = match self.by {
            By::Kernel => Means::Kernel,
            By::Fuse => Means::Fuse,
            By::Copy => Means::Copy,
        };
        Snapshot::of(target).means(means).progress(Progress::Silent)
    }

    #[track_caller]
    fn take(&self, snapshot: Snapshot) -> MountedSnapshot {
        let mounted = snapshot.mount().unwrap_or_else(|error| panic!("{error}"));
        let made = match self.by {
            By::Kernel => Made::Kernel,
            By::Fuse => Made::Fuse,
            By::Copy => Made::Copy,
        };
        assert_eq!(mounted.means(), made);
        mounted
    }
}

/// Modification times of directories, which `look` leaves out.
fn times(top: &Path) -> Vec<(i64, i64)> {
    let times = |name: &&str| {
        let meta = top.join(name).symlink_metadata().unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    ["", "dir", "dir/deep", "empty", "closed", "link", "fifo"]
        .iter()
        .map(times)
        .collect()
}

fn it_shows_what_was_there(place: &Place) {
    let top = plant(place, "top");
    let (before, dated) = (look(&top), times(&top));
    let snapshot = place.take(place.snapshot(&top));
    look(&top).assert_same("inside", &before, "outside");
    assert_eq!(times(&top), dated);
    let [one, two] = ["dir/one", "dir/two"].map(|name| top.join(name).metadata().unwrap());
    assert_eq!((one.nlink(), two.nlink()), (2, 2));
    assert_eq!(one.ino(), two.ino());
    let sparse = top.join("sparse").metadata().unwrap();
    assert!(
        sparse.blocks() * 512 < 1 << 20,
        "{} blocks",
        sparse.blocks()
    );
    snapshot.unmount().unwrap();
    look(&top).assert_same("afterwards", &before, "before");
}

fn changes_go_with_it(place: &Place) {
    let top = plant(place, "top");
    let (before, dated) = (look(&top), times(&top));
    let snapshot = place.take(place.snapshot(&top));
    let at = |name: &str| top.join(name);
    File::options()
        .append(true)
        .open(at("file"))
        .unwrap()
        .write_all(b"y\n")
        .unwrap();
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "hello\ny\n");
    assert_eq!(at("file").metadata().unwrap().mode() & 0o7777, 0o640);
    fs::remove_file(at("suid")).unwrap();
    fs::remove_dir_all(at("dir")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/new"), "new\n").unwrap();
    fs::rename(at("fifo"), at("pipe")).unwrap();
    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(at("closed/in"), "out\n").unwrap();
    let file = File::options().write(true).open(at("sparse")).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    let mut names: Vec<_> = fs::read_dir(&top)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let mut wanted: Vec<std::ffi::OsString> = [
        "closed", "dangling", "dir", "empty", "file", "link", "pipe", "sparse",
    ]
    .map(Into::into)
    .into();
    wanted.push(odd_name().into());
    wanted.sort();
    assert_eq!(names, wanted);
    assert_eq!(fs::read_dir(at("dir")).unwrap().count(), 1);
    let mut middle = [0; 6];
    File::open(at("sparse"))
        .unwrap()
        .read_exact_at(&mut middle, 4 << 20)
        .unwrap();
    assert_eq!(&middle, b"middle");
    drop(file);
    snapshot.unmount().unwrap();
    look(&top).assert_same("afterwards", &before, "before");
    assert_eq!(times(&top), dated);
}

/// Writes until there is no more room; how much there was.
fn fill(path: &Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let block = vec![1; 64 << 10];
    let error = loop {
        if let Err(error) = file.write_all(&block) {
            break error;
        }
        assert!(file.metadata().unwrap().len() < 1 << 30, "there is no end");
    };
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    file.metadata().unwrap().len()
}

fn past_the_size_is_enospc(place: &Place) {
    let top = place.make("top");
    fs::write(top.join("small"), "small\n").unwrap();
    fs::write(top.join("other"), vec![3; 200_000]).unwrap();
    let snapshot = place.take(place.snapshot(&top).size(3 << 20));
    let room = fill(&top.join("big"));
    assert!((2 << 20..=3 << 20).contains(&room), "{room}");
    // A copy-up of what doesn't fit leaves it as it was.
    if place.by != By::Copy {
        let mut file = File::options().append(true).open(top.join("other"));
        let done = file.as_mut().map(|file| file.write_all(b"x"));
        assert!(!matches!(done, Ok(Ok(()))));
    }
    assert_eq!(fs::read(top.join("other")).unwrap(), vec![3; 200_000]);
    assert_eq!(fs::read_to_string(top.join("small")).unwrap(), "small\n");
    fs::remove_file(top.join("big")).unwrap();
    // A server has the removed file until the kernel forgets it.
    until("there is room again", || {
        fs::write(top.join("small"), "smaller\n").is_ok()
    });
    fs::write(top.join("again"), vec![2; 1 << 20]).unwrap();
    assert_eq!(fs::read(top.join("again")).unwrap(), vec![2; 1 << 20]);
    let room = fill(&top.join("big"));
    assert!((1 << 20..=2 << 20).contains(&room), "{room}");
    snapshot.unmount().unwrap();
    assert_eq!(fs::read_to_string(top.join("small")).unwrap(), "small\n");
    assert!(!top.join("big").exists());
}

fn only_changes_count(place: &Place) {
    let top = place.make("top");
    fs::write(top.join("large"), vec![3; 4 << 20]).unwrap();
    let wanted = place.snapshot(&top).size(2 << 20);
    if place.by == By::Copy {
        let error = wanted.mount().unwrap_err().to_string();
        assert!(
            error.contains("2097152 bytes") && error.contains("size"),
            "{error}"
        );
        assert!(mounts_below(&top).is_empty());
    } else {
        let snapshot = place.take(wanted);
        assert_eq!(fs::read(top.join("large")).unwrap().len(), 4 << 20);
        fs::write(top.join("new"), vec![4; 1 << 20]).unwrap();
        snapshot.unmount().unwrap();
    }
    assert_eq!(top.join("large").metadata().unwrap().len(), 4 << 20);
}

fn a_tiny_one_works(place: &Place) {
    let top = place.make("top");
    fs::write(top.join("file"), "x").unwrap();
    let snapshot = place.take(place.snapshot(&top).size(8192));
    fs::write(top.join("file"), "yes").unwrap();
    let room = fill(&top.join("big"));
    assert!(room <= 8192, "{room}");
    assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "yes");
    snapshot.unmount().unwrap();
}

fn another_source(place: &Place) {
    let source = plant(place, "source");
    let target = place.make("target");
    fs::write(target.join("hidden"), "").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o710)).unwrap();
    let before = look(&source).adjust(|path, _| path != Path::new(""));
    let snapshot = place.take(place.snapshot(&target).source(&source));
    let inside = look(&target);
    assert_eq!(inside.0[Path::new("")].mode & 0o7777, 0o710);
    inside
        .adjust(|path, _| path != Path::new(""))
        .assert_same("inside", &before, "source");
    fs::write(target.join("file"), "changed").unwrap();
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "hello\n");
    snapshot.unmount().unwrap();
    assert!(target.join("hidden").exists());
}

fn other_owners(place: &Place) {
    let top = plant(place, "top");
    if !place.has_ids() {
        let error = place
            .snapshot(&top)
            .owner_uid(7)
            .mount()
            .unwrap_err()
            .to_string();
        assert!(error.contains("mapped"), "{error}");
        place
            .take(place.snapshot(&top).owner_uid(0).owner_gid(0))
            .unmount()
            .unwrap();
        return;
    }
    let before = look(&top);
    let owned = |uid: u32, gid: Option<u32>| {
        before.clone().adjust(|_, node| {
            node.uid = uid;
            node.gid = gid.unwrap_or(node.gid);
            // Without links: a file that gets another owner has been copied up.
            node.nlink = 1;
            true
        })
    };
    let now = || {
        look(&top).adjust(|_, node| {
            node.nlink = 1;
            true
        })
    };
    for (uid, gid) in [(5, None), (6, Some(7))] {
        let mut wanted = place.snapshot(&top).owner_uid(uid);
        if let Some(gid) = gid {
            wanted = wanted.owner_gid(gid);
        }
        let snapshot = place.take(wanted);
        now().assert_same("inside", &owned(uid, gid), "wanted");
        // It stays so when they are changed, and new ones belong to whoever makes them.
        File::options()
            .append(true)
            .open(top.join("file"))
            .unwrap()
            .write_all(b"y")
            .unwrap();
        fs::write(top.join("dir/deep/new"), "").unwrap();
        chown(top.join("closed"), Some(9), None).unwrap();
        let uid_of = |name: &str| top.join(name).symlink_metadata().unwrap().uid();
        assert_eq!(
            [
                "file",
                "dir/deep",
                "dir/deep/new",
                "closed",
                "closed/in",
                "link"
            ]
            .map(uid_of),
            [uid, uid, 0, 9, uid, uid]
        );
        snapshot.unmount().unwrap();
    }
    look(&top).assert_same("afterwards", &before, "before");
}

fn nothing_else_shows(place: &Place) {
    let top = plant(place, "top");
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let descriptors = fds();
    let snapshot = place.take(place.snapshot(&top));
    let fstype = match place.by {
        By::Kernel => "overlay",
        By::Fuse => "fuse.overfall",
        By::Copy => "tmpfs",
    };
    assert_eq!(mounts_below(&place.dir), [(fstype.to_owned(), top.clone())]);
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(after.lines().count(), before.lines().count() + 1);
    // The server's end of a pipe says when it goes.
    let own = usize::from(place.by == By::Fuse);
    assert_eq!(fds(), descriptors + own);
    assert_eq!(std::env::current_dir().unwrap(), place.dir);
    snapshot.unmount().unwrap();
    assert_eq!(fds(), descriptors);
    assert_eq!(fs::read_dir(&place.dir).unwrap().count(), 1);
}

fn a_dropped_one_unmounts(place: &Place) {
    let top = plant(place, "top");
    {
        let _snapshot = place.take(place.snapshot(&top));
        fs::write(top.join("new"), "").unwrap();
    }
    assert!(!top.join("new").exists());
    assert!(mounts_below(&top).is_empty());
    // One that is in use goes out of sight.
    let file;
    {
        let _snapshot = place.take(place.snapshot(&top));
        fs::write(top.join("new"), "new").unwrap();
        file = File::open(top.join("new")).unwrap();
    }
    assert!(mounts_below(&top).is_empty());
    let mut text = String::new();
    (&file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
}

fn one_can_be_left_to_its_namespace(place: &Place) {
    let top = plant(place, "top");
    place.take(place.snapshot(&top)).forget();
    fs::write(top.join("new"), "new").unwrap();
    assert_eq!(fs::read_to_string(top.join("new")).unwrap(), "new");
    // Ends with this process's namespace: the suite looks for what is left.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    nix::mount::umount2(&top, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(!top.join("new").exists());
}

/// As the machine's root. In a user namespace an overlay can't keep lower links together once one of
/// them was written: each name is then a file of its own, as in a kernel overlay.
fn hard_links_stay_links(place: &Place) {
    let top = plant(place, "top");
    let snapshot = place.take(place.snapshot(&top));
    let at = |name: &str| top.join(name);
    File::options()
        .append(true)
        .open(at("dir/one"))
        .unwrap()
        .write_all(b"y\n")
        .unwrap();
    let together = place.by == By::Copy || place.way == Way::Root;
    let other = if together { "linked\ny\n" } else { "linked\n" };
    assert_eq!(fs::read_to_string(at("dir/one")).unwrap(), "linked\ny\n");
    assert_eq!(fs::read_to_string(at("dir/two")).unwrap(), other);
    if together {
        let [one, two] = ["dir/one", "dir/two"].map(|name| at(name).metadata().unwrap());
        assert_eq!((one.ino(), one.nlink(), two.nlink()), (two.ino(), 2, 2));
        fs::remove_file(at("dir/one")).unwrap();
        assert_eq!(at("dir/two").metadata().unwrap().nlink(), 1);
    }
    snapshot.unmount().unwrap();
    assert_eq!(fs::read_to_string(at("dir/one")).unwrap(), "linked\n");
}

/// At any moment: the target is as it was, or the snapshot is there as a whole.
fn killed_while_it_is_made(place: &Place) {
    let top = plant(place, "top");
    let before = look(&top);
    let mut made = 0;
    for turn in 0..30_u64 {
        let maker = overfall::sys::process::fork(|| {
            place.take(place.snapshot(&top)).forget();
            std::thread::sleep(std::time::Duration::from_secs(60));
            0
        })
        .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(700 * turn));
        nix::sys::signal::kill(maker, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(maker, None).unwrap();
        let mounts = mounts_below(&place.dir);
        assert!(mounts.len() <= 1, "turn {turn}: {mounts:?}");
        look(&top).assert_same("after the kill", &before, "before");
        if let Some((_, point)) = mounts.first() {
            assert_eq!(point, &top);
            fs::write(top.join("new"), "new").unwrap();
            nix::mount::umount2(&top, nix::mount::MntFlags::empty()).unwrap();
            made += 1;
        }
        assert!(!top.join("new").exists());
    }
    println!("made: {made}");
    assert_eq!(fs::read_dir(&place.dir).unwrap().count(), 1);
}

fn two_at_once(place: &Place) {
    let source = plant(place, "source");
    let [one, two] = ["one", "two"].map(|name| place.make(name));
    let first = place.take(place.snapshot(&one).source(&source));
    let second = place.take(place.snapshot(&two).source(&source));
    fs::write(one.join("file"), "first").unwrap();
    fs::write(two.join("file"), "second").unwrap();
    first.unmount().unwrap();
    assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "second");
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "hello\n");
    second.unmount().unwrap();
}

fn one_of_a_snapshot(place: &Place) {
    let top = plant(place, "top");
    let first = place.take(place.snapshot(&top));
    fs::write(top.join("file"), "first").unwrap();
    fs::remove_file(top.join("suid")).unwrap();
    let second = place.snapshot(&top).means(Means::Auto).mount().unwrap();
    assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "first");
    assert!(!top.join("suid").exists());
    fs::write(top.join("file"), "second").unwrap();
    second.unmount().unwrap();
    assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "first");
    first.unmount().unwrap();
    assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "hello\n");
}

fn what_is_mounted_below_is_not_part(place: &Place) {
    let top = plant(place, "top");
    let flags = nix::mount::MsFlags::empty();
    let none: Option<&str> = None;
    nix::mount::mount(
        Some("tmpfs"),
        &top.join("empty"),
        Some("tmpfs"),
        flags,
        none,
    )
    .unwrap();
    fs::write(top.join("empty/below"), "").unwrap();
    let snapshot = place.take(place.snapshot(&top));
    assert!(!top.join("empty/below").exists());
    fs::write(top.join("empty/new"), "").unwrap();
    snapshot.unmount().unwrap();
    assert!(top.join("empty/below").exists());
    nix::mount::umount2(&top.join("empty"), nix::mount::MntFlags::empty()).unwrap();
    assert_eq!(fs::read_dir(top.join("empty")).unwrap().count(), 0);
}

fn auto_takes_the_first_that_works(place: &Place) {
    if place.by != By::Kernel {
        skip("once is enough");
    }
    let top = plant(place, "top");
    let snapshot = place.snapshot(&top).means(Means::Auto).mount().unwrap();
    assert_eq!(snapshot.means(), Made::Kernel, "{:?}", snapshot.why_not());
    assert!(snapshot.why_not().is_empty());
    snapshot.unmount().unwrap();
    if place.has_ids() {
        let snapshot = place
            .snapshot(&top)
            .means(Means::Auto)
            .owner_uid(5)
            .mount()
            .unwrap();
        assert_eq!(snapshot.means(), Made::Fuse, "{:?}", snapshot.why_not());
        assert_eq!(snapshot.why_not().len(), 1);
        snapshot.unmount().unwrap();
    }
    // Without the kernel's overlay and without FUSE.
    let flags = nix::mount::MsFlags::MS_BIND;
    let none: Option<&str> = None;
    nix::mount::mount(Some("/dev/null"), "/dev/fuse", none, flags, none).unwrap();
    let snapshot = place
        .snapshot(&top)
        .means(Means::Auto)
        .owner_uid(0)
        .mount()
        .unwrap();
    let made = match place.way {
        // Everything is his already.
        Way::Plain => Made::Kernel,
        _ => Made::Copy,
    };
    assert_eq!(snapshot.means(), made, "{:?}", snapshot.why_not());
    snapshot.unmount().unwrap();
    nix::mount::umount2("/dev/fuse", nix::mount::MntFlags::empty()).unwrap();
}

fn bad_input_is_one_line(place: &Place) {
    let top = plant(place, "top");
    let missing = place.dir.join("missing");
    for (wanted, word) in [
        (place.snapshot(&missing), "target"),
        (place.snapshot(&top.join("file")), "not a directory"),
        (place.snapshot(&top).source(&missing), "source"),
        (place.snapshot(&top).size(0), "size"),
        (place.snapshot(Path::new("/")), "root"),
    ] {
        let error = wanted.mount().unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(word) && error.lines().count() == 1,
            "{error}"
        );
    }
    assert!(mounts_below(&place.dir).is_empty());
}
