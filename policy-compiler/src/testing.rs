//! Random clusters for property tests: small vocabularies, so that names, labels, addresses and blocks collide as often as
//! they differ, and every feature of a policy turns up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::cells::AddressRange;
use crate::cluster::{Cluster, ContainerPort, Endpoint, Namespace, Node, Pod, PodName, Workload};
use crate::compile::Event;
use crate::labels::{Labels, Name, Operator, Requirement, Selector};
use crate::policy::{
    Action, Direction, Enforcement, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch,
    Ports, Rule, Tier,
};
use crate::ports::{PortRange, Protocol, Traffic};
use crate::table::Table;

const NAMESPACES: [&str; 3] = ["x", "y", "unknown"];
const NODES: [&str; 2] = ["node-1", "node-2"];
const KEYS: [&str; 2] = ["app", "tier"];
const VALUES: [&str; 3] = ["a", "b", ""];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
const PORTS: [u16; 5] = [1, 53, 80, 81, 65535];
const ADDRESSES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.1.1",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00::4",
    "fd00:1::1",
];
const NODE_ADDRESSES: [&str; 4] = ["172.18.0.1", "172.18.0.2", "fd99::1", "fd99::2"];
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "10.0.0.2/32",
    "10.0.1.0/24",
    "172.18.0.0/24",
    "255.255.255.255/32",
    "::/0",
    "fd00::/8",
    "fd00::/64",
    "fd00::2/127",
    "fd99::1/128",
];

/// Which policies a random cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiers {
    /// NetworkPolicies only.
    NetworkPolicy,
    /// Policies of all tiers, with all actions.
    All,
}

fn name(from: &'static [&'static str]) -> impl Strategy<Value = Name> {
    select(from).prop_map(Name::from)
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(name(&KEYS), name(&VALUES), 0..=2).prop_map(|pairs| pairs.into_iter().collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || subsequence(&VALUES[..], 1..=2).prop_map(|v| v.into_iter().map(Name::from).collect::<Vec<_>>());
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        2 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (name(&KEYS), operator).prop_map(|(key, operator)| Requirement { key, operator });
    vec(requirement, 0..=2).prop_map(Selector::new)
}

fn namespace_selector() -> impl Strategy<Value = Selector> {
    let by_name = name(&NAMESPACES).prop_map(|n| Selector::labels([(crate::labels::NAMESPACE_NAME_LABEL, n)]));
    prop_oneof![2 => selector(), 1 => by_name]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(&Protocol::ALL[..])
}

fn pod() -> impl Strategy<Value = Pod> {
    let addresses = prop_oneof![
        1 => Just(Vec::new()),
        6 => subsequence(&ADDRESSES[..], 1..=2),
    ];
    let port = (option::weighted(0.8, name(&PORT_NAMES)), protocol(), select(&PORTS[..]))
        .prop_map(|(name, protocol, number)| ContainerPort { name, protocol, number });
    let identity = (name(&NAMESPACES), 0..4u8, labels());
    let place = (
        addresses,
        option::weighted(0.8, name(&NODES)),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    );
    (identity, place, option::of(0..3i64), vec(port, 0..=3)).prop_map(
        |((namespace, number, labels), (addresses, node, host_network, ended), started, ports)| {
            let addresses = if host_network {
                let own = node.iter().flat_map(|n| {
                    if &**n == NODES[0] {
                        ["172.18.0.1", "fd99::1"]
                    } else {
                        ["172.18.0.2", "fd99::2"]
                    }
                });
                own.map(address).collect()
            } else {
                addresses.into_iter().map(address).collect()
            };
            Pod {
                name: PodName {
                    namespace,
                    name: format!("pod-{number}").into(),
                },
                labels,
                addresses,
                node,
                host_network,
                ended,
                started,
                ports,
                workload: None::<Workload>,
            }
        },
    )
}

fn block() -> impl Strategy<Value = IpBlock> {
    select(&BLOCKS[..]).prop_flat_map(|cidr| {
        let cidr = network(cidr);
        // As the API asks, an exception lies inside its block; its halves make exceptions that end where the block ends.
        let halves = cidr.subnets(cidr.prefix_len() + 1).into_iter().flatten();
        let named = BLOCKS
            .iter()
            .map(|b| network(b))
            .filter(|e| cidr.contains(e) && *e != cidr);
        let inside: Vec<IpNet> = named.chain(halves).collect();
        let most = inside.len().min(3);
        let except = prop_oneof![1 => Just(Vec::new()), 2 => subsequence(inside, 0..=most)];
        except.prop_map(move |except| IpBlock::new(cidr, except))
    })
}

fn peer(own: Name) -> impl Strategy<Value = Peer> {
    let scope = prop_oneof![
        1 => Just(NamespaceScope::Named(own)),
        2 => namespace_selector().prop_map(NamespaceScope::Matching),
    ];
    let pods = (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods(PodSelection { namespaces, pods }));
    prop_oneof![2 => pods, 1 => block().prop_map(Peer::Block)]
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    });
    let range = prop_oneof![3 => select(&PORTS[..]).prop_map(PortRange::one), 1 => range, 1 => Just(PortRange::ALL)];
    let entry = prop_oneof![
        2 => (protocol(), range).prop_map(|(protocol, range)| PortMatch::Range(protocol, range)),
        1 => (protocol(), name(&PORT_NAMES)).prop_map(|(protocol, name)| PortMatch::Named(protocol, name)),
    ];
    prop_oneof![1 => Just(Ports::All), 3 => vec(entry, 1..=3).prop_map(Ports::Listed)]
}

