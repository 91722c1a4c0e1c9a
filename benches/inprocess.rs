//! What overfall costs by itself: the merged tree and the option string in one process, with no
//! FUSE in between. For comparisons between two versions of overfall, on the same machine.

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use overfall::options::{Fsync, Options};
use overfall::union::{Caller, Flow, KillPriv, NewKind, NodeId, Setup, Union};
use tempfile::TempDir;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Names in the directory that is listed, over all layers.
const NAMES: usize = 10_000;
/// Lower layers.
const LOWERS: usize = 3;
/// Small files to be copied up.
const SMALL: usize = 5_000;

fn main() -> Outcome<()> {
    let mut criterion = Criterion::default().configure_from_args();
    options(&mut criterion)?;
    tree(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

fn options(criterion: &mut Criterion) -> Outcome<()> {
    let long = (0..128)
        .map(|layer| format!("/var/lib/layers/overlay/l/LAYER{layer:026}"))
        .collect::<Vec<_>>()
        .join(":");
    let text = format!("lowerdir={long},upperdir=/srv/up\\,per,workdir=/srv/work,userxattr");
    Options::parse(OsStr::new(&text))?;
    criterion.bench_function("options: 128 layers", |bencher| {
        bencher.iter(|| Options::parse(OsStr::new(black_box(&text))));
    });
    Ok(())
}

/// Layers on the disk.
struct Layers {
    dir: TempDir,
}

impl Layers {
    fn plant() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        for layer in 0..LOWERS {
            let list = dir.path().join(format!("lower{layer}/list"));
            fs::create_dir_all(&list)?;
            // Half of each layer's names are in the next one, too.
            let share = NAMES / (LOWERS + 1);
            for name in layer * share..(layer + 2) * share {
                fs::write(list.join(format!("name-{name}")), "")?;
            }
        }
        let small = dir.path().join("lower0/small");
        fs::create_dir_all(&small)?;
        for index in 0..SMALL {
            fs::write(small.join(format!("file-{index}")), [b'x'; 1000])?;
        }
        Ok(Self { dir })
    }

    /// The merged tree over a new upper layer.
    fn open(&self) -> Outcome<Union> {
        // It goes with the other layers.
        let upper = tempfile::tempdir_in(self.dir.path())?.keep();
        let (top, work) = (upper.join("upper"), upper.join("work"));
        fs::create_dir(&top)?;
        fs::create_dir(&work)?;
        let options = Options {
            lower: (0..LOWERS)
                .map(|layer| self.dir.path().join(format!("lower{layer}")))
                .collect(),
            upper: Some(top),
            work: Some(work),
            // What is measured is our own work, not the disk's.
            fsync: Fsync::Volatile,
            ..Options::default()
        };
        Ok(Union::open(&Setup {
            options,
            ..Setup::default()
        })?)
    }
}

fn find(tree: &Union, parent: NodeId, name: &str) -> Outcome<NodeId> {
    let found = tree
        .lookup(parent, OsStr::new(name))
        .map_err(|fault| fault.to_string())?;
    Ok(found.ok_or(format!("{name}: not there"))?.id)
}

fn count(tree: &Union, dir: NodeId) -> usize {
    let mut names = 0;
    let listed = tree.readdir(dir, 0, &mut |_| {
        names += 1;
        Flow::Took
    });
    listed.map_or(0, |()| names)
}

fn tree(criterion: &mut Criterion) -> Outcome<()> {
    let layers = Layers::plant()?;
    let tree = layers.open()?;
    let list = find(&tree, NodeId::ROOT, "list")?;
    if count(&tree, list) != NAMES + 2 {
        return Err(format!("{} names listed", count(&tree, list)).into());
    }
    lookups(criterion, &tree, list)?;
    listings(criterion, &layers, &tree, list)?;
    changes(criterion, &layers)
}

fn lookups(criterion: &mut Criterion, tree: &Union, list: NodeId) -> Outcome<()> {
    let first = find(tree, list, "name-1")?;
    criterion.bench_function("lookup: node in memory", |bencher| {
        bencher.iter(|| {
            let found = tree.lookup(list, OsStr::new("name-1"));
            tree.forget(first, 1);
            found
        });
    });
    let name = OsStr::new("name-2");
    criterion.bench_function("lookup: new node, then forget", |bencher| {
        bencher.iter(|| {
            if let Ok(Some(entry)) = tree.lookup(list, name) {
                tree.forget(entry.id, 1);
            }
        });
    });
    criterion.bench_function("lookup: absent", |bencher| {
        bencher.iter(|| tree.lookup(list, OsStr::new("absent")));
    });
    criterion.bench_function("getattr", |bencher| {
        bencher.iter(|| tree.getattr(first));
    });
    Ok(())
}

fn listings(criterion: &mut Criterion, layers: &Layers, tree: &Union, list: NodeId) -> Outcome<()> {
    let mut group = criterion.benchmark_group("listing");
    group.throughput(Throughput::Elements(NAMES as u64));
    group.bench_function("merged from 3 layers", |bencher| {
        bencher.iter_batched(
            || {
                layers
                    .open()
                    .and_then(|tree| Ok((find(&tree, NodeId::ROOT, "list")?, tree)))
            },
            |opened| opened.map(|(list, tree)| count(&tree, list)).unwrap_or(0),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("in memory", |bencher| {
        bencher.iter(|| count(tree, list));
    });
    group.finish();
    Ok(())
}

fn changes(criterion: &mut Criterion, layers: &Layers) -> Outcome<()> {
    let caller = Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    let tree = layers.open()?;
    let mut number = 0u64;
    criterion.bench_function("create a file", |bencher| {
        bencher.iter(|| {
            number += 1;
            let name = format!("new-{number}");
            let made = tree.make(
                caller,
                NodeId::ROOT,
                OsStr::new(&name),
                NewKind::Regular,
                0o644,
                0o022,
            );
            if let Ok(entry) = &made {
                tree.forget(entry.id, 1);
            }
            made
        });
    });
    let mut pool = SmallFiles::default();
    criterion.bench_function("copy-up of 1000 bytes", |bencher| {
        bencher.iter_batched(
            || pool.next(layers),
            |(tree, file)| tree.write(file, 1000, b"+", KillPriv::Keep),
            BatchSize::PerIteration,
        );
    });
    Ok(())
}

/// Lower files that are not copied up yet, of one tree after the other.
#[derive(Default)]
struct SmallFiles {
    left: Vec<(Arc<Union>, NodeId)>,
}

impl SmallFiles {
    fn next(&mut self, layers: &Layers) -> (Arc<Union>, NodeId) {
        loop {
            if let Some(file) = self.left.pop() {
                return file;
            }
            if let Err(error) = self.refill(layers) {
                eprintln!("opening the layers again: {error}");
                std::process::exit(1);
            }
        }
    }

    fn refill(&mut self, layers: &Layers) -> Outcome<()> {
        let tree = Arc::new(layers.open()?);
        let small = find(&tree, NodeId::ROOT, "small")?;
        for index in 0..SMALL {
            let file = find(&tree, small, &format!("file-{index}"))?;
            self.left.push((tree.clone(), file));
        }
        Ok(())
    }
}
