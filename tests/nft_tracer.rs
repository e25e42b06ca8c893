//! The rendered rules say what the compiled table says, packet by packet: on random clusters, for every pair of addresses
//! that matters and the ports around every boundary, in both directions of the connection, whole and after differences.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use palisade::agent::enforcer::Enforcer;
use palisade::nft::fake::Fake;
use palisade::nft::listing::Listing;
use palisade::nft::names::ChainName;
use palisade::nft::tracer::{ACK, Connection, Entry, Packet, SYN, State, Tracer, number_of};
use palisade::nft::{
    Clearing, Kernel, KernelError, MarkMask, Marks, Mode, Ruleset, Settings, Transaction, diff, render, replace,
};
use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::policy::Direction;
use policy_compiler::ports::{Protocol, Traffic};
use policy_compiler::table::Table;
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;

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
        hop_limit: 63,
        icmp_type: 128,
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

fn check(cluster: &Cluster, table: &Table, ruleset: &Ruleset) -> Result<(), TestCaseError> {
    let ends = addressed(cluster, table);
    let evaluator = Evaluator::new(cluster);
    let (tracer, traffics) = (Tracer::new(ruleset), testing::traffics());
    for from in &ends {
        for to in ends.iter().filter(|to| to.same_family(from)) {
            let (Some(client), Some(server)) = (from.address(), to.address()) else {
                continue;
            };
            let allowed = table.allowed(from, to);
            for (at, traffic) in traffics.iter().copied().enumerate() {
                let expected = allowed.contains(traffic);
                for (what, packet) in packets(connection(client, server, traffic), at) {
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
                    prop_assert_eq!(trace.denied, !expected);
                }
            }
        }
    }
    Ok(())
}

