//! The listeners of the sandbox: each answers a line with its name and that line, so that a probe knows who answered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use policy_compiler::ports::Protocol;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;

use super::sctp::{Chunk, Packet};
use super::socket::{self, Sctp};
use super::{Netns, SandboxError};

/// Who listens on which port of a namespace, by the name that is answered.
pub(super) type Ports = BTreeMap<(Protocol, u16), String>;

/// What listeners know and probes ask.
#[derive(Debug, Default)]
pub(super) struct Heard {
    requests: Mutex<HashSet<u64>>,
    flows: Mutex<HashMap<u64, Arc<TcpStream>>>,
}

impl Heard {
    /// Whether the request with this token has reached a listener, whatever became of the answer.
    pub(super) fn request(&self, token: u64) -> bool {
        lock(&self.requests).contains(&token)
    }

    /// The listener's end of the flow with this token.
    pub(super) fn flow(&self, token: u64) -> Option<Arc<TcpStream>> {
        lock(&self.flows).get(&token).cloned()
    }

    /// Forgets a flow.
    pub(super) fn close(&self, token: u64) {
        lock(&self.flows).remove(&token);
    }

    fn note(&self, line: &str, stream: Option<&Arc<TcpStream>>) {
        match (line.split_once(' '), stream) {
            (Some(("probe", token)), _) => {
                if let Ok(token) = token.parse() {
                    lock(&self.requests).insert(token);
                }
            }
            (Some(("flow", token)), Some(stream)) => {
                if let Ok(token) = token.parse() {
                    lock(&self.flows).insert(token, stream.clone());
                }
            }
            _ => {}
        }
    }
}

/// A poisoned lock only means that another task panicked; the data is a plain collection.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the sockets of a namespace, on each of its addresses and ports, and serves them from the runtime.
pub(super) fn listen(
    netns: &Netns,
    addresses: &[IpAddr],
    ports: &Ports,
    sctp: Sctp,
    heard: &Arc<Heard>,
    runtime: &Handle,
) -> Result<(), SandboxError> {
    let mut streams = Vec::new();
    let mut datagrams = Vec::new();
    let mut raw = Vec::new();
    // Sockets are bound to one address each, so that an answer always leaves from the address that was asked.
    netns.run(|| {
        for address in addresses {
            for ((protocol, port), name) in ports {
                let to = SocketAddr::new(*address, *port);
                let failed = |error| SandboxError::Listen {
                    name: name.clone(),
                    port: format!("{to}/{protocol}"),
                    error,
                };
                match protocol {
                    Protocol::Udp => datagrams.push((name, socket::udp_listener(to).map_err(failed)?)),
                    Protocol::Sctp if sctp == Sctp::Raw => {}
                    _ => streams.push((name, socket::stream_listener(*protocol, to).map_err(failed)?)),
                }
            }
            let sctp_ports: HashMap<u16, String> = (ports.iter())
                .filter(|((protocol, _), _)| *protocol == Protocol::Sctp && sctp == Sctp::Raw)
                .map(|((_, port), name)| (*port, name.clone()))
                .collect();
            if !sctp_ports.is_empty() {
                let socket = socket::raw_sctp(*address, Some(*address)).map_err(|error| SandboxError::Listen {
                    name: netns.name().to_owned(),
                    port: format!("{address}/SCTP"),
                    error,
                })?;
                raw.push((sctp_ports, socket));
            }
        }
        Ok(())
    })??;
    let _guard = runtime.enter();
    let register = |error| SandboxError::Runtime { error };
    for (name, socket) in streams {
        let socket = TcpListener::from_std(socket).map_err(register)?;
        runtime.spawn(accept(socket, Arc::from(name.as_str()), heard.clone()));
    }
    for (name, socket) in datagrams {
        let socket = UdpSocket::from_std(socket).map_err(register)?;
        runtime.spawn(answer_datagrams(socket, name.clone(), heard.clone()));
    }
    for (ports, socket) in raw {
        let socket = UdpSocket::from_std(socket).map_err(register)?;
        runtime.spawn(answer_sctp(socket, ports, heard.clone()));
    }
    Ok(())
}

async fn accept(listener: TcpListener, name: Arc<str>, heard: Arc<Heard>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer_stream(Arc::new(stream), name.clone(), heard.clone()));
            }
            // Out of file descriptors, or the connection was gone before it was taken: the next one may do better.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

/// Answers each line of a connection until it ends.
async fn answer_stream(stream: Arc<TcpStream>, name: Arc<str>, heard: Arc<Heard>) {
    let mut lines = Lines::default();
    while let Ok(line) = lines.next(&stream).await {
        heard.note(&line, Some(&stream));
        if send_line(&stream, &format!("{name} {line}")).await.is_err() {
            return;
        }
    }
}

async fn answer_datagrams(socket: UdpSocket, name: String, heard: Arc<Heard>) {
    let mut buffer = [0; 512];
    loop {
        // An error here is the ICMP answer to an earlier reply; the next datagram is unaffected.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
        heard.note(&line, None);
        let _ = socket.send_to(format!("{name} {line}").as_bytes(), from).await;
    }
}

/// Answers INIT as an SCTP stack does: with a cookie where somebody listens, with ABORT where nobody does.
async fn answer_sctp(socket: UdpSocket, ports: HashMap<u16, String>, heard: Arc<Heard>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let packet = Packet::decode(without_ip_header(&buffer[..length], from.ip()));
        let Some((packet, Chunk::Init { tag })) = packet.map(|p| (p.clone(), p.chunk)) else {
            continue;
        };
        let chunk = match ports.get(&packet.destination) {
            Some(name) => {
                heard.note(&format!("probe {tag}"), None);
                Chunk::InitAck {
                    cookie: name.as_bytes().to_vec(),
                }
            }
            None => Chunk::Abort,
        };
        let reply = Packet {
            source: packet.destination,
            destination: packet.source,
            verification: tag,
            chunk,
        };
        let _ = socket.send_to(&reply.encode(), SocketAddr::new(from.ip(), 0)).await;
    }
}

/// A raw IPv4 socket hands over the IP header as well, an IPv6 one does not.
pub(super) fn without_ip_header(bytes: &[u8], from: IpAddr) -> &[u8] {
    match (from, bytes.first()) {
        (IpAddr::V4(_), Some(first)) => bytes.get(usize::from(first & 0x0f) * 4..).unwrap_or_default(),
        _ => bytes,
    }
}

/// Lines of a connection, put together from what arrives; both ends of a flow may read at the same time.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// The next line, without its end. Safe to cancel: what has arrived is kept.
    pub(super) async fn next(&mut self, stream: &TcpStream) -> io::Result<String> {
        loop {
            if let Some(at) = self.0.iter().position(|b| *b == b'\n') {
                let rest = self.0.split_off(at + 1);
                let line = std::mem::replace(&mut self.0, rest);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            stream.ready(Interest::READABLE).await?;
            let mut buffer = [0; 512];
            match stream.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.0.extend(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends a line in one piece.
pub(super) async fn send_line(stream: &TcpStream, line: &str) -> io::Result<()> {
    let bytes = format!("{line}\n").into_bytes();
    let mut sent = 0;
    while sent < bytes.len() {
        stream.ready(Interest::WRITABLE).await?;
        match stream.try_write(&bytes[sent..]) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
