//! Packets that are no plain request of a connection: errors, fragments, neighbour discovery, untracked ones, echoes.

use std::cell::Cell;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::{Expect, Netns, Place, Wiring, program};
use policy_compiler::ports::Traffic;
use socket2::{Domain, Protocol, Socket, Type};

use crate::shop::{CLUSTER, DENY_ALL, NONE, ONLY_DB};
use crate::ways::over_each_of;
use crate::world::{Family, Result, World, must, node, pod, tcp, udp};

/// A UDP client and a UDP server of the test's own, with datagrams of four bytes or more. Each begins with a number of its own, so that a
/// late one is not taken for the one that is waited for.
pub(crate) struct Datagrams {
    client: UdpSocket,
    server: UdpSocket,
    to: SocketAddr,
    numbers: Cell<u32>,
}

impl Datagrams {
    pub(crate) fn new(world: &World, from: &Place, to: &Place, family: Family) -> Result<Datagrams> {
        // A port that the policies allow and the sandbox's listener leaves free: its sockets are bound to addresses.
        let bind = |place: &Place, port| -> Result<UdpSocket> {
            let address = world.socket(place, family, port)?;
            Ok(world.netns(place)?.run(|| UdpSocket::bind(address))??)
        };
        let server = bind(to, 5300)?;
        Ok(Datagrams {
            client: bind(from, 0)?,
            to: server.local_addr()?,
            server,
            numbers: Cell::new(0),
        })
    }

    /// Whether the server reaches the client by itself.
    fn comes_back(&self, expected: Expect) -> Result<bool> {
        self.patience(expected)?;
        let more = self.datagram(10);
        self.server.send_to(&more, self.client.local_addr()?)?;
        Ok(hears(&self.client, &more)?.is_some())
    }

    /// Whether a datagram of that size arrives, whole, and an answer of that other size comes back. Where silence is expected, it has
    /// passed when it arrives.
    pub(crate) fn arrives(&self, size: usize, answer: usize, expected: Expect) -> Result<bool> {
        self.patience(expected)?;
        let (request, answer) = (self.datagram(size), self.datagram(answer));
        if self.client.send_to(&request, self.to).is_err() {
            // The ICMP error about an earlier datagram.
            return Ok(false);
        }
        let Some(from) = hears(&self.server, &request)? else {
            return Ok(false);
        };
        self.server.send_to(&answer, from)?;
        Ok(expected == Expect::Silence || hears(&self.client, &answer)?.is_some())
    }

    /// The next datagram.
    fn datagram(&self, size: usize) -> Vec<u8> {
        self.numbers.set(self.numbers.get() + 1);
        let mut datagram = self.numbers.get().to_be_bytes().to_vec();
        datagram.resize(size, b'x');
        datagram
    }

    /// What is expected decides how long is waited, and nothing else.
    fn patience(&self, expected: Expect) -> Result {
        for socket in [&self.client, &self.server] {
            socket.set_read_timeout(Some(patience(expected)))?;
        }
        Ok(())
    }
}

/// Waits for a datagram, passing over what is left of others: who sent it, when it comes.
fn hears(socket: &UdpSocket, wanted: &[u8]) -> Result<Option<SocketAddr>> {
    let mut buffer = vec![0; 65536];
    while let Some((length, from)) = waited(|| socket.recv_from(&mut buffer))? {
        if buffer[..length] == *wanted {
            return Ok(Some(from));
        }
    }
    Ok(None)
}

/// How long to wait: an expected packet comes in a millisecond, but for a busy machine.
pub(crate) fn patience(expected: Expect) -> Duration {
    match expected {
        Expect::Answer => Duration::from_secs(10),
        _ => Duration::from_millis(700),
    }
}

/// What a socket with a time-out reads; none when that is over. A signal, such as that of a child's end, interrupts such a
/// read whatever its handler asks for (signal(7)): it begins again then.
pub(crate) fn waited<T>(mut read: impl FnMut() -> std::io::Result<T>) -> Result<Option<T>> {
    loop {
        return match read() {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
        };
    }
}

/// The policies of the shop, with the port of the test's own datagrams.
pub(crate) fn only_db() -> String {
    ONLY_DB.replace("port: 53,", "port: 5300,")
}

