//! fuse-overlayfs's options, by what a program sees in the mount and what is left in the upper
//! layer.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use super::place::{Place, has};
use super::{DONE, Verdict, cases, skip};

cases![
    uidmapping_and_gidmapping,
    mapped_on_the_way_to_the_disk,
    squash_to_root,
    squash_to_uid_and_gid,
    xattr_permissions_2,
    xattr_permissions_2_from_lower_layers,
    xattr_permissions_2_and_a_map,
    xattr_permissions_1,
    static_nlink,
    noacl,
    noxattrs,
    volatile_and_fsync,
    the_kernels_overlay_has_none_of_them,
    flags_of_mounts,
    flags_by_fusermount3,
    a_protection_that_is_dropped_is_no_mount,
    whose_credentials,
    debug_by_every_name,
    debug_without_a_file,
    layers_of_images,
    typos,
];

const RECORD: &str = "user.containers.override_stat";

/// Mounts as fuse-overlayfs is asked to.
fn mount(place: &Place, options: &str) {
    place.ok(&format!("fuse-overlayfs -o $O,{options} merged"));
}

fn unmount(place: &Place) {
    place.ok("fusermount3 -u merged");
    place.until_no_server();
}

/// `OWNER:GROUP` of a name in the place.
fn owner(place: &Place, name: &str) -> String {
    let stat = fs::symlink_metadata(place.dir.join(name)).unwrap();
    format!("{}:{}", stat.uid(), stat.gid())
}

