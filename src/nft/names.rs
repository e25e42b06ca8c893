//! The names of chains and sets in the table. A name is a value here and text only at the edge, so that two objects never
//! share one: no name is made from a user's text, and none comes near nft's limit of 255 bytes.

use std::fmt;
use std::net::IpAddr;

use policy_compiler::policy::Direction;
use policy_compiler::table::Kind;

use super::{RECORD_SECONDS, RECORD_SIZE, SOURCE_SECONDS, SOURCES};

/// The family of the one table.
pub const TABLE_FAMILY: &str = "inet";
/// The name of the one table.
pub const TABLE: &str = "palisade";

/// An address family; each has chains and sets of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in order.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The type of its addresses in nft.
    pub fn nft_type(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "4",
            Family::V6 => "6",
        })
    }
}

/// One direction in one family: `in4`, `in6`, `eg4`, `eg6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// Seen from the pod that is judged.
    pub direction: Direction,
    /// Of both ends.
    pub family: Family,
}

impl Side {
    /// All four, in order.
    pub fn all() -> impl Iterator<Item = Side> {
        Direction::BOTH
            .into_iter()
            .flat_map(|direction| Family::BOTH.map(|family| Side { direction, family }))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Ingress => "in",
            Direction::Egress => "eg",
        };
        write!(f, "{direction}{}", self.family)
    }
}

/// The sort of peer that a class holds, when it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// Known pods.
    Pods,
    /// Every other address.
    Outside,
}

impl PeerKind {
    /// Both, in order.
    pub const BOTH: [PeerKind; 2] = [PeerKind::Pods, PeerKind::Outside];

    /// The family and sort of a class; none for peers without an address, which never meet a packet.
    pub fn of(kind: Kind) -> Option<(Family, PeerKind)> {
        match kind {
            Kind::PodV4 => Some((Family::V4, PeerKind::Pods)),
            Kind::PodV6 => Some((Family::V6, PeerKind::Pods)),
            Kind::OutsideV4 => Some((Family::V4, PeerKind::Outside)),
            Kind::OutsideV6 => Some((Family::V6, PeerKind::Outside)),
            Kind::PodWithoutAddress | Kind::OutsideWithoutAddress => None,
        }
    }

    /// The compiler's name for peers of this sort in a family.
    pub fn kind(self, family: Family) -> Kind {
        match (self, family) {
            (PeerKind::Pods, Family::V4) => Kind::PodV4,
            (PeerKind::Pods, Family::V6) => Kind::PodV6,
            (PeerKind::Outside, Family::V4) => Kind::OutsideV4,
            (PeerKind::Outside, Family::V6) => Kind::OutsideV6,
        }
    }
}

/// A column of the compiled table, as the kernel holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// What every peer of a sort may reach at least.
    Default(PeerKind),
    /// What a class may reach on top of that.
    Class(u32),
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Default(PeerKind::Pods) => f.write_str("pods"),
            Column::Default(PeerKind::Outside) => f.write_str("outside"),
            Column::Class(number) => write!(f, "c{number}"),
        }
    }
}

/// A chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainName {
    /// `forward`: the base chain.
    Forward,
    /// `six`: the rest of the base chain, for IPv6.
    Six,
    /// `opening`: what is not of a running connection.
    Opening,
    /// `shared_link`: what pods of one bridge send each other that is addressed to no pod.
    SharedLink,
    /// `unknown`: the end of packets from or to a pod that nobody knows yet.
    Unknown,
    /// `stray`: packets without a connection.
    Stray,
    /// `ingress4`, `egress6`: finds the class of the peer.
    Entry(Side),
    /// `in4_c7`, `in4_pods`: what a class may reach.
    Column(Side, Column),
    /// `in4_r0`: port ranges.
    Ranges(Side, u32),
    /// `stray_denied`: the end of those that concern a pod whose policies are enforced.
    StrayDenied,
    /// `stray_audited`: the end of those that concern only pods whose policies are audited.
    StrayAudited,
    /// `in4_denied`: counts and records what no policy of that side admits.
    SideDenied(Side),
    /// `denied`: what becomes of every packet that no policy admits.
    Denied,
    /// `record`: remembers a sample of denied connections.
    Record,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainName::Forward => f.write_str("forward"),
            ChainName::Six => f.write_str("six"),
            ChainName::Opening => f.write_str("opening"),
            ChainName::SharedLink => f.write_str("shared_link"),
            ChainName::Unknown => f.write_str("unknown"),
            ChainName::Stray => f.write_str("stray"),
            ChainName::Entry(side) => write!(f, "{}{}", side.direction, side.family),
            ChainName::Column(side, column) => write!(f, "{side}_{column}"),
            ChainName::Ranges(side, number) => write!(f, "{side}_r{number}"),
            ChainName::StrayDenied => f.write_str("stray_denied"),
            ChainName::StrayAudited => f.write_str("stray_audited"),
            ChainName::SideDenied(side) => write!(f, "{side}_denied"),
            ChainName::Denied => f.write_str("denied"),
            ChainName::Record => f.write_str("record"),
        }
    }
}

