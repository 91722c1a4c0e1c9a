//! The merged tree in a plain process, without FUSE.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, XattrFlags};

use super::*;
use crate::options::Options;

struct Tree {
    scratch: tempfile::TempDir,
    union: Arc<Union>,
}

const ME: Caller = Caller { uid: 0, gid: 0 };

fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}

impl Tree {
    /// A tree over `lowers`, each filled by its closure; always with user attributes.
    fn new(lowers: &[&dyn Fn(&std::path::Path)]) -> Self {
        Self::with_owners(Owners::Real, lowers)
    }

    fn with_owners(owners: Owners, lowers: &[&dyn Fn(&std::path::Path)]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let mut lower = Vec::new();
        for (index, fill) in lowers.iter().enumerate() {
            let dir = path(&format!("lower{index}"));
            fs::create_dir(&dir).unwrap();
            fill(&dir);
            lower.push(dir);
        }
        fs::create_dir(path("upper")).unwrap();
        fs::create_dir(path("work")).unwrap();
        let options = Options {
            lower,
            upper: Some(path("upper")),
            work: Some(path("work")),
            userxattr: true,
            ..Options::default()
        };
        let setup = Setup {
            options,
            owners,
            ..Setup::default()
        };
        let union = Arc::new(Union::open(&setup).unwrap());
        Self { scratch, union }
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.scratch.path().join("upper").join(name)
    }

    fn id(&self, path: &str) -> Option<NodeId> {
        let mut id = NodeId::ROOT;
        for name in path.split('/') {
            id = self.union.lookup(id, os(name)).unwrap()?.id;
        }
        Some(id)
    }

    fn read(&self, path: &str) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 16];
        let length = self
            .union
            .read(self.id(path).unwrap(), 0, &mut buffer)
            .unwrap();
        buffer.truncate(length);
        buffer
    }

    fn names(&self, id: NodeId) -> Vec<String> {
        let mut names = Vec::new();
        self.union
            .readdir(id, 0, &mut |entry| {
                names.push(entry.name.to_str().unwrap().to_string());
                Flow::Took
            })
            .unwrap();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}

#[test]
fn reading_shows_the_top_layer_and_changes_nothing() {
    let tree = Tree::new(&[&|dir| fs::write(dir.join("a"), "top").unwrap(), &|dir| {
        fs::write(dir.join("a"), "bottom").unwrap();
        fs::write(dir.join("b"), "b").unwrap();
    }]);
    assert_eq!(tree.read("a"), b"top");
    assert_eq!(tree.read("b"), b"b");
    assert_eq!(tree.names(NodeId::ROOT), ["a", "b"]);
    assert_eq!(tree.id("c"), None);
    assert_eq!(fs::read_dir(tree.upper("")).unwrap().count(), 0);
}

#[test]
fn a_write_copies_up_and_a_node_that_was_known_before_reads_the_copy() {
    let tree = Tree::new(&[&|dir| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/f"), "old contents").unwrap();
    }]);
    let file = tree.id("d/f").unwrap();
    let before = tree.union.getattr(file).unwrap();
    assert_eq!(tree.read("d/f"), b"old contents");
    tree.union.write(file, 0, b"NEW", KillPriv::Keep).unwrap();
    assert_eq!(tree.read("d/f"), b"NEW contents");
    assert_eq!(fs::read(tree.upper("d/f")).unwrap(), b"NEW contents");
    assert_eq!(
        fs::read(tree.scratch.path().join("lower0/d/f")).unwrap(),
        b"old contents"
    );
    assert_eq!(tree.union.getattr(file).unwrap().ino, before.ino);
}

