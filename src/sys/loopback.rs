//! The loopback device, the only one that a new network namespace has: netdevice(7).

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use super::{Errno, from_io};

/// Switches it on in the calling process's network namespace.
pub(crate) fn switch_on() -> Result<(), Errno> {
    // Any socket will do; the address needs no device.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|error| from_io(&error))?;
    // SAFETY: all zero bits are an `ifreq`: it has numbers and bytes only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS as _, &raw mut request) } < 0 {
        return Err(from_io(&std::io::Error::last_os_error()));
    }
    // SAFETY: the call before has filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel only reads the `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &raw mut request) } < 0 {
        return Err(from_io(&std::io::Error::last_os_error()));
    }
    Ok(())
}
