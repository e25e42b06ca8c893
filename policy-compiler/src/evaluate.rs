//! The reference evaluator: one connection, answered straight from the policies, the slow and obvious way, with reasons.
//! It shares no code with the compiler but the types; property tests hold the two equal.

mod decision;

use std::net::IpAddr;
use std::sync::Arc;

use crate::addresses::AddressBook;
use crate::cluster::{Cluster, Endpoint, Pod};
use crate::labels::Name;
use crate::policy::{
    Action, Direction, Enforcement, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PortMatch, Ports, Rule,
    Tier,
};
use crate::ports::{PortSet, Protocol, Traffic};

pub use decision::{Audit, Decision, Miss, MissReason, RuleRef, Side};

/// Answers single connections of a cluster.
pub struct Evaluator<'a> {
    cluster: &'a Cluster,
    addresses: AddressBook,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of a cluster.
    pub fn new(cluster: &'a Cluster) -> Self {
        Evaluator {
            cluster,
            addresses: AddressBook::new(cluster),
        }
    }

    /// Who has which address.
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// Decides about one connection; `traffic` is on the destination's port.
    pub fn decide(&self, from: &Endpoint, to: &Endpoint, traffic: Traffic) -> Decision {
        let no_common_family = !from.same_family(to);
        let exemption = self.addresses.exemption(from, to);
        let egress = self.side(Direction::Egress, from, to, to, traffic);
        let ingress = self.side(Direction::Ingress, to, from, to, traffic);
        let passes = exemption.is_some() || (egress.allowed && ingress.allowed);
        Decision {
            allowed: passes && !no_common_family,
            no_common_family,
            exemption,
            egress,
            ingress,
        }
    }

    fn side(&self, direction: Direction, subject: &Endpoint, peer: &Endpoint, to: &Endpoint, traffic: Traffic) -> Side {
        let mut side = Side {
            direction,
            allowed: true,
            isolated_by: Vec::new(),
            decided_by: None,
            misses: Vec::new(),
            audit: None,
        };
        let Some(pod) = subject.pod() else { return side };
        let (selecting, audited): (Vec<&Arc<Policy>>, Vec<&Arc<Policy>>) = self
            .cluster
            .policies
            .values()
            .filter(|p| self.selects(&p.subject, pod).is_ok())
            .partition(|p| self.cluster.enforcement(p) == Enforcement::Enforce);
        // Beside any policy in force an audited one is left out.
        if !selecting.iter().any(|p| p.rules(direction).is_some()) {
            side.audit = self.audit(direction, &audited, peer, to, traffic);
        }
        side.isolated_by = selecting
            .iter()
            .filter(|p| p.isolates(direction))
            .map(|p| p.name.clone())
            .collect();

        for stage in [Stage::Admin, Stage::NetworkPolicy, Stage::Baseline] {
            let policies = selecting.iter().filter(|p| Stage::of(p.tier) == stage);
            let rules = policies.flat_map(|p| {
                let rules = p.rules(direction).unwrap_or_default();
                rules.iter().enumerate().map(|(index, rule)| (&p.name, index, rule))
            });
            for (policy, index, rule) in rules {
                let reference = RuleRef {
                    policy: policy.clone(),
                    direction,
                    index,
                };
                match self.matches(rule, peer, to, traffic) {
                    Err(reason) => side.misses.push(Miss {
                        rule: reference,
                        reason,
                    }),
                    Ok(()) if rule.action == Action::Pass => break,
                    Ok(()) => {
                        side.allowed = rule.action == Action::Accept;
                        side.decided_by = Some(reference);
                        if side.allowed {
                            side.misses.clear();
                        }
                        return side;
                    }
                }
            }
            if stage == Stage::NetworkPolicy && !side.isolated_by.is_empty() {
                side.allowed = false;
                return side;
            }
        }
        side.misses.clear();
        side
    }

    /// What audited policies that select a pod would say; none when none of them speaks of the direction.
    fn audit(
        &self,
        direction: Direction,
        audited: &[&Arc<Policy>],
        peer: &Endpoint,
        to: &Endpoint,
        traffic: Traffic,
    ) -> Option<Audit> {
        let isolating = audited.iter().filter(|p| p.isolates(direction));
        let mut audit = Audit {
            allowed: false,
            policies: isolating.clone().map(|p| p.name.clone()).collect(),
            decided_by: None,
            misses: Vec::new(),
        };
        if audit.policies.is_empty() {
            return None;
        }
        for policy in isolating {
            for (index, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                let rule_ref = RuleRef {
                    policy: policy.name.clone(),
                    direction,
                    index,
                };
                match self.matches(rule, peer, to, traffic) {
                    Err(reason) => audit.misses.push(Miss { rule: rule_ref, reason }),
                    Ok(()) => {
                        audit.allowed = true;
                        audit.decided_by = Some(rule_ref);
                        audit.misses.clear();
                        return Some(audit);
                    }
                }
            }
        }
        Some(audit)
    }

    /// Whether a rule matches; if not, its nearest miss.
    fn matches(&self, rule: &Rule, peer: &Endpoint, to: &Endpoint, traffic: Traffic) -> Result<(), MissReason> {
        match &rule.peers {
            Peers::All => {}
            Peers::Listed(peers) => {
                let outcomes: Vec<_> = peers.iter().map(|wanted| self.peer_matches(wanted, peer)).collect();
                if !outcomes.iter().any(Result::is_ok) {
                    let nearest = outcomes
                        .into_iter()
                        .filter_map(Result::err)
                        .max_by_key(MissReason::nearness);
                    return Err(nearest.unwrap_or(MissReason::NotAPod {
                        wanted: "no peer at all".to_owned(),
                    }));
                }
            }
        }
        port_matches(&rule.ports, to, traffic)
    }

    fn peer_matches(&self, wanted: &Peer, peer: &Endpoint) -> Result<(), MissReason> {
        match wanted {
            Peer::Pods(selection) => match peer.pod() {
                Some(pod) => self.selects(selection, pod),
                None => Err(MissReason::NotAPod {
                    wanted: selection.to_string(),
                }),
            },
            Peer::Block(block) => block_matches(block, peer.address()),
        }
    }

    fn selects(&self, selection: &PodSelection, pod: &Pod) -> Result<(), MissReason> {
        let namespace = &pod.name.namespace;
        match &selection.namespaces {
            NamespaceScope::Named(name) if name != namespace => {
                return Err(MissReason::Namespace {
                    wanted: name.to_string(),
                    found: namespace.to_string(),
                });
            }
            NamespaceScope::Named(_) => {}
            NamespaceScope::Matching(selector) => {
                let labels = self.cluster.namespace_labels(namespace);
                if !selector.matches(&labels) {
                    let found = format!("{namespace} ({labels})");
                    return Err(MissReason::Namespace {
                        wanted: selector.to_string(),
                        found,
                    });
                }
            }
        }
        if selection.pods.matches(&pod.labels) {
            Ok(())
        } else {
            Err(MissReason::Labels {
                wanted: selection.pods.to_string(),
                found: pod.labels.to_string(),
            })
        }
    }
}

