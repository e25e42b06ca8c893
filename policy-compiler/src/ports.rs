//! Sets of ports. A [`PortSet`] is canonical: two sets of the same meaning are the same value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A protocol that a NetworkPolicy can name (`ports[].protocol`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default of the API.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them, in canonical order.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl FromStr for Protocol {
    type Err = ();

    /// The API's spelling only: upper case.
    fn from_str(s: &str) -> Result<Self, ()> {
        match s {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            _ => Err(()),
        }
    }
}

/// What one connection is on: a protocol with its destination port, or a protocol that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A destination port of TCP, UDP or SCTP.
    Port(Protocol, u16),
    /// Any other protocol (ICMP, ESP, ...): only a rule without `ports` admits it.
    Other,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Traffic::Other => f.write_str("other protocols"),
        }
    }
}

/// An inclusive range of port numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// Every port of a protocol.
    pub const ALL: PortRange = PortRange {
        first: 0,
        last: u16::MAX,
    };

    /// The range of one port.
    pub fn one(port: u16) -> Self {
        PortRange {
            first: port,
            last: port,
        }
    }

    /// Whether the port lies within.
    pub fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Ranges(Vec<PortRange>);

impl Ranges {
    fn all() -> Self {
        Ranges(vec![PortRange::ALL])
    }

    fn normalised(mut ranges: Vec<PortRange>) -> Self {
        ranges.sort_unstable();
        let mut out: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match out.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => out.push(range),
            }
        }
        Ranges(out)
    }

    fn union(&self, other: &Self) -> Self {
        if other.0.is_empty() {
            return self.clone();
        }
        Self::normalised(self.0.iter().chain(&other.0).copied().collect())
    }

    fn intersection(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let (first, last) = (a.first.max(b.first), a.last.min(b.last));
            if first <= last {
                out.push(PortRange { first, last });
            }
            if a.last < b.last {
                left.next();
            } else {
                right.next();
            }
        }
        Ranges(out)
    }

    fn complement(&self) -> Self {
        let mut out = Vec::with_capacity(self.0.len() + 1);
        let mut next = 0u32;
        for range in &self.0 {
            if u32::from(range.first) > next {
                out.push(PortRange {
                    first: next as u16,
                    last: range.first - 1,
                });
            }
            next = u32::from(range.last) + 1;
        }
        if next <= u32::from(u16::MAX) {
            out.push(PortRange {
                first: next as u16,
                last: u16::MAX,
            });
        }
        Ranges(out)
    }
}

/// A set of ports: disjoint sorted ranges for TCP, UDP and SCTP, and one bit for every other protocol.
///
/// ```
/// use policy_compiler::ports::{PortRange, PortSet, Protocol};
/// let a = PortSet::of(Protocol::Tcp, PortRange { first: 80, last: 89 });
/// let b = PortSet::of(Protocol::Tcp, PortRange { first: 90, last: 99 });
/// assert_eq!(a.union(&b).to_string(), "80-99/TCP");
/// assert_eq!(PortSet::all().minus(&PortSet::all()), PortSet::none());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    ranges: [Ranges; 3],
    other: bool,
}

impl PortSet {
    /// The empty set.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every port of every protocol, ICMP and the rest included.
    pub fn all() -> Self {
        PortSet {
            ranges: [Ranges::all(), Ranges::all(), Ranges::all()],
            other: true,
        }
    }

    /// Every protocol that has no ports here (ICMP and the rest).
    pub fn other() -> Self {
        PortSet {
            other: true,
            ..Self::default()
        }
    }

    /// One range of one protocol.
    pub fn of(protocol: Protocol, range: PortRange) -> Self {
        let mut set = Self::default();
        set.ranges[protocol as usize] = Ranges::normalised(vec![range]);
        set
    }

    /// Many ranges at once, in time near linear in their number.
    pub fn of_ranges(ranges: impl IntoIterator<Item = (Protocol, PortRange)>) -> Self {
        let mut lists = [const { Vec::new() }; 3];
        for (protocol, range) in ranges {
            lists[protocol as usize].push(range);
        }
        PortSet {
            ranges: lists.map(Ranges::normalised),
            other: false,
        }
    }

