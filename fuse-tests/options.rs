//! Bad layers, on real directories: one clear error each, as the kernel would refuse them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use overfall::options::{Options, check_layers, check_layers_for_kernel};

struct Tree {
    top: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let top = tempfile::Builder::new()
            .prefix("overfall-options-")
            .tempdir()
            .expect("a temporary directory");
        for name in ["l1/sub", "l2", "u/sub", "w/sub", "m", "a:b", "c,d"] {
            fs::create_dir_all(top.path().join(name)).expect(name);
        }
        fs::write(top.path().join("file"), "").expect("file");
        Self { top }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// The option string with `@` for the tree's own directory.
    fn check(&self, text: &str) -> Result<(), String> {
        let text = text.replace('@', &self.top.path().display().to_string());
        let options = Options::parse(OsStr::new(&text)).map_err(|error| error.to_string())?;
        check_layers(&options, &self.path("m")).map_err(|error| error.to_string())
    }

    fn refuses(&self, text: &str, words: &[&str]) {
        let said = self.check(text).expect_err(text);
        for word in words {
            assert!(said.contains(word), "{text}: {said}");
        }
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn good_layers_pass() {
    let tree = Tree::new();
    for text in [
        "lowerdir=@/l1:@/l2,upperdir=@/u,workdir=@/w",
        "lowerdir=@/l1",
        r"lowerdir=@/a\:b:@/c\,d",
        // As with the kernel, the upper layer may lie inside a lower one.
        "lowerdir=/,upperdir=@/u,workdir=@/w",
        "lowerdir=@/l1,upperdir=@/l1/sub,workdir=@/w",
    ] {
        assert_eq!(tree.check(text), Ok(()), "{text}");
    }
}

#[test]
fn missing_directories_are_named() {
    let tree = Tree::new();
    let rest = "upperdir=@/u,workdir=@/w";
    tree.refuses(
        &format!("lowerdir=@/none,{rest}"),
        &["/none: the lower directory does not exist"],
    );
    tree.refuses(
        &format!("lowerdir=@/file,{rest}"),
        &["/file: the lower directory is not a directory"],
    );
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/none,workdir=@/w",
        &["the upper directory does not exist"],
    );
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/u,workdir=@/none",
        &["the work directory does not exist"],
    );
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/file,workdir=@/w",
        &["the upper directory is not a directory"],
    );
    let options = Options::parse(OsStr::new("lowerdir=/")).expect("options");
    let said = check_layers(&options, Path::new("/none/at/all"))
        .expect_err("no target")
        .to_string();
    assert!(
        said.contains("/none/at/all: the target does not exist"),
        "{said}"
    );
}

#[test]
fn an_unescaped_separator_is_explained() {
    let tree = Tree::new();
    tree.refuses(
        "lowerdir=@/a:b",
        &[
            "/a: the lower directory does not exist",
            r"written `\:`",
            "/a:b exists",
        ],
    );
    tree.refuses(
        "lowerdir=@/l1:@/a:b:@/l2",
        &[r"written `\:`", "/a:b exists"],
    );
    tree.refuses("lowerdir=@/l1:@/none", &[r"written `\:`"]);
    tree.refuses("lowerdir=@/c,d", &["unknown option `d`", r"written `\,`"]);
}

#[test]
fn upper_and_work_lie_apart_on_one_file_system() {
    let tree = Tree::new();
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/u,workdir=@/u",
        &["the same directory"],
    );
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/u,workdir=@/u/../u",
        &["the same directory"],
    );
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/u,workdir=@/u/sub",
        &["workdir is inside upperdir"],
    );
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/w/sub,workdir=@/w",
        &["upperdir is inside workdir"],
    );
    std::os::unix::fs::symlink(tree.path("u/sub"), tree.path("link")).expect("link");
    tree.refuses(
        "lowerdir=@/l1,upperdir=@/u,workdir=@/link",
        &["workdir is inside upperdir"],
    );
    if Path::new("/dev/shm").is_dir() {
        let other = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let text = format!(
            "lowerdir=@/l1,upperdir=@/u,workdir={}",
            other.path().display()
        );
        tree.refuses(&text, &["not on the file system", "put both on one"]);
    }
}

#[test]
fn layers_do_not_overlap() {
    let tree = Tree::new();
    let rest = "upperdir=@/u,workdir=@/w";
    tree.refuses(&format!("lowerdir=@/u/sub,{rest}"), &["inside upperdir"]);
    tree.refuses(&format!("lowerdir=@/w/sub,{rest}"), &["inside workdir"]);
    tree.refuses(
        &format!("lowerdir=@/u,{rest}"),
        &["the same directory as upperdir"],
    );
    tree.refuses(
        "lowerdir=@/l1:@/l2/../l1",
        &["the same as the lower directory"],
    );
}

#[test]
fn a_locked_directory_is_in_use() {
    let tree = Tree::new();
    let text = "lowerdir=@/l1,upperdir=@/u,workdir=@/w";
    for (dir, name) in [("w", "workdir"), ("u", "upperdir")] {
        let held = fs::File::open(tree.path(dir)).expect(dir);
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("lock");
        tree.refuses(text, &[&format!("{name} is in use by another overlay")]);
        drop(held);
        assert_eq!(tree.check(text), Ok(()));
    }
}

#[test]
fn an_upper_of_a_mounted_overlay_is_in_use() {
    let tree = Tree::new();
    let at = |name: &str| tree.path(name).display().to_string();
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("l1"),
        at("u"),
        at("w")
    );
    let data = std::ffi::CString::new(data).expect("no NUL");
    let flags = rustix::mount::MountFlags::empty();
    let target = tree.path("m");
    if let Err(errno) = rustix::mount::mount("test", &target, "overlay", flags, data.as_c_str()) {
        eprintln!("skipped: this user may not mount an overlay here ({errno})");
        return;
    }
    fs::create_dir(tree.path("w2")).expect("w2");
    let upper = tree.check("lowerdir=@/l1,upperdir=@/u,workdir=@/w2");
    let work = tree.check("lowerdir=@/l1,upperdir=@/l2,workdir=@/w");
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).expect("unmount");
    let upper = upper.expect_err("upper in use");
    assert!(
        upper.contains("upperdir is in use by the overlay mounted on"),
        "{upper}"
    );
    assert!(work.expect_err("work in use").contains("workdir is in use"));
}

#[test]
fn a_read_only_upper_is_refused() {
    if !Path::new("/sys").is_dir() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a read-only mount");
        return;
    }
    let tree = Tree::new();
    let target = tree.path("m");
    let bound = rustix::mount::mount_bind(tree.top.path(), &target).and_then(|()| {
        let read_only = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(&target, read_only, "")
    });
    if let Err(errno) = bound {
        eprintln!("skipped: no bind mounts here ({errno})");
        return;
    }
    let said = tree.check("lowerdir=@/l1,upperdir=@/m/u,workdir=@/m/w");
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).expect("unmount");
    assert!(said.expect_err("read-only").contains("read-only mount"));
}

#[test]
fn the_kernel_takes_no_lower_layer_inside_of_another() {
    let tree = Tree::new();
    for text in ["lowerdir=@/l1:@/l1/sub", "lowerdir=@/l1/sub:@/l1"] {
        // Ours does.
        assert_eq!(tree.check(text), Ok(()), "{text}");
        let text = text.replace('@', &tree.top.path().display().to_string());
        let options = Options::parse(OsStr::new(&text)).expect(&text);
        let said = check_layers_for_kernel(&options)
            .expect_err(&text)
            .to_string();
        assert!(said.contains("inside the lower directory"), "{said}");
    }
}
