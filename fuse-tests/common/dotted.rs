//! The tests on uppers in the fallback form: what is planted and shown is the kernel's form all the
//! same, brought there and back.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::machine::{Upper, Variant};
use super::{Tree, plant, sketch, xattr_get, xattr_remove};

const BYTES: &str = "it looks at the bytes of the kernel's form";
const LEADS: &str = "what leads elsewhere is in attributes of the kernel's form";
const ELSEWHERE: &str = "the form of the upper makes no difference to it";

/// Modules and tests that are about the bytes of the kernel's form, or about something that the
/// fallback form hasn't, with the reason.
const EXCLUDED: &[(&str, &str, &str)] = &[
    ("inject", "*", BYTES),
    ("full", "*", BYTES),
    ("power", "*", BYTES),
    (
        "kills",
        "killed_with_redirects_metadata_copies_and_an_index",
        LEADS,
    ),
    ("kills", "killed_with_metadata_copies", LEADS),
    ("kills", "killed_with_strict_syncing", LEADS),
    ("kills", "killed_volatile", BYTES),
    ("hostile_attributes", "*", ELSEWHERE),
    ("hostile_layers", "*", ELSEWHERE),
    ("hostile_sizes", "*", ELSEWHERE),
    ("io", "*", ELSEWHERE),
    ("ioctl", "*", ELSEWHERE),
    ("locks", "*", ELSEWHERE),
    ("tuning", "*", ELSEWHERE),
    ("foreign", "*", LEADS),
    ("format", "*", BYTES),
    (
        "layers",
        "names_that_begin_with_wh",
        "such names are the form's own: upgrade::names_of_the_form",
    ),
    (
        "peers",
        "peers_row_11_opaque_directories_have_no_sentinel_and_no_private_attribute",
        BYTES,
    ),
    (
        "peers",
        "peers_row_4_kill_in_a_copy_up_leaves_the_old_or_the_new_file",
        BYTES,
    ),
    ("peers", "peers_row_7_nobody_waits_for_a_copy_up", ELSEWHERE),
    ("peers", "peers_row_8_small_writes_are_cheap", ELSEWHERE),
    ("peers", "peers_row_4_no_space_leaves_no_temporaries", BYTES),
    ("remove", "remove_and_make_directory_again_is_opaque", BYTES),
    ("remove", "whiteouts_share_one_inode", BYTES),
    ("rename", "deep_directory_moves_with_content", BYTES),
    ("rules", "upper_may_change_while_it_is_not_mounted", BYTES),
    ("upgrade", "*", "it chooses the form itself"),
];

/// Why a test makes no sense in a variant.
pub(super) fn excludes(variant: Variant, module: &str, case: &str) -> Option<&'static str> {
    if variant.upper == Upper::Kernels {
        return None;
    }
    let wanted =
        |(of, name, _): &&(&str, &str, &str)| *of == module && (*name == "*" || *name == case);
    EXCLUDED.iter().find(wanted).map(|(_, _, why)| *why)
}

impl Tree {
    /// Plants in an upper what is said in the kernel's form.
    pub(super) fn plant_dotted(&self, entries: &[&str]) {
        let upper = self.upper("");
        if !upper.join(".wh..wh.overfall").exists() {
            // Begun by a mount that changes nothing.
            self.mount();
            self.umount();
        }
        let opaque = self.private("opaque");
        // Who plants hasn't planted everything yet.
        self.forget_lowers();
        plant(&upper, &opaque, entries);
        dot(&upper, &opaque);
    }

    /// Calls `work` while copies of upper and work directory, in the kernel's form, stand in for
    /// them. Nothing may be mounted.
    pub(crate) fn as_upgraded<R>(&self, work: impl FnOnce(&Tree) -> R) -> R {
        if self.form.get() == Upper::Kernels {
            return work(self);
        }
        let dirs = [self.upper(""), self.work("")];
        let kept = dirs.clone().map(|dir| dir.with_extension("kept"));
        for (dir, kept) in dirs.iter().zip(&kept) {
            fs::rename(dir, kept).expect("a directory that is put aside");
            copy(kept, dir);
        }
        let [upper, base] = dirs.clone().map(OsString::from);
        let arguments = ["upgrade-layer".into(), upper, "--workdir".into(), base];
        self.overfall(&arguments).expect("the upgrade");
        self.form.set(Upper::Kernels);
        let result = work(self);
        self.form.set(Upper::Dotted);
        for (dir, kept) in dirs.iter().zip(&kept) {
            super::suite::remove(dir).expect("the copy");
            fs::rename(kept, dir).expect("a directory that was put aside");
        }
        result
    }

    /// The upper as it would be in the kernel's form: a copy of it that is upgraded.
    pub(super) fn upgraded_sketch(&self) -> Vec<String> {
        let copy = self.beside("upgraded");
        self::copy(&self.upper(""), &copy);
        self.overfall(&[OsString::from("upgrade-layer"), copy.clone().into()])
            .expect("the upgrade");
        let lines = sketch(&copy);
        fs::remove_dir_all(&copy).expect("the copy");
        lines
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).output();
    let copied = copied.expect("cp");
    assert!(copied.status.success(), "{copied:?}");
}

/// Turns what is in the kernel's form into the fallback form.
fn dot(dir: &Path, opaque: &str) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("an object");
        if meta.is_dir() {
            if xattr_get(&path, opaque).is_some() {
                xattr_remove(&path, opaque).expect("the mark");
                fs::write(path.join(".wh..wh..opq"), "").expect("the mark");
            }
            dot(&path, opaque);
        } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
            fs::remove_file(&path).expect("the whiteout");
            let mut name = OsString::from(".wh.");
            name.push(path.file_name().expect("a name"));
            fs::write(path.with_file_name(name), "").expect("the whiteout");
        }
    }
}