#[test]
fn a_deleted_lower_file_leaves_a_whiteout_and_a_new_one_none() {
    let tree = Tree::new(&[&|dir| fs::write(dir.join("lower"), "x").unwrap()]);
    tree.union
        .make(me(), NodeId::ROOT, os("new"), NewKind::Regular, 0o644, 0)
        .unwrap();
    for name in ["lower", "new"] {
        tree.union.unlink(NodeId::ROOT, os(name)).unwrap();
        assert_eq!(tree.id(name), None);
    }
    let whiteout = fs::symlink_metadata(tree.upper("lower")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert!(fs::symlink_metadata(tree.upper("new")).is_err());
    assert!(tree.names(NodeId::ROOT).is_empty());
}

#[test]
fn a_directory_made_again_hides_the_lower_one() {
    let tree = Tree::new(&[&|dir| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/f"), "x").unwrap();
    }]);
    let dir = tree.id("d").unwrap();
    assert_eq!(
        tree.union.rmdir(NodeId::ROOT, os("d")).unwrap_err().errno,
        Errno::NOTEMPTY
    );
    tree.union.unlink(dir, os("f")).unwrap();
    tree.union.rmdir(NodeId::ROOT, os("d")).unwrap();
    assert_eq!(tree.id("d"), None);
    tree.union
        .make(me(), NodeId::ROOT, os("d"), NewKind::Directory, 0o755, 0)
        .unwrap();
    assert!(tree.names(tree.id("d").unwrap()).is_empty());
    assert_eq!(tree.id("d/f"), None);
    let opaque = rustix::fs::getxattr(tree.upper("d"), "user.overlay.opaque", &mut [0; 8][..]);
    assert_eq!(opaque, Ok(1));
}

#[test]
fn an_unlinked_file_lives_on_in_its_node() {
    let tree = Tree::new(&[&|dir| fs::write(dir.join("f"), "lower data").unwrap()]);
    let file = tree.id("f").unwrap();
    tree.union.unlink(NodeId::ROOT, os("f")).unwrap();
    let mut buffer = [0; 5];
    assert_eq!(tree.union.read(file, 0, &mut buffer), Ok(5));
    tree.union.write(file, 0, b"UPPER", KillPriv::Keep).unwrap();
    tree.union.read(file, 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"UPPER");
    let change = SetAttr {
        perm: Some(0o600),
        size: Some(3),
        ..SetAttr::default()
    };
    let attr = tree.union.setattr(me(), file, &change).unwrap();
    assert_eq!((attr.perm, attr.size, attr.nlink), (0o600, 3, 0));
    assert_eq!(tree.id("f"), None);
}