fn record(place: &Place, name: &str, attribute: &str) -> Option<String> {
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(place.dir.join(name), attribute, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}

/// Files of some owners.
fn plant(place: &Place) {
    for (name, id) in [("zero", 0), ("one", 1), ("far", 70_000)] {
        let path = place.dir.join("lower").join(name);
        fs::write(&path, name).unwrap();
        chown(&path, Some(id), Some(id)).unwrap();
    }
}

fn uidmapping_and_gidmapping(place: &Place) -> Verdict {
    plant(place);
    // containers/storage writes a colon before the first triple.
    for colon in ["", ":"] {
        let map = format!("{colon}0:1000:1:1:110000:65535");
        mount(place, &format!("uidmapping={map},gidmapping={map}"));
        assert_eq!(owner(place, "merged/zero"), "1000:1000");
        assert_eq!(owner(place, "merged/one"), "110000:110000");
        assert_eq!(owner(place, "merged/far"), "65534:65534", "not in the map");
        unmount(place);
    }
    mount(place, "gidmapping=0:1000:70001");
    assert_eq!(owner(place, "merged/far"), "70000:71000");
    unmount(place);
    DONE
}

fn mapped_on_the_way_to_the_disk(place: &Place) -> Verdict {
    plant(place);
    place.ok("chmod 1777 upper");
    let map = "0:1000:1:1:110000:100";
    mount(place, &format!("uidmapping={map},gidmapping={map}"));
    // A user of the map makes, one outside of it too; root changes owners.
    place.ok(
        "setpriv --reuid 1000 --regid 1000 --clear-groups sh -c '>merged/by0; mkdir merged/dir'",
    );
    place.ok("setpriv --reuid 110004 --regid 110004 --clear-groups sh -c '>merged/by5'");
    place.ok(">merged/byroot; >merged/given; chown 110006:1000 merged/given merged/one; echo x >>merged/far");
    for (name, shown, disk) in [
        ("by0", "1000:1000", "0:0"),
        ("dir", "1000:1000", "0:0"),
        ("by5", "110004:110004", "5:5"),
        ("byroot", "65534:65534", "65534:65534"),
        ("given", "110006:1000", "7:0"),
        ("one", "110006:1000", "7:0"),
        ("far", "65534:65534", "70000:70000"),
    ] {
        assert_eq!(owner(place, &format!("merged/{name}")), shown, "{name}");
        assert_eq!(owner(place, &format!("upper/{name}")), disk, "{name}");
    }
    unmount(place);
    DONE
}

fn squash_to_root(place: &Place) -> Verdict {
    plant(place);
    mount(place, "squash_to_root");
    place.ok(">merged/new; chown 5:6 merged/new; echo x >>merged/one");
    for name in ["zero", "one", "far", "new"] {
        assert_eq!(owner(place, &format!("merged/{name}")), "0:0", "{name}");
    }
    unmount(place);
    // Shown only: the disk has what was given.
    assert_eq!(owner(place, "upper/new"), "5:6");
    assert_eq!(owner(place, "upper/one"), "1:1");
    DONE
}

fn squash_to_uid_and_gid(place: &Place) -> Verdict {
    plant(place);
    mount(place, "squash_to_root,squash_to_uid=7");
    assert_eq!(owner(place, "merged/one"), "7:0");
    unmount(place);
    mount(place, "squash_to_uid=7,squash_to_gid=8");
    assert_eq!(owner(place, "merged/far"), "7:8");
    unmount(place);
    DONE
}

/// Everything that the mount changes: owner and mode in the attribute, the server's own on the disk.
fn xattr_permissions_2(place: &Place) -> Verdict {
    plant(place);
    place
        .ok("mkdir lower/dir && chmod 4755 lower/one && touch lower/tool && chmod 6711 lower/tool");
    mount(place, "xattr_permissions=2");
    place.ok(
        ">merged/new; chmod 4600 merged/new; chown 1003:1004 merged/new; chmod 4600 merged/new; \
         mkdir -m 2700 merged/newdir; chown 5:6 merged/newdir; echo x >>merged/far; \
         chown 9 merged/one; mkdir merged/newdir/sub; ln -s target merged/link; \
         chmod 500 merged/dir; setfattr -n user.mine -v 1 merged/new || true",
    );
    for (name, owner, mode, value) in [
        ("new", "1003:1004", 0o4600, "1003:1004:04600:file"),
        ("newdir", "5:6", 0o2700, "5:6:02700:dir"),
        ("newdir/sub", "0:6", 0o2755, "0:6:02755:dir"),
        ("far", "70000:70000", 0o644, "70000:70000:0644:file"),
        ("one", "9:1", 0o755, "9:1:0755:file"),
        ("dir", "0:0", 0o500, "0:0:0500:dir"),
    ] {
        let stat = fs::symlink_metadata(place.dir.join("merged").join(name))?;
        assert_eq!(format!("{}:{}", stat.uid(), stat.gid()), owner, "{name}");
        assert_eq!(stat.mode() & 0o7777, mode, "{name}");
        let merged = record(place, &format!("merged/{name}"), RECORD);
        assert_eq!(merged, None, "{name}: the record is ours");
        let upper = format!("upper/{name}");
        assert_eq!(
            record(place, &upper, RECORD).as_deref(),
            Some(value),
            "{name}"
        );
        let stat = fs::symlink_metadata(place.dir.join(&upper))?;
        assert_eq!((stat.uid(), stat.gid()), (0, 0), "{name} on the disk");
        if stat.is_file() {
            let perm = stat.permissions().mode();
            assert_eq!(perm & 0o6000, 0, "{name}: nobody runs it as the server");
        }
    }
    let said = place.shell(&format!("setfattr -n {RECORD} -v 0:0:0777 merged/new"));
    assert_ne!(said.code, Some(0), "{said:?}");
    unmount(place);
    // Written by one mount, read by the next.
    mount(place, "xattr_permissions=2");
    assert_eq!(owner(place, "merged/new"), "1003:1004");
    assert_eq!(
        place.ok("stat -c %a merged/new merged/newdir"),
        "4600\n2700\n"
    );
    unmount(place);
    DONE
}

/// As containers/storage writes layers with `force_mask`, with and without a type.
fn xattr_permissions_2_from_lower_layers(place: &Place) -> Verdict {
    if !has("setfattr") {
        return skip("setfattr isn't installed");
    }
    place.ok("cd lower; mkdir d; >f; >c; >odd; chmod 700 d f c; \
         setfattr -n user.containers.override_stat -v 0:5:040755 d; \
         setfattr -n user.containers.override_stat -v 33:34:0104711 f; \
         setfattr -n user.containers.override_stat -v 0:0:0666:char-1-3 c; \
         setfattr -n user.containers.override_stat -v nonsense odd");
    mount(place, "xattr_permissions=2");
    let stat = "stat -c '%n %u:%g %a %F' merged/d merged/f merged/odd";
    let shown = "merged/d 0:5 755 directory\nmerged/f 33:34 4711 regular empty file\n\
                 merged/odd 0:0 644 regular empty file\n";
    assert_eq!(place.ok(stat), shown);
    assert_eq!(
        place.ok("stat -c '%F %t %T %a' merged/c; ls -F merged | grep c"),
        "character special file 1 3 666\nc\n"
    );
    // Copied up, it stays what it is.
    place.ok("echo x >>merged/f && touch merged/d/new");
    let copied = shown.replacen("regular empty", "regular", 1);
    assert_eq!(place.ok(stat), copied);
    assert_eq!(
        record(place, "upper/f", RECORD).as_deref(),
        Some("33:34:04711:file")
    );
    unmount(place);
    // Without the option nothing is read out of it.
    mount(place, "ro");
    assert_eq!(place.ok("stat -c '%u:%g %a' merged/c"), "0:0 700\n");
    assert!(record(place, "merged/c", RECORD).is_some());
    unmount(place);
    DONE
}

/// The record holds ids of the disk.
fn xattr_permissions_2_and_a_map(place: &Place) -> Verdict {
    plant(place);
    mount(
        place,
        "xattr_permissions=2,uidmapping=0:1000:10,gidmapping=0:2000:10",
    );
    assert_eq!(owner(place, "merged/one"), "1001:2001");
    place.ok("chown 1005:2006 merged/one");
    assert_eq!(owner(place, "merged/one"), "1005:2006");
    assert_eq!(
        record(place, "upper/one", RECORD).as_deref(),
        Some("5:6:0644:file")
    );
    unmount(place);
    DONE
}

fn xattr_permissions_1(place: &Place) -> Verdict {
    const PRIVILEGED: &str = "security.fuseoverlayfs.override_stat";
    plant(place);
    mount(place, "xattr_permissions=1");
    place.ok("chown 5:6 merged/one && ln -s x merged/link && chown -h 7:8 merged/link");
    assert_eq!(owner(place, "merged/one"), "5:6");
    assert_eq!(owner(place, "merged/link"), "7:8");
    unmount(place);
    assert_eq!(owner(place, "upper/one"), "0:0");
    assert_eq!(
        record(place, "upper/one", PRIVILEGED).as_deref(),
        Some("5:6:0644:file")
    );
    DONE
}

fn static_nlink(place: &Place) -> Verdict {
    place.ok("mkdir -p lower/a/b lower/a/c upper/d/e; ln lower/hello lower/again");
    mount(place, "static_nlink");
    place.ok("mkdir -p merged/new/in");
    assert_eq!(
        place.ok("stat -c %h merged merged/a merged/d merged/new"),
        "1\n".repeat(4)
    );
    assert_eq!(
        place.ok("stat -c %h merged/hello"),
        "2\n",
        "files are counted"
    );
    assert_eq!(place.ok("find merged | wc -l"), "10\n");
    unmount(place);
    DONE
}

fn noacl(place: &Place) -> Verdict {
    if !has("setfacl") {
        return skip("setfacl isn't installed");
    }
    place.ok("mkdir upper/d && setfacl -m d:u:7:rwx upper/d && setfacl -m u:7:r lower/hello");
    mount(place, "noacl");
    let said = place.shell("setfacl -m u:8:r merged/hello");
    assert!(said.err.contains("not supported"), "{said:?}");
    place.ok("umask 077; >merged/d/new");
    assert_eq!(
        place.ok("stat -c %a merged/d/new"),
        "600\n",
        "by the umask alone"
    );
    assert_eq!(
        place.ok("getfattr -d -m posix_acl merged/hello merged/d"),
        ""
    );
    unmount(place);
    // Without the option it is inherited.
    mount(place, "rw");
    place.ok(
        ">merged/d/other && getfacl -nc merged/d/other | grep -q user:7 && \
              getfacl -nc merged/hello | grep -q user:7",
    );
    unmount(place);
    DONE
}

fn noxattrs(place: &Place) -> Verdict {
    if !has("setfattr") {
        return skip("setfattr isn't installed");
    }
    place.ok("setfattr -n user.mine -v 1 lower/hello");
    for option in ["noxattrs", "noxattrs=1"] {
        mount(place, option);
        for call in ["getfattr -n user.mine", "setfattr -n user.x -v 1"] {
            let said = place.shell(&format!("{call} merged/hello"));
            assert!(said.err.contains("not supported"), "{call}: {said:?}");
        }
        // None is lost on the way up.
        place.ok("echo x >>merged/hello");
        place.ok("overfall umount merged && getfattr -n user.mine upper/hello");
    }
    mount(place, "noxattrs=0");
    place.ok("getfattr -n user.mine merged/hello");
    unmount(place);
    DONE
}

/// Nothing waits for the disk, and another mount isn't refused as the kernel's overlay would: whoever
/// calls fuse-overlayfs doesn't know the kernel's mark.
fn volatile_and_fsync(place: &Place) -> Verdict {
    for option in ["volatile", "fsync=0", "fsync=1", "volatile"] {
        mount(place, option);
        place.ok("echo x >>merged/hello && sync merged/hello");
        unmount(place);
    }
    DONE
}

fn the_kernels_overlay_has_none_of_them(place: &Place) -> Verdict {
    for option in [
        "uidmapping=0:1:1",
        "squash_to_root",
        "xattr_permissions=2",
        "static_nlink",
        "noacl",
        "noxattrs",
    ] {
        let said = place.shell(&format!(
            "overfall mount --backend native -o $O,{option} merged"
        ));
        assert_eq!(said.code, Some(2), "{option}: {said:?}");
        assert!(said.err.contains("doesn't know"), "{said:?}");
        // Where the choice is ours, it is the server.
        place.ok(&format!("overfall mount -o $O,{option} merged"));
        assert!(place.mounted().unwrap().contains("fuse.overfall"));
        place.ok("overfall umount merged");
    }
    DONE
}

/// The options of the mount and of its file system, as mountinfo has them.
fn shown(place: &Place) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let merged = place.merged().display().to_string();
    let line = table
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(&merged))
        .unwrap();
    let words = line.split(' ');
    let both = [words.clone().nth(5), words.clone().next_back()];
    let both = both.into_iter().flatten().flat_map(|all| all.split(','));
    both.map(str::to_owned).collect()
}

