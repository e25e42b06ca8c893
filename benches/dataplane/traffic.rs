//! Packets from the client to the server, and what they cost. The sender's own thread does all the work: a packet that it
//! sends is forwarded by the node and taken in by the server before the system call returns, so the time that this thread
//! spends on its core is the cost of the whole path, and the machine's other work is left out.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::cluster::{FIRST_PORT, PORT};
use crate::measure::Series;
use crate::world::{CLIENT, SERVER, World};

/// How long one measurement of one variant takes.
const SLICE: Duration = Duration::from_millis(10);
/// The parts of a measurement of packets, and the most packets of a part.
const PARTS: u32 = 5;
const MOST: u32 = 4_000;
/// How long a packet that is denied is waited for.
const PATIENCE: Duration = Duration::from_millis(10);

/// Keeps this thread, and what it starts, on one core.
pub(crate) fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// The time that this thread has spent on a core, its share of the kernel's packet work included.
pub(crate) fn on_core() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("Linux keeps the time of each thread")
        .into()
}

/// Both ends of what is sent. Made in the client's namespace.
pub(crate) struct Traffic<'w> {
    world: &'w World,
    sender: UdpSocket,
    listener: TcpListener,
    /// The server's sockets, on the port of the last policy and on that of the first.
    receiver: UdpSocket,
    first: UdpSocket,
    /// The next source port of a new connection.
    port: u16,
}

/// What a bulk transfer and a connection cost.
pub(crate) struct Connection {
    /// Time on the core, from connect to both ends closed.
    pub(crate) cost: Duration,
    /// Time until connect has returned, by the clock on the wall.
    pub(crate) latency: Duration,
}

impl<'w> Traffic<'w> {
    pub(crate) fn new(world: &'w World) -> std::io::Result<Self> {
        let sender = UdpSocket::bind((CLIENT, 0))?;
        sender.connect((SERVER, PORT))?;
        sender.set_nonblocking(true)?;
        let opened = world.server.run(|| {
            let receiver = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            // A small buffer that stays full: all packets but the first few then end in the same way, at the socket.
            receiver.set_recv_buffer_size(1)?;
            receiver.bind(&address(SERVER, PORT))?;
            receiver.set_nonblocking(true)?;
            let first = UdpSocket::bind((SERVER, FIRST_PORT))?;
            first.set_nonblocking(true)?;
            let listener = TcpListener::bind((SERVER, PORT))?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>((UdpSocket::from(receiver), first, listener))
        });
        let (receiver, first, listener) = opened.map_err(std::io::Error::other)??;
        Ok(Traffic {
            world,
            sender,
            listener,
            receiver,
            first,
            port: 2_000,
        })
    }

    /// Makes the flow an established one: a packet each way.
    fn establish(&mut self) {
        drain(&self.receiver);
        drain(&self.sender);
        let _ = self.sender.send(b"hello");
        let mut buffer = [0; 16];
        let from = heard(&self.receiver, &mut buffer).expect("the admitted packet of the flow arrives");
        let _ = self.receiver.send_to(b"hello", from);
        heard(&self.sender, &mut buffer).expect("the reply of the flow arrives");
    }

    /// The cost of a packet of an established flow, in ns.
    pub(crate) fn packet(&mut self, payload: usize) -> f64 {
        self.establish();
        let bytes = vec![0; payload];
        let send = |count: u32| {
            let begin = on_core();
            for _ in 0..count {
                // The device's queue does not fill: each packet has left before the call returns.
                let _ = self.sender.send(&bytes);
            }
            (on_core() - begin).as_nanos() as f64 / f64::from(count)
        };
        // Warms caches, and tells how many are needed.
        let roughly = send(50);
        let part = (SLICE.as_nanos() as f64 / roughly) as u32 / PARTS;
        let part = part.clamp(20, MOST);
        let count = part * PARTS;
        let before = self.world.received().expect("the server's counters");
        // The median of several parts is not that of an interrupt.
        let cost: Series = (0..PARTS).map(|_| send(part)).collect();
        let arrived = self.world.received().expect("the server's counters") - before;
        // A few more are neighbours' or the stack's own.
        assert!(
            (u64::from(count)..u64::from(count) + 50).contains(&arrived),
            "{count} packets were sent, {arrived} arrived"
        );
        cost.median()
    }

    /// The cost of the first packet of a new UDP flow, in ns.
    pub(crate) fn new_flow(&mut self) -> f64 {
        const BATCH: u16 = 64;
        let (mut spent, mut flows) = (Duration::ZERO, 0);
        while spent < SLICE && flows < 2_048 {
            let sockets: Vec<UdpSocket> = (0..BATCH).map(|_| self.next_socket()).collect();
            let before = self.world.received().expect("the server's counters");
            let begin = on_core();
            for socket in &sockets {
                let _ = socket.send(b"new");
            }
            spent += on_core() - begin;
            flows += u32::from(BATCH);
            let arrived = self.world.received().expect("the server's counters") - before;
            assert!(arrived >= BATCH.into(), "{arrived} of {BATCH} new flows arrived");
        }
        spent.as_nanos() as f64 / f64::from(flows)
    }

