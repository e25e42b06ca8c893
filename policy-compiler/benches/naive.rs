//! The rival: pods times pods, straight from the selectors, as most offline tools work today. It finds the policies of
//! each pod once, skips peers for a pod that nothing isolates, and keeps no empty answers; there is no other trick in it.

use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Pod};
use policy_compiler::labels::Labels;
use policy_compiler::policy::{Direction, NamespaceScope, Peer, Peers, PodSelection, Policy, PortMatch, Ports, Rule};
use policy_compiler::ports::PortSet;

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
    pub(crate) sides: Vec<[Side; 2]>,
}

impl Answer {
    /// What one side says about a peer.
    pub(crate) fn side(&self, direction: Direction, subject: usize, peer: usize) -> PortSet {
        match &self.sides[subject][direction as usize] {
            Side::Everything => PortSet::all(),
            Side::Peers(peers) => match peers.binary_search_by_key(&(peer as u32), |(p, _)| *p) {
                Ok(at) => peers[at].1.clone(),
                Err(_) => PortSet::none(),
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
                let both = egress.intersection(&self.side(Direction::Ingress, to, from));
                pairs += u64::from(from == to || !both.is_empty());
            }
        }
        pairs
    }
}

/// Compiles NetworkPolicies for all pairs of live pods, each through its first address.
pub(crate) fn compile(cluster: &Cluster) -> Answer {
    let pods: Vec<Arc<Pod>> = cluster.pods.values().filter(|p| !p.ended).cloned().collect();
    let namespaces: Vec<Labels> = pods
        .iter()
        .map(|p| cluster.namespace_labels(&p.name.namespace))
        .collect();
    let mut sides = Vec::with_capacity(pods.len());
    for (subject, labels) in pods.iter().zip(&namespaces) {
        let policies: Vec<&Policy> = cluster
            .policies
            .values()
            .filter(|p| selects(&p.subject, subject, labels))
            .map(|p| &**p)
            .collect();
        sides.push(Direction::BOTH.map(|direction| {
            if !policies.iter().any(|p| p.isolates(direction)) {
                return Side::Everything;
            }
            let mut peers = Vec::new();
            for (index, (peer, labels)) in (0..).zip(pods.iter().zip(&namespaces)) {
                let mut allowed = PortSet::none();
                for policy in &policies {
                    for rule in policy.rules(direction).unwrap_or_default() {
                        if rule_matches(rule, peer, labels) {
                            let destination = match direction {
                                Direction::Ingress => subject,
                                Direction::Egress => peer,
                            };
                            allowed = allowed.union(&ports(&rule.ports, destination));
                        }
                    }
                }
                if !allowed.is_empty() {
                    peers.push((index, allowed));
                }
            }
            Side::Peers(peers)
        }));
    }
    Answer { pods, sides }
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
