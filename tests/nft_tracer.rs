//! The rendered rules say what the compiled table says, packet by packet: on random clusters, for every pair of addresses
//! that matters and the ports around every boundary, in both directions of the connection, whole and after differences.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/canonical.rs"]
mod canonical;
#[path = "nft_tracer/ranges.rs"]
mod ranges;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use palisade::agent::enforcer::Enforcer;
use palisade::nft::fake::Fake;
use palisade::nft::listing::Listing;
use palisade::nft::names::ChainName;
use palisade::nft::tracer::{
    ACK, Answer, Connection, Entry, INIT, Packet, Recorded, SYN, State, Tracer, Way, number_of,
};
use palisade::nft::{
    Clearing, DenyAction, Kernel, KernelError, MarkMask, Marks, Mode, Renderer, Ruleset, Settings, Transaction, render,
    replace,
};
use policy_compiler::changes::Changes;
use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::compile::{Compiler, Event, Subjects, compile};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::policy::Direction;
use policy_compiler::ports::{Protocol, Traffic};
use policy_compiler::table::{GroupId, Half, PodIndex, Table};
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;
use ranges::{ranged, ranges, unknown, unknown_pods, with_ranges};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

fn icmp(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMPV6 }
}

fn connection(client: IpAddr, server: IpAddr, traffic: Traffic) -> Connection {
    let (protocol, server_port) = match traffic {
        Traffic::Port(protocol, port) => (number_of(protocol), port),
        // The identifier of a ping stands where ports stand, and must not be taken for one.
        Traffic::Other => (icmp(client), 80),
    };
    Connection {
        client,
        server,
        protocol,
        server_port,
    }
}

/// Two packets of a connection: the first, and in turn a later one, a reply, or an ICMP error about it from either end or
/// from a router on the way.
fn packets(connection: Connection, turn: usize) -> [(&'static str, Packet); 2] {
    let (client, server) = (connection.client, connection.server);
    let packet = |source, destination, protocol, tcp_flags, state| Packet {
        source,
        destination,
        protocol,
        tcp_flags,
        sctp_chunk: if state == State::New { INIT } else { 0 },
        hop_limit: 63,
        icmp_type: 128,
        way: Way::Routed,
        state,
        connection: Some(connection),
    };
    let protocol = connection.protocol;
    let error = icmp(client);
    let router: IpAddr = if client.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }
        .parse()
        .unwrap();
    let mut others = [
        ("later", packet(client, server, protocol, ACK, State::Established)),
        ("reply", packet(server, client, protocol, ACK, State::Established)),
        (
            "error from the server",
            packet(server, client, error, 0, State::Related),
        ),
        (
            "error from the client",
            packet(client, server, error, 0, State::Related),
        ),
        ("error from a router", packet(router, client, error, 0, State::Related)),
    ];
    let at = turn % others.len();
    let other = std::mem::replace(
        &mut others[at],
        ("first", packet(client, server, protocol, SYN, State::New)),
    );
    [others[at].clone(), other]
}

fn addressed(cluster: &Cluster, table: &Table) -> Vec<Endpoint> {
    let mut addresses: Vec<IpAddr> = testing::endpoints(cluster, table)
        .iter()
        .filter_map(Endpoint::address)
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses.into_iter().map(|a| table.addresses().endpoint(a)).collect()
}

