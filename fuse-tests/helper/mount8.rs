//! mount(8), fstab, mount.fuse3 and systemd.

use std::fs;

use super::place::{Place, USER_ID, cover, has};
use super::{DONE, Verdict, cases, skip};

cases![
    mount_and_umount,
    options_that_mount_adds,
    lines_of_fstab,
    a_users_line_of_fstab,
    flags_of_a_helper,
    wrong_calls,
    remounting,
    through_mount_fuse3,
    mounted_by_the_kernels_overlay,
    the_unit_of_the_document,
];

macro_rules! helpers_or_skip {
    ($place:expr) => {
        if let Some(why) = &$place.no_helpers {
            return skip(why.clone());
        }
    };
}

fn mount_and_umount(place: &Place) -> Verdict {
    helpers_or_skip!(place);
    place.ok("mount -t fuse.overfall overfall merged -o $O");
    let line = place.ok("grep $PWD/merged /proc/mounts");
    assert!(line.starts_with("overfall "), "{line}");
    assert!(line.contains(" fuse.overfall rw,"), "{line}");
    place.ok("test $(cat merged/hello) = hello && echo new >merged/new && umount merged");
    // At once: the server may still be closing its layers.
    place.ok("mount -t fuse.overfall other merged -o $O && cat merged/new && umount merged");
    place.ok("mount -t fuse.overfall overfall merged -o lowerdir=lower:upper");
    let said = place.shell("touch merged/x");
    assert!(said.err.contains("Read-only"), "{said:?}");
    place.ok("test $(cat merged/new) = new && umount merged");
    place.until_no_server();
    DONE
}

fn options_that_mount_adds(place: &Place) -> Verdict {
    helpers_or_skip!(place);
    let added = "rw,nodev,nosuid,noexec,noatime,_netdev,nofail,noauto,users,user,comment=hi,\
                 x-systemd.automount,defaults";
    place.ok(&format!(
        "mount -t fuse.overfall overfall merged -o {added},nodev,nosuid,noexec,$O"
    ));
    let line = place.ok("grep $PWD/merged /proc/mounts");
    for flag in ["rw", "nodev", "nosuid", "noexec", "noatime"] {
        assert!(line.contains(flag), "{flag}: {line}");
    }
    place.ok("umount merged && mount -r -t fuse.overfall overfall merged -o $O");
    let line = place.ok("grep $PWD/merged /proc/mounts && umount merged");
    assert!(line.contains(" ro,"), "{line}");
    // A comma in a name: mount(8) takes quotes, and hands them on.
    place.ok("mkdir a,b && touch a,b/in");
    place.ok("mount -t fuse.overfall overfall merged -o 'lowerdir=\"a,b\",nodev'");
    place.ok("test -e merged/in && umount merged");
    place.until_no_server();
    DONE
}

fn lines_of_fstab(place: &Place) -> Verdict {
    helpers_or_skip!(place);
    let line = "echo \"tree $PWD/merged fuse.overfall $O,noauto,nofail,x-foo=1 0 0\" >fstab";
    place.ok(line);
    place.ok("mount --fstab fstab -a && ! grep $PWD/merged /proc/mounts");
    place.ok("mount --fstab fstab merged && grep \"tree $PWD/merged fuse.overfall\" /proc/mounts");
    place.ok("umount merged && sed -i s/noauto,// fstab && mount --fstab fstab -a");
    // The source is the line's, so that mount(8) sees that it is there already.
    place.ok("mount --fstab fstab -a && test $(grep -c $PWD/merged /proc/mounts) = 1");
    place.ok("umount merged && mount --fstab fstab tree && umount merged");
    place.until_no_server();
    DONE
}

