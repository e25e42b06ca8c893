//! Sockets of the sandbox. They are made inside a namespace and used outside of it: a socket stays where it was made.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use policy_compiler::ports::Protocol;
use socket2::{Domain, Socket, Type};

/// How SCTP is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sctp {
    /// By the kernel.
    Kernel,
    /// By the sandbox itself, over raw sockets, because this kernel has no SCTP: the opening of an association, which
    /// the kernel still filters, translates and tracks like any other.
    Raw,
}

impl Sctp {
    /// Finds out which; the kernel loads its module at this request when it has one.
    pub(super) fn detect() -> Sctp {
        match Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::SCTP)) {
            Ok(_) => Sctp::Kernel,
            Err(_) => Sctp::Raw,
        }
    }
}

/// A listening TCP socket, or SCTP, which looks the same from here.
pub(super) fn stream_listener(protocol: Protocol, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(domain(address.ip()), Type::STREAM, Some(number(protocol)))?;
    socket.set_reuse_address(true)?;
    ready(&socket, address)?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// A TCP or SCTP socket that is about to connect, from a given address when there is one.
pub(super) fn stream(protocol: Protocol, to: IpAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(domain(to), Type::STREAM, Some(number(protocol)))?;
    client(&socket, to, source)?;
    Ok(socket.into())
}

/// A UDP socket that answers on one address.
pub(super) fn udp_listener(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain(address.ip()), Type::DGRAM, Some(socket2::Protocol::UDP))?;
    ready(&socket, address)?;
    Ok(socket.into())
}

/// A UDP socket that is about to ask.
pub(super) fn udp(to: IpAddr, source: Option<IpAddr>) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain(to), Type::DGRAM, Some(socket2::Protocol::UDP))?;
    client(&socket, to, source)?;
    Ok(socket.into())
}

/// A ping socket: the kernel fills in identifier and checksum, and hands over only the answers to this socket.
pub(super) fn ping(to: IpAddr, source: Option<IpAddr>) -> io::Result<UdpSocket> {
    let protocol = match to {
        IpAddr::V4(_) => socket2::Protocol::ICMPV4,
        IpAddr::V6(_) => socket2::Protocol::ICMPV6,
    };
    let socket = Socket::new(domain(to), Type::DGRAM, Some(protocol))?;
    client(&socket, to, source)?;
    Ok(socket.into())
}

/// A socket for SCTP packets as they are; bound to an address it hears only those sent there.
pub(super) fn raw_sctp(to: IpAddr, bound: Option<IpAddr>) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain(to), Type::RAW, Some(socket2::Protocol::SCTP))?;
    client(&socket, to, bound)?;
    Ok(socket.into())
}

fn ready(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())
}

/// Asks for every ICMP error at once: without this the kernel keeps "host unreachable" to itself for most protocols.
fn client(socket: &Socket, to: IpAddr, source: Option<IpAddr>) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    match to {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &true)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &true)?,
    }
    socket.set_nonblocking(true)?;
    match source {
        Some(source) => socket.bind(&SocketAddr::new(source, 0).into()),
        None => Ok(()),
    }
}

fn domain(address: IpAddr) -> Domain {
    match address {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    }
}

fn number(protocol: Protocol) -> socket2::Protocol {
    match protocol {
        Protocol::Tcp => socket2::Protocol::TCP,
        Protocol::Udp => socket2::Protocol::UDP,
        Protocol::Sctp => socket2::Protocol::SCTP,
    }
}