/// The stages of evaluation, in order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Admin,
    NetworkPolicy,
    Baseline,
}

impl Stage {
    fn of(tier: Tier) -> Self {
        match tier {
            Tier::Admin { .. } => Stage::Admin,
            Tier::NetworkPolicy => Stage::NetworkPolicy,
            Tier::Baseline { .. } => Stage::Baseline,
        }
    }
}

fn block_matches(block: &IpBlock, address: Option<IpAddr>) -> Result<(), MissReason> {
    let Some(address) = address.filter(|a| block.cidr.contains(a)) else {
        return Err(MissReason::Cidr {
            wanted: block.to_string(),
            found: address,
        });
    };
    match block.except.iter().find(|e| e.contains(&address)) {
        None => Ok(()),
        Some(except) => Err(MissReason::Excepted {
            except: except.to_string(),
            found: address,
        }),
    }
}

fn port_matches(ports: &Ports, to: &Endpoint, traffic: Traffic) -> Result<(), MissReason> {
    let Ports::Listed(list) = ports else { return Ok(()) };
    let mut unresolved: Option<(Protocol, &Name)> = None;
    for entry in list {
        let matched = match (entry, traffic) {
            (PortMatch::Range(protocol, range), Traffic::Port(on, port)) => *protocol == on && range.contains(port),
            (PortMatch::Named(protocol, name), _) => {
                let numbers = to
                    .pod()
                    .map_or_else(PortSet::none, |pod| pod.named_port(*protocol, name));
                if numbers.is_empty() {
                    unresolved = Some((*protocol, name));
                }
                numbers.contains(traffic)
            }
            (PortMatch::Range(..), Traffic::Other) => false,
        };
        if matched {
            return Ok(());
        }
    }
    match unresolved {
        Some((protocol, name)) => Err(MissReason::NamedPort {
            wanted: format!("{name}/{protocol}"),
            destination: to.to_string(),
        }),
        None => Err(MissReason::Port {
            wanted: ports.to_string(),
            found: traffic.to_string(),
        }),
    }
}