fn flags_of_mounts(place: &Place) -> Verdict {
    place.ok("ln -s hello lower/link");
    for backend in ["native", "fuse", "auto"] {
        let given = "sync,dirsync,nodiratime,nosuid,nodev,noexec,nosymfollow";
        let mount = format!("overfall mount --backend {backend} -o $O,");
        place.ok(&format!("{mount}{given} merged"));
        let all = shown(place);
        for flag in given.split(',') {
            assert!(all.contains(&flag.to_owned()), "{backend}: {flag}: {all:?}");
        }
        assert!(fs::read(place.dir.join("merged/hello")).is_ok());
        let error = fs::read(place.dir.join("merged/link")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ELOOP), "{backend}");
        place.ok("overfall umount merged");
        place.ok(&format!("{mount}strictatime merged"));
        let all = shown(place);
        assert!(!all.contains(&"relatime".to_owned()), "{backend}: {all:?}");
        place.ok("mount.overfall x merged -o remount,nosymfollow");
        assert!(
            shown(place).contains(&"nosymfollow".to_owned()),
            "{backend}"
        );
        place.ok("overfall umount merged");
    }
    DONE
}

fn flags_by_fusermount3(place: &Place) -> Verdict {
    place.give_to_user();
    let mount = "overfall mount --backend fuse -o $O";
    place.user_ok(&format!("{mount},sync,dirsync,noatime merged"));
    let all = shown(place);
    for flag in ["sync", "dirsync", "noatime"] {
        assert!(all.contains(&flag.to_owned()), "{flag}: {all:?}");
    }
    place.user_ok("overfall umount merged");
    // Some versions know some of the others: there they count.
    for flag in ["nodiratime", "nosymfollow"] {
        let said = place.user_shell(&format!("{mount},{flag} merged"));
        if said.code == Some(0) {
            assert!(shown(place).contains(&flag.to_owned()), "{flag}");
            place.user_ok("overfall umount merged");
        } else {
            assert_eq!(said.code, Some(2), "{said:?}");
            assert!(said.err.contains(&format!("know `{flag}`")), "{said:?}");
            assert_eq!(said.err.lines().count(), 1, "{said:?}");
            assert_eq!(place.mounted(), None, "{flag}");
        }
    }
    DONE
}