    /// What is in any of many sets, in time near linear in the number of their ranges.
    pub(crate) fn union_of<'a>(sets: impl IntoIterator<Item = &'a PortSet>) -> Self {
        let (mut lists, mut other) = ([const { Vec::new() }; 3], false);
        for set in sets {
            other |= set.other;
            for (list, ranges) in lists.iter_mut().zip(&set.ranges) {
                list.extend_from_slice(&ranges.0);
            }
        }
        PortSet {
            ranges: lists.map(Ranges::normalised),
            other,
        }
    }

    /// The set that holds just this.
    pub fn single(traffic: Traffic) -> Self {
        match traffic {
            Traffic::Port(protocol, port) => Self::of(protocol, PortRange::one(port)),
            Traffic::Other => Self::other(),
        }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        !self.other && self.ranges.iter().all(|r| r.0.is_empty())
    }

    /// Whether everything is in the set.
    pub fn is_all(&self) -> bool {
        self.other && self.ranges.iter().all(|r| r.0 == [PortRange::ALL])
    }

    /// Whether protocols other than TCP, UDP and SCTP are in the set.
    pub fn has_other(&self) -> bool {
        self.other
    }

    /// The ranges of one protocol, sorted and disjoint.
    pub fn ranges(&self, protocol: Protocol) -> &[PortRange] {
        &self.ranges[protocol as usize].0
    }

    /// Whether the set admits this.
    pub fn contains(&self, traffic: Traffic) -> bool {
        match traffic {
            Traffic::Port(protocol, port) => {
                let ranges = self.ranges(protocol);
                let at = ranges.partition_point(|r| r.last < port);
                ranges.get(at).is_some_and(|r| r.contains(port))
            }
            Traffic::Other => self.other,
        }
    }

    /// Whether every member of the other set is in this one.
    pub fn contains_all(&self, other: &PortSet) -> bool {
        other.minus(self).is_empty()
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &PortSet) -> PortSet {
        self.zip(other, Ranges::union, self.other || other.other)
    }

    /// What is in both sets.
    #[must_use]
    pub fn intersection(&self, other: &PortSet) -> PortSet {
        self.zip(other, Ranges::intersection, self.other && other.other)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub fn minus(&self, other: &PortSet) -> PortSet {
        self.intersection(&other.complement())
    }

    /// What is not in this set.
    #[must_use]
    pub fn complement(&self) -> PortSet {
        PortSet {
            ranges: [0, 1, 2].map(|i| self.ranges[i].complement()),
            other: !self.other,
        }
    }

    /// Some member of the set, the lowest of the first protocol that has one.
    pub fn example(&self) -> Option<Traffic> {
        for protocol in Protocol::ALL {
            if let Some(range) = self.ranges(protocol).first() {
                // Port 0 is never a real destination: prefer the next one.
                let port = if range.first == 0 && range.last > 0 {
                    1
                } else {
                    range.first
                };
                return Some(Traffic::Port(protocol, port));
            }
        }
        self.other.then_some(Traffic::Other)
    }

    fn zip(&self, other: &PortSet, op: fn(&Ranges, &Ranges) -> Ranges, any_other: bool) -> PortSet {
        PortSet {
            ranges: [0, 1, 2].map(|i| op(&self.ranges[i], &other.ranges[i])),
            other: any_other,
        }
    }
}

impl fmt::Display for PortSet {
    /// `none`, `all`, or a list such as `80/TCP, 8000-8080/TCP, UDP, other protocols`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        if self.is_all() {
            return f.write_str("all");
        }
        let mut parts = Vec::new();
        for protocol in Protocol::ALL {
            for range in self.ranges(protocol) {
                parts.push(match range {
                    r if *r == PortRange::ALL => protocol.to_string(),
                    r if r.first == r.last => format!("{}/{protocol}", r.first),
                    r => format!("{}-{}/{protocol}", r.first, r.last),
                });
            }
        }
        if self.other {
            parts.push("other protocols".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

impl Serialize for PortSet {
    /// As a list of strings: `["80/TCP", "8000-8080/UDP", "TCP", "other"]`; everything is `["all"]`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        let parts: Vec<&str> = match text.as_str() {
            "none" => Vec::new(),
            list => list
                .split(", ")
                .map(|p| if p == "other protocols" { "other" } else { p })
                .collect(),
        };
        parts.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_set() -> impl Strategy<Value = PortSet> {
        let range = (0..3usize, prop_oneof![0..12u16, 65525..=65535u16], 0..6u16);
        (proptest::collection::vec(range, 0..6), any::<bool>()).prop_map(|(ranges, other)| {
            let mut set = if other { PortSet::other() } else { PortSet::none() };
            for (protocol, first, len) in ranges {
                let last = first.saturating_add(len);
                set = set.union(&PortSet::of(Protocol::ALL[protocol], PortRange { first, last }));
            }
            set
        })
    }

    fn members(set: &PortSet) -> Vec<Traffic> {
        let ports = Protocol::ALL
            .into_iter()
            .flat_map(|p| (0..20).chain(65510..=65535).map(move |n| Traffic::Port(p, n)));
        ports.chain([Traffic::Other]).filter(|t| set.contains(*t)).collect()
    }

    proptest! {
        #[test]
        fn set_algebra_is_pointwise(a in any_set(), b in any_set()) {
            let both = |f: fn(bool, bool) -> bool| {
                members(&PortSet::all())
                    .into_iter()
                    .filter(|t| f(a.contains(*t), b.contains(*t)))
                    .collect::<Vec<_>>()
            };
            prop_assert_eq!(members(&a.union(&b)), both(|x, y| x || y));
            prop_assert_eq!(members(&a.intersection(&b)), both(|x, y| x && y));
            prop_assert_eq!(members(&a.minus(&b)), both(|x, y| x && !y));
        }

        #[test]
        fn equal_meaning_is_equal_value(a in any_set(), b in any_set()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.complement().complement(), a.clone());
            prop_assert_eq!(a.minus(&b).union(&a.intersection(&b)), a);
        }
    }
}