fn judged(table: &Table, end: &Endpoint) -> bool {
    let pod = end.pod().and_then(|pod| table.pod_index(&pod.name));
    pod.is_some_and(|pod| Direction::BOTH.iter().any(|d| table.half(*d).group_of(pod).is_some()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rendered_rules_say_what_the_table_says(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        check(&cluster, &table, &render(&table, Settings::default(), None))?;
    }

    /// From one cluster to an unrelated one, and on: the kernel holds what was rendered, and that is right.
    #[test]
    fn differences_keep_the_kernel_equal(clusters in proptest::collection::vec(testing::cluster(Tiers::All), 2..5)) {
        let fake = Fake::default();
        let mut now: Option<Ruleset> = None;
        for cluster in clusters {
            let table = compile(&cluster, &Subjects::All);
            let next = render(&table, Settings::default(), now.as_ref());
            if let Some(transaction) = diff(now.as_ref(), &next).unwrap() {
                fake.apply(&transaction).map_err(|e| TestCaseError::fail(format!("{e}\n{transaction}")))?;
            }
            let content = fake.content().unwrap();
            let whole = Fake::default();
            whole.apply(&replace(&next).unwrap()).unwrap();
            prop_assert_eq!(fake.to_string(), whole.to_string());
            prop_assert_eq!(diff(Some(&next), &render(&table, Settings::default(), Some(&next))).unwrap(), None);
            check(&cluster, &table, &content)?;
            now = Some(next);
        }
    }

    /// Between the two steps of a transaction the old rules are in force, unharmed.
    #[test]
    fn the_first_step_changes_no_verdict(pair in (testing::cluster(Tiers::All), testing::cluster(Tiers::All))) {
        let (before, after) = pair;
        let old_table = compile(&before, &Subjects::All);
        let old = render(&old_table, Settings::default(), None);
        let new = render(&compile(&after, &Subjects::All), Settings::default(), Some(&old));
        if let Some(transaction) = diff(Some(&old), &new).unwrap()
            && transaction.steps().count() == 2
        {
            let mut first = palisade::nft::Transaction::default();
            for operation in transaction.steps().next().unwrap() {
                first.add(operation.clone()).unwrap();
            }
            let fake = Fake::default();
            fake.apply(&replace(&old).unwrap()).unwrap();
            fake.apply(&first).unwrap();
            check(&before, &old_table, &fake.content().unwrap())?;
        }
    }

    /// A packet that belongs to no connection passes only between ends that no policy judges; so does a TCP packet that
    /// opens one without being a SYN, unless it is exempt.
    #[test]
    fn without_a_connection_nothing_slips_through(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        let ruleset = render(&table, Settings::default(), None);
        let tracer = Tracer::new(&ruleset);
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(source), Some(destination)) = (from.address(), to.address()) else { continue };
                let touched = judged(&table, from) || judged(&table, to);
                let lost = connection(source, destination, Traffic::Port(Protocol::Tcp, 80));
                for (state, connection, flags) in [
                    (State::Invalid, None, ACK),
                    (State::Untracked, None, SYN),
                    (State::New, Some(lost), ACK),
                    (State::New, Some(lost), ACK | SYN),
                ] {
                    let packet = Packet {
                        source, destination, protocol: 6, tcp_flags: flags, hop_limit: 63, icmp_type: 0, state, connection,
                    };
                    let exempt = connection.is_some() && table.addresses().exemption(from, to).is_some();
                    let trace = tracer.trace(&packet).unwrap();
                    prop_assert_eq!(trace.accepted, !touched || exempt, "{} to {}: {:?}", from, to, state);
                }
                if source.is_ipv6() {
                    // Only what no router has forwarded is neighbour discovery.
                    let types = [(132, 255, !touched), (133, 255, true), (137, 255, true), (138, 255, !touched), (135, 254, !touched)];
                    for (icmp_type, hop_limit, passes) in types {
                        let packet = Packet {
                            source, destination, protocol: ICMPV6, tcp_flags: 0, hop_limit, icmp_type, state: State::Untracked, connection: None,
                        };
                        prop_assert_eq!(tracer.trace(&packet).unwrap().accepted, passes);
                    }
                }
            }
        }
    }

    /// Audit mode drops nothing, and denies what enforcing would drop.
    #[test]
    fn audit_mode_drops_nothing(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        let enforced = render(&table, Settings::default(), None);
        let audited = render(&table, Mode::Audit.into(), Some(&enforced));
        let (hard, soft) = (Tracer::new(&enforced), Tracer::new(&audited));
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(client), Some(server)) = (from.address(), to.address()) else { continue };
                for (at, traffic) in testing::traffics().into_iter().enumerate() {
                    for (_, packet) in packets(connection(client, server, traffic), at) {
                        let (hard, soft) = (hard.trace(&packet).unwrap(), soft.trace(&packet).unwrap());
                        prop_assert!(soft.accepted);
                        prop_assert_eq!(soft.denied, !hard.accepted);
                    }
                }
            }
        }
        let switch = diff(Some(&enforced), &audited).unwrap().expect("a change of mode");
        prop_assert_eq!(switch.steps().count(), 1);
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
fn send(kernel: &Tracking, table: &Table, turn: usize) -> Result<(), TestCaseError> {
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
        let expected = table.allowed(&from, &to).contains(*traffic);
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
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a connection's mark is: unless it is confirmed and of the current generation, it is judged; and then it is of
    /// that generation.
    #[test]
    fn a_mark_is_given_to_what_was_judged_and_to_nothing_else(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        let mut ruleset = render(&table, Settings::default(), None);
        let (old, now) = (mask().place(1), mask().place(2));
        ruleset.chains.insert(ChainName::Forward, Marks::Verified(mask(), 2).base_chain());
        let tracer = Tracer::new(&ruleset);
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(client), Some(server)) = (from.address(), to.address()) else { continue };
                let allowed = table.allowed(from, to);
                for (at, traffic) in testing::traffics().into_iter().enumerate().step_by(3) {
                    for (_, packet) in packets(connection(client, server, traffic), at) {
                        for (mark, confirmed, dying) in [
                            (5, true, false), (old | 5, true, false), (now | 5, false, false), (now | 5, true, true), (old, false, false),
                        ] {
                            let mut entry = Entry { mark, confirmed, dying };
                            let trace = tracer.trace_marked(&packet, &mut entry).unwrap();
                            prop_assert_eq!(trace.accepted, allowed.contains(traffic), "{} to {} on {}", from, to, traffic);
                            let expected = match (confirmed, dying, trace.accepted) {
                                (true, false, true) => now | (mark & !MASK),
                                (true, ..) => mark,
                                (false, ..) => mark & !MASK,
                            };
                            prop_assert_eq!(entry.mark, expected);
                        }
                        let mut entry = Entry { mark: now | 5, confirmed: true, dying: false };
                        let trace = tracer.trace_marked(&packet, &mut entry).unwrap();
                        prop_assert!(trace.accepted && trace.chains == [ChainName::Forward]);
                    }
                }
            }
        }
    }

    /// Connections live through changes of policy, at every moment of each: right after its transaction, after the next
    /// number, and when numbers come round; never is one judged by what was.
    #[test]
    fn a_verdict_ends_with_the_policy_that_gave_it(clusters in proptest::collection::vec(testing::cluster(Tiers::All), 5..9)) {
        let settings = Settings { verified: Some(mask()), ..Settings::default() };
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
            send(enforcer.kernel(), &table, turn)?;
            // Now and then there is no time for the next number.
            if turn % 4 != 3 {
                enforcer.verify_all(std::time::Duration::ZERO).unwrap();
                prop_assert!(enforcer.verified().is_on());
                send(enforcer.kernel(), &table, turn)?;
                send(enforcer.kernel(), &table, turn + 1)?;
            }
            prop_assert_eq!(enforcer.drift().unwrap(), None);
        }
    }
}
