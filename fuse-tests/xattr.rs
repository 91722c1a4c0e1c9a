//! Extended attributes, ACLs and capabilities.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use rustix::fs::XattrFlags;

use crate::common::mmap::Mapping;
use crate::common::{
    Carrier, Limit, Tree, as_user, cases, chmod, fails, open_rw, skip, stat, xattr_get, xattr_names,
    xattr_remove, xattr_set, xattr_set_flags,
};

cases! {
    room_for_a_list,
    set_get_list_remove,
    on_a_lower_file,
    on_a_lower_directory,
    create_and_replace_flags,
    missing_attribute,
    empty_and_binary_values,
    value_of_many_bytes,
    buffer_too_small,
    removal_of_a_lower_attribute,
    own_private_names_are_hidden,
    own_private_names_are_escaped,
    escaped_names_survive_a_copy_up,
    the_other_prefix_is_plain_data,
    private_attributes_do_not_leak_into_copies,
    on_symlinks_and_fifos,
    name_without_a_namespace,
    trusted_names: Limit::Root("trusted attributes need CAP_SYS_ADMIN on the machine"),
    capability_is_copied_and_dropped_by_a_write: Limit::Root("needs CAP_SETFCAP on the machine"),
    capability_and_a_mapped_write: Limit::Root("needs CAP_SETFCAP on the machine"),
    acl_is_kept_over_a_copy_up,
    acl_changes_the_mode,
    chmod_changes_the_acl,
    acl_lets_somebody_in: Limit::Root("needs a second uid"),
    acl_by_somebody_else: Limit::Root("needs a second uid"),
    layer_without_acls: Limit::Root("it mounts a file system"),
    acls_of_the_work_directory_stay_there: Limit::Root("needs a second uid"),
    setfacl_and_getfacl,
    by_a_plain_user_on_a_foreign_file: Limit::Root("needs a second uid"),
    refused_change_copies_nothing_up,
    name_of_maximal_length,
}

fn set_get_list_remove(t: &Tree) {
    t.mount();
    t.write("f", "");
    fs::create_dir(t.at("d")).unwrap();
    for path in ["f", "d", ""] {
        xattr_set(t.at(path), "user.one", b"1").unwrap();
        xattr_set(t.at(path), "user.two", b"22").unwrap();
        xattr_set(t.at(path), "user.one", b"111").unwrap();
        assert_eq!(xattr_get(t.at(path), "user.one").unwrap(), b"111");
        assert_eq!(xattr_names(t.at(path)), [b"user.one", b"user.two"]);
        xattr_remove(t.at(path), "user.one").unwrap();
        assert_eq!(xattr_names(t.at(path)), [b"user.two"]);
        assert_eq!(xattr_get(t.at(path), "user.one"), None);
    }
    t.remount();
    assert_eq!(xattr_get(t.at("f"), "user.two").unwrap(), b"22");
}

fn on_a_lower_file(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.low", b"L").unwrap();
    t.mount();
    assert_eq!(xattr_names(t.at("f")), [b"user.low"]);
    xattr_set(t.at("f"), "user.new", b"N").unwrap();
    assert_eq!(xattr_get(t.at("f"), "user.low").unwrap(), b"L");
    assert_eq!(xattr_get(t.upper("f"), "user.new").unwrap(), b"N");
    assert_eq!(xattr_get(t.low("f"), "user.new"), None);
    assert_eq!(t.read("f"), "F");
}

fn on_a_lower_directory(t: &Tree) {
    t.lower(&["d/f=F"]);
    xattr_set(t.low("d"), "user.low", b"L").unwrap();
    t.mount();
    assert_eq!(xattr_get(t.at("d"), "user.low").unwrap(), b"L");
    t.append("d/f", "+");
    assert_eq!(xattr_get(t.upper("d"), "user.low").unwrap(), b"L");
    assert_eq!(xattr_names(t.at("d")), [b"user.low"]);
}

fn create_and_replace_flags(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.low", b"L").unwrap();
    t.mount();
    let set = |name: &str, flags| xattr_set_flags(t.at("f"), name, b"v", flags);
    fails(set("user.low", XattrFlags::CREATE), libc::EEXIST);
    fails(set("user.new", XattrFlags::REPLACE), libc::ENODATA);
    set("user.new", XattrFlags::CREATE).unwrap();
    set("user.low", XattrFlags::REPLACE).unwrap();
    assert_eq!(xattr_get(t.at("f"), "user.low").unwrap(), b"v");
}

