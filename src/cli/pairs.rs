//! All pairs of two sets of ends, taken together where the table treats them alike: ends in, few blocks of pairs with one
//! answer each out. Nothing is sampled, and ten thousand pods on either side are a matter of groups and classes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use policy_compiler::cluster::Endpoint;
use policy_compiler::labels::Name;
use policy_compiler::policy::Direction;
use policy_compiler::ports::PortSet;
use policy_compiler::table::{ClassId, GroupId};

use super::ends::{Compiled, End};

/// Sources and destinations of which every pair (but those of one pod with itself) has the same answer.
pub(crate) struct Block<'b> {
    /// The sources, sorted.
    pub(crate) from: &'b [&'b End],
    /// The destinations, sorted.
    pub(crate) to: &'b [&'b End],
    /// The ports asked for, on these destinations.
    pub(crate) asked: &'b PortSet,
    /// The ports on which connections pass.
    pub(crate) allowed: &'b PortSet,
}

/// The first pair, by name, that is not of one pod with itself; both lists are sorted.
pub(crate) fn first_pair<'e>(from: &[&'e End], to: &[&'e End]) -> Option<(&'e End, &'e End)> {
    let (first_from, first_to) = (*from.first()?, *to.first()?);
    if !itself(first_from, first_to) {
        return Some((first_from, first_to));
    }
    match to.iter().find(|to| !itself(first_from, to)) {
        Some(other) => Some((first_from, other)),
        None => Some((from.iter().find(|from| !itself(from, first_to))?, first_to)),
    }
}

/// Whether both ends are one pod.
pub(crate) fn itself(from: &End, to: &End) -> bool {
    from.pod().zip(to.pod()).is_some_and(|(from, to)| from.name == to.name)
}

/// What the table can tell of an end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Signature {
    /// Its groups, if it is a pod that policies in force judge: egress, ingress.
    groups: [Option<GroupId>; 2],
    /// Its class to the others' egress and to their ingress.
    classes: [ClassId; 2],
    /// The family of its address.
    v4: Option<bool>,
    /// Whether policy sees a pod; if not, the node that it is.
    host: Option<Option<Name>>,
}

impl Signature {
    pub(crate) fn new(compiled: &Compiled, end: &End) -> Self {
        let table = &compiled.table;
        let endpoint = end.endpoint();
        let index = endpoint.pod().and_then(|pod| table.pod_index(&pod.name));
        const SIDES: [Direction; 2] = [Direction::Egress, Direction::Ingress];
        Signature {
            groups: SIDES.map(|side| table.half(side).group_in_force(index?)),
            classes: SIDES.map(|side| table.class_of(side, &endpoint)),
            v4: endpoint.address().map(|a| a.is_ipv4()),
            host: match endpoint.pod() {
                Some(_) => None,
                None => Some(table.addresses().node(&endpoint).cloned()),
            },
        }
    }

    /// The node that an end is, when it is no pod to policy.
    fn node(&self) -> Option<&Name> {
        self.host.as_ref().and_then(Option::as_ref)
    }

    /// Whether connections between the two are possible: two addresses must be of one family.
    pub(crate) fn common_family(&self, other: &Signature) -> bool {
        self.v4.is_none() || other.v4.is_none() || self.v4 == other.v4
    }

    /// The ports on which policies let this source reach that destination.
    pub(crate) fn allowed<'a>(&self, to: &Signature, compiled: &'a Compiled) -> Cow<'a, PortSet> {
        let half = |direction| compiled.table.half(direction);
        let egress = self.groups[0].map(|group| half(Direction::Egress).ports(group, to.classes[0]));
        let ingress = to.groups[1].map(|group| half(Direction::Ingress).ports(group, self.classes[1]));
        match (egress, ingress) {
            (None, None) => Cow::Owned(PortSet::all()),
            (Some(side), None) | (None, Some(side)) => Cow::Borrowed(side),
            (Some(egress), Some(ingress)) => Cow::Owned(egress.intersection(ingress)),
        }
    }
}

struct Bucket<'a> {
    ends: Vec<&'a End>,
    /// The pods among them by node; a pod and its own node are exempt.
    by_node: BTreeMap<&'a Name, Vec<&'a End>>,
}

