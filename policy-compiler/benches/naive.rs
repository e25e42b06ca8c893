//! The rival: pods times pods, straight from the selectors, as most offline tools work today: for each pod, each peer,
//! each policy. A careful one finds the policies of each pod once. Both keep no empty answers, and need none where nothing
//! isolates a pod; there is no other trick in them.

use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Pod};
use policy_compiler::labels::Labels;
use policy_compiler::policy::{Direction, NamespaceScope, Peer, Peers, PodSelection, Policy, PortMatch, Ports, Rule};
use policy_compiler::ports::PortSet;

/// How naive to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// Every policy is tried on every pair.
    None,
    /// The policies of each pod are found once.
    PoliciesOnce,
}

/// What one pod's policies let through in one direction.
pub(crate) enum Side {
    /// Nothing isolates it.
    Everything,
    /// The peers that have at least one port, by index, sorted.
    Peers(Vec<(u32, PortSet)>),
}

/// Live pods with their sides: ingress, egress.
pub(crate) struct Answer {
    pub(crate) pods: Vec<Arc<Pod>>,
    sides: Vec<[Side; 2]>,
    everything: PortSet,
    nothing: PortSet,
}

impl Answer {
    /// What one side says about a peer.
    pub(crate) fn side(&self, direction: Direction, subject: usize, peer: usize) -> &PortSet {
        match &self.sides[subject][direction as usize] {
            Side::Everything => &self.everything,
            Side::Peers(peers) => match peers.binary_search_by_key(&(peer as u32), |(p, _)| *p) {
                Ok(at) => &peers[at].1,
                Err(_) => &self.nothing,
            },
        }
    }

    /// How many ordered pairs of pods, host-network ones left out, have at least one port.
    pub(crate) fn reachable(&self) -> u64 {
        let mut pairs = 0;
        let pods = || (0..self.pods.len()).filter(|p| !self.pods[*p].host_network);
        for from in pods() {
            for to in pods() {
                let egress = self.side(Direction::Egress, from, to);
                let both = egress.intersection(self.side(Direction::Ingress, to, from));
                pairs += u64::from(from == to || !both.is_empty());
            }
        }
        pairs
    }
}

/// Compiles NetworkPolicies for all pairs of live pods, each through its first address.
pub(crate) fn compile(cluster: &Cluster, care: Care) -> Answer {
    let pods: Vec<Arc<Pod>> = cluster.pods.values().filter(|p| !p.ended).cloned().collect();
    let namespaces: Vec<Labels> = pods
        .iter()
        .map(|p| cluster.namespace_labels(&p.name.namespace))
        .collect();
    let mut sides = Vec::with_capacity(pods.len());
    for (subject, labels) in pods.iter().zip(&namespaces) {
        let all = || cluster.policies.values().map(|p| &**p);
        let judges = |policy: &&Policy| selects(&policy.subject, subject, labels);
        let own: Vec<&Policy> = all().filter(judges).collect();
        sides.push(Direction::BOTH.map(|direction| {
            if !own.iter().any(|p| p.isolates(direction)) {
                return Side::Everything;
            }
            let mut peers = Vec::new();
            for (index, (peer, labels)) in (0..).zip(pods.iter().zip(&namespaces)) {
                let mut allowed = PortSet::none();
                let mut admit = |policy: &Policy| {
                    let rules = policy.rules(direction).unwrap_or_default();
                    for rule in rules.iter().filter(|rule| rule_matches(rule, peer, labels)) {
                        let destination = match direction {
                            Direction::Ingress => subject,
                            Direction::Egress => peer,
                        };
                        allowed = allowed.union(&ports(&rule.ports, destination));
                    }
                };
                match care {
                    Care::None => all().filter(judges).for_each(&mut admit),
                    Care::PoliciesOnce => own.iter().for_each(|policy| admit(policy)),
                }
                if !allowed.is_empty() {
                    peers.push((index, allowed));
                }
            }
            Side::Peers(peers)
        }));
    }
    Answer {
        pods,
        sides,
        everything: PortSet::all(),
        nothing: PortSet::none(),
    }
}

fn selects(selection: &PodSelection, pod: &Pod, namespace: &Labels) -> bool {
    let in_scope = match &selection.namespaces {
        NamespaceScope::Named(name) => *name == pod.name.namespace,
        NamespaceScope::Matching(selector) => selector.matches(namespace),
    };
    !pod.host_network && in_scope && selection.pods.matches(&pod.labels)
}

fn rule_matches(rule: &Rule, peer: &Pod, namespace: &Labels) -> bool {
    let Peers::Listed(wanted) = &rule.peers else {
        return true;
    };
    wanted.iter().any(|wanted| match wanted {
        Peer::Pods(selection) => selects(selection, peer, namespace),
        Peer::Block(block) => peer.addresses.first().is_some_and(|a| block.contains(*a)),
    })
}

fn ports(ports: &Ports, destination: &Pod) -> PortSet {
    let Ports::Listed(list) = ports else {
        return PortSet::all();
    };
    list.iter().fold(PortSet::none(), |set, port| {
        set.union(&match port {
            PortMatch::Range(protocol, range) => PortSet::of(*protocol, *range),
            PortMatch::Named(..) if destination.host_network => PortSet::none(),
            PortMatch::Named(protocol, name) => destination.named_port(*protocol, name),
        })
    })
}
