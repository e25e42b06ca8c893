//! The comparison itself: two tables and the ends to compare in, blocks of pairs that changed alike out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use rustc_hash::FxHashMap;

use super::{Block, Differences, End, blocks};
use crate::cluster::{Endpoint, Exemption, PodName};
use crate::half::Half;
use crate::labels::Name;
use crate::policy::Direction;
use crate::ports::PortSet;
use crate::table::{ClassId, GroupId, Table};

/// What a table tells of an end, up to its node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    /// Its groups: egress, ingress.
    groups: [Option<GroupId>; 2],
    /// Its class to the others' egress and to their ingress.
    classes: [ClassId; 2],
    /// The family of its address.
    v4: Option<bool>,
    /// Whether policy sees a pod.
    pod: bool,
}

const SIDES: [Direction; 2] = [Direction::Egress, Direction::Ingress];

impl Seen {
    fn new(table: &Table, end: &Endpoint) -> Self {
        let index = end.pod().and_then(|pod| table.pod_index(&pod.name));
        Seen {
            groups: SIDES.map(|side| table.half(side).group_of(index?)),
            classes: SIDES.map(|side| table.class_of(side, end)),
            v4: end.address().map(|a| a.is_ipv4()),
            pod: end.pod().is_some(),
        }
    }

    fn common_family(&self, other: &Seen) -> bool {
        self.v4.is_none() || other.v4.is_none() || self.v4 == other.v4
    }
}

/// Ends that neither table tells apart.
struct Bucket {
    seen: [Seen; 2],
    ends: Vec<usize>,
    /// By direction: the number of its pair of groups, and that of its pair of classes.
    subject: [usize; 2],
    peer: [usize; 2],
    /// Whether all of its ends are one pod's.
    one_pod: bool,
}

/// What a pair may do: the ports that pass, and those of them that would not if audited policies were in force.
type Passing = (PortSet, PortSet);

/// Pairs that changed by what changed: opened, closed, told, untold.
#[derive(Default)]
struct Changed {
    numbers: FxHashMap<PortSet, usize>,
    pairs: [BTreeMap<usize, Vec<(usize, usize)>>; 4],
}