fn rule(own: Name, actions: &'static [Action]) -> impl Strategy<Value = Rule> {
    let peers = prop_oneof![1 => Just(Peers::All), 4 => vec(peer(own), 1..=3).prop_map(Peers::Listed)];
    (select(actions), peers, ports()).prop_map(|(action, peers, ports)| Rule { action, peers, ports })
}

fn enforcement() -> impl Strategy<Value = Option<Enforcement>> {
    prop_oneof![3 => Just(None), 1 => select(&Enforcement::BOTH[..]).prop_map(Some)]
}

fn policy(tiers: Tiers) -> impl Strategy<Value = Policy> {
    let tier = match tiers {
        Tiers::NetworkPolicy => Just(Tier::NetworkPolicy).boxed(),
        Tiers::All => prop_oneof![
            2 => Just(Tier::NetworkPolicy),
            1 => (0..2u32).prop_map(|priority| Tier::Admin { priority }),
            1 => (0..2u32).prop_map(|priority| Tier::Baseline { priority }),
        ]
        .boxed(),
    };
    (tier, name(&NAMESPACES), 0..6u8).prop_flat_map(|(tier, own, number)| {
        let plain = tier == Tier::NetworkPolicy;
        let actions: &[Action] = if plain {
            &[Action::Accept]
        } else {
            &[Action::Accept, Action::Deny, Action::Pass]
        };
        let rules = || option::weighted(0.7, vec(rule(own.clone(), actions), 0..=3));
        let scope = if plain {
            Just(NamespaceScope::Named(own.clone())).boxed()
        } else {
            namespace_selector().prop_map(NamespaceScope::Matching).boxed()
        };
        (scope, selector(), rules(), rules(), enforcement()).prop_map(
            move |(namespaces, pods, ingress, egress, enforcement)| Policy {
                name: PolicyName {
                    namespace: plain.then(|| own.clone()),
                    name: format!("policy-{number}").into(),
                },
                tier,
                enforcement: enforcement.filter(|_| plain),
                subject: PodSelection { namespaces, pods },
                ingress,
                egress,
            },
        )
    })
}

fn namespace(name: &'static str) -> impl Strategy<Value = Namespace> {
    (labels(), enforcement()).prop_map(move |(labels, enforcement)| Namespace {
        enforcement,
        ..Namespace::new(name, labels)
    })
}

/// The addresses of two nodes: mostly one of each family, and now and then any, even the other's.
fn node_addresses() -> impl Strategy<Value = [Vec<&'static str>; 2]> {
    let any = || subsequence(&NODE_ADDRESSES[..], 0..=2);
    let [first, second] = [[0, 2], [1, 3]].map(|own| own.map(|i: usize| NODE_ADDRESSES[i]).to_vec());
    prop_oneof![3 => Just([first, second]), 1 => [any(), any()]]
}

/// A random cluster; some of its NetworkPolicies and namespaces are audited.
pub fn cluster(tiers: Tiers) -> impl Strategy<Value = Cluster> {
    let namespaces = (namespace("x"), namespace("y"));
    let parts = (
        namespaces,
        node_addresses(),
        vec(pod(), 0..=9),
        vec(policy(tiers), 0..=6),
    );
    parts.prop_map(|((x, y), nodes, pods, policies)| {
        let mut cluster = Cluster::default();
        cluster.add_namespace(x);
        cluster.add_namespace(y);
        for (name, own) in NODES.iter().zip(nodes) {
            cluster.add_node(Node {
                name: (*name).into(),
                labels: Labels::default(),
                addresses: own.into_iter().map(address).collect(),
                pod_cidrs: Vec::new(),
            });
        }
        pods.into_iter().for_each(|p| cluster.add_pod(p));
        policies.into_iter().for_each(|p| cluster.add_policy(p));
        cluster
    })
}

