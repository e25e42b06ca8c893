//! The reference evaluator: one connection, answered straight from the policies, the slow and obvious way, with reasons.
//! It shares no code with the compiler but the types; property tests hold the two equal.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::addresses::AddressBook;
use crate::cluster::{Cluster, Endpoint, Exemption, Pod};
use crate::labels::Name;
use crate::policy::{
    Action, Direction, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule,
    Tier,
};
use crate::ports::{PortSet, Protocol, Traffic};

/// One rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyName,
    /// Which of its rule lists.
    pub direction: Direction,
    /// The index in that list, from 0, as in `spec.ingress[0]`.
    pub index: usize,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}]", self.policy, self.direction, self.index)
    }
}

/// Why a rule does not match, by the peer of it that comes nearest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MissReason {
    /// The peer is no pod (an address, or a host-network pod), and the rule lists pods only.
    NotAPod {
        /// What the rule asks for.
        wanted: String,
    },
    /// The peer's namespace does not match.
    Namespace {
        /// What the rule asks for.
        wanted: String,
        /// The peer's namespace, with its labels where they were looked at.
        found: String,
    },
    /// The peer's labels do not match.
    Labels {
        /// The selector.
        wanted: String,
        /// The peer's labels.
        found: String,
    },
    /// The peer's address is outside the block.
    Cidr {
        /// The block.
        wanted: String,
        /// The address; none for a pod without one.
        found: Option<IpAddr>,
    },
    /// The peer's address is in the block, but excepted.
    Excepted {
        /// The exception that holds it.
        except: String,
        /// The address.
        found: IpAddr,
    },
    /// The peer matches, the port does not.
    Port {
        /// The ports of the rule.
        wanted: String,
        /// The port asked for.
        found: String,
    },
    /// The peer matches, and a name among the rule's ports stands for no port of the destination.
    NamedPort {
        /// The name, with its protocol.
        wanted: String,
        /// The destination.
        destination: String,
    },
}

impl MissReason {
    /// How near the miss is; the higher the nearer.
    fn nearness(&self) -> u8 {
        match self {
            MissReason::NotAPod { .. } => 0,
            MissReason::Cidr { .. } => 1,
            MissReason::Namespace { .. } => 2,
            MissReason::Labels { .. } => 3,
            MissReason::Excepted { .. } => 4,
            MissReason::NamedPort { .. } => 5,
            MissReason::Port { .. } => 6,
        }
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MissReason::NotAPod { wanted } => write!(f, "wants {wanted}, the peer is no pod to policy"),
            MissReason::Namespace { wanted, found } => write!(f, "wants namespace {wanted}, the peer is in {found}"),
            MissReason::Labels { wanted, found } if found.is_empty() => {
                write!(f, "wants labels {wanted}, the peer has none")
            }
            MissReason::Labels { wanted, found } => write!(f, "wants labels {wanted}, the peer has {found}"),
            MissReason::Cidr {
                wanted,
                found: Some(address),
            } => write!(f, "wants {wanted}, the peer is {address}"),
            MissReason::Cidr { wanted, found: None } => write!(f, "wants {wanted}, the peer has no address"),
            MissReason::Excepted { except, found } => write!(f, "excepts {except}, which holds {found}"),
            MissReason::Port { wanted, found } => write!(f, "wants port {wanted}, asked for {found}"),
            MissReason::NamedPort { wanted, destination } => {
                write!(f, "wants port {wanted}, a name that {destination} does not declare")
            }
        }
    }
}

/// A rule that did not match, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The rule.
    pub rule: RuleRef,
    /// Why.
    pub reason: MissReason,
}

/// What the policies of one end say, in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The direction.
    pub direction: Direction,
    /// Whether this side lets the connection pass.
    pub allowed: bool,
    /// The NetworkPolicies that isolate the pod in this direction.
    #[serde(rename = "isolatedBy")]
    pub isolated_by: Vec<PolicyName>,
    /// The rule that decided: it admits, or (of a cluster-wide policy) denies.
    #[serde(rename = "decidedBy")]
    pub decided_by: Option<RuleRef>,
    /// The rules that did not match, each with its nearest miss; kept for a denial.
    pub misses: Vec<Miss>,
}

/// The answer about one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Whether it passes.
    pub allowed: bool,
    /// Whether the two ends have addresses of different families only, so that there is no such connection.
    #[serde(rename = "noCommonFamily")]
    pub no_common_family: bool,
    /// Why policy does not apply, if so; the sides are then as if it did.
    pub exemption: Option<Exemption>,
    /// The source's side.
    pub egress: Side,
    /// The destination's side.
    pub ingress: Side,
}

impl fmt::Display for Decision {
    /// The reason, in one sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.no_common_family {
            return f.write_str("the two ends have no address family in common");
        }
        if let Some(exemption) = self.exemption {
            return exemption.fmt(f);
        }
        if self.allowed {
            return write!(f, "{}; {}", self.egress, self.ingress);
        }
        let denying: Vec<String> = [&self.egress, &self.ingress]
            .iter()
            .filter(|s| !s.allowed)
            .map(ToString::to_string)
            .collect();
        f.write_str(&denying.join("; "))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction;
        match (&self.decided_by, self.allowed) {
            (Some(rule), true) => write!(f, "{direction} allowed by {rule}"),
            (Some(rule), false) => write!(f, "{direction} denied by {rule}"),
            (None, true) => write!(f, "{direction} not isolated"),
            (None, false) => {
                let policies: Vec<String> = self.isolated_by.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{direction} isolated by {} and no rule admits it",
                    policies.join(", ")
                )?;
                let nearest = self.misses.iter().max_by_key(|m| m.reason.nearness());
                nearest.map_or(Ok(()), |m| write!(f, "; nearest: {} {}", m.rule, m.reason))
            }
        }
    }
}

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
        };
        let Some(pod) = subject.pod() else { return side };
        let selecting: Vec<&Arc<Policy>> = self
            .cluster
            .policies
            .values()
            .filter(|p| self.selects(&p.subject, pod).is_ok())
            .collect();
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