fn missing_attribute(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let mut buffer = [0u8; 8];
    fails(rustix::fs::lgetxattr(t.at("f"), "user.none", &mut buffer[..]), libc::ENODATA);
    fails(xattr_remove(t.at("f"), "user.none"), libc::ENODATA);
    assert_eq!(t.upper_sketch(), [""; 0], "a failed removal copies nothing up");
}

fn empty_and_binary_values(t: &Tree) {
    t.mount();
    t.write("f", "");
    let binary: Vec<u8> = (0..=255).collect();
    xattr_set(t.at("f"), "user.empty", b"").unwrap();
    xattr_set(t.at("f"), "user.binary", &binary).unwrap();
    assert_eq!(xattr_get(t.at("f"), "user.empty").unwrap(), b"");
    assert_eq!(xattr_get(t.at("f"), "user.binary").unwrap(), binary);
}

fn value_of_many_bytes(t: &Tree) {
    t.lower(&["f=F"]);
    let value = vec![b'v'; 3000];
    if xattr_set(t.low("f"), "user.big", &value).is_err() {
        skip("the layers' file system takes no value of 3000 bytes");
    }
    t.mount();
    assert_eq!(xattr_get(t.at("f"), "user.big").unwrap(), value);
    t.append("f", "+");
    assert_eq!(xattr_get(t.upper("f"), "user.big").unwrap(), value);
    fails(xattr_set(t.at("f"), "user.huge", &vec![0; 70_000]), libc::E2BIG);
}

fn buffer_too_small(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.name", b"value").unwrap();
    t.mount();
    let mut small = [0u8; 2];
    fails(rustix::fs::lgetxattr(t.at("f"), "user.name", &mut small[..]), libc::ERANGE);
    fails(rustix::fs::llistxattr(t.at("f"), &mut small[..]), libc::ERANGE);
    assert_eq!(rustix::fs::lgetxattr_query(t.at("f"), "user.name"), Ok(5));
    assert_eq!(rustix::fs::llistxattr_query(t.at("f")), Ok(10));
}

fn removal_of_a_lower_attribute(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.a", b"A").unwrap();
    xattr_set(t.low("f"), "user.b", b"B").unwrap();
    t.mount();
    xattr_remove(t.at("f"), "user.a").unwrap();
    assert_eq!(xattr_names(t.at("f")), [b"user.b"]);
    t.remount();
    assert_eq!(xattr_names(t.at("f")), [b"user.b"]);
}

fn own_private_names_are_hidden(t: &Tree) {
    t.lower(&["d/low=1"]);
    t.upper_has(&["d/!"]);
    t.mount();
    let opaque = t.private("opaque");
    assert_eq!(xattr_names(t.at("d")), [b""; 0]);
    assert_eq!(xattr_get(t.at("d"), &opaque), None);
    fails(xattr_remove(t.at("d"), &opaque), libc::ENODATA);
    assert_eq!(t.upper_sketch(), ["d/!"]);
}

fn own_private_names_are_escaped(t: &Tree) {
    t.lower(&["d/low=1"]);
    t.mount();
    let (opaque, escaped) = (t.private("opaque"), t.private("overlay.opaque"));
    xattr_set(t.at("d"), &opaque, b"y").unwrap();
    assert_eq!(xattr_get(t.at("d"), &opaque).unwrap(), b"y");
    assert_eq!(xattr_names(t.at("d")), [opaque.as_bytes()]);
    assert_eq!(xattr_get(t.upper("d"), &escaped).unwrap(), b"y");
    t.remount();
    assert_eq!(t.sketch()[1..], ["d/low=1"], "the user's attribute makes nothing opaque");
    xattr_remove(t.at("d"), &opaque).unwrap();
    assert_eq!(xattr_names(t.at("d")), [b""; 0]);
}