/// As mount(2) before Linux 5.10 drops it, and as a fusermount3 may.
fn a_protection_that_is_dropped_is_no_mount(place: &Place) -> Verdict {
    let real = place.ok("command -v fusermount3");
    fs::create_dir(place.dir.join("bin"))?;
    let script = format!(
        "#!/bin/sh\ncase $1 in\n-o) options=${{2%,nosymfollow}}; shift 2; exec {real} -o $options \"$@\";;\n\
         *) exec {real} \"$@\";;\nesac\n",
        real = real.trim_end()
    );
    fs::write(place.dir.join("bin/script"), script)?;
    place.ok("cp bin/script bin/fusermount3 && chmod 755 bin/fusermount3");
    place.give_to_user();
    let mount = "PATH=$PWD/bin:$PATH overfall mount --backend fuse -o $O";
    let said = place.user_shell(&format!("{mount},nosymfollow merged"));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("nosymfollow"), "{said:?}");
    assert!(!said.err.contains("doesn't know"), "it got there: {said:?}");
    assert_eq!(place.mounted(), None);
    place.until_no_server();
    place.user_ok(&format!("{mount} merged && overfall umount merged"));
    DONE
}

fn debug_by_every_name(place: &Place) -> Verdict {
    for (number, call) in [
        "overfall mount --backend fuse -o $O,X merged",
        "mount.fuse.overfall x merged -o $O,X",
        "fuse-overlayfs -o $O,X merged",
        "overfall-mount -o $O,noacl,X merged",
    ]
    .into_iter()
    .enumerate()
    {
        place.ok(&call.replace('X', &format!("debug,log=log{number}")));
        place.ok("cat merged/hello && overfall umount merged");
        let log = fs::read_to_string(place.dir.join(format!("log{number}")))?;
        assert!(log.contains("LOOKUP /hello: ok"), "{call}: {log}");
    }
    place.until_no_server();
    DONE
}