/// What a set of a column says about the local pods in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extent {
    /// Everything.
    Any,
    /// Single ports.
    Ports,
    /// Every protocol other than TCP, UDP and SCTP.
    Other,
    /// Port ranges, each list of them in a chain of its own.
    Ranges,
}

/// A set, or a map to verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// `in4_isolated`: local pods that policies judge in this direction.
    Isolated(Side),
    /// `in4_counters`: the same pods, each with a counter of the packets that were denied to it in this direction.
    Counters(Side),
    /// `in4_audited`: those of them that only audited policies judge: what these deny is counted and recorded, and passes.
    Audited(Side),
    /// `in4_peers`: from the address of a known pod to its class.
    Peers(Side),
    /// `in4_cidrs_0`: from any other address to its class. A change makes a new generation.
    Cidrs(Side, u32),
    /// `in4_c7_ports`: one extent of a column.
    Cell(Side, Column, Extent),
    /// `known4`: the addresses of this node's pod ranges that a known pod or node has.
    Known(Family),
    /// `exempt4`: pairs of addresses that policy never touches: a pod with itself, a pod with its own node.
    Exempt(Family),
    /// `denied4_sources`: who was denied something lately, each with a limit on what is recorded of it.
    Sources(Family),
    /// `denied4_talkers`: the same of those whose running connections were denied something.
    Talkers(Family),
    /// `denied4`: a sample of denied connections, source, destination, protocol and port.
    Denied(Family),
    /// `denied4_other`: the same for protocols without ports.
    DeniedOther(Family),
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetName::Isolated(side) => write!(f, "{side}_isolated"),
            SetName::Counters(side) => write!(f, "{side}_counters"),
            SetName::Audited(side) => write!(f, "{side}_audited"),
            SetName::Peers(side) => write!(f, "{side}_peers"),
            SetName::Cidrs(side, generation) => write!(f, "{side}_cidrs_{generation}"),
            SetName::Cell(side, column, extent) => {
                let extent = match extent {
                    Extent::Any => "any",
                    Extent::Ports => "ports",
                    Extent::Other => "other",
                    Extent::Ranges => "ranges",
                };
                write!(f, "{side}_{column}_{extent}")
            }
            SetName::Known(family) => write!(f, "known{family}"),
            SetName::Exempt(family) => write!(f, "exempt{family}"),
            SetName::Sources(family) => write!(f, "denied{family}_sources"),
            SetName::Talkers(family) => write!(f, "denied{family}_talkers"),
            SetName::Denied(family) => write!(f, "denied{family}"),
            SetName::DeniedOther(family) => write!(f, "denied{family}_other"),
        }
    }
}

/// What one element of a set is a value of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// `ipv4_addr` or `ipv6_addr`.
    Address,
    /// A range of addresses (`flags interval`).
    Interval,
    /// Two addresses.
    Pair,
    /// Address, protocol and port.
    Port,
    /// Two addresses, protocol and port; filled by rules.
    Connection,
    /// Two addresses and a protocol; filled by rules.
    ConnectionOther,
}