fn escaped_names_survive_a_copy_up(t: &Tree) {
    t.lower(&["f=F", "d/x=X"]);
    for name in ["f", "d"] {
        xattr_set(t.low(name), &t.private("overlay.origin"), b"mine").unwrap();
        xattr_set(t.low(name), &t.private("overlay.whatever"), b"too").unwrap();
    }
    t.mount();
    for name in ["f", "d"] {
        assert_eq!(xattr_get(t.at(name), &t.private("origin")).unwrap(), b"mine");
        chmod(t.at(name), 0o700);
        assert_eq!(xattr_get(t.at(name), &t.private("origin")).unwrap(), b"mine");
        assert_eq!(xattr_get(t.upper(name), &t.private("overlay.whatever")).unwrap(), b"too");
    }
}

fn the_other_prefix_is_plain_data(t: &Tree) {
    t.lower(&["d/low=1", "f=F"]);
    t.upper_has(&["d/up=1"]);
    let other = if t.is_real_root() { "user.overlay.opaque" } else { "user.overlayish.opaque" };
    xattr_set(t.upper("d"), other, b"y").unwrap();
    xattr_set(t.low("f"), other, b"y").unwrap();
    t.mount();
    assert_eq!(fs::read_dir(t.at("d")).unwrap().count(), 2);
    assert_eq!(xattr_names(t.at("d")), [other.as_bytes()]);
    t.append("f", "+");
    assert_eq!(xattr_get(t.upper("f"), other).unwrap(), b"y");
}

fn private_attributes_do_not_leak_into_copies(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.lower_at(1, &["d/g=G"]);
    xattr_set(t.low("d/f"), &t.private("origin"), b"").unwrap();
    xattr_set(t.low("d"), &t.private("impure"), b"y").unwrap();
    xattr_set(t.low("d"), &t.private("opaque"), b"y").unwrap();
    t.mount();
    assert_eq!(t.sketch(), ["d/", "d/f=F"]);
    t.write("d/new", "N");
    assert_eq!(xattr_get(t.upper("d"), &t.private("opaque")), None);
    assert_eq!(t.sketch(), ["d/", "d/f=F", "d/new=N"]);
}

fn on_symlinks_and_fifos(t: &Tree) {
    t.lower(&["l->nowhere", "p|"]);
    t.mount();
    for name in ["l", "p"] {
        fails(xattr_set(t.at(name), "user.x", b"1"), libc::EPERM);
        assert_eq!(xattr_names(t.at(name)), [b""; 0]);
    }
}

fn name_without_a_namespace(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    fails(xattr_set(t.at("f"), "plain", b"1"), libc::EOPNOTSUPP);
    fails(xattr_set(t.at("f"), "strange.name", b"1"), libc::EOPNOTSUPP);
}

fn trusted_names(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "trusted.low", b"L").unwrap();
    t.mount();
    assert_eq!(xattr_get(t.at("f"), "trusted.low").unwrap(), b"L");
    xattr_set(t.at("f"), "trusted.new", b"N").unwrap();
    assert_eq!(xattr_names(t.at("f")), [&b"trusted.low"[..], b"trusted.new"]);
    assert_eq!(xattr_get(t.upper("f"), "trusted.low").unwrap(), b"L");
    let path = t.at("f");
    as_user(1234, 1234, || {
        assert_eq!(xattr_get(&path, "trusted.low"), None);
        assert_eq!(xattr_names(&path), [b""; 0]);
    });
}

/// `cap_net_raw+ep` in revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn capability_is_copied_and_dropped_by_a_write(t: &Tree) {
    t.lower(&["kept=K", "written=W", "cut=C"]);
    for name in ["kept", "written", "cut"] {
        xattr_set(t.low(name), "security.capability", &CAPABILITY).unwrap();
        chmod(t.low(name), 0o777);
    }
    t.mount();
    let of = |name: &str| xattr_get(t.at(name), "security.capability");
    chmod(t.at("kept"), 0o755);
    assert_eq!(xattr_get(t.upper("kept"), "security.capability").unwrap(), CAPABILITY);
    assert_eq!(of("kept").unwrap(), CAPABILITY);
    let (written, cut) = (t.at("written"), t.at("cut"));
    as_user(1234, 1234, || {
        use std::io::Write;
        open_rw(&written).write_all(b"w").unwrap();
        open_rw(&cut).set_len(0).unwrap();
    });
    assert_eq!((of("written"), of("cut")), (None, None));
    std::os::unix::fs::chown(t.at("kept"), Some(1234), None).unwrap();
    assert_eq!(of("kept"), None, "chown drops it");
}