/// mount(8) would wait for the mount's end; whoever calls fuse-overlayfs wants that.
fn debug_without_a_file(place: &Place) -> Verdict {
    let said = place.shell("mount.fuse.overfall x merged -o $O,debug");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("`debug`"), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    place.ok("overfall umount merged");
    let said = place.shell(
        "fuse-overlayfs -o $O,debug merged & \
         until test -e merged/hello; do sleep 0.05; done; kill -0 $! && umount merged && wait $!",
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("LOOKUP /hello: ok"), "{said:?}");
    place.until_no_server();
    DONE
}

fn whose_credentials(place: &Place) -> Verdict {
    let mount = |backend: &str, option: &str| {
        place.shell(&format!(
            "overfall mount --backend {backend} -o $O,{option} merged"
        ))
    };
    assert_eq!(mount("fuse", "override_creds").code, Some(0));
    place.ok("overfall umount merged");
    let said = mount("fuse", "nooverride_creds");
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.err.contains("carry out `nooverride_creds`"),
        "{said:?}"
    );
    assert_eq!(place.mounted(), None);
    // Where the choice is ours, it is the kernel's or an error that says why it isn't.
    let said = mount("auto", "nooverride_creds");
    if said.code == Some(0) {
        assert!(place.mounted().unwrap().contains(" overlay "));
        place.ok("overfall umount merged");
    } else {
        assert!(
            said.err.contains("only the kernel's overlay knows"),
            "{said:?}"
        );
    }
    DONE
}