/// Datagrams of 3,000 bytes in three fragments: the first alone says which port they are for.
pub(crate) fn fragments_follow_their_datagram() -> Result {
    over_each_of(CLUSTER, "fragments_follow_their_datagram", |mut world, _| {
        let (web, api, db) = (pod("web"), pod("api"), pod("db"));
        for family in Family::BOTH {
            let to_db = Datagrams::new(&world, &web, &db, family)?;
            let to_api = Datagrams::new(&world, &web, &api, family)?;
            let to_web = Datagrams::new(&world, &db, &web, family)?;
            world.policies(NONE)?;
            for datagrams in [&to_db, &to_api, &to_web] {
                must(
                    datagrams.arrives(3000, 3000, Expect::Answer)?,
                    "fragments do not arrive without policy",
                )?;
            }
            world.policies(&only_db())?;
            must(
                to_db.arrives(3000, 3000, Expect::Answer)?,
                format!("{family:?}: an allowed datagram in fragments is lost"),
            )?;
            must(
                !to_api.arrives(3000, 3000, Expect::Silence)?,
                format!("{family:?}: a denied datagram in fragments passes"),
            )?;
            must(
                !to_web.arrives(3000, 3000, Expect::Silence)?,
                format!("{family:?}: a denied datagram in fragments passes to the client"),
            )?;
        }
        Ok(())
    })
}

/// A link of 1,300 bytes on the way: the sender learns of it by an ICMP error, which reaches a pod that nobody may reach.
pub(crate) fn errors_of_an_allowed_connection_pass() -> Result {
    over_each_of(CLUSTER, "errors_of_an_allowed_connection_pass", |mut world, wiring| {
        world.policies(&only_db())?;
        let (web, db) = (pod("web"), pod("db"));
        // Neither pod's own link is narrow, so only a node in between can say it. Over an overlay it is the first one: of a
        // narrow link further on, a bridged pod never learns enough for IPv6, Palisade or not, because a node with
        // br_netfilter and connection tracking does not remember how small the fragments were that it put together.
        let (narrow, link) = match wiring {
            Wiring::Overlay => ("a", "link set flannel.1 mtu 1300\n"),
            _ => ("b", "link set pod0 mtu 1300\n"),
        };
        world.netns(&node(narrow))?.ip(link)?;
        for family in Family::BOTH {
            let datagrams = Datagrams::new(&world, &web, &db, family)?;
            must(datagrams.arrives(1000, 10, Expect::Answer)?, "a small datagram is lost")?;
            must(
                !datagrams.arrives(1400, 10, Expect::Silence)?,
                format!("{family:?}: the link is wider than it should be"),
            )?;
            let start = Instant::now();
            while !datagrams.arrives(1400, 10, Expect::Silence)? {
                must(
                    start.elapsed() < Duration::from_secs(20),
                    format!("{family:?}: the sender never learns of the narrow link"),
                )?;
            }
        }
        Ok(())
    })
}

/// The same for TCP: a large answer never arrives when its sender does not learn how wide the way is.
pub(crate) fn tcp_learns_of_a_narrow_link() -> Result {
    use std::io::Write;
    over_each_of(CLUSTER, "tcp_learns_of_a_narrow_link", |mut world, _| {
        world.policies(&ONLY_DB.replace("port: 80}", "port: 8080}"))?;
        let (web, db) = (pod("web"), pod("db"));
        world.netns(&node("b"))?.ip("link set pod0 mtu 1300\n")?;
        for family in Family::BOTH {
            let to = world.socket(&db, family, 8080)?;
            let listener = world.netns(&db)?.run(|| std::net::TcpListener::bind(to))??;
            let mut client =
                (world.netns(&web)?).run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(8)))??;
            let (mut server, _) = listener.accept()?;
            server.set_read_timeout(Some(Duration::from_secs(10)))?;
            client.set_write_timeout(Some(Duration::from_secs(30)))?;
            client.write_all(&[7; 50_000])?;
            let mut buffer = vec![0; 50_000];
            (server.read_exact(&mut buffer))
                .map_err(|error| format!("{family:?}: the transfer stands still: {error}"))?;
        }
        Ok(())
    })
}