/// An access ACL: user::rw-, user:`uid`:rw-, group::r--, mask::`mask`, other::---.
fn acl(uid: u32, mask: u16) -> Vec<u8> {
    let none = u32::MAX;
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [(1u16, 6u16, none), (2, 6, uid), (4, 4, none), (16, mask, none), (32, 0, none)] {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const ACCESS: &str = "system.posix_acl_access";

fn acl_file(t: &Tree, uid: u32) {
    t.lower(&["f=F"]);
    if xattr_set(t.low("f"), ACCESS, &acl(uid, 6)).is_err() {
        skip("the layers' file system has no POSIX ACLs");
    }
    t.mount();
}

fn capability_and_a_mapped_write(t: &Tree) {
    const CAPABILITY: &str = "security.capability";
    t.lower(&["f=F"]);
    t.mount();
    let file = open_rw(t.at("f"));
    let mapping = Mapping::new(&file, 1, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr_set(t.at("f"), CAPABILITY, &value).unwrap();
    mapping.write(b"X");
    mapping.sync();
    // The server writes what was mapped, and any write takes them off.
    let left = xattr_get(t.at("f"), CAPABILITY).is_some();
    assert_eq!(left, t.carrier() == Carrier::Kernel);
}

fn acl_is_kept_over_a_copy_up(t: &Tree) {
    acl_file(t, 0);
    assert_eq!(xattr_get(t.at("f"), ACCESS).unwrap(), acl(0, 6));
    t.append("f", "+");
    assert_eq!(xattr_get(t.at("f"), ACCESS).unwrap(), acl(0, 6));
    assert_eq!(xattr_get(t.upper("f"), ACCESS).unwrap(), acl(0, 6));
    assert_eq!(xattr_names(t.at("f")), [ACCESS.as_bytes()]);
    t.remount();
    assert_eq!(xattr_get(t.at("f"), ACCESS).unwrap(), acl(0, 6));
}

fn acl_changes_the_mode(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    chmod(t.at("f"), 0o640);
    xattr_set(t.at("f"), ACCESS, &acl(0, 7)).unwrap();
    assert_eq!(stat(t.at("f")).mode() & 0o777, 0o670);
    xattr_remove(t.at("f"), ACCESS).unwrap();
    assert_eq!(xattr_get(t.at("f"), ACCESS), None);
    t.remount();
    assert_eq!(xattr_get(t.at("f"), ACCESS), None);
}

fn chmod_changes_the_acl(t: &Tree) {
    acl_file(t, 0);
    chmod(t.at("f"), 0o640);
    assert_eq!(xattr_get(t.at("f"), ACCESS).unwrap(), acl(0, 4));
    assert_eq!(stat(t.at("f")).mode() & 0o777, 0o640);
    t.flush();
    assert_eq!(xattr_get(t.upper("f"), ACCESS).unwrap(), acl(0, 4));
}

fn acl_lets_somebody_in(t: &Tree) {
    acl_file(t, 1234);
    let path = t.at("f");
    as_user(1234, 1234, || {
        use std::io::Write;
        assert_eq!(fs::read(&path).unwrap(), b"F");
        open_rw(&path).write_all(b"W").unwrap();
    });
    as_user(4321, 4321, || fails(fs::read(&path), libc::EACCES));
    chmod(t.at("f"), 0o600);
    as_user(1234, 1234, || fails(fs::read(&path), libc::EACCES));
}

/// The kernel asks for an ACL before each access by anybody but the owner.
fn layer_without_acls(t: &Tree) {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    t.lower(&["d/f=F"]);
    let (ram, low) = (t.beside("ram"), t.low(""));
    fs::create_dir(&ram).unwrap();
    let kind = Some("ramfs");
    if let Err(errno) = mount(kind, &ram, kind, MsFlags::empty(), None::<&str>) {
        skip(format!("ramfs: {errno}"));
    }
    let copied = Command::new("cp").arg("-a").arg(low.join(".")).arg(&ram).status();
    assert!(copied.unwrap().success());
    mount(Some(&ram), &low, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    t.mount();
    let (dir, file) = (t.at("d"), t.at("d/f"));
    let seen = as_user(1234, 1234, || (fs::read_dir(dir).map(Iterator::count), fs::read(file)));
    let absent = rustix::fs::getxattr(t.at("d/f"), ACCESS, &mut [0; 100][..]);
    t.umount();
    for place in [&low, &ram] {
        umount2(place, MntFlags::MNT_DETACH).unwrap();
    }
    assert_eq!((seen.0.unwrap(), seen.1.unwrap()), (1, b"F".to_vec()));
    assert_eq!(absent, Err(rustix::io::Errno::NODATA));
}

fn acls_of_the_work_directory_stay_there(t: &Tree) {
    t.lower(&["f=F", "dir/"]);
    chmod(t.low("f"), 0o640);
    chmod(t.low("dir"), 0o750);
    if xattr_set(t.work(""), "system.posix_acl_default", &acl(1234, 7)).is_err() {
        skip("the layers' file system has no POSIX ACLs");
    }
    t.mount();
    t.append("f", "+");
    t.write("dir/new", "N");
    for path in ["f", "dir", "dir/new"] {
        assert_eq!(xattr_names(t.at(path)), [b""; 0], "{path}");
        assert_eq!(xattr_get(t.upper(path), ACCESS), None, "{path}");
        assert_eq!(xattr_get(t.upper(path), "system.posix_acl_default"), None, "{path}");
    }
    let file = t.at("f");
    as_user(1234, 1234, || fails(fs::read(file), libc::EACCES));
}

fn acl_by_somebody_else(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let path = t.at("f");
    as_user(1234, 1234, || fails(xattr_set(&path, ACCESS, &acl(1234, 7)), libc::EPERM));
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn setfacl_and_getfacl(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(t.at("d")).output();
        let output = output.unwrap_or_else(|e| skip(format!("{program}: {e}")));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run("setfacl", &["-m", "u:0:rwx,g:0:r-x,m::rwx"]);
    run("setfacl", &["-d", "-m", "u:0:rw-"]);
    let shown = run("getfacl", &["-n", "--omit-header", "--absolute-names"]);
    for line in ["user:0:rwx", "group:0:r-x", "mask::rwx", "default:user:0:rw-"] {
        assert!(shown.lines().any(|l| l == line), "{line} not in\n{shown}");
    }
    run("setfacl", &["-b"]);
    assert_eq!(xattr_names(t.at("d")), [b""; 0]);
}

fn by_a_plain_user_on_a_foreign_file(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.x", b"1").unwrap();
    chmod(t.low("f"), 0o644);
    t.mount();
    let path = t.at("f");
    as_user(1234, 1234, || {
        assert_eq!(xattr_get(&path, "user.x").unwrap(), b"1");
        fails(xattr_set(&path, "user.x", b"2"), libc::EACCES);
        fails(xattr_remove(&path, "user.x"), libc::EACCES);
        fails(xattr_set(&path, "trusted.x", b"2"), libc::EPERM);
    });
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn refused_change_copies_nothing_up(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.x", b"1").unwrap();
    t.mount();
    fails(xattr_set_flags(t.at("f"), "user.x", b"2", XattrFlags::CREATE), libc::EEXIST);
    fails(xattr_remove(t.at("f"), "user.y"), libc::ENODATA);
}

fn name_of_maximal_length(t: &Tree) {
    t.mount();
    t.write("f", "");
    let name = format!("user.{}", "n".repeat(250));
    xattr_set(t.at("f"), &name, b"1").unwrap();
    assert_eq!(xattr_names(t.at("f")), [name.as_bytes()]);
    fails(xattr_set(t.at("f"), &format!("{name}n"), b"1"), libc::ERANGE);
}

/// How much room a list needs: the kernel counts its own names, which it then doesn't show.
fn room_for_a_list(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    xattr_set(t.at("f"), "user.a", b"1").unwrap();
    let shown = "user.a\0".len();
    let mut names = vec![0; 1024];
    assert_eq!(rustix::fs::llistxattr(t.at("f"), &mut names[..]), Ok(shown));
    let asked = rustix::fs::llistxattr_query(t.at("f")).unwrap();
    match t.carrier() {
        crate::common::Carrier::Fuse => assert_eq!(asked, shown),
        crate::common::Carrier::Kernel => assert!(asked > shown, "{asked}"),
    }
}
