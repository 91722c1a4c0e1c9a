//! Fifos, sockets and device nodes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::FileType;

use crate::common::{Limit, Tree, as_user, cases, chmod, fails, mknod, open_flags, stat};

const MKNOD: Limit = Limit::Root("device nodes need CAP_MKNOD on the machine");

cases! {
    fifo,
    lower_fifo_is_copied_up,
    socket,
    mknod_regular_file,
    whiteout_by_mknod_is_refused,
    device_nodes: MKNOD,
    device_without_privilege_is_refused,
    lower_device_is_copied_up: MKNOD,
    device_over_a_whiteout: MKNOD,
    mknod_by_a_plain_user: Limit::Root("needs a second uid"),
    rename_and_link_of_a_fifo,
    attributes_of_an_unlinked_fifo,
    writing_to_a_lower_device_copies_nothing: MKNOD,
}

fn fifo(t: &Tree) {
    t.mount();
    mknod(&t.at("p"), FileType::Fifo, 0o644, (0, 0)).unwrap();
    fails(mknod(&t.at("p"), FileType::Fifo, 0o644, (0, 0)), libc::EEXIST);
    assert!(stat(t.at("p")).file_type().is_fifo());
    exchange(t);
    assert_eq!(t.upper_sketch(), ["p|"]);
}

fn exchange(t: &Tree) {
    std::thread::scope(|scope| {
        let path = t.at("p");
        scope.spawn(move || fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"through"));
        let mut text = String::new();
        fs::File::open(t.at("p")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    });
}

fn lower_fifo_is_copied_up(t: &Tree) {
    t.lower(&["p|"]);
    t.mount();
    exchange(t);
    assert_eq!(t.upper_sketch(), [""; 0]);
    chmod(t.at("p"), 0o600);
    assert_eq!(t.upper_sketch(), ["p|"]);
    exchange(t);
}

fn socket(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    // Socket addresses are short: bind through the directory's descriptor.
    use std::os::fd::AsRawFd;
    let dir = fs::File::open(t.at("d")).unwrap();
    let path = format!("/proc/self/fd/{}/s", dir.as_raw_fd());
    let listener = UnixListener::bind(&path).unwrap();
    fails(UnixListener::bind(&path), libc::EADDRINUSE);
    assert!(stat(t.at("d/s")).file_type().is_socket());
    let mut client = UnixStream::connect(&path).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    drop(listener);
    fs::remove_file(t.at("d/s")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/"]);
}

fn mknod_regular_file(t: &Tree) {
    t.mount();
    mknod(&t.at("f"), FileType::RegularFile, 0o640, (0, 0)).unwrap();
    t.append("f", "text");
    assert_eq!(t.upper_sketch(), ["f=text"]);
}

fn whiteout_by_mknod_is_refused(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    fails(mknod(&t.at("w"), FileType::CharacterDevice, 0, (0, 0)), libc::EPERM);
    assert_eq!(t.sketch(), ["f=F"]);
}

fn device_nodes(t: &Tree) {
    t.mount();
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, (1, 3)),
        ("block", FileType::BlockDevice, (7, 99)),
        ("large", FileType::CharacterDevice, (500, 70_000)),
        ("block0", FileType::BlockDevice, (0, 0)),
    ] {
        mknod(&t.at(name), kind, 0o640, device).unwrap();
        let expected = rustix::fs::makedev(device.0, device.1);
        for path in [t.at(name), t.upper(name)] {
            let meta = stat(&path);
            assert_eq!((meta.rdev(), meta.mode() & 0o777), (expected, 0o640), "{name}");
            assert_eq!(meta.file_type().is_block_device(), kind == FileType::BlockDevice);
        }
    }
    fs::write(t.at("null"), "nowhere").unwrap();
    t.remount();
    assert_eq!(t.sketch(), ["block0;0,0", "block;7,99", "large:500,70000", "null:1,3"]);
}

fn device_without_privilege_is_refused(t: &Tree) {
    if t.is_real_root() {
        crate::common::skip("root may make devices");
    }
    t.mount();
    fails(mknod(&t.at("null"), FileType::CharacterDevice, 0o666, (1, 3)), libc::EPERM);
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn lower_device_is_copied_up(t: &Tree) {
    mknod(&t.low("null"), FileType::CharacterDevice, 0o666, (1, 3)).unwrap();
    t.mount();
    assert_eq!(fs::read(t.at("null")).unwrap(), b"");
    chmod(t.at("null"), 0o600);
    assert_eq!(t.upper_sketch(), ["null:1,3"]);
    assert_eq!(stat(t.at("null")).rdev(), rustix::fs::makedev(1, 3));
}

fn device_over_a_whiteout(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    fs::remove_file(t.at("f")).unwrap();
    mknod(&t.at("f"), FileType::CharacterDevice, 0o600, (1, 5)).unwrap();
    assert_eq!(t.upper_sketch(), ["f:1,5"]);
    fs::remove_file(t.at("f")).unwrap();
    assert_eq!(t.upper_sketch(), ["f!"]);
}

fn mknod_by_a_plain_user(t: &Tree) {
    t.lower(&["d/"]);
    chmod(t.low("d"), 0o777);
    t.mount();
    let dir = t.at("d");
    as_user(1234, 1234, || {
        mknod(&dir.join("p"), FileType::Fifo, 0o644, (0, 0)).unwrap();
        fails(mknod(&dir.join("c"), FileType::CharacterDevice, 0o644, (1, 3)), libc::EPERM);
        fails(mknod(&dir.join("w"), FileType::CharacterDevice, 0o644, (0, 0)), libc::EPERM);
    });
    assert_eq!(t.upper_sketch(), ["d/", "d/p|"]);
}

fn attributes_of_an_unlinked_fifo(t: &Tree) {
    t.lower(&["p|"]);
    t.mount();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let fifo = rustix::fs::open(t.at("p"), flags, rustix::fs::Mode::empty()).unwrap();
    fs::remove_file(t.at("p")).unwrap();
    let value = rustix::fs::fgetxattr(&fifo, "system.posix_acl_access", &mut [0; 100]);
    assert_eq!(value, Err(rustix::io::Errno::NODATA));
}

fn rename_and_link_of_a_fifo(t: &Tree) {
    t.lower(&["p|", "d/"]);
    t.mount();
    fs::rename(t.at("p"), t.at("d/q")).unwrap();
    fs::hard_link(t.at("d/q"), t.at("d/r")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/", "d/q|", "d/r|", "p!"]);
}

fn writing_to_a_lower_device_copies_nothing(t: &Tree) {
    mknod(&t.low("null"), FileType::CharacterDevice, 0o666, (1, 3)).unwrap();
    t.mount();
    fs::OpenOptions::new().write(true).open(t.at("null")).unwrap().write_all(b"x").unwrap();
    drop(open_flags(t.at("null"), 0).unwrap());
    assert_eq!(t.upper_sketch(), [""; 0]);
}