#[test]
fn renames_leave_whiteouts_only_where_a_lower_name_was() {
    let tree = Tree::new(&[&|dir| {
        fs::write(dir.join("a"), "a").unwrap();
        fs::write(dir.join("b"), "b").unwrap();
        fs::create_dir(dir.join("d")).unwrap();
    }]);
    let root = NodeId::ROOT;
    tree.union
        .rename(root, os("a"), root, os("c"), RenameMode::Replace)
        .unwrap();
    tree.union
        .rename(root, os("c"), root, os("e"), RenameMode::Replace)
        .unwrap();
    assert_eq!(tree.names(root), ["b", "d", "e"]);
    assert_eq!(tree.read("e"), b"a");
    assert!(
        fs::symlink_metadata(tree.upper("a"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
    assert!(fs::symlink_metadata(tree.upper("c")).is_err());
    let moved = tree
        .union
        .rename(root, os("d"), root, os("x"), RenameMode::Replace);
    assert_eq!(moved.unwrap_err().errno, Errno::XDEV);
    tree.union
        .rename(root, os("e"), root, os("b"), RenameMode::Exchange)
        .unwrap();
    assert_eq!(
        (tree.read("b"), tree.read("e")),
        (b"a".to_vec(), b"b".to_vec())
    );
}

#[test]
fn hard_links_share_a_node_and_outlive_each_other() {
    let tree = Tree::new(&[&|_| ()]);
    let root = NodeId::ROOT;
    let first = tree
        .union
        .make(ME, root, os("a"), NewKind::Regular, 0o644, 0)
        .unwrap();
    let second = tree.union.link(first.id, root, os("b")).unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(second.attr.nlink, 2);
    tree.union
        .write(first.id, 0, b"data", KillPriv::Keep)
        .unwrap();
    tree.union.unlink(root, os("a")).unwrap();
    assert_eq!(tree.union.getattr(first.id).unwrap().nlink, 1);
    assert_eq!(tree.read("b"), b"data");
    assert_eq!(tree.id("b"), Some(first.id));
    tree.union
        .rename(root, os("b"), root, os("c"), RenameMode::Replace)
        .unwrap();
    assert_eq!(tree.read("c"), b"data");
}

#[test]
fn forgotten_nodes_leave_the_table() {
    let tree = Tree::new(&[&|dir| {
        fs::create_dir_all(dir.join("d/e")).unwrap();
        fs::write(dir.join("d/e/f"), "x").unwrap();
    }]);
    let ids = ["d", "d/e", "d/e/f"].map(|path| tree.id(path).unwrap());
    assert_eq!(tree.union.node_count(), 4);
    // `id` counted a look-up for every step of every path.
    for (id, count) in ids.into_iter().zip([3, 2, 1]) {
        tree.union.forget(id, count);
    }
    assert_eq!(tree.union.node_count(), 1);
}

#[test]
fn a_name_that_cannot_be_looked_up_is_listed_with_a_number_that_is_nobodys() {
    let redirected = |dir: &std::path::Path| {
        fs::create_dir(dir.join("d")).unwrap();
        let attr = "user.overlay.redirect";
        rustix::fs::setxattr(dir.join("d"), attr, b"/elsewhere", XattrFlags::empty()).unwrap();
    };
    let tree = Tree::new(&[&redirected, &|dir| fs::create_dir(dir.join("d")).unwrap()]);
    let real = fs::metadata(tree.scratch.path().join("lower0/d")).unwrap();
    let mut listed = Vec::new();
    let mut take = |entry: DirEntry<'_>, found: Option<Entry>| {
        if entry.name == "d" {
            listed.push((entry.ino.0, entry.kind, found.is_some()));
        }
        Flow::Took
    };
    tree.union.readdir_plus(NodeId::ROOT, 0, &mut take).unwrap();
    let (number, kind, found) = listed[0];
    assert_eq!((kind, found), (FileKind::Directory, false));
    assert_ne!(number, real.ino());
    assert!(tree.union.getattr(NodeId(number)).is_err());
    // The kernel gives back the look-up that it thinks it has.
    tree.union.forget(NodeId(number), 1);
    assert_eq!(tree.union.node_count(), 1);
}

#[test]
fn two_copy_ups_of_one_file_at_once_make_one_copy() {
    let tree = Tree::new(&[&|dir| fs::write(dir.join("f"), vec![7; 1 << 20]).unwrap()]);
    let file = tree.id("f").unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let union = &tree.union;
            scope.spawn(move || {
                union
                    .write(file, number, &[number as u8], KillPriv::Keep)
                    .unwrap()
            });
        }
    });
    let data = fs::read(tree.upper("f")).unwrap();
    assert_eq!(data[..5], [0, 1, 2, 3, 7]);
    assert_eq!(data.len(), 1 << 20);
}

#[test]
fn the_work_directory_is_left_empty_and_locked_while_in_use() {
    let tree = Tree::new(&[&|dir| fs::write(dir.join("f"), "x").unwrap()]);
    tree.union.unlink(NodeId::ROOT, os("f")).unwrap();
    let options = Options {
        lower: vec![tree.scratch.path().join("lower0")],
        upper: Some(tree.upper("")),
        work: Some(tree.scratch.path().join("work")),
        userxattr: true,
        ..Options::default()
    };
    let setup = Setup {
        options,
        ..Setup::default()
    };
    let second = Union::open(&setup).unwrap_err().to_string();
    assert!(second.contains("in use"), "{second}");
    tree.union.close().unwrap();
    let work = tree.scratch.path().join("work/work");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0);
}

