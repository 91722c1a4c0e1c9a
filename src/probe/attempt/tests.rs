use std::fs;
use std::time::Duration;

use super::super::notes::{self, Note, Pen};
use super::super::space::{self, Who};
use super::super::verdict::{Failure, Outcome};
use super::*;
use crate::options::Fsync;
use crate::sys::child::in_child;
use crate::sys::privilege::Privilege;

#[test]
fn long_names_get_shorter_below_their_common_directory() {
    let options = Options {
        lower: vec!["/a/b/l1".into(), "/a/b/l2".into()],
        upper: Some("/a/b".into()),
        work: Some("/a/bc".into()),
        ..Options::default()
    };
    let base = common_ancestor(&options);
    assert_eq!(base, Path::new("/a"));
    assert_eq!(
        options.to_kernel_data(|path| below(path, &base)),
        "lowerdir=b/l1:b/l2,upperdir=b,workdir=bc"
    );
    assert_eq!(below(Path::new("/a"), &base), Path::new("."));
}

type Mounter = fn(&Options, &Path) -> Result<(), Refusal>;

/// Mounts in namespaces of its own with each of `mounters` and reads `name` of every lower layer
/// back. Layers have the names that `layer` gives.
fn mounts_and_reads(count: usize, layer: impl Fn(usize) -> String, mounters: &[Mounter]) {
    let top = tempfile::Builder::new()
        .prefix("overfall-attempt-")
        .tempdir()
        .expect("a temporary directory");
    let at = |name: &str| top.path().join(name);
    let lower: Vec<_> = (0..count).map(|number| at(&layer(number))).collect();
    for (number, dir) in lower.iter().enumerate() {
        fs::create_dir_all(dir).expect("layer");
        fs::write(dir.join(number.to_string()), "x").expect("file");
    }
    let who = Who::current();
    for (number, mounter) in mounters.iter().enumerate() {
        let options = Options {
            lower: lower.clone(),
            upper: Some(at(&format!(r"u:p,p\{number}"))),
            work: Some(at(&format!("w:{number}"))),
            userxattr: Privilege::current().needs_userxattr(),
            fsync: Fsync::Volatile,
            ..Options::default()
        };
        for dir in [&options.upper, &options.work].into_iter().flatten() {
            fs::create_dir(dir).expect("dir");
        }
        let merged = at(&format!("m{number}"));
        fs::create_dir(&merged).expect("merged");
        let work = |out| {
            let pen = Pen::new(out);
            if !pen.step("enter", || space::enter(who)) {
                return;
            }
            pen.step("mount", || {
                mounter(&options, &merged)
                    .map_err(|refusal| Failure::call(format!("{refusal:?}"), refusal.errno))?;
                let found = fs::read_dir(&merged).map_or(0, Iterator::count);
                let written = fs::write(merged.join("new"), "").is_ok();
                let upper = options.upper.iter().any(|upper| upper.join("new").exists());
                match found == count && written && upper {
                    true => Ok(()),
                    false => Err(Failure::wrong(format!("{found}, {written}, {upper}"))),
                }
            });
        };
        // Forked while other tests run in their threads, a child may find a lock taken for ever
        // and be ended; a caller of the library has one thread.
        let notes = (0..3)
            .map(|_| in_child(Duration::from_secs(20), work).expect("fork"))
            .map(|child| notes::read(&child.output))
            .find(|notes| !notes.is_empty())
            .unwrap_or_default();
        match &notes[..] {
            [Note::Step(_, enter)] => eprintln!("skipped: no namespaces here: {enter:?}"),
            [_, Note::Step(_, mount)] => assert_eq!(mount.outcome, Outcome::Ok, "{number}"),
            other => panic!("{other:?}"),
        }
        // The kernel makes directories below the work directory that only their owner may open.
        let inner = options.work.iter().map(|work| work.join("work"));
        for dir in inner.flat_map(|dir| [dir.join("incompat"), dir.join("incompat/volatile"), dir])
        {
            drop(fs::set_permissions(
                &dir,
                std::os::unix::fs::PermissionsExt::from_mode(0o700),
            ));
        }
    }
}

#[test]
fn names_with_separators() {
    let layer = |number| format!(r"a:b,c\{number}=x y");
    mounts_and_reads(3, layer, &[by_fsopen, by_mount, attempt]);
}

#[test]
fn many_layers_beyond_a_page() {
    // Some 20 KB of names: mount(2) can't take these however they are written.
    let layer = |number| format!("a-rather-long-name-of-one-layer-among-many-others-{number:05}");
    mounts_and_reads(400, layer, &[attempt]);
}

#[test]
fn mount_takes_more_below_a_common_directory() {
    // Together they are longer than a page only with the directory above them.
    let deep = ["d".repeat(200), "e".repeat(140)].join("/");
    mounts_and_reads(11, |number| format!("{deep}/{number}"), &[by_mount]);
}

#[test]
fn names_longer_than_a_string_of_fsconfig() {
    let deep = ["g".repeat(150), "h".repeat(150)].join("/");
    mounts_and_reads(3, |number| format!("{deep}/{number}"), &[attempt]);
}
