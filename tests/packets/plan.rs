//! Which probes a scenario asks for, and what the reference evaluator says about each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use palisade::sandbox::{Options, Place};
use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::evaluate::{Decision, Evaluator};
use policy_compiler::policy::{Direction, Peer, Peers, PortMatch, Ports, Rule};
use policy_compiler::ports::{Protocol, Traffic};

use crate::world::{Result, World};

/// A port that no scenario names.
pub(crate) const UNNAMED: u16 = 9999;

/// One probe: from where, with which source, to which address, what.
pub(crate) type Key = (Place, IpAddr, IpAddr, Traffic);

/// Who must answer a probe, and whether policy lets it pass.
pub(crate) struct Expected {
    pub(crate) answerer: String,
    pub(crate) allowed: bool,
    /// It passes, and audited policies of the pod at this end would not let it: the first that it meets.
    pub(crate) told: Option<Direction>,
    pub(crate) reason: String,
}

/// The probes of a scenario.
pub(crate) type Plan = BTreeMap<Key, Expected>;

/// Every pair of which one is a pod, in each family, on the ports of the destination and of the policies, and ICMP echo.
pub(crate) fn plan(world: &World, known: &Cluster, added_family: bool, policies: &Cluster) -> Result<Plan> {
    let mut cluster = known.clone();
    cluster.policies = policies.policies.clone();
    let cluster = &cluster;
    let mut clients = edges(policies);
    clients.extend(Options::default().client);
    let evaluator = Evaluator::new(cluster);
    let book = evaluator.addresses();
    let mut named: BTreeSet<Traffic> = ports(cluster, cluster).map(|(p, n)| Traffic::Port(p, n)).collect();
    named.insert(Traffic::Port(Protocol::Tcp, UNNAMED));
    named.insert(Traffic::Other);
    let mut ends: Vec<(Place, Vec<Endpoint>)> = Vec::new();
    for place in world.sandbox.places() {
        let endpoints = match place {
            Place::Pod(name) => book.endpoints(&cluster.pods[name]),
            _ => world
                .sandbox
                .addresses(place)?
                .iter()
                .map(|a| book.endpoint(*a))
                .collect(),
        };
        ends.push((place.clone(), endpoints));
    }
    let own_pod = |place: &Place| match place {
        Place::Pod(name) => cluster.pods.get(name).filter(|p| !p.host_network),
        _ => None,
    };
    let mut plan = BTreeMap::new();
    for (from, sources) in &ends {
        for (to, destinations) in &ends {
            let host_network = matches!(to, Place::Pod(_)) && own_pod(to).is_none();
            if from == to || host_network || (own_pod(from).is_none() && own_pod(to).is_none()) {
                continue;
            }
            let mut traffics = named.clone();
            if let Some(pod) = own_pod(to) {
                traffics.extend(pod.ports.iter().map(|p| Traffic::Port(p.protocol, p.number)));
            }
            let outside = own_pod(from).is_none() || own_pod(to).is_none();
            for destination in destinations {
                for source in sources.iter().filter(|s| s.same_family(destination)) {
                    let (Some(a), Some(b)) = (source.address(), destination.address()) else {
                        continue;
                    };
                    if [(from, a), (to, b)]
                        .iter()
                        .any(|(place, a)| **place == Place::Client && !clients.contains(a))
                    {
                        continue;
                    }
                    let mut tcp = 0;
                    for traffic in &traffics {
                        // The outside differs from pods in who may, not in what; a family that only the test has added
                        // is there to show that rules are rendered for it as well.
                        tcp += usize::from(matches!(traffic, Traffic::Port(Protocol::Tcp, _)));
                        let wanted = match traffic {
                            Traffic::Other => true,
                            Traffic::Port(Protocol::Tcp, _) if tcp == 1 => true,
                            Traffic::Port(..) if added_family && a.is_ipv6() => false,
                            Traffic::Port(..) => !outside,
                        };
                        if !wanted {
                            continue;
                        }
                        let decision = evaluator.decide(source, destination, *traffic);
                        let expected = Expected {
                            answerer: to.to_string(),
                            allowed: decision.allowed,
                            told: told(&decision),
                            reason: decision.to_string(),
                        };
                        plan.insert((from.clone(), a, b, *traffic), expected);
                    }
                }
            }
        }
    }
    Ok(plan)
}

/// In which direction the kernel counts what passes and would not.
fn told(decision: &Decision) -> Option<Direction> {
    let passes = decision.allowed && !decision.would_be_allowed();
    let mut sides = decision.sides().into_iter().filter(|side| !side.would_allow());
    sides.next().filter(|_| passes).map(|side| side.direction)
}

fn rules(policies: &Cluster) -> impl Iterator<Item = &Rule> {
    let policies = policies.policies.values();
    policies.flat_map(|policy| Direction::BOTH.into_iter().filter_map(|d| policy.rules(d)).flatten())
}

/// The ports that policies name, and for ranges those just outside of them.
pub(crate) fn ports<'a>(policies: &'a Cluster, cluster: &'a Cluster) -> impl Iterator<Item = (Protocol, u16)> + 'a {
    let listed = rules(policies).flat_map(|rule| match &rule.ports {
        Ports::All => &[],
        Ports::Listed(list) => list.as_slice(),
    });
    listed.flat_map(move |entry| match entry {
        PortMatch::Range(protocol, range) => {
            let mut edges = BTreeSet::from([range.first, range.last]);
            if range.first < range.last {
                edges.extend([range.first.saturating_sub(1), range.last.saturating_add(1)]);
            }
            edges
                .into_iter()
                .filter(|n| *n > 0)
                .map(|n| (*protocol, n))
                .collect::<Vec<_>>()
        }
        PortMatch::Named(protocol, name) => {
            let declared = cluster.pods.values().filter(|p| !p.ended).flat_map(|p| &p.ports);
            let named = declared.filter(|p| p.name.as_ref() == Some(name));
            named.map(|p| (*protocol, p.number)).collect()
        }
    })
}

/// Addresses at both sides of the edges of all blocks, as far as somebody can have them.
pub(crate) fn edges(policies: &Cluster) -> BTreeSet<IpAddr> {
    let mut edges = BTreeSet::new();
    let peers = rules(policies).flat_map(|rule| match &rule.peers {
        Peers::All => &[],
        Peers::Listed(list) => list.as_slice(),
    });
    for block in peers.filter_map(|peer| match peer {
        Peer::Block(block) => Some(block),
        Peer::Pods(_) => None,
    }) {
        for net in block.except.iter().chain([&block.cidr]) {
            edges.extend(around(net));
        }
    }
    edges.retain(possible);
    edges
}

fn around(net: &IpNet) -> Vec<IpAddr> {
    match net {
        IpNet::V4(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let four = [first.saturating_sub(1), first, last, last.saturating_add(1)];
            four.map(|bits| Ipv4Addr::from_bits(bits).into()).into()
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let four = [first.saturating_sub(1), first, last, last.saturating_add(1)];
            four.map(|bits| Ipv6Addr::from_bits(bits).into()).into()
        }
    }
}

/// Whether a machine can have this address and be reached by it.
fn possible(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !matches!(a.octets(), [0 | 127 | 224.., ..] | [169, 254, ..]),
        IpAddr::V6(a) => !matches!(a.segments()[0], 0 | 0xfe80..),
    }
}