/// Records that say what can't be: of another type than the object, malformed, too long.
#[test]
fn records_of_owners_with_wrong_values_do_no_harm() {
    let values: &[&[u8]] = &[
        b"",
        b":",
        b"0:0",
        b"0:0:",
        b"0:0:0755:dir",
        b"0:0:0644:file",
        b"0:0:0777:symlink",
        b"0:0:0644:pipe",
        b"0:0:0644:socket",
        b"0:0:0000:char-0-0",
        b"0:0:0600:char-4294967295-4294967295",
        b"0:0:0600:block-1",
        b"4294967295:4294967295:0177777",
        b"99999999999999999999:0:0644",
        b"-1:-1:-1",
        b"0:0:0644:file:file",
        b"\xff:\xff:\xff",
        b"0:0:0644\0\0\0",
        &[b'7'; 2000],
    ];
    let fill = |dir: &std::path::Path| {
        for (number, value) in values.iter().enumerate() {
            let [file, inner] = ["f", "d"].map(|kind| dir.join(format!("{kind}{number}")));
            fs::write(&file, "text").unwrap();
            fs::create_dir(&inner).unwrap();
            fs::write(inner.join("x"), "x").unwrap();
            for path in [file, inner] {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(path, crate::format::override_stat::NAME, value, flags)
                    .unwrap();
            }
        }
    };
    // In a lower layer, and in the upper one.
    for in_upper in [false, true] {
        let lower = |dir: &std::path::Path| {
            if !in_upper {
                fill(dir);
            }
        };
        let tree = Tree::with_owners(Owners::FakeRoot, &[&lower]);
        if in_upper {
            fill(&tree.scratch.path().join("upper"));
        }
        let (union, root) = (&tree.union, NodeId::ROOT);
        assert_eq!(tree.names(root).len(), values.len() * 2);
        for (number, kind) in (0..values.len()).flat_map(|n| [(n, "f"), (n, "d")]) {
            let name = format!("{kind}{number}");
            // A record may say that this is a whiteout; nothing follows from that.
            let Some(entry) = union.lookup(root, os(&name)).unwrap() else {
                panic!("{name} is hidden");
            };
            let mut buffer = [0; 8];
            let _ = union.read(entry.id, 0, &mut buffer);
            let _ = union.readlink(entry.id);
            let _ = union.readdir(entry.id, 0, &mut |_| Flow::Took);
            let _ = union.lookup(entry.id, os("x"));
            let _ = union.write(entry.id, 0, b"new", KillPriv::Keep);
            let change = SetAttr {
                perm: Some(0o600),
                uid: Some(1),
                size: Some(2),
                ..SetAttr::default()
            };
            let _ = union.setattr(me(), entry.id, &change);
            let _ = union.make(me(), entry.id, os("n"), NewKind::Regular, 0o644, 0);
            let _ = union.link(entry.id, root, os("link"));
            let _ = union.unlink(root, os("link"));
            let _ = union.rename(root, os(&name), root, os("moved"), RenameMode::Replace);
            let _ = union.unlink(root, os("moved"));
            let _ = union.rmdir(root, os("moved"));
            union.getattr(root).unwrap();
        }
        union.close().unwrap();
    }
}

/// What the VFS would forbid is asked for at once: a name moves between a directory and the one in
/// it, and somebody tries to remove that.
#[test]
fn renames_and_removals_wait_for_each_other_in_one_order() {
    const ROUNDS: usize = 2_000;
    let tree = Tree::new(&[&|_| {}]);
    // The numbers of directories say nothing about which is above; both ways, to be sure.
    fs::create_dir(tree.upper("early")).unwrap();
    for name in ["late", "above", "above/in"] {
        fs::create_dir(tree.upper(name)).unwrap();
    }
    fs::rename(tree.upper("early"), tree.upper("late/early")).unwrap();
    let (done, all) = std::sync::mpsc::channel();
    let pairs = [("late", "early"), ("above", "in")];
    for (above, below) in pairs {
        let inner = format!("{above}/{below}");
        fs::write(tree.upper(&inner).join("kept"), "").unwrap();
        fs::write(tree.upper(above).join("f"), "").unwrap();
        let (above, inside) = (tree.id(above).unwrap(), tree.id(&inner).unwrap());
        let (mover, remover) = (tree.union.clone(), tree.union.clone());
        let (moved, tried) = (done.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                for (from, to) in [(above, inside), (inside, above)] {
                    mover
                        .rename(from, os("f"), to, os("f"), RenameMode::Replace)
                        .unwrap();
                }
            }
            moved.send(()).unwrap();
        });
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                let fault = remover.rmdir(above, os(below)).unwrap_err();
                assert_eq!(fault.errno, Errno::NOTEMPTY);
            }
            tried.send(()).unwrap();
        });
    }
    for _ in 0..2 * pairs.len() {
        let patience = std::time::Duration::from_secs(30);
        all.recv_timeout(patience)
            .expect("they wait for each other");
    }
}

