//! Probes: one packet, or one short connection, from a place in the sandbox to an address, and what came of it.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy_compiler::ports::{Protocol, Traffic};
use tokio::io::Interest;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::watch;

use super::Place;
use super::listen::{Heard, Lines, send_line, without_ip_header};
use super::sctp::{Chunk, Packet};
use super::socket::{self, Sctp};

/// How long an expected answer is waited for. It comes in a millisecond; two busy cores may take their time, and a machine that stands
/// still for seconds as well.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long silence must last at least, where it is expected.
const SILENCE: Duration = Duration::from_millis(400);

/// How long it need last at most, on a machine where answers take long: TCP has sent a lost SYN again by then.
const LONG_SILENCE: Duration = Duration::from_millis(1500);

/// How often it is asked whether a request has arrived.
const LOOK: Duration = Duration::from_millis(20);

/// When an unanswered datagram is sent again.
const RESEND: Duration = Duration::from_millis(200);

/// How much of a time that passes a pause of the whole machine may take.
const STEP: Duration = Duration::from_millis(100);

/// What the caller expects; it decides how long a probe waits, never what it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// An answer: waits long for it.
    Answer,
    /// None: waits a while, and until all expected answers of the same call are in.
    Silence,
    /// That the request arrives and no answer does: waits long for the one, and then a while for the other.
    Arrival,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where it starts.
    pub from: Place,
    /// The address that it is sent from, when the place has several of the family.
    pub source: Option<IpAddr>,
    /// Where it goes; a cluster IP will do.
    pub to: IpAddr,
    /// A port, or for [`Traffic::Other`] an ICMP echo.
    pub traffic: Traffic,
    /// What the caller expects.
    pub expect: Expect,
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, and by whom: `shop/web-0`, `node/worker-1`, `client`.
    Answered(String),
    /// Nothing at all: what a drop looks like (and a dead machine as well, so prove the listener first).
    Silent,
    /// The request reached the listener and its answer did not come back: half a leak.
    OneWay,
    /// The other end is there and nobody listens: RST, ABORT, ICMP port or protocol unreachable.
    Refused,
    /// There is no way to that address, in the words of the kernel.
    Unreachable(String),
    /// The probe itself could not be made.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered(name) => write!(f, "answered by {name}"),
            Outcome::Silent => f.write_str("silence"),
            Outcome::OneWay => f.write_str("request arrived, answer did not"),
            Outcome::Refused => f.write_str("nobody listens"),
            Outcome::Unreachable(why) => write!(f, "unreachable ({why})"),
            Outcome::Failed(why) => write!(f, "not sent ({why})"),
        }
    }
}

/// The socket of a probe, made in the namespace that it starts from.
pub(super) enum Prepared {
    Stream(StdTcpStream),
    Udp(StdUdpSocket),
    Ping(StdUdpSocket),
    RawSctp(StdUdpSocket),
}

/// Makes the socket; to be called inside the namespace.
pub(super) fn prepare(probe: &Probe, sctp: Sctp) -> io::Result<Prepared> {
    let (to, source) = (probe.to, probe.source);
    Ok(match probe.traffic {
        Traffic::Port(Protocol::Udp, _) => Prepared::Udp(socket::udp(to, source)?),
        Traffic::Port(Protocol::Sctp, _) if sctp == Sctp::Raw => Prepared::RawSctp(socket::raw_sctp(to, source)?),
        Traffic::Port(protocol, _) => Prepared::Stream(socket::stream(protocol, to, source)?),
        Traffic::Other => Prepared::Ping(socket::ping(to, source)?),
    })
}

/// What the probes of one call share.
#[derive(Clone)]
pub(super) struct Round {
    /// How many expected answers are still out.
    pub(super) waiting: Arc<watch::Sender<usize>>,
    /// How long silence must last: longer on a machine where answers take long.
    pub(super) silence: Duration,
    pub(super) heard: Arc<Heard>,
}

impl Round {
    pub(super) fn new(probes: &[Probe], slowest: Duration, heard: Arc<Heard>) -> Round {
        let expected = probes.iter().filter(|p| p.expect == Expect::Answer).count();
        Round {
            waiting: Arc::new(watch::Sender::new(expected)),
            silence: (slowest * 3).clamp(SILENCE, LONG_SILENCE),
            heard,
        }
    }
}

/// Sends a probe and waits for what comes of it, and how long an answer took. The token tells this probe from all
/// others; `holder` is who has the address, because the kernel answers ICMP without a name.
pub(super) async fn send(
    probe: Probe,
    prepared: io::Result<Prepared>,
    token: u64,
    holder: String,
    round: Round,
) -> (Outcome, Duration) {
    let start = Instant::now();
    let attempt = async {
        match prepared {
            Ok(prepared) => attempt(&probe, prepared, token, holder).await.unwrap_or_else(classify),
            Err(error) => classify(error),
        }
    };
    let outcome = tokio::select! {
        // When both are due, as after a pause of the whole machine, what came counts.
        biased;
        outcome = attempt => outcome,
        () = deadline(probe.expect, token, &round) => Outcome::Silent,
    };
    if probe.expect == Expect::Answer {
        round.waiting.send_modify(|n| *n -= 1);
    }
    match outcome {
        Outcome::Silent if round.heard.request(token) => (Outcome::OneWay, Duration::ZERO),
        Outcome::Answered(_) => (outcome, start.elapsed()),
        _ => (outcome, Duration::ZERO),
    }
}

