//! What becomes of a panic: on a real mount, where one can be made.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use fuser::{
    Config, FileHandle, Filesystem, INodeNo, KernelConfig, ReplyAttr, ReplyData, ReplyEntry,
    ReplyXattr, Request,
};

use log::Level;

use super::*;
use crate::options::Options;
use crate::sys::Errno;
use crate::union::{NodeId, Setup};

/// A panic that prints nothing: the printer's lock must not be held while another test forks.
fn rehearse() -> ! {
    std::panic::resume_unwind(Box::new("rehearsed"))
}

/// The server, but for two requests.
struct Panicking(Server);

impl Filesystem for Panicking {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.init(request, config)
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookup(request, parent, name, reply);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattr(request, ino, fh, reply);
    }

    /// In the merged tree's part.
    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let call = |_: &Union| -> Outcome<()> { rehearse() };
        self.0
            .serve(Op::Readlink, NodeId(ino.0), reply, call, |_, ()| {});
    }

    /// In the answer's part.
    fn getxattr(&self, _request: &Request, ino: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        let answer = |_, ()| rehearse();
        self.0
            .serve(Op::Getxattr, NodeId(ino.0), reply, |_| Ok(()), answer);
    }
}

/// Keeps what is logged as an error.
struct Errors(Mutex<Vec<String>>);

static ERRORS: Errors = Errors(Mutex::new(Vec::new()));

impl log::Log for Errors {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// A tree with a link in it, as root of a mount; `None` where nothing can be mounted.
fn mount(scratch: &Path) -> Option<fuser::BackgroundSession> {
    let [lower, target] = ["lower", "target"].map(|name| scratch.join(name));
    fs::create_dir(&lower).unwrap();
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink("somewhere", lower.join("link")).unwrap();
    let options = Options {
        lower: vec![lower],
        userxattr: true,
        ..Options::default()
    };
    let setup = Setup {
        options,
        ..Setup::default()
    };
    let tree = Arc::new(Union::open(&setup).unwrap());
    let server = Server::new(tree, Tuning::default(), Vec::new());
    match fuser::spawn_mount(Panicking(server), &target, &Config::default()) {
        Ok(session) => Some(session),
        Err(error) => {
            eprintln!("skipped: no FUSE mount here: {error}");
            None
        }
    }
}

#[test]
fn a_panic_is_answered_with_eio_and_logged_and_the_mount_lives_on() {
    let scratch = tempfile::tempdir().unwrap();
    let _ = log::set_logger(&ERRORS).map(|()| log::set_max_level(log::LevelFilter::Error));
    let Some(session) = mount(scratch.path()) else {
        return;
    };
    let root = scratch.path().join("target");
    let link = root.join("link");
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::symlink_metadata(&link).unwrap());
    // As often as there are threads, and more: each must have survived.
    for _ in 0..16 {
        let error = fs::read_link(&link).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let mut value = [0; 16];
        let error = rustix::fs::getxattr(&root, "user.x", &mut value).map(drop);
        assert_eq!(error, Err(Errno::IO));
        assert!(fs::symlink_metadata(&link).is_ok());
        let missing = fs::symlink_metadata(root.join("missing"));
        assert_eq!(missing.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
    let said = ERRORS.0.lock().unwrap().join("\n");
    for (op, node) in [("readlink", ino), ("getxattr", 1)] {
        let line = format!("{op} of node {node}: the server panicked");
        assert!(said.to_lowercase().contains(&line), "{line}: {said}");
    }
    drop(session);
}