/// As containers/storage unpacks them for a mount program; the kernel's form counts, too.
fn layers_of_images(place: &Place) -> Verdict {
    place.ok(
        "mkdir -p base/d/in base/e base/k base/o top/d top/e top/k; \
         >base/gone; >base/d/f; >base/e/f; >base/k/f; >base/o/f; >base/both; \
         >top/.wh.gone; >top/d/.wh..wh..opq; >top/d/new; >top/e/.wh.f; >top/.wh.o; \
         mknod top/k/f c 0 0; echo top >top/both; >top/.wh.both; mkdir top/o; >top/o/new; \
         >top/.wh.nothing; mkdir top/.wh.dir",
    );
    let options = "lowerdir=top:base,upperdir=upper,workdir=work";
    let tree = "cd merged && find . | sort | tr '\\n' ' ' && cat both && stat gone 2>&1 | grep -c 'No such'; \
                stat .wh.gone 2>&1 | grep -c 'No such'";
    let shown = ". ./both ./d ./d/new ./e ./k ./o ./o/new top\n1\n1\n";
    place.ok(&format!("fuse-overlayfs -o {options} merged"));
    assert_eq!(place.ok(tree), shown);
    // What is made anew and removed again is the kernel's in the upper.
    place.ok("cd merged && echo x >gone && rm gone && rm both && mkdir d/in && rm -r o && ! ls gone both o");
    assert_eq!(
        place.ok("stat -c %F upper/both"),
        "character special file\n"
    );
    assert_eq!(place.ok("find upper -name '.wh*'"), "");
    unmount(place);
    // Elsewhere it is an option, and without it those are names as any others.
    place.ok("rm -rf upper/* && overfall mount -o lowerdir=top:base,image_layers merged");
    assert_eq!(place.ok(tree), shown);
    place.ok("overfall umount merged && overfall mount -o lowerdir=top:base merged");
    place.ok("ls merged/gone merged/.wh.gone && overfall umount merged");
    DONE
}

fn typos(place: &Place) -> Verdict {
    for (option, word) in [
        ("uidmapping=0:1", "triples"),
        ("uidmapping=0:0:10:5:50:10", "overlapping"),
        ("gidmapping=", "needs a value"),
        ("squash_to_uid=root", "a number"),
        ("squash_to_gid=4294967295", "a number"),
        ("xattr_permissions=3", "0, 1 or 2"),
        ("noxattrs=maybe", "0 or 1"),
        ("redirect_dir=offf", "one of"),
        ("timeout=soon", "seconds"),
        ("volatil", "perhaps `volatile` is meant"),
        ("squash_to_rot", "perhaps `squash_to_root` is meant"),
    ] {
        for program in ["fuse-overlayfs", "overfall-mount", "overfall mount"] {
            let said = place.shell(&format!("{program} -o $O,{option} merged"));
            assert_eq!(said.code, Some(2), "{program} {option}: {said:?}");
            assert_eq!(said.err.lines().count(), 1, "{said:?}");
            assert!(said.err.contains(word), "{program} {option}: {said:?}");
        }
    }
    assert_eq!(place.mounted(), None);
    DONE
}
