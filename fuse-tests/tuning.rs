//! Layers that somebody changes under the mount: `overfall forget` and `timeout=`; and the other
//! options that change how the server and the kernel share the work.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common::suite::overfall_binary;
use crate::common::{Carrier, Limit, Tree, as_user, cases, skip};

const FUSE: Limit = Limit::Fuse("the kernel promises nothing about layers that change");
const OPTIONS: Limit = Limit::Fuse("the kernel's overlay passes over these options");

cases! {
    forget_shows_what_the_layers_hold: FUSE,
    forget_without_an_upper_layer: FUSE,
    forget_sees_other_layers_of_a_directory: FUSE,
    forget_keeps_what_was_written_and_what_is_open: FUSE,
    forget_keeps_what_is_mounted_inside: FUSE,
    forget_refuses_what_is_not_ours,
    forget_is_not_for_everybody: Limit::Root("needs a second uid"),
    no_timeout_sees_changes_at_once: FUSE,
    every_option_can_be_turned: OPTIONS,
}

fn forget(t: &Tree) -> Result<(), String> {
    let output = Command::new(overfall_binary())
        .arg("forget")
        .arg(t.at(""))
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// Changes the topmost lower layer in every way; the second list says what is there then.
fn change(t: &Tree) -> Vec<&'static str> {
    fs::write(t.low("new"), "N").unwrap();
    fs::write(t.low("d/new"), "N").unwrap();
    fs::write(t.low("changed"), "longer than before").unwrap();
    fs::remove_file(t.low("gone")).unwrap();
    fs::remove_file(t.low("replaced")).unwrap();
    fs::write(t.low("replaced"), "another").unwrap();
    fs::remove_file(t.low("kind")).unwrap();
    fs::create_dir(t.low("kind")).unwrap();
    fs::write(t.low("kind/inside"), "I").unwrap();
    fs::remove_dir_all(t.low("olddir")).unwrap();
    vec![
        "changed=longer than before",
        "d/",
        "d/f=F",
        "d/new=N",
        "kind/",
        "kind/inside=I",
        "new=N",
        "replaced=another",
    ]
}

const BEFORE: [&str; 7] =
    ["changed=C", "d/", "d/f=F", "gone=G", "kind=K", "olddir/x=X", "replaced=R"];

/// Has the kernel and the server know everything, the absent names too.
fn look_around(t: &Tree) -> Vec<String> {
    for absent in ["new", "d/new"] {
        assert!(!t.has(absent));
    }
    // The kernel keeps a listing that is read for the second time.
    t.sketch();
    t.sketch()
}

fn forget_shows_what_the_layers_hold(t: &Tree) {
    t.lowers_may_change();
    t.lower(&BEFORE);
    t.mount();
    let before = look_around(t);
    let now = change(t);
    assert_eq!(t.sketch(), before, "remembered until told");
    assert!(!t.has("new"), "remembered as absent");
    forget(t).unwrap();
    for absent_before in ["new", "d/new"] {
        assert!(t.has(absent_before), "{absent_before}");
    }
    assert_eq!(t.sketch(), now);
    assert_eq!(t.upper_sketch(), [""; 0], "nothing is copied up");
    // All of it can be worked with.
    t.append("replaced", "+");
    t.append("changed", "+");
    t.write("kind/own", "O");
    fs::remove_file(t.at("new")).unwrap();
    assert_eq!(t.read("replaced"), "another+");
    assert_eq!(t.read("changed"), "longer than before+");
    t.remount();
    assert!(!t.has("new") && t.has("kind/own") && t.has("kind/inside"));
}

fn forget_without_an_upper_layer(t: &Tree) {
    t.lowers_may_change();
    t.lower(&BEFORE);
    t.lower_at(1, &["other=O"]);
    t.without_upper();
    t.mount();
    look_around(t);
    let mut now = change(t);
    forget(t).unwrap();
    now.insert(7, "other=O");
    assert_eq!(t.sketch(), now);
}

fn forget_sees_other_layers_of_a_directory(t: &Tree) {
    t.lowers_may_change();
    t.lower(&["top=T"]);
    t.lower_at(1, &["d/sub/low=1"]);
    t.lower_at(2, &["d/low=2"]);
    t.mount();
    look_around(t);
    // A layer more in the middle of one directory, above all of another.
    fs::write(t.layer(2).join("d/sub"), "not a directory").unwrap();
    fs::create_dir_all(t.low("d/sub")).unwrap();
    fs::write(t.low("d/sub/top"), "0").unwrap();
    forget(t).unwrap();
    assert_eq!(
        t.sketch(),
        ["d/", "d/low=2", "d/sub/", "d/sub/low=1", "d/sub/top=0", "top=T"]
    );
    t.write("d/sub/low", "changed");
    fs::remove_file(t.at("d/sub/top")).unwrap();
    fs::remove_dir_all(t.layer(1).join("d")).unwrap();
    forget(t).unwrap();
    assert_eq!(
        t.sketch(),
        ["d/", "d/low=2", "d/sub/", "d/sub/low=changed", "top=T"]
    );
    t.write("d/sub/more", "M");
    assert_eq!(t.read("d/sub/more"), "M");
}