/// mount(8) runs the helper as the user whom the line lets mount.
fn a_users_line_of_fstab(place: &Place) -> Verdict {
    if !has("fusermount3") {
        return skip("fusermount3 isn't installed");
    }
    helpers_or_skip!(place);
    place.give_to_user();
    let line = format!(
        "overfall {}/merged fuse.overfall {},user,noauto 0 0\n",
        place.dir.display(),
        place.options()
    );
    if let Err(why) = cover(&place.dir, "/etc/fstab", &line) {
        return skip(why);
    }
    let said = place.user_shell("mount $PWD/merged && touch merged/mine && cat /proc/mounts");
    assert_eq!(said.code, Some(0), "{said:?}");
    let merged = place.merged().display().to_string();
    let line = said.out.lines().find(|line| line.contains(&merged));
    let line = line.expect("a line of the mount table");
    for part in [
        "fuse.overfall",
        "nosuid,nodev",
        &format!("user_id={USER_ID}"),
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    place.user_ok("test -O upper/mine && umount $PWD/merged");
    place.until_no_server();
    DONE
}

fn flags_of_a_helper(place: &Place) -> Verdict {
    place.ok("mount.fuse.overfall -f overfall merged -o $O");
    assert_eq!(place.mounted(), None, "-f is fake");
    place.ok("mount.fuse.overfall overfall merged -sfnv -o $O,nosuch -t fuse.overfall");
    assert_eq!(place.mounted(), None, "-f is fake");
    let said = place.shell("mount.fuse.overfall overfall merged -f -o lowerdir=nowhere");
    assert_eq!(said.code, Some(1), "fake, but not blind: {said:?}");
    place.ok("mount.fuse.overfall overfall merged -n -w -s -o $O,nosuch -t fuse.overfall");
    place.ok("grep $PWD/merged /proc/mounts && umount merged");
    place.ok("mount.fuse.overfall overfall merged -r -o $O");
    assert!(place.mounted().unwrap().contains(" ro,"));
    place.ok("umount merged");
    place.ok("mount.fuse.overfall -N $$ overfall $PWD/merged -o $O && umount merged");
    place.ok("mount.fuse.overfall -N /proc/$$/ns/mnt overfall $PWD/merged -o $O && umount merged");
    place.until_no_server();
    DONE
}

fn wrong_calls(place: &Place) -> Verdict {
    let calls = [
        ("mount.fuse.overfall", 1, "required arguments"),
        (
            "mount.fuse.overfall overfall merged",
            1,
            "no lower directory",
        ),
        (
            "mount.fuse.overfall overfall merged -o $O,nosuch",
            1,
            "unknown option `nosuch`",
        ),
        (
            "mount.fuse.overfall overfall merged -o $O,redirect_dir=of",
            1,
            "one of on, off",
        ),
        (
            "mount.fuse.overfall overfall nowhere -o $O",
            1,
            "does not exist",
        ),
        ("mount.fuse.overfall overfall merged -z", 1, "-z"),
        (
            "mount.fuse.overfall overfall merged -o remount,ro",
            1,
            "no overlay is mounted there",
        ),
        (
            "mount.fuse.overfall -N 999999999 overfall merged -o $O",
            1,
            "mount namespace",
        ),
        ("fuse-overlayfs", 2, "TARGET"),
        ("fuse-overlayfs merged", 2, "no lower directory"),
        ("fuse-overlayfs -o $O a b merged", 2, "merged"),
        ("overfall-mount -o $O,nosuch merged", 2, "unknown option"),
        // What is nearly a command isn't the source of a mount.
        ("overfall mout $PWD/merged -o $O", 2, "mean `mount`?"),
        (
            "overfall mount --bakend fuse -o $O merged",
            2,
            "mean `--backend`?",
        ),
        (
            "overfall mount -o $O --backend foo merged",
            2,
            "auto, native",
        ),
        ("overfall mount", 2, "<TARGET>; see --help"),
        ("overfall umount a b", 2, "'b' found; see --help"),
        ("overfall --help >/dev/full", 2, "writing to stdout"),
        (
            "mount.overfall --version >/dev/full",
            1,
            "writing to stdout",
        ),
    ];
    for (call, code, word) in calls {
        let said = place.shell(call);
        assert_eq!(said.code, Some(code), "{call}: {said:?}");
        assert_eq!(said.err.lines().count(), 1, "{call}: {said:?}");
        assert!(said.err.contains(word), "{call}: {said:?}");
    }
    assert_eq!(place.mounted(), None);
    DONE
}

fn remounting(place: &Place) -> Verdict {
    helpers_or_skip!(place);
    place.ok("mount -t fuse.overfall overfall merged -o $O && mount -o remount,ro merged");
    let said = place.shell("touch merged/x");
    assert!(said.err.contains("Read-only"), "{said:?}");
    place.ok("mount -o remount,rw,nodev merged && touch merged/x && umount merged");
    place.until_no_server();
    DONE
}

/// Without a helper of its own for the type, mount(8) calls mount.fuse3, which runs the program
/// by its plain name; some call mount.fuse3 themselves.
fn through_mount_fuse3(place: &Place) -> Verdict {
    if !has("mount.fuse3") {
        return skip("mount.fuse3 isn't installed");
    }
    let calls = [
        ("mount.fuse3 overfall# $PWD/merged -o $O", "overfall"),
        ("mount.fuse3 overfall#tree $PWD/merged -o $O", "tree"),
        (
            "mount.fuse3 tree $PWD/merged -o $O -t fuse.overfall",
            "tree",
        ),
        // containerd's fuse-overlayfs-snapshotter.
        (
            "mount.fuse3 overlay $PWD/merged -o $O -t overfall-mount",
            "overlay",
        ),
        (
            "mount.fuse3 overlay $PWD/merged -o $O -t $NAMES/fuse-overlayfs",
            "overlay",
        ),
    ];
    for (call, source) in calls {
        place.ok(call);
        let line = place.mounted().expect(call);
        assert!(line.starts_with(source), "{call}: {line}");
        place.ok("umount merged");
    }
    place.until_no_server();
    DONE
}

/// `mount -t overfall` leaves it to us who carries the overlay.
fn mounted_by_the_kernels_overlay(place: &Place) -> Verdict {
    helpers_or_skip!(place);
    place.ok("mount -t overfall tree merged -o $O");
    let line = place.ok("grep $PWD/merged /proc/mounts");
    assert!(line.starts_with("tree "), "{line}");
    let ours = line.contains(" overlay ") || line.contains(" fuse.overfall ");
    assert!(ours, "{line}");
    place.ok("touch merged/x && umount merged && test -e upper/x");
    place.until_no_server();
    DONE
}

/// The unit in docs/mount-helper.md is one that systemd takes.
fn the_unit_of_the_document(place: &Place) -> Verdict {
    if !has("systemd-analyze") {
        return skip("systemd-analyze isn't installed");
    }
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/mount-helper.md");
    let document = fs::read_to_string(document)?;
    let unit = document
        .split("```ini\n")
        .find(|text| text.starts_with("[Unit]"))
        .and_then(|text| text.split("```").next())
        .expect("a unit in the document");
    let name = unit
        .lines()
        .find_map(|line| line.strip_prefix("Where=/"))
        .expect("Where=");
    let file = format!("{}.mount", name.replace('/', "-"));
    fs::write(place.dir.join(&file), unit)?;
    let said = place.shell(&format!("systemd-analyze verify ./{file}"));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.err, "", "{said:?}");
    DONE
}