fn check(
    cluster: &Cluster,
    subjects: &Subjects,
    settings: Settings,
    table: &Table,
    ruleset: &Ruleset,
) -> Result<(), TestCaseError> {
    let ends = addressed(cluster, table);
    let evaluator = Evaluator::new(cluster);
    let (tracer, traffics) = (Tracer::new(ruleset), testing::traffics());
    for from in &ends {
        for to in ends.iter().filter(|to| to.same_family(from)) {
            let (Some(client), Some(server)) = (from.address(), to.address()) else {
                continue;
            };
            let (allowed, would) = (table.allowed(from, to), table.would_allow(from, to));
            for (at, traffic) in traffics.iter().copied().enumerate() {
                for (what, packet) in packets(connection(client, server, traffic), at) {
                    let unknown = [packet.source, packet.destination]
                        .map(|address| unknown(cluster, subjects, settings, address))
                        .contains(&true);
                    let expected = allowed.contains(traffic) && !unknown;
                    let trace = tracer.trace(&packet).map_err(|e| TestCaseError::fail(e.to_string()))?;
                    prop_assert_eq!(
                        trace.accepted,
                        expected,
                        "{} packet, {} to {} on {}: {:?}\n{}\n{}",
                        what,
                        from,
                        to,
                        traffic,
                        trace.chains,
                        evaluator.decide(from, to, traffic),
                        ruleset
                    );
                    prop_assert_eq!(trace.denied, unknown || !would.contains(traffic));
                    // Counted as what it is, and then nobody's policy is asked.
                    prop_assert_eq!(
                        (trace.unknown, trace.counted.is_empty()),
                        (u64::from(unknown), unknown || !trace.denied)
                    );
                    if unknown {
                        prop_assert_eq!(trace.recorded, recorded(&packet));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whatever fares alike before a transaction and after it fares so between its steps.
fn check_between(
    sides: [(&Cluster, &Table); 2],
    subjects: &Subjects,
    settings: Settings,
    ruleset: &Ruleset,
) -> Result<(), TestCaseError> {
    let tracer = Tracer::new(ruleset);
    let mut addresses: Vec<IpAddr> = sides
        .iter()
        .flat_map(|(cluster, table)| addressed(cluster, table))
        .filter_map(|end| end.address())
        .collect();
    addresses.sort();
    addresses.dedup();
    for client in &addresses {
        for server in addresses.iter().filter(|server| server.is_ipv4() == client.is_ipv4()) {
            let allowed = sides.map(|(_, table)| {
                let [from, to] = [client, server].map(|address| table.addresses().endpoint(*address));
                table.allowed(&from, &to)
            });
            for (at, traffic) in testing::traffics().into_iter().enumerate().step_by(3) {
                for (what, packet) in packets(connection(*client, *server, traffic), at) {
                    let passes = [0, 1].map(|side| {
                        let of = |address| unknown(sides[side].0, subjects, settings, address);
                        allowed[side].contains(traffic) && !of(packet.source) && !of(packet.destination)
                    });
                    let trace = tracer.trace(&packet).map_err(|e| TestCaseError::fail(e.to_string()))?;
                    prop_assert!(
                        passes.contains(&trace.accepted),
                        "{what} packet, {client} to {server} on {traffic}: {:?}",
                        trace.chains
                    );
                }
            }
        }
    }
    Ok(())
}

/// What is remembered of a denied packet: its connection; an ICMP error about one with ports is not.
fn recorded(packet: &Packet) -> Vec<Recorded> {
    let Some(connection) = packet.connection else {
        return Vec::new();
    };
    let with_ports = [6, 17, 132].contains(&connection.protocol);
    if with_ports && packet.protocol != connection.protocol {
        return Vec::new();
    }
    vec![Recorded {
        from: connection.client,
        to: connection.server,
        protocol: connection.protocol,
        port: with_ports.then_some(connection.server_port),
    }]
}

fn judged(table: &Table, end: &Endpoint, group: fn(&Half, PodIndex) -> Option<GroupId>) -> bool {
    let pod = end.pod().and_then(|pod| table.pod_index(&pod.name));
    pod.is_some_and(|pod| Direction::BOTH.iter().any(|d| group(table.half(*d), pod).is_some()))
}

/// A ruleset without the numbers that rendering gives.
fn canonical(ruleset: &Ruleset) -> Listing {
    let kernel = Fake::default();
    kernel.apply(&replace(ruleset).unwrap()).unwrap();
    canonical::canonical(&kernel.read().unwrap().unwrap())
}

fn subjects(one_node: bool) -> Subjects {
    match one_node {
        true => Subjects::Node("node-1".into()),
        false => Subjects::All,
    }
}

/// A cluster, what was rendered of it, and the kernel in memory that took the transactions.
struct World {
    cluster: Cluster,
    subjects: Subjects,
    settings: Settings,
    compiler: Compiler,
    renderer: Renderer,
    kernel: Fake,
}

impl World {
    fn new(cluster: Cluster, subjects: Subjects, settings: Settings) -> Result<Self, TestCaseError> {
        let compiler = Compiler::new(&cluster, subjects.clone());
        let renderer = Renderer::new(compiler.table(), settings);
        let kernel = Fake::default();
        kernel.apply(&replace(renderer.ruleset()).unwrap()).unwrap();
        let world = World {
            cluster,
            subjects,
            settings,
            compiler,
            renderer,
            kernel,
        };
        world.trace()?;
        Ok(world)
    }

    /// Follows events in one transaction. The kernel then holds what was rendered, and that is what a table compiled and
    /// rendered from scratch comes to. Between two steps of a transaction each packet fares as before or as after.
    fn follow(&mut self, events: &[Event]) -> Result<(), TestCaseError> {
        let mut changes = Changes::default();
        let mut cluster = self.cluster.clone();
        let former = self.renderer.ruleset().clone();
        let table = self.compiler.table().clone();
        for event in events {
            event.clone().apply_to(&mut cluster);
            changes.extend(self.compiler.apply(event.clone()));
        }
        let transaction = self.renderer.follow(self.compiler.table(), &changes).unwrap();
        let kernel = Fake::default();
        kernel.apply(&replace(&former).unwrap()).unwrap();
        for step in transaction.steps().take(transaction.steps().count().saturating_sub(1)) {
            let mut one = Transaction::default();
            for operation in step {
                one.add(operation.clone()).unwrap();
            }
            kernel.apply(&one).unwrap();
            if self.settings.mode == Mode::Enforce {
                let sides = [(&self.cluster, &table), (&cluster, self.compiler.table())];
                check_between(sides, &self.subjects, self.settings, &kernel.content().unwrap())?;
            }
        }
        let said = || format!("{events:?}\n{transaction}");
        self.kernel
            .apply(&transaction)
            .map_err(|e| TestCaseError::fail(format!("{e}\n{}", said())))?;
        self.cluster = cluster;
        let content = self.kernel.content().unwrap();
        prop_assert!(
            content == *self.renderer.ruleset(),
            "{}\n{}\n{}",
            said(),
            content,
            self.renderer.ruleset()
        );
        let scratch = render(&compile(&self.cluster, &self.subjects), self.settings);
        prop_assert_eq!(canonical(&content), canonical(&scratch), "{}", said());
        let again = self
            .renderer
            .follow(self.compiler.table(), &Changes::default())
            .unwrap();
        prop_assert!(again.is_empty(), "nothing changed, and yet {}", again);
        Ok(())
    }

    /// Walks packets through what the kernel holds.
    fn trace(&self) -> Result<(), TestCaseError> {
        match self.settings.mode {
            Mode::Enforce => check(
                &self.cluster,
                &self.subjects,
                self.settings,
                self.compiler.table(),
                &self.kernel.content().unwrap(),
            ),
            Mode::Audit => Ok(()),
        }
    }
}

proptest! {
    // Each traces three or four clusters.
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// From one cluster to an unrelated one, and on.
    #[test]
    fn the_kernel_follows_from_cluster_to_cluster(
        clusters in proptest::collection::vec((testing::cluster(Tiers::All), ranges()), 2..5),
        drops in any::<bool>(),
    ) {
        let settings = Settings { unknown_pods: unknown_pods(drops), ..Settings::default() };
        let clusters: Vec<Cluster> = clusters.into_iter().map(|(cluster, ranges)| with_ranges(cluster, &ranges)).collect();
        let mut world = World::new(clusters[0].clone(), Subjects::All, settings)?;
        for cluster in clusters {
            let events = world.compiler.events_to(&cluster);
            world.follow(&events)?;
            world.cluster = cluster;
            world.trace()?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rendered_rules_say_what_the_table_says(
        cluster in testing::cluster(Tiers::All), ranges in ranges(), drops in any::<bool>(), one_node in any::<bool>(),
    ) {
        let settings = Settings { unknown_pods: unknown_pods(drops), ..Settings::default() };
        let cluster = with_ranges(cluster, &ranges);
        // Of one node's pods the whole cluster's table says nothing else: those of other nodes are judged by nobody.
        let subjects = subjects(one_node);
        let table = compile(&cluster, &subjects);
        check(&cluster, &subjects, settings, &table, &render(&table, settings))?;
    }

    /// Event by event, and several at once.
    #[test]
    fn the_kernel_follows_events(
        (start, events) in testing::history(60),
        batches in proptest::collection::vec(1..6usize, 60),
        one_node in any::<bool>(),
        (audit, drops) in any::<(bool, bool)>(),
        (first, later) in (ranges(), ranges()),
    ) {
        let mode = if audit { Mode::Audit } else { Mode::Enforce };
        let settings = Settings { unknown_pods: unknown_pods(drops), ..Settings::from(mode) };
        // The ranges change now and then as the nodes do.
        let other = |(at, event)| match event {
            Event::Node(node) => Event::Node(ranged(&node, if at % 2 == 0 { &later } else { &first })),
            event => event,
        };
        let events: Vec<Event> = events.into_iter().enumerate().map(other).collect();
        let mut world = World::new(with_ranges(start, &first), subjects(one_node), settings)?;
        let mut rest = events.as_slice();
        for size in batches {
            let (batch, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            world.follow(batch)?;
        }
        world.trace()?;
    }

    /// A packet that belongs to no connection passes only between ends that no policy judges; so does a TCP packet that
    /// opens one without being a SYN, or an SCTP packet that is no INIT, unless it is exempt.
    #[test]
    fn without_a_connection_nothing_slips_through(
        cluster in testing::cluster(Tiers::All), ranges in ranges(), drops in any::<bool>(),
    ) {
        let cluster = with_ranges(cluster, &ranges);
        let settings = Settings { unknown_pods: unknown_pods(drops), ..Settings::default() };
        let table = compile(&cluster, &Subjects::All);
        let ruleset = render(&table, settings);
        let tracer = Tracer::new(&ruleset);
        let audited = render(&table, Settings { mode: Mode::Audit, ..settings });
        let rejecting = render(&table, Settings { deny_action: DenyAction::Reject, ..settings });
        let (soft, loud) = (Tracer::new(&audited), Tracer::new(&rejecting));
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(source), Some(destination)) = (from.address(), to.address()) else { continue };
                let touched = judged(&table, from, Half::group_of) || judged(&table, to, Half::group_of);
                let dropped = judged(&table, from, Half::group_in_force) || judged(&table, to, Half::group_in_force);
                let unknown = [source, destination].map(|address| unknown(&cluster, &Subjects::All, settings, address)).contains(&true);
                let lost = |protocol| Some(connection(source, destination, Traffic::Port(protocol, 80)));
                for (protocol, state, connection, tcp_flags, sctp_chunk) in [
                    (6, State::Invalid, None, ACK, 0),
                    (6, State::Untracked, None, SYN, 0),
                    (6, State::New, lost(Protocol::Tcp), ACK, 0),
                    (6, State::New, lost(Protocol::Tcp), ACK | SYN, 0),
                    (132, State::Invalid, None, 0, 0),
                    (132, State::Untracked, None, 0, INIT),
                    (132, State::New, lost(Protocol::Sctp), 0, 0),
                    (132, State::New, lost(Protocol::Sctp), 0, INIT + 1),
                ] {
                    let packet = Packet {
                        source, destination, protocol, tcp_flags, sctp_chunk, hop_limit: 63, icmp_type: 0, way: Way::Routed, state, connection,
                    };
                    let exempt = connection.is_some() && table.addresses().exemption(from, to).is_some();
                    let trace = tracer.trace(&packet).unwrap();
                    prop_assert_eq!(trace.accepted, (!dropped || exempt) && !unknown, "{} to {}: {:?}", from, to, state);
                    // Counted once, for one pod, whatever becomes of it; answered only where it opens a connection.
                    prop_assert_eq!(trace.counted.len(), usize::from(touched && !exempt && !unknown));
                    prop_assert_eq!(trace.unknown, u64::from(unknown));
                    let soft = soft.trace(&packet).unwrap();
                    prop_assert!(soft.accepted);
                    prop_assert_eq!(soft.unknown > 0, unknown);
                    if !unknown {
                        prop_assert_eq!((&soft.counted, &soft.recorded), (&trace.counted, &trace.recorded));
                    }
                    let loud = loud.trace(&packet).unwrap();
                    prop_assert_eq!((loud.accepted, &loud.counted), (trace.accepted, &trace.counted));
                    let answered = !trace.accepted && state == State::New && !unknown;
                    let answer = if protocol == 6 { Answer::Reset } else { Answer::Prohibited };
                    prop_assert_eq!(loud.answer, answered.then_some(answer));
                }
                if source.is_ipv6() {
                    let passes = !dropped && !unknown;
                    // Only what no router has forwarded is neighbour discovery.
                    let types = [(132, 255, passes), (133, 255, true), (137, 255, true), (138, 255, passes), (135, 254, passes)];
                    for (icmp_type, hop_limit, passes) in types {
                        let packet = Packet {
                            source, destination, protocol: ICMPV6, tcp_flags: 0, sctp_chunk: 0, hop_limit, icmp_type, way: Way::Routed, state: State::Untracked, connection: None,
                        };
                        prop_assert_eq!(tracer.trace(&packet).unwrap().accepted, passes);
                    }
                }
            }
        }
    }

    /// What pods of one bridge send each other that is addressed to no pod passes only where none is isolated, but for discovery.
    #[test]
    fn a_shared_link_carries_nothing_that_no_policy_can_judge(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        let ruleset = render(&table, Settings::default());
        let tracer = Tracer::new(&ruleset);
        let audited = render(&table, Mode::Audit.into());
        let soft = Tracer::new(&audited);
        let in_force = |pod| Direction::BOTH.into_iter().any(|direction| table.half(direction).group_in_force(pod).is_some());
        let isolated = table.pods().any(|(pod, _)| in_force(pod));
        let link = "fe80::1";
        for (from, to, way) in [
            ("10.0.0.77", "10.0.0.255", Way::Broadcast),
            ("10.0.0.77", "255.255.255.255", Way::Broadcast),
            ("10.0.0.77", "255.255.255.255", Way::Bridged),
            ("10.0.0.77", "224.0.0.251", Way::Multicast),
            ("10.0.0.77", "224.0.0.251", Way::Bridged),
            ("fd00::77", "ff02::fb", Way::Multicast),
            ("fd00::77", "ff02::fb", Way::Bridged),
            (link, "ff02::fb", Way::Multicast),
            (link, "fe80::2", Way::Bridged),
            (link, "fd00::77", Way::Bridged),
            ("fd00::77", link, Way::Bridged),
        ] {
            let (source, destination): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            // Nothing answers to a group's address, so only connections by link-local addresses are ever established.
            let one = source == link.parse::<IpAddr>().unwrap() || destination == link.parse::<IpAddr>().unwrap();
            let states = [State::New, State::Related, State::Untracked, State::Invalid, State::Established];
            for state in states.into_iter().take(if one { 5 } else { 4 }) {
                for protocol in [6, 17, 132, icmp(source)] {
                    let known = !matches!(state, State::Untracked | State::Invalid);
                    let connection = Connection { client: source, server: destination, protocol, server_port: 53 };
                    let packet = |icmp_type, hop_limit| Packet {
                        source, destination, protocol, tcp_flags: SYN, sctp_chunk: INIT, hop_limit, icmp_type, way, state,
                        connection: known.then_some(connection),
                    };
                    let trace = tracer.trace(&packet(128, 63)).unwrap();
                    prop_assert_eq!(trace.accepted, !isolated, "{} to {}, {:?}, {:?}, {}", from, to, way, state, protocol);
                    prop_assert!(soft.trace(&packet(128, 63)).unwrap().accepted);
                    if protocol == ICMPV6 {
                        for (icmp_type, hop_limit) in [(130, 1), (132, 1), (143, 1), (133, 255), (137, 255)] {
                            let discovery = tracer.trace(&packet(icmp_type, hop_limit)).unwrap();
                            prop_assert!(discovery.accepted, "{}", icmp_type);
                        }
                    }
                }
            }
        }
    }

    /// Audit mode drops nothing, and denies what enforcing would drop.
    #[test]
    fn audit_mode_drops_nothing(cluster in testing::cluster(Tiers::All), ranges in ranges(), drops in any::<bool>()) {
        let cluster = with_ranges(cluster, &ranges);
        let settings = Settings { unknown_pods: unknown_pods(drops), ..Settings::default() };
        let table = compile(&cluster, &Subjects::All);
        let enforced = render(&table, settings);
        let audited = render(&table, Settings { mode: Mode::Audit, ..settings });
        let rejecting = Settings { deny_action: DenyAction::Reject, ..settings };
        let rejecting = render(&table, rejecting);
        let (hard, soft, loud) = (Tracer::new(&enforced), Tracer::new(&audited), Tracer::new(&rejecting));
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(client), Some(server)) = (from.address(), to.address()) else { continue };
                for (at, traffic) in testing::traffics().into_iter().enumerate() {
                    for (_, packet) in packets(connection(client, server, traffic), at) {
                        let (hard, soft) = (hard.trace(&packet).unwrap(), soft.trace(&packet).unwrap());
                        prop_assert!(soft.accepted);
                        prop_assert_eq!(soft.denied, hard.denied);
                        prop_assert_eq!(soft.unknown > 0, hard.unknown > 0);
                        if hard.unknown > 0 {
                            // What audit mode lets pass is judged by policy as well; nobody is told to go away.
                            prop_assert!(!hard.accepted && hard.counted.is_empty());
                            prop_assert_eq!(loud.trace(&packet).unwrap(), hard);
                            continue;
                        }
                        // Whoever is counted first when it is dropped is counted first when it is not.
                        prop_assert_eq!(soft.counted.first(), hard.counted.first());
                        prop_assert_eq!(hard.counted.is_empty(), !hard.denied);
                        prop_assert_eq!(soft.recorded.first(), hard.recorded.first());
                        let loud = loud.trace(&packet).unwrap();
                        let answer = match packet.protocol {
                            6 => Answer::Reset,
                            _ => Answer::Prohibited,
                        };
                        prop_assert_eq!(loud.answer, (!hard.accepted).then_some(answer));
                        prop_assert_eq!((loud.accepted, &loud.counted), (hard.accepted, &hard.counted));
                        if hard.denied {
                            let expected = recorded(&packet);
                            prop_assert_eq!(hard.recorded.first(), expected.first());
                        }
                    }
                }
            }
        }
    }
}

const MASK: u32 = 0x0003_0000;

fn mask() -> MarkMask {
    MarkMask::new(MASK).unwrap()
}

/// A kernel that tracks connections.
#[derive(Debug, Default)]
struct Tracking {
    fake: Fake,
    connections: Mutex<Vec<(Connection, Traffic, Entry)>>,
}

impl Tracking {
    fn connections(&self) -> MutexGuard<'_, Vec<(Connection, Traffic, Entry)>> {
        self.connections.lock().unwrap()
    }
}

impl Kernel for Tracking {
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.fake.apply(transaction)
    }

    fn check(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.fake.check(transaction)
    }

    fn read(&self) -> Result<Option<Listing>, KernelError> {
        self.fake.read()
    }

    fn delete(&self) -> Result<(), KernelError> {
        self.fake.delete()
    }

    fn clear_marks(&self, mask: MarkMask) -> Clearing {
        self.connections()
            .iter_mut()
            .for_each(|(_, _, entry)| entry.mark &= !mask.bits());
        Clearing::ended(Ok(0))
    }
}

/// Sends a packet of some of the connections: each passes when the table allows it, and keeps the bits that are not ours.
fn send(
    kernel: &Tracking,
    (cluster, settings): (&Cluster, Settings),
    table: &Table,
    turn: usize,
) -> Result<(), TestCaseError> {
    let ruleset = kernel.fake.content().unwrap();
    let tracer = Tracer::new(&ruleset);
    let mut connections = kernel.connections();
    // Most are idle at any time, and some are for long.
    for (at, (connection, traffic, entry)) in connections.iter_mut().enumerate().filter(|(at, _)| (at + turn) % 5 < 2) {
        let [first, later] = packets(*connection, at + turn);
        let (what, packet) = if entry.confirmed { later } else { first };
        let (from, to) = (
            table.addresses().endpoint(connection.client),
            table.addresses().endpoint(connection.server),
        );
        let unknown = [packet.source, packet.destination]
            .map(|address| unknown(cluster, &subjects(true), settings, address))
            .contains(&true);
        let expected = table.allowed(&from, &to).contains(*traffic) && !unknown;
        let trace = tracer
            .trace_marked(&packet, entry)
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        let told = || {
            format!(
                "{what} packet, {from} to {to} on {traffic}, turn {turn}: {entry:x?} {:?}",
                trace.chains
            )
        };
        prop_assert_eq!(trace.accepted, expected, "{}", told());
        prop_assert_eq!(entry.mark & !MASK, 0x8000_0005, "{}", told());
        prop_assert!(entry.confirmed || entry.mark & MASK == 0, "{}", told());
        entry.confirmed |= trace.accepted;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever a connection's mark is: unless it is confirmed and of the current generation, it is judged; and then it is of
    /// that generation.
    #[test]
    fn a_mark_is_given_to_what_was_judged_and_to_nothing_else(
        cluster in testing::cluster(Tiers::All), ranges in ranges(), drops in any::<bool>(),
    ) {
        let cluster = with_ranges(cluster, &ranges);
        let settings = Settings { unknown_pods: unknown_pods(drops), ..Settings::default() };
        let table = compile(&cluster, &Subjects::All);
        let mut renderer = Renderer::new(&table, settings);
        let (old, now) = (mask().place(1), mask().place(2));
        renderer.mark(Marks::Verified(mask(), 2));
        let tracer = Tracer::new(renderer.ruleset());
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(client), Some(server)) = (from.address(), to.address()) else { continue };
                let allowed = table.allowed(from, to);
                let audited = [(from, Direction::Egress), (to, Direction::Ingress)].into_iter().any(|(end, direction)| {
                    let pod = end.pod().and_then(|pod| table.pod_index(&pod.name));
                    let half = table.half(direction);
                    pod.is_some_and(|pod| half.group_of(pod).is_some() && half.group_in_force(pod).is_none())
                });
                for (at, traffic) in testing::traffics().into_iter().enumerate().step_by(3) {
                    for (_, packet) in packets(connection(client, server, traffic), at) {
                        let of_unknown = [packet.source, packet.destination].map(|address| unknown(&cluster, &Subjects::All, settings, address));
                        let unknown = of_unknown.contains(&true);
                        for (mark, confirmed, dying) in [
                            (5, true, false), (old | 5, true, false), (now | 5, false, false), (now | 5, true, true), (old, false, false),
                        ] {
                            let mut entry = Entry { mark, confirmed, dying };
                            let trace = tracer.trace_marked(&packet, &mut entry).unwrap();
                            prop_assert_eq!(trace.accepted, allowed.contains(traffic) && !unknown, "{} to {} on {}", from, to, traffic);
                            let expected = match (confirmed, dying, trace.accepted) {
                                // What is only audited is judged packet by packet.
                                (true, false, true) if !audited => now | (mark & !MASK),
                                (true, ..) => mark,
                                // Packets of pods that nobody knows meet the rule that clears, as all others do.
                                (false, ..) => mark & !MASK,
                            };
                            prop_assert_eq!(entry.mark, expected);
                        }
                        let mut entry = Entry { mark: now | 5, confirmed: true, dying: false };
                        let trace = tracer.trace_marked(&packet, &mut entry).unwrap();
                        // An error about a connection may come from anywhere; a packet of its own is from one of its ends,
                        // and no connection of an end that nobody knows has this mark.
                        match packet.state == State::Related && !renderer.ranges().is_empty() {
                            true => prop_assert_eq!(trace.accepted, allowed.contains(traffic) && !unknown),
                            false => prop_assert!(trace.accepted && trace.chains == [ChainName::Forward]),
                        }
                    }
                }
            }
        }
    }

    /// Connections live through changes of policy, at every moment of each: right after its transaction, after the next
    /// number, and when numbers come round; never is one judged by what was.
    #[test]
    fn a_verdict_ends_with_the_policy_that_gave_it(
        clusters in proptest::collection::vec((testing::cluster(Tiers::All), ranges()), 5..9), drops in any::<bool>(),
    ) {
        let clusters: Vec<Cluster> = clusters.into_iter().map(|(cluster, ranges)| with_ranges(cluster, &ranges)).collect();
        let settings = Settings { verified: Some(mask()), unknown_pods: unknown_pods(drops), ..Settings::default() };
        let node = "node-1";
        let first = compile(&clusters[0], &Subjects::Node(node.into()));
        let ends = addressed(&clusters[0], &first);
        let mut connections = Vec::new();
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(client), Some(server)) = (from.address(), to.address()) else { continue };
                for traffic in testing::traffics().into_iter().step_by(4) {
                    let entry = Entry { mark: 0x8000_0005, confirmed: false, dying: false };
                    connections.push((connection(client, server, traffic), traffic, entry));
                }
            }
        }
        let kernel = Tracking { connections: Mutex::new(connections), ..Tracking::default() };
        let mut enforcer = Enforcer::new(node.into(), settings, kernel);
        // Twice through, so that every number comes round with other policies.
        for (turn, cluster) in clusters.iter().chain(&clusters).enumerate() {
            let table = compile(cluster, &Subjects::Node(node.into()));
            enforcer.apply(cluster).unwrap();
            send(enforcer.kernel(), (cluster, settings), &table, turn)?;
            // Now and then there is no time for the next number.
            if turn % 4 != 3 {
                enforcer.verify_all(std::time::Duration::ZERO).unwrap();
                prop_assert!(enforcer.verified().is_on());
                send(enforcer.kernel(), (cluster, settings), &table, turn)?;
                send(enforcer.kernel(), (cluster, settings), &table, turn + 1)?;
            }
            prop_assert_eq!(enforcer.drift().unwrap(), None);
        }
    }
}
