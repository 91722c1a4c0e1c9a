//! Disks that are really full or read-only, and a server that really has no descriptor left. What
//! doesn't work leaves no trace, and works when there is room again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};

use crate::common::dice::bytes;
use crate::common::{Carrier, Limit, Tree, cases, skip};

use super::disk::Disk;
use super::layers::{left_in_work, look, merge};
use super::model::{View, difference};
use super::operations::{self, CUT, Operation, plant};

const OURS: Limit = Limit::Fuse("what the upper must look like is our promise");
const IMAGES: Limit = Limit::Root("images are for the machine's root");

cases! {
    no_space_on_tmpfs: OURS,
    a_part_of_a_write_counts,
    no_inodes_on_tmpfs: OURS,
    no_space_on_ext4: IMAGES,
    no_inodes_on_ext4: IMAGES,
    no_quota_on_btrfs: IMAGES,
    writes_fail_on_ext4: IMAGES,
    read_only_disk: OURS,
    no_descriptors: OURS,
}

fn no_space_on_tmpfs(t: &Tree) {
    t.upper_on_a_disk_of("2m");
    try_all(t, libc::ENOSPC, fill_space, |t| {
        fs::remove_file(t.disk().join("filler")).unwrap()
    });
}

/// Who goes on after the part that was written must know how much that was.
fn a_part_of_a_write_counts(t: &Tree) {
    t.upper_on_a_disk_of("2m");
    t.mount();
    let mut log = File::options()
        .append(true)
        .create(true)
        .open(t.at("log"))
        .unwrap();
    let record = bytes(7, 900_000);
    let mut written = 0;
    let error = loop {
        match log.write(&record) {
            Ok(count) => written += count as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(log.metadata().unwrap().len(), written);
    // A whole one, a whole one, and what there was room for.
    assert!(written > 1_800_000, "{written}");
}

fn no_inodes_on_tmpfs(t: &Tree) {
    t.upper_on_a_disk_of("20m,nr_inodes=600");
    try_all(t, libc::ENOSPC, fill_inodes, |t| {
        fs::remove_dir_all(t.disk().join("fillers")).unwrap()
    });
}

fn no_space_on_ext4(t: &Tree) {
    only_ours(t);
    t.upper_on_an_image(&["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal"], 8);
    try_all(t, libc::ENOSPC, fill_space, |t| {
        fs::remove_file(t.disk().join("filler")).unwrap()
    });
}

fn no_inodes_on_ext4(t: &Tree) {
    only_ours(t);
    t.upper_on_an_image(&["mkfs.ext4", "-q", "-m", "0", "-N", "600"], 16);
    try_all(t, libc::ENOSPC, fill_inodes, |t| {
        fs::remove_dir_all(t.disk().join("fillers")).unwrap()
    });
}

/// The quotas of ext4 and xfs don't hold for who may exceed them, as root may.
fn no_quota_on_btrfs(t: &Tree) {
    only_ours(t);
    t.upper_on_an_image(&["mkfs.btrfs", "-q"], 128);
    let btrfs = |arguments: &[&str], path: &Path| {
        let done = Command::new("btrfs").args(arguments).arg(path).output();
        let done = done.map_err(|e| e.to_string())?;
        match done.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        }
    };
    if let Err(why) = btrfs(&["quota", "enable"], &t.disk()) {
        skip(format!("btrfs quota enable: {why}"));
    }
    // Where there is still room to say that there is room again.
    let other = t.disk().join("other");
    btrfs(&["subvolume", "create"], &other).unwrap();
    let limit = |bytes| btrfs(&["qgroup", "limit", bytes, "0/5"], &other).unwrap();
    // Less than there is already.
    try_all(t, libc::EDQUOT, |_| limit("4096"), |_| limit("none"));
}

/// Without a journal: one that can't be written makes the file system read-only for good.
fn writes_fail_on_ext4(t: &Tree) {
    only_ours(t);
    let image = t.make_image(&["mkfs.ext4", "-q", "-O", "^has_journal"], 16);
    let disk = Disk::serve(&image, &t.beside("served"));
    let disk = disk.unwrap_or_else(|e| skip(format!("a disk of our own: {e}")));
    t.upper_on(disk.file());
    try_all(
        t,
        libc::EIO,
        |_| disk.fail_writes(true),
        |_| disk.fail_writes(false),
    );
    // Before the disk goes.
    t.finish();
}

fn read_only_disk(t: &Tree) {
    t.upper_on_a_disk_of("20m");
    try_all(
        t,
        libc::EROFS,
        |t| remount(t, MsFlags::MS_RDONLY),
        |t| remount(t, MsFlags::empty()),
    );
}

fn no_descriptors(t: &Tree) {
    try_all(
        t,
        libc::EMFILE,
        |t| {
            let open = format!("/proc/{}/fd", t.server().as_raw_nonzero());
            let highest = fs::read_dir(open)
                .expect("the server's descriptors")
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
                .max()
                .expect("one");
            limit_descriptors(t, highest + 1);
        },
        |t| limit_descriptors(t, 4096),
    );
}

/// There is a limit for root and one for our server, none for both.
fn only_ours(t: &Tree) {
    if t.carrier() == Carrier::Kernel {
        skip("what the upper must look like is our promise");
    }
}

fn remount(t: &Tree, flags: MsFlags) {
    let flags = flags | MsFlags::MS_REMOUNT;
    mount(None::<&str>, &t.disk(), None::<&str>, flags, None::<&str>).expect("remount");
}

fn limit_descriptors(t: &Tree, most: u64) {
    let status = Command::new("prlimit")
        .arg(format!("--pid={}", t.server().as_raw_nonzero()))
        .arg(format!("--nofile={most}:4096"))
        .status();
    match status {
        Ok(status) => assert!(status.success(), "prlimit: {status}"),
        Err(error) => skip(format!("prlimit: {error}")),
    }
}

/// Leaves not a byte free.
fn fill_space(t: &Tree) {
    let mut file = File::create(t.disk().join("filler")).unwrap();
    for size in [1 << 16, 1 << 10, 1] {
        let data = vec![b'x'; size];
        while file.write_all(&data).is_ok() {}
        // What is only promised is written now.
        let _ = file.sync_all();
    }
}

/// Leaves no inode free.
fn fill_inodes(t: &Tree) {
    let dir = t.disk().join("fillers");
    fs::create_dir(&dir).unwrap();
    let mut number = 0;
    while File::create(dir.join(number.to_string())).is_ok() {
        number += 1;
    }
}

/// Tries every operation when `block` has been called and, if it failed with `errno`, again after
/// `unblock`.
fn try_all(t: &Tree, errno: i32, block: impl Fn(&Tree), unblock: impl Fn(&Tree)) {
    let all = [
        operations::COPY_UP_OF_A_FILE,
        operations::COPY_UP_WITHOUT_DATA,
        operations::COPY_UP_OF_OTHER_KINDS,
        operations::NAMES_MADE,
        operations::NAMES_REMOVED,
        operations::NAMES_MOVED,
    ];
    let all: Vec<&Operation> = all.into_iter().flatten().collect();
    for operation in &all {
        // The first is for a look at what comes out.
        for suffix in ["", "-again"] {
            plant(&t.low(&format!("{}{suffix}", operation.name)));
        }
    }
    fs::write(t.low("big"), bytes(1, 1 << 20)).unwrap();
    t.mount();
    let mut states = Vec::new();
    for operation in &all {
        let dir = operation.name;
        let again = format!("{dir}-again");
        (operation.before)(&t.at(dir));
        (operation.before)(&t.at(&again));
        let old = relative(look(&t.at(""), &again), &again);
        (operation.run)(&t.at(dir)).unwrap();
        let new = relative(look(&t.at(""), dir), dir);
        states.push((old, new));
    }
    // A file that is open for writing would keep a disk from becoming read-only.
    t.remount();
    block(t);
    let mut failed = Vec::new();
    for (operation, (old, new)) in all.iter().zip(&states) {
        let dir = format!("{}-again", operation.name);
        let result = (operation.run)(&t.at(&dir));
        let expected = check_disk(t, &dir, operation, &result, errno, (old, new));
        // Without descriptors the server can't read either.
        if errno != libc::EMFILE {
            check_mount(t, &dir, expected);
        }
        if result.is_err() {
            failed.push((operation, dir, new));
        }
    }
    assert!(
        failed.len() > 3,
        "only {} operations had no room",
        failed.len()
    );
    if errno != libc::EMFILE {
        assert_eq!(
            fs::read(t.at("big")).unwrap(),
            bytes(1, 1 << 20),
            "reading needs no room"
        );
    }
    unblock(t);
    for (operation, dir, new) in failed {
        (operation.run)(&t.at(&dir))
            .unwrap_or_else(|e| panic!("{dir}, now that nothing is in the way: {e}"));
        check_disk(t, &dir, operation, &Ok(()), errno, (new, new));
    }
    for (operation, (_, new)) in all.iter().zip(&states) {
        check_mount(t, &format!("{}-again", operation.name), new);
    }
    t.remount();
    assert_eq!(left_in_work(t), [""; 0]);
}

/// Looks at the layers; what should be there comes back.
fn check_disk<'v>(
    t: &Tree,
    dir: &str,
    operation: &Operation,
    result: &io::Result<()>,
    errno: i32,
    (old, new): (&'v View, &'v View),
) -> &'v View {
    let on_disk = relative(merge(t, dir).view, dir);
    let cut = operation.name == CUT && on_disk == *new;
    let expected = match result {
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(errno), "{dir}: {error}");
            if cut { new } else { old }
        }
        Ok(()) => new,
    };
    let wrong = difference(expected, &on_disk);
    assert!(wrong.is_empty(), "{dir}, {result:?}: on the disk: {wrong}");
    assert_eq!(left_in_work(t), [""; 0], "{dir}, {result:?}: left in work");
    expected
}

fn check_mount(t: &Tree, dir: &str, expected: &View) {
    let in_mount = relative(look(&t.at(""), dir), dir);
    let wrong = difference(expected, &in_mount);
    assert!(wrong.is_empty(), "{dir}: in the mount: {wrong}");
}

fn relative(view: View, dir: &str) -> View {
    view.into_iter()
        .map(|(path, seen)| (path[dir.len()..].to_owned(), seen))
        .collect()
}
