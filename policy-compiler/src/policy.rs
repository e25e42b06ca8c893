//! Policies, as the compiler and the reference evaluator read them.
//!
//! One type carries NetworkPolicy v1 and the tiers around it (ClusterNetworkPolicy): a NetworkPolicy is a policy of
//! [`Tier::NetworkPolicy`] whose rules all say [`Action::Accept`].

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use crate::labels::{Name, Selector};
use crate::ports::{PortRange, Protocol};

/// The direction of a connection, seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both, in the order of the API.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// The name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    /// `metadata.namespace`; none for a cluster-wide policy.
    pub namespace: Option<Name>,
    /// `metadata.name`.
    pub name: Name,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Serialize for PolicyName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a policy stands in the order of evaluation; the order of the values is that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// ClusterNetworkPolicy, `spec.tier: Admin`; a lower priority goes first.
    Admin {
        /// `spec.priority`.
        priority: u32,
    },
    /// NetworkPolicy v1: policies add up, and a pod that any of them selects is isolated.
    NetworkPolicy,
    /// ClusterNetworkPolicy, `spec.tier: Baseline`.
    Baseline {
        /// `spec.priority`.
        priority: u32,
    },
}

/// Whether a policy is in force, or on trial. It is asked for by the annotation [`MODE_ANNOTATION`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Enforcement {
    /// It isolates pods, and its rules allow.
    #[default]
    Enforce,
    /// In force all is as if it were not there; what it would deny is told.
    Audit,
}

impl Enforcement {
    /// Both.
    pub const BOTH: [Enforcement; 2] = [Enforcement::Enforce, Enforcement::Audit];

    /// As the annotation says it.
    pub fn word(self) -> &'static str {
        match self {
            Enforcement::Enforce => "enforce",
            Enforcement::Audit => "audit",
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The annotation of a NetworkPolicy, or of a namespace for the policies in it, that says its [`Enforcement`].
pub const MODE_ANNOTATION: &str = "palisade.dev/mode";

/// What a rule does with the traffic that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Final: allowed.
    Accept,
    /// Final: denied.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

/// The namespaces that a selection looks in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// One namespace by name: the policy's own.
    Named(Name),
    /// Every namespace whose labels match.
    Matching(Selector),
}

impl NamespaceScope {
    /// All namespaces.
    pub fn everywhere() -> Self {
        NamespaceScope::Matching(Selector::everything())
    }
}

impl fmt::Display for NamespaceScope {
    /// In words, for people: `in namespace shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamespaceScope::Named(name) => write!(f, "in namespace {name}"),
            NamespaceScope::Matching(s) if s.is_everything() => f.write_str("in all namespaces"),
            NamespaceScope::Matching(s) => write!(f, "in namespaces {s}"),
        }
    }
}

/// Pods by their labels and by their namespaces; both must match. Host-network pods never do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelection {
    /// Where to look.
    pub namespaces: NamespaceScope,
    /// Which pods there.
    pub pods: Selector,
}

impl fmt::Display for PodSelection {
    /// In words, for people: `pods app=web in namespace shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pods.is_everything() {
            f.write_str("all pods")?;
        } else {
            write!(f, "pods {}", self.pods)?;
        }
        write!(f, " {}", self.namespaces)
    }
}

/// Addresses of a CIDR without those of its exceptions (`ipBlock`). Pod addresses are addresses too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block, host bits masked off.
    pub cidr: IpNet,
    /// Parts of the block that it does not hold; sorted.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// A block with host bits masked off everywhere, and its exceptions sorted.
    pub fn new(cidr: IpNet, except: impl IntoIterator<Item = IpNet>) -> Self {
        let mut except: Vec<IpNet> = except.into_iter().map(|e| e.trunc()).collect();
        except.sort_unstable();
        except.dedup();
        IpBlock {
            cidr: cidr.trunc(),
            except,
        }
    }

    /// Whether the address is in the block and in none of its exceptions.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|e| e.contains(&address))
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        if !self.except.is_empty() {
            let parts: Vec<String> = self.except.iter().map(ToString::to_string).collect();
            write!(f, " except {}", parts.join(", "))?;
        }
        Ok(())
    }
}

/// One peer of a rule (an item of `from` or `to`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// `podSelector`, `namespaceSelector`, or both.
    Pods(PodSelection),
    /// `ipBlock`.
    Block(IpBlock),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Pods(selection) => selection.fmt(f),
            Peer::Block(block) => block.fmt(f),
        }
    }
}

/// The peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Every peer, inside and outside the cluster: `from`/`to` absent or empty.
    All,
    /// Any of these.
    Listed(Vec<Peer>),
}

/// One entry of a rule's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// A range; without `port` it is [`PortRange::ALL`].
    Range(Protocol, PortRange),
    /// A port by name, resolved on the destination pod.
    Named(Protocol, Name),
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortMatch::Range(protocol, range) => crate::ports::PortSet::of(*protocol, *range).fmt(f),
            PortMatch::Named(protocol, name) => write!(f, "{name}/{protocol}"),
        }
    }
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every port of every protocol, ICMP included: `ports` absent or empty.
    All,
    /// Any of these; nothing else, ICMP included.
    Listed(Vec<PortMatch>),
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ports::All => f.write_str("all"),
            Ports::Listed(list) => {
                let parts: Vec<String> = list.iter().map(ToString::to_string).collect();
                f.write_str(&parts.join(", "))
            }
        }
    }
}

/// One rule of a policy: a peer and a port must both match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What then happens; always [`Action::Accept`] in a NetworkPolicy.
    pub action: Action,
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    /// Its name; unique in its tier's kind.
    pub name: PolicyName,
    /// Where it stands in the order.
    pub tier: Tier,
    /// What its own annotation asks for; none leaves it to its namespace. Of a NetworkPolicy only.
    pub enforcement: Option<Enforcement>,
    /// The pods that it is about.
    pub subject: PodSelection,
    /// `spec.ingress`; none when Ingress is not among the policy types.
    pub ingress: Option<Vec<Rule>>,
    /// `spec.egress`; none when Egress is not among the policy types.
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules of a direction; none when the policy does not speak of it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Whether it isolates the pods that it selects for this direction, as far as it is in force.
    pub fn isolates(&self, direction: Direction) -> bool {
        self.tier == Tier::NetworkPolicy && self.rules(direction).is_some()
    }

    /// What holds for it in a namespace that asks for this: its own word goes first; a policy of another tier is always in force.
    pub fn enforcement_in(&self, namespace: Option<Enforcement>) -> Enforcement {
        match self.tier {
            Tier::NetworkPolicy => self.enforcement.or(namespace).unwrap_or_default(),
            Tier::Admin { .. } | Tier::Baseline { .. } => Enforcement::Enforce,
        }
    }
}