impl SetName {
    /// The type of its elements.
    pub fn key_type(&self) -> KeyType {
        match self {
            SetName::Isolated(_)
            | SetName::Counters(_)
            | SetName::Audited(_)
            | SetName::Peers(_)
            | SetName::Known(_)
            | SetName::Sources(_)
            | SetName::Talkers(_) => KeyType::Address,
            SetName::Cell(_, _, Extent::Ports) => KeyType::Port,
            SetName::Cell(..) => KeyType::Address,
            SetName::Cidrs(..) => KeyType::Interval,
            SetName::Exempt(_) => KeyType::Pair,
            SetName::Denied(_) => KeyType::Connection,
            SetName::DeniedOther(_) => KeyType::ConnectionOther,
        }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        match self {
            SetName::Isolated(side)
            | SetName::Counters(side)
            | SetName::Audited(side)
            | SetName::Peers(side)
            | SetName::Cidrs(side, _)
            | SetName::Cell(side, ..) => side.family,
            SetName::Known(family)
            | SetName::Exempt(family)
            | SetName::Sources(family)
            | SetName::Talkers(family)
            | SetName::Denied(family)
            | SetName::DeniedOther(family) => *family,
        }
    }

    /// Whether its elements have verdicts.
    pub fn is_map(&self) -> bool {
        matches!(
            self,
            SetName::Peers(_) | SetName::Cidrs(..) | SetName::Cell(_, _, Extent::Ranges)
        )
    }

    /// Whether rules fill it, not transactions.
    pub fn is_dynamic(&self) -> bool {
        self.bounds().is_some()
    }

    /// Of one that rules fill: how many elements it has at most, and for how many seconds after a packet met them.
    pub fn bounds(&self) -> Option<(u32, u32)> {
        match self {
            SetName::Sources(_) | SetName::Talkers(_) => Some((SOURCES, SOURCE_SECONDS)),
            SetName::Denied(_) | SetName::DeniedOther(_) => Some((RECORD_SIZE, RECORD_SECONDS)),
            _ => None,
        }
    }

    /// Whether each of its elements counts the packets that meet it.
    pub fn counts(&self) -> bool {
        matches!(
            self,
            SetName::Counters(_) | SetName::Denied(_) | SetName::DeniedOther(_)
        )
    }

    /// Whether a packet meets an element of it only when it is beyond the element's share of the record.
    pub fn limits(&self) -> bool {
        matches!(self, SetName::Sources(_) | SetName::Talkers(_))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_objects_share_a_name() {
        let mut chains = vec![
            ChainName::Forward,
            ChainName::Six,
            ChainName::Opening,
            ChainName::SharedLink,
            ChainName::Unknown,
            ChainName::Stray,
            ChainName::StrayDenied,
            ChainName::StrayAudited,
            ChainName::Denied,
            ChainName::Record,
        ];
        let mut sets = Vec::new();
        for family in Family::BOTH {
            sets.extend([
                SetName::Known(family),
                SetName::Exempt(family),
                SetName::Sources(family),
                SetName::Talkers(family),
                SetName::Denied(family),
                SetName::DeniedOther(family),
            ]);
        }
        for side in Side::all() {
            chains.extend([ChainName::Entry(side), ChainName::SideDenied(side)]);
            sets.extend([SetName::Isolated(side), SetName::Counters(side), SetName::Audited(side)]);
            sets.push(SetName::Peers(side));
            let numbers = [0, 1, 4, 11, 40, u32::MAX];
            let columns = numbers.map(Column::Class).into_iter();
            for column in columns.chain(PeerKind::BOTH.map(Column::Default)) {
                chains.push(ChainName::Column(side, column));
                let extents = [Extent::Any, Extent::Ports, Extent::Other, Extent::Ranges];
                sets.extend(extents.map(|extent| SetName::Cell(side, column, extent)));
            }
            chains.extend(numbers.map(|n| ChainName::Ranges(side, n)));
            sets.extend(numbers.map(|n| SetName::Cidrs(side, n)));
        }
        let chain_texts: BTreeSet<String> = chains.iter().map(ChainName::to_string).collect();
        let set_texts: BTreeSet<String> = sets.iter().map(SetName::to_string).collect();
        assert_eq!(chain_texts.len(), chains.len());
        assert_eq!(set_texts.len(), sets.len());
        let longest = chain_texts.iter().chain(&set_texts).map(String::len).max();
        assert!(longest < Some(64), "{longest:?}");
        assert!(
            chain_texts.is_disjoint(&set_texts),
            "a chain and a set should not be confused either"
        );
    }
}