fn forget_keeps_what_was_written_and_what_is_open(t: &Tree) {
    t.lowers_may_change();
    t.lower(&["d/f=F", "g=G"]);
    t.mount();
    t.write("d/new", "N");
    t.append("g", "+");
    let open = File::options().read(true).write(true).open(t.at("d/new")).unwrap();
    let lower = File::open(t.at("d/f")).unwrap();
    let gone = File::options().read(true).write(true).open(t.at("g")).unwrap();
    fs::remove_file(t.at("g")).unwrap();
    open.write_all_at(b"written", 0).unwrap();
    let ino = fs::metadata(t.at("d")).unwrap().ino();
    forget(t).unwrap();
    forget(t).unwrap();
    let text = |file: &File| {
        let mut text = [0; 16];
        let length = file.read_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!((&*text(&open), &*text(&lower), &*text(&gone)), ("written", "F", "G+"));
    open.write_all_at(b"+", 7).unwrap();
    gone.write_all_at(b"!", 0).unwrap();
    assert_eq!(fs::metadata(t.at("d")).unwrap().ino(), ino);
    assert_eq!(t.sketch(), ["d/", "d/f=F", "d/new=written+"]);
}

fn forget_keeps_what_is_mounted_inside(t: &Tree) {
    t.lowers_may_change();
    t.lower(&["d/inner/", "f=F"]);
    t.mount();
    let inner = t.at("d/inner");
    let (kind, none) = (Some("tmpfs"), None::<&str>);
    mount(kind, &inner, kind, MsFlags::empty(), none).unwrap_or_else(|e| skip(format!("tmpfs: {e}")));
    fs::write(inner.join("x"), "X").unwrap();
    let told = forget(t);
    let kept = fs::read_to_string(inner.join("x"));
    umount2(&inner, MntFlags::empty()).unwrap();
    told.unwrap();
    assert_eq!(kept.unwrap(), "X");
}

fn forget_refuses_what_is_not_ours(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    let place = match t.carrier() {
        Carrier::Kernel => t.at(""),
        Carrier::Fuse => t.at("d"),
    };
    for place in [place, t.at("none")] {
        let output = Command::new(overfall_binary()).arg("forget").arg(place).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("isn't the root of a mount") && said.trim().lines().count() == 1, "{said}");
    }
}

fn forget_is_not_for_everybody(t: &Tree) {
    if t.carrier() == Carrier::Kernel {
        skip("the kernel's overlay has no server that could forget");
    }
    t.lower(&["f=F"]);
    t.mount();
    let root = File::open(t.at("")).unwrap();
    let refused = as_user(1, 1, || overfall::sys::forget::forget_layers(root.as_fd()));
    assert_eq!(refused, Err(overfall::sys::Errno::PERM));
    // Below the root it is no ioctl of ours.
    let file = File::open(t.at("f")).unwrap();
    let unknown = overfall::sys::forget::forget_layers(file.as_fd());
    assert_eq!(unknown, Err(overfall::sys::Errno::NOTTY));
}

fn no_timeout_sees_changes_at_once(t: &Tree) {
    t.lowers_may_change();
    t.lower(&BEFORE);
    t.option("timeout=0");
    t.mount();
    look_around(t);
    let now = change(t);
    assert_eq!(t.sketch(), now);
    assert!(t.has("new") && !t.has("gone"));
    t.append("replaced", "+");
    fs::write(t.low("d/f"), "changed again").unwrap();
    assert_eq!(t.read("d/f"), "changed again");
    assert_eq!(t.read("replaced"), "another+");
}

fn every_option_can_be_turned(t: &Tree) {
    t.lower(&["d/f=F", "d/link -> f", "g=G"]);
    for options in [
        "timeout=0",
        "timeout=3600",
        "writeback=on,passthrough=off",
        "writeback=off",
        "no_open=off",
        "no_opendir=off",
        "no_flush=off",
        "cache_dirs=off",
        "cache_symlinks=off",
        "readdirplus=always",
        "readdirplus=off",
        "killpriv=off",
        "passthrough=off",
        "passthrough=on,writeback=off",
        "threads=1",
        "threads=2,no_open=off,no_opendir=off,no_flush=off,cache_dirs=off,timeout=0",
    ] {
        t.option(options);
        t.mount();
        assert_eq!(t.sketch(), ["d/", "d/f=F", "d/link -> f", "g=G"], "{options}");
        t.append("d/f", "+");
        t.write("new", "N");
        fs::rename(t.at("new"), t.at("d/moved")).unwrap();
        fs::remove_file(t.at("g")).unwrap();
        for _ in 0..2 {
            assert_eq!(t.sketch(), ["d/", "d/f=F+", "d/link -> f", "d/moved=N"], "{options}");
        }
        t.umount();
        t.without_option(options);
        for left in ["d", "g"] {
            let _ = fs::remove_dir_all(t.upper(left)).or_else(|_| fs::remove_file(t.upper(left)));
        }
    }
}