impl<'a> Bucket<'a> {
    /// The ends on a node, and the others.
    fn split(&self, node: Option<&Name>) -> (&[&'a End], Cow<'_, [&'a End]>) {
        let Some(exempt) = node.and_then(|n| self.by_node.get(n)) else {
            return (&[], Cow::Borrowed(&self.ends));
        };
        let others = self.ends.iter().filter(|e| exempt.binary_search(e).is_err());
        (exempt, Cow::Owned(others.copied().collect()))
    }
}

fn buckets<'a, K: Ord>(ends: &'a [End], key: impl Fn(&End) -> K) -> BTreeMap<K, Bucket<'a>> {
    let mut buckets: BTreeMap<K, Bucket<'a>> = BTreeMap::new();
    for end in ends {
        let bucket = buckets.entry(key(end)).or_insert_with(|| Bucket {
            ends: Vec::new(),
            by_node: BTreeMap::new(),
        });
        bucket.ends.push(end);
        if let End::Pod(pod, _) = end
            && !pod.host_network
            && let Some(node) = &pod.node
        {
            bucket.by_node.entry(node).or_default().push(end);
        }
    }
    buckets
}

/// Visits every pair of a source and a destination that have an address family in common, in blocks of equal answers. Both lists
/// are sorted. `asked` says which ports of a destination are spoken of; blocks without any are left out.
pub(crate) fn visit(
    compiled: &Compiled,
    from: &[End],
    to: &[End],
    asked: impl Fn(&Endpoint) -> PortSet,
    mut visitor: impl FnMut(&Block<'_>),
) {
    let sources = buckets(from, |end| Signature::new(compiled, end));
    let destinations = buckets(to, |end| (Signature::new(compiled, end), asked(&end.endpoint())));
    let everything = PortSet::all();
    for (source, from) in &sources {
        for ((destination, asked), to) in &destinations {
            if asked.is_empty() || !source.common_family(destination) {
                continue;
            }
            let mut block = |from: &[&End], to: &[&End], allowed: &PortSet| {
                if !from.is_empty() && !to.is_empty() {
                    visitor(&Block {
                        from,
                        to,
                        asked,
                        allowed,
                    });
                }
            };
            // At most one side is split: between two pods, or two that are none, there is no node exemption.
            let (exempt_to, to_rest) = to.split(source.node());
            let (exempt_from, from_rest) = from.split(destination.node());
            block(&from.ends, exempt_to, &everything);
            block(exempt_from, &to.ends, &everything);
            block(&from_rest, &to_rest, &source.allowed(destination, compiled));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use policy_compiler::testing::{self, Tiers};
    use proptest::prelude::*;

    use super::*;
    use crate::cli::ends::tests::all_ends;
    use crate::cli::ports::PortSpec;

    fn check(compiled: &Compiled, ends: &[End], port: &PortSpec) -> Result<(), TestCaseError> {
        let mut found: Map<(&End, &End), PortSet> = Map::new();
        let mut twice = false;
        visit(
            compiled,
            ends,
            ends,
            |to| port.on(to),
            |block| {
                for from in block.from {
                    for to in block.to {
                        // The blocks borrow from the same list, so looking an end up again lengthens its life.
                        let find = |end: &End| ends.binary_search(end).map(|at| &ends[at]).expect("an end of the list");
                        let passes = block.asked.intersection(block.allowed);
                        twice |= found.insert((find(from), find(to)), passes).is_some();
                    }
                }
            },
        );
        prop_assert!(!twice, "a pair in two blocks");
        for from in ends {
            for to in ends.iter().filter(|to| !itself(from, to)) {
                let (source, destination) = (from.endpoint(), to.endpoint());
                let asked = port.on(&destination);
                let expected = (source.same_family(&destination) && !asked.is_empty())
                    .then(|| asked.intersection(&compiled.table.allowed(&source, &destination)));
                prop_assert_eq!(
                    found.get(&(from, to)),
                    expected.as_ref(),
                    "{} -> {}",
                    source,
                    destination
                );
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Every pair stands in one block, whose answer is the table's.
        #[test]
        fn blocks_hold_every_pair_with_its_answer(cluster in testing::cluster(Tiers::All)) {
            let compiled = Compiled::new(cluster);
            let ends = all_ends(&compiled);
            for port in ["all", "80/TCP", "http/TCP"] {
                check(&compiled, &ends, &port.parse().expect("a port"))?;
            }
        }

        /// The first pair is the smallest of those that are not of one pod with itself.
        #[test]
        fn the_first_pair_is_the_smallest(cluster in testing::cluster(Tiers::NetworkPolicy), cut in 0..6usize, other in 0..6usize) {
            let compiled = Compiled::new(cluster);
            let ends = all_ends(&compiled);
            let from: Vec<&End> = ends.iter().skip(cut).collect();
            let to: Vec<&End> = ends.iter().take(other).collect();
            let all = from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t)));
            let smallest = all.filter(|(f, t)| !itself(f, t)).min();
            prop_assert_eq!(first_pair(&from, &to), smallest);
        }
    }
}
