//! System calls that a kernel or a sandbox doesn't have: the server does without each of them, or
//! says in one line what is needed. A seccomp filter stands for the kernel; the calls are those that
//! strace(1) shows. docs/kernels.md has the kernels that lack them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::RenameFlags;

use crate::common::{
    Limit, Tree, cases, chmod, names, open_rw, rename2, set_times, stat, xattr_get, xattr_set,
};

const OURS: Limit = Limit::Fuse("the kernel's overlay makes no system calls");

cases! {
    without_copy_file_range: OURS,
    without_statx: OURS,
    without_faccessat2: OURS,
    without_fchmodat2: OURS,
    without_close_range: OURS,
    without_clone3: OURS,
    without_pidfd_open: OURS,
    without_open_tree: OURS,
    without_the_new_calls_for_mounts: OURS,
    without_file_handles: OURS,
    without_openat2: OURS,
    without_everything_since_4_5: OURS,
    renameat2_is_needed: OURS,
}

/// The calls for mounts that came with Linux 5.2 and later.
const MOUNTS: [i64; 7] = [
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];

const HANDLES: [i64; 2] = [libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at];

/// A file mode by name in a directory, since Linux 6.6.
const FCHMODAT2: i64 = 452;

/// One of everything that the server does for its callers, and what is there afterwards.
fn works_without(t: &Tree, calls: &[i64]) {
    t.lower(&["file=lower", "dir/a=A", "dir/sub/b=B", "gone=x", "mode=m", "from=f", "link->file"]);
    let sparse = fs::File::create(t.low("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"end", (1 << 20) - 3).unwrap();
    drop(sparse);
    t.without_calls(calls);
    t.mount();

    // Looking, and copying up.
    assert_eq!(names(&t.at("dir")), [b"a".to_vec(), b"sub".to_vec()]);
    assert_eq!(fs::read_link(t.at("link")).unwrap().to_str(), Some("file"));
    let number = stat(t.at("file")).ino();
    t.append("file", " and more");
    assert_eq!((t.read("file"), stat(t.at("file")).ino()), ("lower and more".to_owned(), number));
    open_rw(t.at("sparse")).write_all_at(b"start", 0).unwrap();
    // Attributes.
    chmod(t.at("mode"), 0o640);
    chmod(t.at("dir"), 0o750);
    set_times(&t.at("mode"), (1_000_000_000, 0), (1_000_000_000, 0)).unwrap();
    xattr_set(t.at("mode"), "user.colour", b"red").unwrap();
    open_rw(t.at("from")).set_len(0).unwrap();
    // Names.
    fs::remove_file(t.at("gone")).unwrap();
    fs::rename(t.at("dir/a"), t.at("moved")).unwrap();
    fs::hard_link(t.at("moved"), t.at("hard")).unwrap();
    std::os::unix::fs::symlink("nowhere", t.at("soft")).unwrap();
    fs::remove_dir_all(t.at("dir/sub")).unwrap();
    fs::create_dir(t.at("dir/sub")).unwrap();
    rename2(&t.at("moved"), &t.at("from"), RenameFlags::EXCHANGE).unwrap();
    rename2(&t.at("hard"), &t.at("from"), RenameFlags::NOREPLACE).unwrap_err();
    // Open, and without a name.
    let mut options = OpenOptions::new();
    let open = options.read(true).write(true).create(true).truncate(false).open(t.at("new")).unwrap();
    fs::remove_file(t.at("new")).unwrap();
    open.write_all_at(b"nameless", 0).unwrap();
    assert_eq!(open.metadata().unwrap().len(), 8);
    drop(open);

    let wanted = [
        "dir/", "dir/sub/", "file=lower and more", "from=A", "hard=A", "link->file", "mode=m", "moved=", "soft->nowhere",
    ];
    let seen = |t: &Tree| {
        let mut sketch = t.sketch();
        sketch.retain(|line| !line.starts_with("sparse"));
        sketch
    };
    let attributes = |t: &Tree| {
        let meta = stat(t.at("mode"));
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 1_000_000_000));
        assert_eq!(xattr_get(t.at("mode"), "user.colour").unwrap(), b"red");
        assert_eq!(stat(t.at("dir")).mode() & 0o7777, 0o750);
        let sparse = fs::read(t.at("sparse")).unwrap();
        assert_eq!((sparse.len(), &sparse[..6], &sparse[(1 << 20) - 3..]), (1 << 20, &b"start\0"[..], &b"end"[..]));
        assert!(stat(t.upper("sparse")).blocks() < 1000, "holes stay holes");
    };
    assert_eq!(seen(t), wanted);
    attributes(t);
    t.remount();
    assert_eq!(seen(t), wanted);
    attributes(t);
    // The same upper with all calls at hand.
    t.umount();
    t.without_calls(&[]);
    t.mount();
    assert_eq!(seen(t), wanted);
    attributes(t);
}

fn without_copy_file_range(t: &Tree) {
    works_without(t, &[libc::SYS_copy_file_range]);
}

fn without_statx(t: &Tree) {
    works_without(t, &[libc::SYS_statx]);
}

fn without_faccessat2(t: &Tree) {
    works_without(t, &[libc::SYS_faccessat2]);
}

fn without_fchmodat2(t: &Tree) {
    works_without(t, &[FCHMODAT2]);
}

fn without_close_range(t: &Tree) {
    works_without(t, &[libc::SYS_close_range]);
}

fn without_clone3(t: &Tree) {
    works_without(t, &[libc::SYS_clone3]);
}

fn without_pidfd_open(t: &Tree) {
    works_without(t, &[libc::SYS_pidfd_open]);
}

fn without_open_tree(t: &Tree) {
    works_without(t, &[libc::SYS_open_tree]);
}

fn without_the_new_calls_for_mounts(t: &Tree) {
    works_without(t, &MOUNTS);
}

fn without_file_handles(t: &Tree) {
    works_without(t, &HANDLES);
}

fn without_openat2(t: &Tree) {
    works_without(t, &[libc::SYS_openat2]);
}

fn without_everything_since_4_5(t: &Tree) {
    let newer = [
        libc::SYS_copy_file_range,
        libc::SYS_statx,
        libc::SYS_faccessat2,
        FCHMODAT2,
        libc::SYS_close_range,
        libc::SYS_clone3,
        libc::SYS_pidfd_open,
        libc::SYS_openat2,
        libc::SYS_preadv2,
        libc::SYS_pwritev2,
        libc::SYS_rseq,
    ];
    works_without(t, &[&newer[..], &MOUNTS].concat());
}

fn renameat2_is_needed(t: &Tree) {
    t.lower(&["a=A"]);
    t.without_calls(&[libc::SYS_renameat2]);
    let why = t.try_mount().unwrap_err();
    assert_eq!(why.lines().count(), 1, "{why}");
    assert!(why.contains("renameat2") && why.contains("3.15"), "{why}");
    t.without_calls(&[]);
    t.mount();
}