/// A file's name goes while another one of it is met for the first time: it is reached by that.
#[test]
fn a_name_that_goes_while_another_is_met_leaves_the_file_reachable() {
    let tree = Tree::new(&[&|_| {}]);
    fs::create_dir(tree.upper("d")).unwrap();
    fs::write(tree.upper("a"), "").unwrap();
    fs::hard_link(tree.upper("a"), tree.upper("d/b")).unwrap();
    let dir = tree.id("d").unwrap();
    let node = tree.union.node(tree.id("a").unwrap()).unwrap();
    let file = fs::File::open(tree.upper("a")).unwrap().into();
    let held = descriptors::OpenFile::new(file, descriptors::Access::Read);
    std::thread::scope(|scope| {
        let meets = tree.union.aliases.held_for_a_test();
        let met = scope.spawn(|| tree.union.lookup(dir, os("b")));
        std::thread::sleep(std::time::Duration::from_millis(200));
        // What an unlink does; the other name, which it would look for, isn't known yet. In a
        // thread of its own: it would hold two locks in no order.
        let unlinked = scope.spawn(|| {
            let mut state = node.state.write();
            state.named = false;
            state.real = Real::Detached(held);
        });
        unlinked.join().unwrap();
        drop(meets);
        assert_eq!(met.join().unwrap().unwrap().unwrap().id, node.id);
    });
    assert!(node.state.read().named);
    tree.union.link(node.id, NodeId::ROOT, os("c")).unwrap();
}

/// A tree of more levels than the thread that works in it has stack, if each of them took some.
struct Deep {
    tree: Tree,
    nodes: Vec<NodeId>,
}

impl Deep {
    fn new() -> Self {
        const LEVELS: usize = 6000;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tree = Tree::new(&[&|dir| {
            let mut dir = rustix::fs::openat(CWD, dir, flags, Mode::empty()).unwrap();
            for _ in 0..LEVELS {
                rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
                dir = rustix::fs::openat(&dir, "d", flags, Mode::empty()).unwrap();
            }
            rustix::fs::mkdirat(&dir, "last", Mode::RWXU).unwrap();
        }]);
        let mut nodes = vec![NodeId::ROOT];
        for level in 0..LEVELS {
            let entry = tree.union.lookup(nodes[level], os("d")).unwrap();
            nodes.push(entry.unwrap().id);
        }
        Self { tree, nodes }
    }

    fn in_a_small_thread(test: fn(Self)) {
        let thread = std::thread::Builder::new().stack_size(256 << 10);
        let thread = thread.spawn(move || test(Self::new())).unwrap();
        thread.join().unwrap();
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        let lower = fs::File::open(self.tree.scratch.path().join("lower0")).unwrap();
        crate::sys::tree::remove_contents(&lower.into()).unwrap();
    }
}

#[test]
fn no_number_of_levels_fills_the_stack() {
    Deep::in_a_small_thread(|deep| {
        let union = &deep.tree.union;
        let last = *deep.nodes.last().unwrap();
        // Opened again from the root.
        union.ground.descriptors.clear();
        assert_eq!(deep.tree.names(last), ["last"]);
        let held = union.node(last).unwrap();
        let dir = held.dir.as_ref().unwrap().lowers[0].clone();
        for node in deep.nodes[1..].iter().rev() {
            union.forget(*node, 1);
        }
        assert_eq!(union.node_count(), 1);
        // Nobody else has what they are below.
        drop(held);
        drop(dir);
    });
}

#[test]
fn a_deep_tree_that_the_kernel_has_not_forgotten_is_dropped() {
    Deep::in_a_small_thread(|mut deep| {
        let scratch = tempfile::tempdir().unwrap();
        let setup = Setup {
            options: Options {
                lower: vec![scratch.path().to_path_buf()],
                userxattr: true,
                ..Options::default()
            },
            ..Setup::default()
        };
        deep.tree.union = Arc::new(Union::open(&setup).unwrap());
    });
}