    fn next_socket(&mut self) -> UdpSocket {
        loop {
            self.port = if self.port < 60_000 { self.port + 1 } else { 2_000 };
            if let Ok(socket) = UdpSocket::bind((CLIENT, self.port)) {
                socket.connect((SERVER, PORT)).expect("a route to the server");
                return socket;
            }
        }
    }

    /// TCP connections: opened, accepted, closed by reset, so that no port is held afterwards.
    pub(crate) fn connections(&mut self) -> Vec<Connection> {
        let mut all = Vec::new();
        let begin = Instant::now();
        while all.len() < 5 || begin.elapsed() < SLICE {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
            socket
                .set_linger(Some(Duration::ZERO))
                .expect("an option of every socket");
            socket.bind(&address(CLIENT, 0)).expect("a free port");
            let (begin, begin_on_core) = (Instant::now(), on_core());
            socket.connect(&address(SERVER, PORT)).expect("an admitted connection");
            let latency = begin.elapsed();
            let (accepted, _) = self.accept().expect("the connection at the server");
            drop(socket);
            drop(accepted);
            all.push(Connection {
                cost: on_core() - begin_on_core,
                latency,
            });
        }
        all
    }

    fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        within(PATIENCE * 10, || self.listener.accept())
    }

    /// A connection for [`Bulk`].
    pub(crate) fn bulk(&mut self) -> Bulk {
        let client = TcpStream::connect((SERVER, PORT)).expect("an admitted connection");
        let (server, _) = self.accept().expect("the connection at the server");
        for end in [&client, &server] {
            end.set_nonblocking(true).expect("an option of every socket");
        }
        Bulk { client, server }
    }

    /// Who gets through: from the given pod, by the given protocol, to the server's port. Ports are [`PORT`],
    /// [`FIRST_PORT`], and any on which nobody listens.
    pub(crate) fn passes(&mut self, from: Ipv4Addr, tcp: bool, port: u16) -> bool {
        if tcp {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
            socket
                .set_linger(Some(Duration::ZERO))
                .expect("an option of every socket");
            socket.bind(&address(from, 0)).expect("a free port");
            let connected = socket.connect_timeout(&address(SERVER, port), PATIENCE);
            // A refusal has come all the way as well.
            return match connected {
                Ok(()) => self.accept().is_ok(),
                Err(error) => error.kind() == ErrorKind::ConnectionRefused,
            };
        }
        let listener = if port == FIRST_PORT {
            &self.first
        } else {
            &self.receiver
        };
        drain(listener);
        let socket = UdpSocket::bind((from, 0)).expect("a free port");
        socket.connect((SERVER, port)).expect("a route to the server");
        let _ = socket.send(b"probe");
        let mut buffer = [0; 16];
        match port {
            PORT | FIRST_PORT => heard(listener, &mut buffer).is_some(),
            // Nobody listens: the answer is an error on the client's socket.
            _ => {
                let answer = within(PATIENCE, || {
                    socket.set_nonblocking(true)?;
                    socket.recv(&mut buffer)
                });
                answer.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
            }
        }
    }
}

/// A TCP connection that carries as much as it can.
pub(crate) struct Bulk {
    client: TcpStream,
    server: TcpStream,
}

impl Bulk {
    /// Megabytes in a second of the core's time, sending and receiving.
    pub(crate) fn rate(&mut self) -> f64 {
        let bytes = vec![0; 128 * 1024];
        let mut buffer = vec![0; 256 * 1024];
        let (mut received, begin) = (0, on_core());
        while on_core() - begin < SLICE {
            let _ = self.client.write(&bytes);
            while let Ok(length) = self.server.read(&mut buffer) {
                received += length;
            }
        }
        received as f64 / (on_core() - begin).as_secs_f64() / 1e6
    }
}

fn address(ip: Ipv4Addr, port: u16) -> SockAddr {
    SocketAddrV4::new(ip, port).into()
}

fn drain(socket: &UdpSocket) {
    while socket.recv(&mut [0; 16]).is_ok() {}
}

fn heard(socket: &UdpSocket, buffer: &mut [u8]) -> Option<SocketAddr> {
    within(PATIENCE, || socket.recv_from(buffer)).ok().map(|(_, from)| from)
}

/// Tries until it works or the time is over. What is admitted is there at once, so this waits only for what is not.
fn within<T>(time: Duration, mut attempt: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < time => {
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}
