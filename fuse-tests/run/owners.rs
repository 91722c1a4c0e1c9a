//! Owners in the run of a plain user, who is root in it and nowhere else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ways::{Way, finish, skip};

const RECORD: &str = "user.containers.override_stat";

fn only_for_a_fake_root(way: &Way) {
    if way.is_root {
        skip("root gives owners as they are");
    }
}

/// An object of a kept directory. Whose upper it is in depends on what is mounted where.
fn find(dir: &Path, name: &str) -> PathBuf {
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.file_name() == OsStr::new(name) {
                return entry.path();
            }
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    panic!("no {name} in {}", dir.display());
}

fn record(path: &Path) -> Option<String> {
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(path, RECORD, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}

pub(crate) fn owners_that_cannot_be_given_are_recorded(way: &Way) {
    only_for_a_fake_root(way);
    let kept = PathBuf::from(way.path("kept"));
    // Who may make one? Nobody in a namespace; but one that is there can be changed.
    let device = Path::new(&way.home).join("a-device");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::BlockDevice;
    let made = rustix::fs::mknodat(rustix::fs::CWD, &device, kind, mode, rustix::fs::makedev(7, 9));
    let device = made.map_or_else(|_| way.path("none"), |()| device.to_str().unwrap().to_owned());
    let has_device = !device.ends_with("none");
    let show = format!("cd /etc; stat -c '%u %g %a %F %t,%T' given to-nobody; test ! -e {device} || stat -c '%u %g %a %F %t,%T' {device}");
    let script = format!(
        "cd /etc; echo x > given; chown 1:2 given; chmod 4750 given; echo y > to-nobody; \
         chown 65534:65534 to-nobody; test ! -e {device} || chmod 640 {device}; {show}"
    );
    let mut expected = "1 2 4750 regular file 0,0\n65534 65534 644 regular file 0,0\n".to_owned();
    if has_device {
        expected.push_str("0 0 640 block special file 7,9\n");
    }
    let keep = kept.to_str().unwrap();
    let ran = way.run(&["--keep", keep], &["sh", "-ec", &script]);
    assert_eq!((ran.code, &ran.out), (Some(0), &expected), "{ran:?}");
    let given = find(&kept, "given");
    let owner = fs::symlink_metadata(&given).unwrap().uid();
    let home = fs::symlink_metadata(&kept).unwrap().uid();
    // With subordinate ids the user has others to give; without them all are recorded.
    let expected_record = (owner == home).then_some("1:2:04750");
    assert_eq!(record(&given).as_deref(), expected_record);
    // Nobody looks like an owner that isn't mapped, whoever is.
    let nobody = record(&find(&kept, "to-nobody"));
    assert_eq!(nobody.as_deref(), Some("65534:65534:0644:file"));
    if has_device {
        let record = record(&find(&kept, "a-device"));
        assert_eq!(record.as_deref(), Some("0:0:0640:block-7-9"));
    }
    // They are what the next run sees.
    let ran = way.run(&["--keep", keep], &["sh", "-ec", &show]);
    assert_eq!((ran.code, &ran.out), (Some(0), &expected), "{ran:?}");
}

/// Nowhere to record them: owners are those of a plain namespace, and a device can't be one's own.
pub(crate) fn without_attributes_owners_are_not_recorded(way: &Way) {
    only_for_a_fake_root(way);
    let Some(user) = way.become_user else {
        skip("only root can mount a file system without attributes");
    };
    let disk = way.plant_dir("disk");
    let device = way.path("a-device");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::BlockDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &*device, kind, mode, rustix::fs::makedev(7, 9)).unwrap();
    rustix::fs::chown(&*device, Some(rustix::fs::Uid::from_raw(user)), None).unwrap();
    let kept = format!("{disk}/kept");
    let run = way.command(&["--keep", &kept]);
    let words = [run.get_program()].into_iter().chain(run.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let inside = format!(
        "echo new > /etc/new; chown 65534:65534 /etc/new; chmod 640 {device}; chown 0:0 /etc/new && \
         stat -c %u:%g /etc/new; stat -c %a {device}; rm /etc/hostname; ls /etc/hostname"
    );
    let script = format!(
        "set -e; mount -t ramfs r {disk}; chown {user} {disk}; cd /; {} -- sh -c '{inside}' || true; \
         ls -A {disk}/kept/upper/etc",
        words.join(" ")
    );
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &script])
        .env("TMPDIR", way.scratch())
        .env("LC_ALL", "C");
    let ran = finish(&mut command);
    assert_eq!(ran.out, "0:0\n600\n.wh.hostname\nnew\n", "{ran:?}");
    assert!(ran.err.contains("fallback form"), "{ran:?}");
    assert!(ran.err.contains("changing ownership of '/etc/new'"), "{ran:?}");
    assert!(ran.err.contains("a-device': Operation not permitted"), "{ran:?}");
}

/// A file and a directory of the machine's root, which the plain user may not read.
fn plant_unreadable(way: &Way) {
    if way.become_user.is_none() {
        skip("only root can plant what the user may not read");
    }
    let (file, dir) = (way.home.join("secret"), way.home.join("closed"));
    fs::write(&file, "secret\n").unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("inside"), "inside\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
}

pub(crate) fn an_unreadable_file_stays_unreadable(way: &Way) {
    only_for_a_fake_root(way);
    plant_unreadable(way);
    let file = way.path("secret");
    let script = format!(
        "stat -c '%u %g' {file}; exec 3<{file} && echo opened; cat <&3 || echo unread; \
         (echo x >> {file}) || echo unwritten; chmod 644 {file} || echo unchanged; \
         rm {file}; ls {file} || echo gone"
    );
    let ran = way.sh(&script);
    assert_eq!(ran.out, "0 0\nopened\nunread\nunwritten\nunchanged\ngone\n", "{ran:?}");
    assert_eq!(ran.err.matches("Permission denied").count(), 2, "{ran:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), "secret\n");
}

pub(crate) fn an_unreadable_directory_is_empty_for_who_changes_it(way: &Way) {
    only_for_a_fake_root(way);
    plant_unreadable(way);
    let dir = way.path("closed");
    let script = format!(
        "ls -d {dir}; ls {dir} || echo unlisted; echo new > {dir}/new; ls {dir}; rm -rf {dir}; \
         ls {dir} || echo gone; mkdir {dir}; ls -A {dir}"
    );
    let ran = way.sh(&script);
    assert_eq!(ran.out, format!("{dir}\nunlisted\nnew\ngone\n"), "{ran:?}");
    assert_eq!(fs::read_to_string(format!("{dir}/inside")).unwrap(), "inside\n");
}
