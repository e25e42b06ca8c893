//! The answer about one connection, with its reasons: what the evaluator says, as data and in words.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::cluster::Exemption;
use crate::policy::{Direction, PolicyName};

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
    pub(super) fn nearness(&self) -> u8 {
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
    /// What audited policies would say of it, where nothing else judges the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

impl Side {
    /// Whether this side would let the connection pass if the audited policies were in force.
    pub fn would_allow(&self) -> bool {
        self.audit.as_ref().map_or(self.allowed, |audit| audit.allowed)
    }
}

/// What audited policies would say of one end, in one direction; in force everything passes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Whether they would let the connection pass.
    pub allowed: bool,
    /// The audited policies that select the pod in this direction; all that do.
    pub policies: Vec<PolicyName>,
    /// The rule that would admit it.
    #[serde(rename = "decidedBy")]
    pub decided_by: Option<RuleRef>,
    /// The rules that do not match, each with its nearest miss; kept for what would be a denial.
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

impl Decision {
    /// Both sides, in the order in which a connection meets them.
    pub fn sides(&self) -> [&Side; 2] {
        [&self.egress, &self.ingress]
    }

    /// Whether it would pass if the audited policies were in force.
    pub fn would_be_allowed(&self) -> bool {
        let passes = self.exemption.is_some() || self.sides().iter().all(|side| side.would_allow());
        passes && !self.no_common_family
    }

    /// The audited policies that would deny what passes now; none when nothing changes with them.
    pub fn would_be_denied_by(&self) -> Vec<&PolicyName> {
        if !self.allowed || self.would_be_allowed() {
            return Vec::new();
        }
        let denying = self.sides().into_iter().filter_map(|side| side.audit.as_ref());
        let mut policies: Vec<_> = denying.filter(|a| !a.allowed).flat_map(|a| &a.policies).collect();
        policies.sort_unstable();
        policies.dedup();
        policies
    }
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
        let denying: Vec<String> = self
            .sides()
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
            (None, true) => {
                write!(f, "{direction} not isolated")?;
                self.audit.as_ref().map_or(Ok(()), |audit| write!(f, " ({audit})"))
            }
            (None, false) => {
                let policies = listed(&self.isolated_by);
                write!(f, "{direction} isolated by {policies} and no rule admits it")?;
                nearest(f, &self.misses)
            }
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.decided_by {
            Some(rule) => write!(f, "audit: would be allowed by {rule}"),
            None => {
                write!(
                    f,
                    "audit: would be denied by {}, no rule admits it",
                    listed(&self.policies)
                )?;
                nearest(f, &self.misses)
            }
        }
    }
}

fn listed(policies: &[PolicyName]) -> String {
    let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// The miss that came nearest, if there is one.
fn nearest(f: &mut fmt::Formatter<'_>, misses: &[Miss]) -> fmt::Result {
    let nearest = misses.iter().max_by_key(|m| m.reason.nearness());
    nearest.map_or(Ok(()), |m| write!(f, "; nearest: {} {}", m.rule, m.reason))
}