async fn deadline(expect: Expect, token: u64, round: &Round) {
    match expect {
        Expect::Answer => pass(PATIENCE).await,
        Expect::Silence => {
            let mut waiting = round.waiting.subscribe();
            // As long as answers are still on their way, a leak may be as well.
            let _ = within(PATIENCE, waiting.wait_for(|n| *n == 0)).await;
            quiet(round.silence).await;
        }
        Expect::Arrival => {
            let heard = async {
                while !round.heard.request(token) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let _ = within(PATIENCE, heard).await;
            quiet(round.silence).await;
        }
    }
}

/// Lets time pass in steps: who listens hears nothing while the whole machine stands still, and so that is not all of the time.
async fn pass(time: Duration) {
    for _ in 0..time.div_duration_f64(STEP).ceil() as u32 {
        tokio::time::sleep(STEP).await;
    }
}

/// Lets so much time pass in which this process ran: while it stood still, the sandbox's listeners did as well. A machine that
/// never keeps to the time gets it ten times.
async fn quiet(silence: Duration) {
    for _ in 0..10 {
        let start = Instant::now();
        tokio::time::sleep(silence).await;
        if start.elapsed() < silence * 3 / 2 {
            return;
        }
    }
}

/// The result of some work, unless it takes longer; what is done counts, and not that it was late.
pub(super) async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        () = pass(time) => None,
    }
}

async fn attempt(probe: &Probe, prepared: Prepared, token: u64, holder: String) -> io::Result<Outcome> {
    let port = match probe.traffic {
        Traffic::Port(_, port) => port,
        Traffic::Other => 0,
    };
    let to = SocketAddr::new(probe.to, port);
    let request = format!("probe {token}");
    match prepared {
        Prepared::Stream(socket) => {
            let stream = TcpSocket::from_std_stream(socket).connect(to).await?;
            send_line(&stream, &request).await?;
            let line = Lines::default().next(&stream).await?;
            Ok(answer(&line, &request).unwrap_or_else(|| Outcome::Failed(format!("strange answer: {line}"))))
        }
        Prepared::Udp(socket) => {
            let parse = |bytes: &[u8]| answer(&String::from_utf8_lossy(bytes), &request);
            ask(socket, to, request.as_bytes(), parse).await
        }
        Prepared::Ping(socket) => {
            let (kind, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
            let mut echo = vec![kind, 0, 0, 0, 0, 0, 0, 1];
            echo.extend(request.as_bytes());
            let parse = |bytes: &[u8]| {
                let ours = bytes.first() == Some(&reply) && bytes.get(8..) == Some(request.as_bytes());
                ours.then(|| Outcome::Answered(holder.clone()))
            };
            ask(socket, to, &echo, parse).await
        }
        Prepared::RawSctp(socket) => {
            // Raw sockets have no ports, so one is made up; the verification tag tells whose answer it is.
            let (source, tag) = (20_000 + (token % 40_000) as u16, token as u32);
            let init = Packet {
                source,
                destination: port,
                verification: 0,
                chunk: Chunk::Init { tag },
            };
            let parse = |bytes: &[u8]| {
                let packet = Packet::decode(without_ip_header(bytes, to.ip()))?;
                if (packet.destination, packet.source, packet.verification) != (source, port, tag) {
                    return None;
                }
                match packet.chunk {
                    Chunk::InitAck { cookie } => Some(Outcome::Answered(String::from_utf8_lossy(&cookie).into_owned())),
                    Chunk::Abort => Some(Outcome::Refused),
                    Chunk::Init { .. } => None,
                }
            };
            ask(socket, SocketAddr::new(to.ip(), 0), &init.encode(), parse).await
        }
    }
}

/// Sends a datagram, again and again, until something comes back that is an answer to it, or an error.
async fn ask(
    socket: StdUdpSocket,
    to: SocketAddr,
    request: &[u8],
    parse: impl Fn(&[u8]) -> Option<Outcome>,
) -> io::Result<Outcome> {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(to).await?;
    let mut buffer = [0; 2048];
    loop {
        socket.send(request).await?;
        let again = tokio::time::sleep(RESEND);
        tokio::pin!(again);
        loop {
            tokio::select! {
                received = receive(&socket, &mut buffer) => {
                    if let Some(outcome) = parse(&buffer[..received?]) {
                        return Ok(outcome);
                    }
                }
                () = &mut again => break,
            }
        }
    }
}

/// Receives a datagram or the error that came instead. UdpSocket::recv alone would sleep through an error: the kernel
/// announces it as an error and not as something to read, and a ping socket does not even return it when sending.
async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            // Nothing is pending: forget the announcement, or this loop would spin.
            let _ = socket.try_io::<()>(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()));
        }
        match socket.try_recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// The name in an answer to a request.
fn answer(line: &str, request: &str) -> Option<Outcome> {
    let name = line.strip_suffix(request)?.strip_suffix(' ')?;
    Some(Outcome::Answered(name.to_owned()))
}

/// What an error of the socket means.
pub(super) fn classify(error: io::Error) -> Outcome {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        // ENOPROTOOPT and EPROTO are the kernel's words for "protocol unreachable" in IPv4 and IPv6.
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::ENOPROTOOPT | Errno::EPROTO) => Outcome::Refused,
        Some(
            errno @ (Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::ENETDOWN | Errno::EHOSTDOWN),
        ) => Outcome::Unreachable(errno.desc().to_lowercase()),
        // A drop on the sender's own way out is told to the sender; it is a drop all the same.
        Some(Errno::EPERM | Errno::ETIMEDOUT) => Outcome::Silent,
        _ => Outcome::Failed(error.to_string()),
    }
}
