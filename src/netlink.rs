//! Netlink sockets that nobody waits for without end.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{NetlinkAddr, bind, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

// From linux/netlink.h.
const AF_NETLINK: i32 = 16;
pub(crate) const NETLINK_ROUTE: i32 = 0;
pub(crate) const NETLINK_NETFILTER: i32 = 12;

/// A socket to one of the kernel's netlink families.
pub(crate) fn open(family: i32, patience: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// A socket that hears what one multicast group of a family is told, of which so many bytes may wait to be read. Nobody waits for it: with
/// nothing to read, a read is an error ([`ErrorKind::WouldBlock`]).
pub(crate) fn open_group(family: i32, group: u32, buffer: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
    socket.set_nonblocking(true)?;
    // Needs the privilege to administer the network; without it the buffer is as large as it is.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &buffer);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (group - 1)))?;
    Ok(socket)
}

/// Reads one datagram. A signal, such as that of nft's end, interrupts a read that has a time-out whatever its handler asks
/// for (signal(7)): it begins again then.
pub(crate) fn receive(socket: &mut Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(io::Error::new(ErrorKind::TimedOut, "the kernel does not answer"));
            }
            other => return other,
        }
    }
}