/// Datagrams of one association stop in both directions with the transaction that denies them, and resume.
pub(crate) fn a_change_stops_datagrams_both_ways() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    for family in Family::BOTH {
        world.policies(&only_db())?;
        let datagrams = Datagrams::new(&world, &pod("web"), &pod("db"), family)?;
        for _ in 0..2 {
            must(
                datagrams.arrives(100, 100, Expect::Answer)?,
                format!("{family:?}: an allowed datagram is lost"),
            )?;
            must(
                datagrams.comes_back(Expect::Answer)?,
                format!("{family:?}: an allowed answer is lost"),
            )?;
            world.policies(DENY_ALL)?;
            must(
                !datagrams.comes_back(Expect::Silence)?,
                format!("{family:?}: an answer passes that is not allowed any more"),
            )?;
            must(
                !datagrams.arrives(100, 100, Expect::Silence)?,
                format!("{family:?}: a datagram passes that is not allowed any more"),
            )?;
            world.policies(&only_db())?;
        }
        must(
            datagrams.comes_back(Expect::Answer)?,
            format!("{family:?}: an answer does not pass again"),
        )?;
    }
    Ok(())
}

/// Where only ports are allowed, echo requests are not.
pub(crate) fn echo_needs_a_rule_without_ports() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    for family in Family::BOTH {
        world.policies(ONLY_DB)?;
        world.passes(&pod("web"), &pod("db"), tcp(80), family)?;
        world.dropped(&pod("web"), &pod("db"), Traffic::Other, family)?;
        world.policies(&ONLY_DB.replace("    ports: [{port: 80}, {port: 53, protocol: UDP}]\n", ""))?;
        world.passes(&pod("web"), &pod("db"), Traffic::Other, family)?;
        world.dropped(&pod("db"), &pod("web"), Traffic::Other, family)?;
    }
    Ok(())
}

/// A packet that connection tracking was told to ignore belongs to nothing that could be allowed.
pub(crate) fn untracked_packets_are_denied_to_isolated_pods() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let ignore = "table inet ignore { chain prerouting { type filter hook prerouting priority raw;\n\
                  udp dport 53 notrack\nudp sport 53 notrack\n}\n}\n";
    world.netns(&node("b"))?.nft(ignore)?;
    for family in Family::BOTH {
        // Only the ingress of db is isolated: web's own node tracks, and would let the packet go.
        world.policies(crate::shop::DB_INGRESS)?;
        world.dropped(&pod("web"), &pod("db"), udp(53), family)?;
        world.passes(&pod("web"), &pod("db"), tcp(80), family)?;
        // The same packets to a pod that nothing isolates: nothing else is in their way.
        world.policies(crate::shop::WEB_EGRESS)?;
        world.passes(&pod("web"), &pod("db"), udp(53), family)?;
    }
    Ok(())
}

/// What is no INIT opens no association with a pod that any policy judges: a lost one would be picked up in reverse, and
/// what its pod may not send would pass as an answer.
pub(crate) fn an_association_is_opened_by_an_init() -> Result {
    const HEARTBEAT: u8 = 4;
    const INIT: u8 = 1;
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let (web, db) = (pod("web"), pod("db"));
    for name in ["a", "b"] {
        // The checksums of this test's packets are left out.
        world
            .netns(&node(name))?
            .sysctl(&[("netfilter/nf_conntrack_checksum", "0")])?;
    }
    for family in Family::BOTH {
        let (from, to) = (world.address(&db, family)?, world.address(&web, family)?);
        let domain = if from.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let raw = || Socket::new(domain, Type::RAW, Some(Protocol::from(132)));
        let socket = world.netns(&db)?.run(raw)??;
        let sink = world.netns(&web)?.run(raw)??;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        sink.bind(&SocketAddr::new(to, 0).into())?;
        let mut port = 1000;
        let mut arrives = |kind: u8, expected: Expect| -> Result<bool> {
            sink.set_read_timeout(Some(patience(expected)))?;
            // Ports, tag, checksum, one chunk; from another port each time, so that no connection is known.
            port += 1;
            let mut packet = [u16::to_be_bytes(port), u16::to_be_bytes(2000)].concat();
            packet.extend(if kind == INIT { [0; 4] } else { [7; 4] });
            packet.extend([0, 0, 0, 0, kind, 0, 0, 20]);
            packet.extend([0, 4, 0, 12, 0, 0, 255, 255, 0, 1, 0, 1, 0, 0, 0, 1]);
            socket.send_to(&packet, &SocketAddr::new(to, 0).into())?;
            let mut heard = vec![0; 2048];
            loop {
                let Some(length) = waited(|| (&sink).read(&mut heard))? else {
                    return Ok(false);
                };
                // The sandbox's own listeners answer elsewhere on the same protocol.
                if heard[..length].windows(4).any(|ports| ports == &packet[..4]) {
                    return Ok(true);
                }
            }
        };
        world.policies("kind: NetworkPolicyList\napiVersion: networking.k8s.io/v1\nitems: []\n")?;
        for kind in [INIT, HEARTBEAT] {
            must(
                arrives(kind, Expect::Answer)?,
                format!("{family:?}: chunk {kind} does not arrive without policy"),
            )?;
        }
        // Only what web sends is judged, so db may open what it likes.
        world.policies(crate::shop::WEB_EGRESS)?;
        must(
            arrives(INIT, Expect::Answer)?,
            format!("{family:?}: an INIT to a pod that may be reached does not arrive"),
        )?;
        must(
            !arrives(HEARTBEAT, Expect::Silence)?,
            format!("{family:?}: an association is picked up midway"),
        )?;
    }
    Ok(())
}

