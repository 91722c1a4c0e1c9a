//! The talk between the process that mounts and the process that serves.
//!
//! They are two because each needs its own mount namespace: the mount must appear in the caller's,
//! and the server's layers must stay clear of it. The server says that its layers are open, gets
//! the connection, and says that it serves; whoever goes silent has failed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};

use crate::sys::Errno;

/// Number of the mount's device, where it could be found out.
pub(crate) type Device = Option<(u32, u32)>;

/// One end of the talk.
#[derive(Debug)]
pub(super) struct Peer(OwnedFd);

/// The connection and the device number are followed by this many bytes.
const MESSAGE: usize = 8;

impl Peer {
    /// The two ends.
    pub(super) fn pair() -> Result<(Self, Self), Errno> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Out of the way of stdin, stdout and stderr, in case the caller has closed these.
        Ok((Self(above_stdio(one)?), Self(above_stdio(other)?)))
    }

    /// The descriptor, to be kept open.
    pub(super) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Says that a stage is reached.
    pub(super) fn reached(&self) -> Result<(), Errno> {
        send(&self.0, b"+", SendFlags::NOSIGNAL).map(drop)
    }

    /// Waits for [`Peer::reached`]; false when the other has gone.
    pub(super) fn wait(&self) -> bool {
        let mut byte = [0u8];
        let received =
            rustix::io::retry_on_intr(|| recv(&self.0, &mut byte[..], RecvFlags::empty()));
        matches!(received, Ok((1, _)))
    }

    /// Hands the connection to the kernel over.
    pub(super) fn give(&self, connection: &OwnedFd, device: Device) -> Result<(), Errno> {
        let (major, minor) = device.unwrap_or_default();
        let mut message = [0; MESSAGE];
        message[..4].copy_from_slice(&major.to_ne_bytes());
        message[4..].copy_from_slice(&minor.to_ne_bytes());
        let descriptors = [connection.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(
            &self.0,
            &[IoSlice::new(&message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map(drop)
    }

    /// Takes the connection over; `None` when the other has gone without one.
    pub(super) fn take(&self) -> Result<Option<(OwnedFd, Device)>, Errno> {
        let mut message = [0; MESSAGE];
        let Some(connection) = receive_descriptor(&self.0, &mut message)? else {
            return Ok(None);
        };
        let [a, b, c, d, e, f, g, h] = message;
        let device = (
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
        );
        Ok(Some((connection, (device != (0, 0)).then_some(device))))
    }
}

/// Receives one descriptor and the message it comes with; `None` when the sender has gone.
pub(super) fn receive_descriptor(
    socket: &OwnedFd,
    message: &mut [u8],
) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(message)];
        recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

/// The same file under a number above 2.
pub(super) fn above_stdio(file: OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(&file, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_crosses_with_its_device() {
        let (mounter, server) = Peer::pair().unwrap();
        server.reached().unwrap();
        assert!(mounter.wait());
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        mounter.give(&null, Some((0, 44))).unwrap();
        let (_, device) = server.take().unwrap().unwrap();
        assert_eq!(device, Some((0, 44)));
        drop(mounter);
        assert!(server.take().unwrap().is_none());
        assert!(!server.wait());
    }
}
