//! Owners in the run of a plain user, who is root in it and nowhere else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::ways::{Way, skip};

const RECORD: &str = "user.containers.override_stat";

fn only_for_a_fake_root(way: &Way) {
    if way.is_root {
        skip("root gives owners as they are");
    }
}

/// An object of a kept upper directory.
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
    let upper = kept.join("upper");
    let given = find(&upper, "given");
    let owner = fs::symlink_metadata(&given).unwrap().uid();
    let home = fs::symlink_metadata(&kept).unwrap().uid();
    // With subordinate ids the user has others to give; without them all are recorded.
    let expected_record = (owner == home).then_some("1:2:04750");
    assert_eq!(record(&given).as_deref(), expected_record);
    // Nobody looks like an owner that isn't mapped, whoever is.
    let nobody = record(&find(&upper, "to-nobody"));
    assert_eq!(nobody.as_deref(), Some("65534:65534:0644:file"));
    if has_device {
        let record = record(&find(&upper, "a-device"));
        assert_eq!(record.as_deref(), Some("0:0:0640:block-7-9"));
    }
    // They are what the next run sees.
    let ran = way.run(&["--keep", keep], &["sh", "-ec", &show]);
    assert_eq!((ran.code, &ran.out), (Some(0), &expected), "{ran:?}");
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