impl Changed {
    fn add(&mut self, pair: (usize, usize), (was, told_before): &Passing, (is, told_after): &Passing) {
        let parts = [
            is.minus(was),
            was.minus(is),
            told_after.minus(told_before),
            told_before.minus(told_after),
        ];
        for (list, part) in self.pairs.iter_mut().zip(parts) {
            if !part.is_empty() {
                let next = self.numbers.len();
                let number = *self.numbers.entry(part).or_insert(next);
                list.entry(number).or_default().push(pair);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    fn blocks(
        self,
        own_node: bool,
        open: impl Fn(usize) -> bool,
        ends: impl Fn(Vec<usize>) -> Vec<usize>,
    ) -> [Vec<Block>; 4] {
        let by_number: BTreeMap<usize, PortSet> = self.numbers.into_iter().map(|(set, at)| (at, set)).collect();
        self.pairs.map(|list| {
            let mut out = Vec::new();
            for (number, pairs) in list {
                for (from, to) in blocks::rectangles(&pairs, &open) {
                    out.push(Block {
                        from: ends(from),
                        to: ends(to),
                        ports: by_number[&number].clone(),
                        own_node,
                    });
                }
            }
            out
        })
    }
}

pub(super) struct Comparison<'a> {
    pub(super) before: &'a Table,
    pub(super) after: &'a Table,
    pub(super) ends: &'a [End],
}

impl Comparison<'_> {
    pub(super) fn differences(&self) -> Differences {
        let buckets = self.buckets();
        let mut changed = Changed::default();
        // Every pair is looked at: nothing breaks off.
        let _ = self.visit(&buckets, |pair, was, is| {
            changed.add(pair, was, is);
            ControlFlow::Continue(())
        });
        let of_buckets = |at: Vec<usize>| {
            let mut ends: Vec<usize> = at.iter().flat_map(|at| buckets[*at].ends.iter().copied()).collect();
            ends.sort_unstable();
            ends
        };
        let lists = changed.blocks(false, |at| buckets[at].one_pod, of_buckets);
        let moved = self.moved().blocks(true, |_| false, |ends| ends);
        let mut lists = lists.into_iter().zip(moved).map(|(list, moved)| {
            let mut list = self.join_families(list);
            list.extend(moved);
            list.sort();
            list
        });
        let mut next = || lists.next().unwrap_or_default();
        Differences {
            opened: next(),
            closed: next(),
            told: next(),
            untold: next(),
        }
    }

    fn buckets(&self) -> Vec<Bucket> {
        let mut by_key: BTreeMap<[Seen; 2], Vec<usize>> = BTreeMap::new();
        for (at, end) in self.ends.iter().enumerate() {
            let key = [Seen::new(self.before, &end.before), Seen::new(self.after, &end.after)];
            by_key.entry(key).or_default().push(at);
        }
        fn number<K: Ord>(numbers: &mut BTreeMap<K, usize>, key: K) -> usize {
            let next = numbers.len();
            *numbers.entry(key).or_insert(next)
        }
        let mut subjects: [BTreeMap<[Option<GroupId>; 2], usize>; 2] = Default::default();
        let mut peers: [BTreeMap<[ClassId; 2], usize>; 2] = Default::default();
        let buckets = by_key.into_iter().map(|(seen, ends)| {
            let mut names = ends.iter().map(|at| self.pod_name(*at));
            let first = names.next().flatten();
            let one_pod = first.is_some() && names.all(|name| name == first);
            let [old, new] = &seen;
            let subject = [0, 1].map(|s| number(&mut subjects[s], [old.groups[s], new.groups[s]]));
            let peer = [0, 1].map(|s| number(&mut peers[s], [old.classes[s], new.classes[s]]));
            Bucket {
                seen,
                ends,
                subject,
                peer,
                one_pod,
            }
        });
        buckets.collect()
    }

    /// Whether a connection, audit, or the isolation of a pod is another.
    pub(super) fn differs(&self) -> bool {
        let isolated = |table: &Table, end: &Endpoint| {
            let index = end.pod().and_then(|pod| table.pod_index(&pod.name));
            SIDES.map(|side| {
                let half = table.half(side);
                let group = index.and_then(|pod| half.group_in_force(pod));
                group.is_some_and(|group| half.group(group).isolated)
            })
        };
        let mut ends = self.ends.iter();
        ends.any(|end| isolated(self.before, &end.before) != isolated(self.after, &end.after))
            || !self.moved().is_empty()
            || self
                .visit(&self.buckets(), |_, was, is| match was == is {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                })
                .is_break()
    }

    /// Visits the pairs of buckets of which the policies of either end say something else: what passed, and what passes.
    fn visit(
        &self,
        buckets: &[Bucket],
        mut visitor: impl FnMut((usize, usize), &Passing, &Passing) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let [egress, ingress] = [0, 1].map(|side| self.cells(buckets, side));
        if !egress.iter().chain(&ingress).flatten().any(|differs| *differs) {
            return ControlFlow::Continue(());
        }
        for (at_from, from) in buckets.iter().enumerate() {
            for (at_to, to) in buckets.iter().enumerate() {
                let differs = egress[from.subject[0]][to.peer[0]] || ingress[to.subject[1]][from.peer[1]];
                let possible = || from.seen.iter().zip(&to.seen).all(|(f, t)| f.common_family(t));
                // Most pairs of buckets hold pairs to judge; these may hold none.
                let doubtful = at_from == at_to || from.seen.iter().zip(&to.seen).any(|(f, t)| f.pod != t.pod);
                if differs && possible() && (!doubtful || self.first(&from.ends, &to.ends, false).is_some()) {
                    let [was, is] = [0, 1].map(|v| self.passing(v, &from.seen[v], &to.seen[v]));
                    visitor((at_from, at_to), &was, &is)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// By subject and by peer: whether the policies of the subject say something else of the peer.
    fn cells(&self, buckets: &[Bucket], side: usize) -> Vec<Vec<bool>> {
        let mut subjects: BTreeMap<usize, [Option<GroupId>; 2]> = BTreeMap::new();
        let mut peers: BTreeMap<usize, [ClassId; 2]> = BTreeMap::new();
        for bucket in buckets {
            let [old, new] = &bucket.seen;
            subjects.insert(bucket.subject[side], [old.groups[side], new.groups[side]]);
            peers.insert(bucket.peer[side], [old.classes[side], new.classes[side]]);
        }
        let everything = PortSet::all();
        let [old, new] = [self.before, self.after].map(|table| table.half(SIDES[side]));
        let rows = subjects.into_values().map(|groups| {
            let audited = |half: &Half, group: Option<GroupId>| group.is_some_and(|id| half.group(id).audited);
            if audited(old, groups[0]) != audited(new, groups[1]) {
                return vec![true; peers.len()];
            }
            let row = peers.values().map(|classes| {
                let was = groups[0].map_or(&everything, |group| old.ports(group, classes[0]));
                let is = groups[1].map_or(&everything, |group| new.ports(group, classes[1]));
                was != is
            });
            row.collect()
        });
        rows.collect()
    }

    /// What passes between two ends that are not exempt, in one of the two clusters.
    fn passing(&self, version: usize, from: &Seen, to: &Seen) -> Passing {
        let table = [self.before, self.after][version];
        let side = |side: usize, subject: &Seen, peer: &Seen| {
            let half = table.half(SIDES[side]);
            let group = subject.groups[side];
            let would = group.map_or_else(PortSet::all, |group| half.ports(group, peer.classes[side]).clone());
            let audited = group.is_some_and(|group| half.group(group).audited);
            (if audited { PortSet::all() } else { would.clone() }, would)
        };
        let (egress, would_leave) = side(0, from, to);
        let (ingress, would_enter) = side(1, to, from);
        let passes = egress.intersection(&ingress);
        let told = passes.minus(&would_leave.intersection(&would_enter));
        (passes, told)
    }

    /// Pairs of a pod and a node's address that are exempt in just one of the clusters.
    fn moved(&self) -> Changed {
        let mut changed = Changed::default();
        let mut on_node: [BTreeMap<&Name, Vec<usize>>; 2] = Default::default();
        let mut hosts: BTreeSet<usize> = BTreeSet::new();
        for (at, end) in self.ends.iter().enumerate() {
            for (version, (table, end)) in [(self.before, &end.before), (self.after, &end.after)]
                .into_iter()
                .enumerate()
            {
                let Some(node) = table.addresses().node(end) else {
                    continue;
                };
                match end.pod() {
                    Some(_) => on_node[version].entry(node).or_default().push(at),
                    None => drop(hosts.insert(at)),
                }
            }
        }
        for host in hosts {
            let end = &self.ends[host];
            let nodes = [
                self.before.addresses().node(&end.before),
                self.after.addresses().node(&end.after),
            ];
            let neighbours = nodes.iter().zip(&on_node).filter_map(|(node, on)| on.get((*node)?));
            let neighbours: BTreeSet<usize> = neighbours.flatten().copied().collect();
            for pod in neighbours {
                for pair in [(pod, host), (host, pod)] {
                    if self.speaks_of(pair, true) {
                        let [was, is] = [0, 1].map(|version| self.judged(version, pair));
                        changed.add(pair, &was, &is);
                    }
                }
            }
        }
        changed
    }

    /// What passes between two ends, exempt or not.
    fn judged(&self, version: usize, (from, to): (usize, usize)) -> Passing {
        let table = [self.before, self.after][version];
        let [from, to] = [from, to].map(|at| [&self.ends[at].before, &self.ends[at].after][version]);
        match table.addresses().exemption(from, to) {
            Some(_) => (PortSet::all(), PortSet::none()),
            None => self.passing(version, &Seen::new(table, from), &Seen::new(table, to)),
        }
    }

    /// Whether a block speaks of a pair that it holds.
    fn speaks_of(&self, (from, to): (usize, usize), own_node: bool) -> bool {
        let (from, to) = (&self.ends[from], &self.ends[to]);
        let exempt = [
            self.before.addresses().exemption(&from.before, &to.before),
            self.after.addresses().exemption(&from.after, &to.after),
        ];
        let judged = match own_node {
            true => exempt[0] != exempt[1] && !exempt.contains(&Some(Exemption::Itself)),
            false => exempt == [None, None],
        };
        judged && from.before.same_family(&to.before) && from.after.same_family(&to.after)
    }

    pub(super) fn first(&self, from: &[usize], to: &[usize], own_node: bool) -> Option<(usize, usize)> {
        let mut pairs = from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t)));
        pairs.find(|pair| self.speaks_of(*pair, own_node))
    }

    fn pod_name(&self, at: usize) -> Option<&PodName> {
        match &self.ends[at].after {
            Endpoint::Pod(pod, _) => Some(&pod.name),
            Endpoint::Address(_) => None,
        }
    }

    /// Puts the two families of the same pods together: no pair crosses from one to the other.
    fn join_families(&self, blocks: Vec<Block>) -> Vec<Block> {
        let family = |at: &usize| self.ends[*at].after.address().map(|a| a.is_ipv4());
        let mut known: BTreeMap<(PortSet, Vec<Option<&PodName>>, Vec<Option<&PodName>>, bool), usize> = BTreeMap::new();
        let mut out: Vec<Block> = Vec::new();
        for block in blocks {
            let mut families = block.from.iter().chain(&block.to).map(family);
            let first = families.next().flatten();
            let Some(v4) = first.filter(|_| families.all(|f| f == first)) else {
                out.push(block);
                continue;
            };
            let pods = |ends: &[usize]| {
                let names: BTreeSet<Option<&PodName>> = ends.iter().map(|at| self.pod_name(*at)).collect();
                names.into_iter().collect::<Vec<_>>()
            };
            let key = |v4| (block.ports.clone(), pods(&block.from), pods(&block.to), v4);
            match known.remove(&key(!v4)) {
                Some(at) => {
                    let joined = &mut out[at];
                    for (ends, more) in [(&mut joined.from, block.from), (&mut joined.to, block.to)] {
                        ends.extend(more);
                        ends.sort_unstable();
                    }
                }
                None => {
                    known.insert(key(v4), out.len());
                    out.push(block);
                }
            }
        }
        out
    }
}
