//! The rendered rules say what the compiled table says, packet by packet: on random clusters, for every pair of addresses
//! that matters and the ports around every boundary, in both directions of the connection, whole and after differences.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;

use palisade::nft::fake::Fake;
use palisade::nft::tracer::{ACK, Answer, Connection, Packet, Recorded, SYN, State, Tracer, number_of};
use palisade::nft::{DenyAction, Kernel, Mode, Ruleset, Settings, diff, render, replace};
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
        let audited = render(&table, Mode::Audit.into(), None);
        let rejecting = render(&table, Settings { deny_action: DenyAction::Reject, ..Settings::default() }, None);
        let (soft, loud) = (Tracer::new(&audited), Tracer::new(&rejecting));
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
                    // Counted once, for one pod, whatever becomes of it; answered only where it opens a connection.
                    prop_assert_eq!(trace.counted.len(), usize::from(!trace.accepted));
                    let soft = soft.trace(&packet).unwrap();
                    prop_assert!(soft.accepted);
                    prop_assert_eq!((&soft.counted, &soft.recorded), (&trace.counted, &trace.recorded));
                    let loud = loud.trace(&packet).unwrap();
                    prop_assert_eq!((loud.accepted, &loud.counted), (trace.accepted, &trace.counted));
                    let answered = !trace.accepted && state == State::New;
                    prop_assert_eq!(loud.answer, answered.then_some(Answer::Reset));
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
        let rejecting = Settings { deny_action: DenyAction::Reject, ..Settings::default() };
        let rejecting = render(&table, rejecting, Some(&enforced));
        let (hard, soft, loud) = (Tracer::new(&enforced), Tracer::new(&audited), Tracer::new(&rejecting));
        let ends = addressed(&cluster, &table);
        for from in &ends {
            for to in ends.iter().filter(|to| to.same_family(from)) {
                let (Some(client), Some(server)) = (from.address(), to.address()) else { continue };
                for (at, traffic) in testing::traffics().into_iter().enumerate() {
                    for (_, packet) in packets(connection(client, server, traffic), at) {
                        let (hard, soft) = (hard.trace(&packet).unwrap(), soft.trace(&packet).unwrap());
                        prop_assert!(soft.accepted);
                        prop_assert_eq!(soft.denied, !hard.accepted);
                        // Whoever is counted first when it is dropped is counted first when it is not.
                        prop_assert_eq!(soft.counted.first(), hard.counted.first());
                        prop_assert_eq!(hard.counted.len(), usize::from(hard.denied));
                        prop_assert_eq!(soft.recorded.first(), hard.recorded.first());
                        let loud = loud.trace(&packet).unwrap();
                        let answer = match packet.protocol {
                            6 => Answer::Reset,
                            _ => Answer::Prohibited,
                        };
                        prop_assert_eq!(loud.answer, hard.denied.then_some(answer));
                        prop_assert_eq!((loud.accepted, &loud.counted), (hard.accepted, &hard.counted));
                        if hard.denied {
                            let expected = recorded(&packet);
                            prop_assert_eq!(hard.recorded.as_slice(), expected.as_slice());
                        }
                    }
                }
            }
        }
        for (from, to) in [(&enforced, &audited), (&enforced, &rejecting), (&rejecting, &audited)] {
            let switch = diff(Some(from), to).unwrap().expect("a change of mode");
            prop_assert_eq!(switch.steps().count(), 1);
            // No counter is lost.
            prop_assert!(!switch.to_string().contains("element"), "{}", switch);
        }
    }
}
