//! The requests: each is decoded, carried out by the merged tree, and encoded.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::answer::{as_far_as, flow, sized, statfs};
use super::counters::Op;
use super::policy::Close;
use super::reply::NoReply;
use super::story::Subject;
use super::{Server, convert, ioctl, policy};
use crate::sys::Errno;
use crate::union::{Caller, Fault, NewKind, NodeId, Outcome, SetAttr, Union};

thread_local! {
    /// What a READ is read into; each event loop keeps its own.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The handle that stands where a handle must stand: nothing is kept for an open file.
const NO_HANDLE: FileHandle = FileHandle(0);

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn invalid<T>(op: &'static str) -> Outcome<T> {
    Err(Fault::merged(op, Errno::INVAL))
}

fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

impl Server {
    #[allow(clippy::too_many_arguments)] // as many as the request has
    fn make(
        &self,
        op: Op,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: Option<NewKind<'_>>,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = convert::caller(request);
        self.serve(
            op,
            (node(parent), name),
            reply,
            |tree| match kind {
                Some(kind) => {
                    let mode = self.setgid(tree, caller, parent, mode & 0o7777);
                    tree.make(caller, node(parent), name, kind, mode, umask)
                }
                None => invalid("mknod"),
            },
            |reply, entry| self.answer_entry(reply, entry),
        );
    }

    /// The mode of a new file without the setgid bit where its maker isn't in the group that the
    /// directory gives it. Further groups of the maker aren't known here, and don't count.
    fn setgid(&self, tree: &Union, caller: Caller, parent: INodeNo, mode: u32) -> u32 {
        const RUNS_AS_GROUP: u32 = 0o2010;
        if self.judges_setgid || mode & RUNS_AS_GROUP != RUNS_AS_GROUP || caller.uid == 0 {
            return mode;
        }
        match tree.getattr(node(parent)) {
            Ok(dir) if dir.perm & 0o2000 == 0 || dir.gid == caller.gid => mode,
            _ => mode & !0o2000,
        }
    }

    /// Opens a file for reading and writing past us, where it is what it stays.
    fn open_through(&self, ino: INodeNo, reply: ReplyOpen) {
        let real = || self.tree.settled_file(node(ino));
        let register = |file: BorrowedFd<'_>| reply.open_backing(file);
        match self.passthrough.open(node(ino), real, register) {
            Some(backing) => reply.opened_passthrough(NO_HANDLE, FopenFlags::empty(), &backing),
            // What is in the page cache of a file that was passed through before is old.
            None if self.tree.is_settled(node(ino)) => {
                reply.opened(NO_HANDLE, FopenFlags::empty());
            }
            None => reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    /// Has the kernel forget what it knows, in a thread of its own: that waits for requests that
    /// others are making.
    fn forget_layers(&self, request: &Request, what: ioctl::Forget, reply: ReplyIoctl) {
        self.counters.count(Op::Ioctl);
        let own = rustix::process::geteuid().as_raw();
        if request.uid() != 0 && request.uid() != own {
            return reply.error(fuser::Errno::EPERM);
        }
        let Some(kernel) = self.kernel.clone() else {
            return reply.error(fuser::Errno::ENOTTY);
        };
        let tree = Arc::clone(&self.tree);
        let thread = std::thread::Builder::new().name("forget".into());
        let started = thread.spawn(move || match what {
            ioctl::Forget::Layers => {
                kernel.forget(&tree);
                reply.ioctl(0, &[]);
            }
            ioctl::Forget::Names => match kernel.forget_names() {
                Ok(()) => reply.ioctl(0, &[]),
                Err(errno) => reply.error(convert::errno(errno)),
            },
        });
        // The reply went with the thread that isn't there: fuser has answered it with an error.
        if let Err(error) = started {
            log::warn!("forgetting the layers: {error}");
        }
    }

    /// As [`Server::serve`] for the requests that are answered with success alone.
    fn act<'s>(
        &self,
        op: Op,
        subject: impl Into<Subject<'s>>,
        reply: ReplyEmpty,
        call: impl FnOnce(&Union) -> Outcome<()>,
    ) {
        self.serve(op, subject, reply, call, done);
    }
}

impl Filesystem for Server {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.opens = policy::negotiate(config, &self.tuning, self.tree.acls());
        self.judges_setgid = policy::judges_setgid(config);
        if let Some(kernel) = self.kernel.as_mut().and_then(Arc::get_mut) {
            kernel.expires = policy::expires(config);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        log::info!("served: {}", self.counters);
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(
            Op::Lookup,
            (node(parent), name),
            reply,
            |tree| tree.lookup(node(parent), name),
            |reply, found| self.answer_lookup(reply, found),
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.serve(
            Op::Forget,
            node(ino),
            NoReply,
            |tree| {
                tree.forget(node(ino), nlookup);
                Ok(())
            },
            |_, ()| {},
        );
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(
            Op::Getattr,
            node(ino),
            reply,
            |tree| tree.getattr(node(ino)),
            |reply, attr| self.answer_attr(reply, attr),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            perm: mode.map(convert::permissions),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        self.serve(
            Op::Setattr,
            node(ino),
            reply,
            |tree| tree.setattr(convert::caller(request), node(ino), &change),
            |reply, attr| self.answer_attr(reply, attr),
        );
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(
            Op::Readlink,
            node(ino),
            reply,
            |tree| tree.readlink(node(ino)),
            |reply, target| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = convert::new_node(mode, rdev);
        self.make(Op::Mknod, request, parent, name, kind, mode, umask, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let kind = Some(NewKind::Directory);
        self.make(Op::Mkdir, request, parent, name, kind, mode, umask, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let kind = Some(NewKind::Symlink(target.as_os_str()));
        self.make(Op::Symlink, request, parent, name, kind, 0o777, 0, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = convert::caller(request);
        let mode = mode & 0o7777;
        self.serve(
            Op::Create,
            (node(parent), name),
            reply,
            |tree| {
                let mode = self.setgid(tree, caller, parent, mode);
                tree.make(caller, node(parent), name, NewKind::Regular, mode, umask)
            },
            |reply, entry| {
                let (attr, generation) = convert::entry(&entry);
                let keep = FopenFlags::FOPEN_KEEP_CACHE;
                let ttl = self.shorter_ttl(&entry);
                let backing = self.opens.pass_through().then(|| {
                    let register = |file: BorrowedFd<'_>| reply.open_backing(file);
                    self.passthrough
                        .open(entry.id, || self.tree.settled_file(entry.id), register)
                });
                if let Some(backing) = backing.flatten() {
                    let none = FopenFlags::empty();
                    return reply
                        .created_passthrough(&ttl, &attr, generation, NO_HANDLE, none, &backing);
                }
                reply.created(&ttl, &attr, generation, NO_HANDLE, keep);
            },
        );
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.serve(
            Op::Link,
            (node(parent), name),
            reply,
            |tree| tree.link(node(ino), node(parent), name),
            |reply, entry| self.answer_entry(reply, entry),
        );
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.act(Op::Unlink, (node(parent), name), reply, |tree| {
            tree.unlink(node(parent), name)
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.act(Op::Rmdir, (node(parent), name), reply, |tree| {
            tree.rmdir(node(parent), name)
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.act(
            Op::Rename,
            (node(parent), name),
            reply,
            |tree| match convert::rename_mode(flags) {
                Some(mode) => tree.rename(node(parent), name, node(new_parent), new_name, mode),
                None => invalid("rename: flags"),
            },
        );
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counters.count(Op::Open);
        log::trace!("OPEN of node {ino}");
        if self.opens.pass_through() {
            return self.open_through(ino, reply);
        }
        match self.opens.file() {
            Some(flags) => reply.opened(NO_HANDLE, flags),
            None => reply.error(fuser::Errno::ENOSYS),
        }
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.counters.count(Op::Release);
        if self.opens.pass_through() {
            self.passthrough.release(node(ino));
        }
        reply.ok();
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counters.count(Op::Opendir);
        log::trace!("OPENDIR of node {ino}");
        match self.opens.directory() {
            Some(flags) => reply.opened(NO_HANDLE, flags),
            None => reply.error(fuser::Errno::ENOSYS),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is held back, so there is nothing to flush.
        match self.opens.close() {
            Close::Never => reply.error(fuser::Errno::ENOSYS),
            Close::Each => reply.ok(),
        }
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks by itself (default_permissions).
        reply.error(fuser::Errno::ENOSYS);
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _size: u32, _index: u64, reply: ReplyBmap) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files and directories are always ready, as the kernel then says by itself.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let room = &mut buffer[..size];
            self.serve(
                Op::Read,
                node(ino),
                reply,
                |tree| {
                    let length = tree.read(node(ino), offset, room)?;
                    Ok(&room[..length])
                },
                |reply, data| reply.data(data),
            );
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = convert::kill_priv(write_flags, convert::caller(request));
        self.serve(
            Op::Write,
            node(ino),
            reply,
            |tree| tree.write(node(ino), offset, data, kill),
            // A request has at most a few MiB.
            |reply, length| reply.written(length as u32),
        );
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.act(Op::Fsync, node(ino), reply, |tree| {
            tree.fsync(node(ino), data_only)
        });
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.act(Op::Fsyncdir, node(ino), reply, |tree| {
            tree.fsyncdir(node(ino), data_only)
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.serve_into(
            Op::Readdir,
            node(ino),
            reply,
            |tree, reply| {
                let mut taken = 0;
                let listed = tree.readdir(node(ino), offset, &mut |entry| {
                    let (number, kind) = (INodeNo(entry.ino.0), convert::kind(entry.kind));
                    flow(reply.add(number, entry.next, kind, entry.name), &mut taken)
                });
                as_far_as(taken, listed)
            },
            |reply, ()| reply.ok(),
        );
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.serve_into(
            Op::Readdirplus,
            node(ino),
            reply,
            |tree, reply| {
                let mut taken = 0;
                let listed = tree.readdir_plus(node(ino), offset, &mut |name, entry| {
                    let ttl = entry.map_or(Duration::ZERO, |entry| self.shorter_ttl(&entry));
                    let (attr, generation) = match entry {
                        Some(entry) => convert::entry(&entry),
                        None => (convert::placeholder(name.ino, name.kind), Generation(0)),
                    };
                    flow(
                        reply.add(attr.ino, name.next, name.name, &ttl, &attr, generation),
                        &mut taken,
                    )
                });
                as_far_as(taken, listed)
            },
            |reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(Op::Statfs, node(ino), reply, Union::statfs, statfs);
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.serve(
            Op::Getxattr,
            node(ino),
            reply,
            |tree| match ino == INodeNo::ROOT && name == super::IDENTITY {
                true => Ok(self.identity.clone()),
                false => tree.getxattr(node(ino), name),
            },
            |reply, value| sized(reply, size, &value),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(
            Op::Listxattr,
            node(ino),
            reply,
            |tree| tree.listxattr(convert::caller(request), node(ino)),
            |reply, names| sized(reply, size, &names),
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let caller = convert::caller(request);
        self.act(
            Op::Setxattr,
            node(ino),
            reply,
            |tree| match convert::xattr_mode(flags) {
                Some(mode) => tree.setxattr(caller, node(ino), name, value, mode),
                None => invalid("setxattr: flags"),
            },
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = convert::caller(request);
        self.act(Op::Removexattr, node(ino), reply, |tree| {
            tree.removexattr(caller, node(ino), name)
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(
            Op::Lseek,
            node(ino),
            reply,
            |tree| {
                // A negative offset is behind no data: ENXIO, as the other file systems say.
                let Ok(offset) = u64::try_from(offset) else {
                    return Err(Fault::merged("lseek", Errno::NXIO));
                };
                match convert::seek(whence) {
                    Some(seek) => tree.seek(node(ino), offset, seek),
                    None => invalid("lseek: whence"),
                }
            },
            |reply, offset| reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = convert::caller(request);
        self.act(Op::Fallocate, node(ino), reply, |tree| {
            tree.fallocate(caller, node(ino), offset, length, mode)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer has 32 bits for the length; whole pages keep a long copy aligned.
        let length = length.min(u64::from(!0xfff_u32));
        let caller = convert::caller(request);
        self.serve(
            Op::CopyFileRange,
            node(from),
            reply,
            |tree| match flags.is_empty() {
                true => {
                    let (from, to) = (node(from), node(to));
                    tree.copy_range(caller, from, from_offset, to, to_offset, length)
                }
                false => invalid("copy_file_range: flags"),
            },
            |reply, length| reply.written(length as u32),
        );
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        if let Some(what) = ioctl::Forget::asked(ino, command) {
            self.forget_layers(request, what, reply);
            return;
        }
        self.serve(
            Op::Ioctl,
            node(ino),
            reply,
            |tree| ioctl::serve(tree, convert::caller(request), node(ino), command, data),
            |reply, answer| reply.ioctl(0, &answer),
        );
    }
}