/// A pod that is denied everything is still found by its node over IPv6, after everybody forgot where it is.
pub(crate) fn neighbours_are_found_whatever_the_policy() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    world.policies(DENY_ALL)?;
    for _ in 0..2 {
        for place in [node("a"), pod("web")] {
            forget_neighbours(world.netns(&place)?)?;
        }
        world.passes(&node("a"), &pod("web"), tcp(80), Family::V6)?;
        world.passes(&node("a"), &pod("web"), Traffic::Other, Family::V6)?;
        world.dropped(&node("b"), &pod("web"), tcp(80), Family::V6)?;
    }
    Ok(())
}

/// Until none is known: the end of an earlier connection may come late, and find them anew.
fn forget_neighbours(netns: &Netns) -> Result {
    let start = Instant::now();
    loop {
        ip(netns, &["-6", "neigh", "flush", "all"])?;
        let left = ip(netns, &["-6", "neigh", "show", "nud", "reachable"])?;
        if left.is_empty() {
            return Ok(());
        }
        must(
            start.elapsed() < Duration::from_secs(30),
            format!("neighbours were not forgotten: {left}"),
        )?;
    }
}

/// What `ip` says in a namespace.
pub(crate) fn ip(netns: &Netns, arguments: &[&str]) -> Result<String> {
    let ip = program("ip")?;
    let output = netns.run(|| Command::new(ip).args(arguments).output())??;
    must(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Kubelet's probes: a pod and its own node, in both directions; another node is an address like any other.
pub(crate) fn a_pod_and_its_node_reach_each_other() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    world.policies(DENY_ALL)?;
    for family in Family::BOTH {
        for traffic in [tcp(80), udp(53), Traffic::Other] {
            world.passes(&node("a"), &pod("web"), traffic, family)?;
            world.dropped(&node("b"), &pod("web"), traffic, family)?;
        }
        world.passes(&pod("web"), &node("a"), Traffic::Other, family)?;
        world.dropped(&pod("web"), &node("b"), Traffic::Other, family)?;
    }
    Ok(())
}

/// Audit mode: everything passes, and what would not have is counted.
pub(crate) fn audit_drops_nothing_and_counts() -> Result {
    let mut world = World::of(CLUSTER, Mode::Audit)?;
    world.policies(DENY_ALL)?;
    // What is exempt is not counted. First of all, since what ends a connection is counted whenever it comes.
    let before = denied(&world, "a")?;
    world.passes(&node("a"), &pod("web"), udp(53), Family::V4)?;
    let after = denied(&world, "a")?;
    must(after == before, "a packet of the pod's own node was counted")?;
    for family in Family::BOTH {
        for traffic in [tcp(80), udp(53), Traffic::Other] {
            world.passes(&pod("web"), &pod("db"), traffic, family)?;
            world.passes(&pod("web"), &pod("api"), traffic, family)?;
        }
    }
    let after = denied(&world, "a")?;
    must(
        after >= before + 12,
        format!("{before} packets were counted before, {after} after"),
    )
}

/// The packets that the node's table counted as denied.
fn denied(world: &World, name: &str) -> Result<u64> {
    let nft = program("nft")?;
    let run = || {
        Command::new(nft)
            .args(["list", "chain", "inet", "palisade", "denied"])
            .output()
    };
    let output = world.netns(&node(name))?.run(run)??;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text
        .split_once("counter packets ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    Ok(count.ok_or_else(|| format!("no counter: {text}"))?)
}