/// A random cluster, and up to so many events that it then sees. They come from this cluster and from another one: each takes an object of one or
/// the other, or takes it away, so that objects change, go, and come back.
pub fn history(most: usize) -> impl Strategy<Value = (Cluster, Vec<Event>)> {
    let moves = vec((0..8u8, any::<usize>(), any::<bool>()), 1..most);
    (cluster(Tiers::All), moves, cluster(Tiers::All)).prop_map(|(start, moves, other)| {
        let mut now = start.clone();
        let mut events = Vec::new();
        for (kind, at, present) in moves {
            let source = if at % 2 == 0 { &start } else { &other };
            if let Some(event) = event(&now, source, (kind, at, present)) {
                event.clone().apply_to(&mut now);
                events.push(event);
            }
        }
        (start, events)
    })
}

fn event(now: &Cluster, source: &Cluster, (kind, at, present): (u8, usize, bool)) -> Option<Event> {
    fn pick<K, V>(map: &BTreeMap<K, V>, at: usize) -> Option<(&K, &V)> {
        map.iter().nth(at.checked_rem(map.len())?)
    }
    Some(match (kind, present) {
        (0..=3, true) => Event::Pod(pick(&source.pods, at)?.1.clone()),
        (0..=3, false) => Event::PodGone(pick(&now.pods, at)?.0.clone()),
        (4, true) => Event::Namespace(pick(&source.namespaces, at)?.1.clone()),
        (4, false) => Event::NamespaceGone(pick(&now.namespaces, at)?.0.clone()),
        (5, true) => Event::Node(pick(&source.nodes, at)?.1.clone()),
        (5, false) => Event::NodeGone(pick(&now.nodes, at)?.0.clone()),
        (_, true) => Event::Policy(pick(&source.policies, at)?.1.clone()),
        (_, false) => {
            let ((tier, name), _) = pick(&now.policies, at)?;
            Event::PolicyGone(*tier, name.clone())
        }
    })
}

/// Every end that matters in a cluster: all pods through each address, node addresses, and the addresses on both sides of
/// every boundary of a block in use.
pub fn endpoints(cluster: &Cluster, table: &Table) -> Vec<Endpoint> {
    let book = table.addresses();
    let mut ends: BTreeSet<Endpoint> = cluster.pods.values().flat_map(|p| book.endpoints(p)).collect();
    ends.extend(
        NODE_ADDRESSES
            .iter()
            .chain(&ADDRESSES)
            .map(|a| book.endpoint(address(a))),
    );
    for net in blocks(cluster) {
        let range = AddressRange::of(&net);
        let after = crate::cells::successor(range.last);
        ends.extend(
            [Some(range.first), Some(range.last), after]
                .into_iter()
                .flatten()
                .map(|a| book.endpoint(a)),
        );
    }
    ends.into_iter().collect()
}

/// A port below, on and above each boundary of a port in use, for each protocol, and another protocol.
pub fn traffics() -> Vec<Traffic> {
    let numbers: BTreeSet<u16> = PORTS.iter().flat_map(|p| [p - 1, *p, p.saturating_add(1)]).collect();
    let ports = Protocol::ALL
        .into_iter()
        .flat_map(|p| numbers.iter().map(move |n| Traffic::Port(p, *n)));
    ports.chain([Traffic::Other]).collect()
}

fn blocks(cluster: &Cluster) -> BTreeSet<IpNet> {
    let policies: Vec<&Arc<Policy>> = cluster.policies.values().collect();
    let rules = policies
        .iter()
        .flat_map(|p| Direction::BOTH.into_iter().filter_map(|d| p.rules(d)).flatten());
    let peers = rules.filter_map(|r| match &r.peers {
        Peers::Listed(peers) => Some(peers),
        Peers::All => None,
    });
    let blocks = peers.flatten().filter_map(|p| match p {
        Peer::Block(block) => Some(block),
        Peer::Pods(_) => None,
    });
    blocks.flat_map(|b| b.except.iter().copied().chain([b.cidr])).collect()
}

#[allow(clippy::expect_used, reason = "the texts are constants of this file")]
fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[allow(clippy::expect_used, reason = "the texts are constants of this file")]
fn network(text: &str) -> IpNet {
    text.parse::<IpNet>().expect("a network").trunc()
}
