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

/// The ports that the policies of an end admit with a peer, and whether they are audited; none when nothing judges it.
type Say<'t> = Option<(&'t PortSet, bool)>;

fn say<'t>(half: &'t Half, group: Option<GroupId>, class: ClassId) -> Say<'t> {
    let group = group?;
    Some((half.ports(group, class), half.group(group).audited))
}

/// What passes between two ends that are not exempt.
fn passing(egress: Say<'_>, ingress: Say<'_>) -> Passing {
    let [would_leave, would_enter] =
        [egress, ingress].map(|say| say.map_or_else(PortSet::all, |(ports, _)| ports.clone()));
    let audited = |say: Say<'_>| say.is_some_and(|(_, audited)| audited);
    let passes = match (audited(egress), audited(ingress)) {
        (false, false) => return (would_leave.intersection(&would_enter), PortSet::none()),
        (true, false) => would_enter.clone(),
        (false, true) => would_leave.clone(),
        (true, true) => PortSet::all(),
    };
    let told = passes.minus(&would_leave.intersection(&would_enter));
    (passes, told)
}

/// What the policies of one end say of a peer, before and after.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Cell<'t>([Say<'t>; 2]);

impl Cell<'_> {
    fn differs(&self) -> bool {
        let Cell([was, is]) = self;
        was != is
    }
}

/// The cells of a direction.
struct Cells<'t> {
    /// By subject and by peer: which of the list.
    numbers: Vec<Vec<u32>>,
    list: Vec<Cell<'t>>,
}

/// Pairs that changed by what changed: opened, closed, told, untold.
#[derive(Default)]
struct Changed {
    numbers: FxHashMap<PortSet, usize>,
    pairs: [BTreeMap<usize, Vec<(usize, usize)>>; 4],
}

impl Changed {
    /// The numbers of what changed; none where nothing did.
    fn parts(&mut self, (was, told_before): &Passing, (is, told_after): &Passing) -> [Option<usize>; 4] {
        let parts = [
            is.minus(was),
            was.minus(is),
            told_after.minus(told_before),
            told_before.minus(told_after),
        ];
        parts.map(|part| {
            let next = self.numbers.len();
            (!part.is_empty()).then(|| *self.numbers.entry(part).or_insert(next))
        })
    }

    fn add(&mut self, pair: (usize, usize), parts: [Option<usize>; 4]) {
        for (list, part) in self.pairs.iter_mut().zip(parts) {
            if let Some(number) = part {
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
        let mut known: FxHashMap<(u32, u32), [Option<usize>; 4]> = FxHashMap::default();
        // Every pair is looked at: nothing breaks off.
        let _ = self.visit(&buckets, |pair, cells, (was, is)| {
            let parts = *known.entry(cells).or_insert_with(|| changed.parts(was, is));
            changed.add(pair, parts);
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
                .visit(&self.buckets(), |_, _, (was, is)| match was == is {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                })
                .is_break()
    }

    /// Visits the pairs of buckets of which the policies of either end say something else: the numbers of their cells, egress and
    /// ingress, and what passed and what passes.
    fn visit(
        &self,
        buckets: &[Bucket],
        mut visitor: impl FnMut((usize, usize), (u32, u32), &(Passing, Passing)) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let [egress, ingress] = [0, 1].map(|side| self.cells(buckets, side));
        if !egress.list.iter().chain(&ingress.list).any(Cell::differs) {
            return ControlFlow::Continue(());
        }
        // Few combinations of cells stand for all pairs.
        let mut known: FxHashMap<(u32, u32), (Passing, Passing)> = FxHashMap::default();
        for (at_from, from) in buckets.iter().enumerate() {
            for (at_to, to) in buckets.iter().enumerate() {
                let cells = (
                    egress.numbers[from.subject[0]][to.peer[0]],
                    ingress.numbers[to.subject[1]][from.peer[1]],
                );
                let (leaving, entering) = (&egress.list[cells.0 as usize], &ingress.list[cells.1 as usize]);
                let possible = || from.seen.iter().zip(&to.seen).all(|(f, t)| f.common_family(t));
                // Most pairs of buckets hold pairs to judge; these may hold none, as two addresses of one pod do.
                let doubtful = at_from == at_to
                    || from.one_pod && to.one_pod
                    || from.seen.iter().zip(&to.seen).any(|(f, t)| f.pod != t.pod);
                if (leaving.differs() || entering.differs())
                    && possible()
                    && (!doubtful || self.first(&from.ends, &to.ends, false).is_some())
                {
                    let change = known.entry(cells).or_insert_with(|| {
                        let [was, is] = [0, 1].map(|version| passing(leaving.0[version], entering.0[version]));
                        (was, is)
                    });
                    visitor((at_from, at_to), cells, change)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// By subject and by peer: what the policies of the subject say of the peer.
    fn cells(&self, buckets: &[Bucket], side: usize) -> Cells<'_> {
        let mut subjects: BTreeMap<usize, [Option<GroupId>; 2]> = BTreeMap::new();
        let mut peers: BTreeMap<usize, [ClassId; 2]> = BTreeMap::new();
        for bucket in buckets {
            let [old, new] = &bucket.seen;
            subjects.insert(bucket.subject[side], [old.groups[side], new.groups[side]]);
            peers.insert(bucket.peer[side], [old.classes[side], new.classes[side]]);
        }
        let halves = self.tables().map(|table| table.half(SIDES[side]));
        let mut cells = Cells {
            numbers: Vec::with_capacity(subjects.len()),
            list: Vec::new(),
        };
        let mut known: FxHashMap<Cell<'_>, u32> = FxHashMap::default();
        for groups in subjects.into_values() {
            let row = peers.values().map(|classes| {
                let cell = Cell([0, 1].map(|version| say(halves[version], groups[version], classes[version])));
                *known.entry(cell).or_insert_with_key(|cell| {
                    cells.list.push(*cell);
                    (cells.list.len() - 1) as u32
                })
            });
            cells.numbers.push(row.collect());
        }
        cells
    }

    fn tables(&self) -> [&Table; 2] {
        [self.before, self.after]
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
                        let parts = changed.parts(&was, &is);
                        changed.add(pair, parts);
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
        if table.addresses().exemption(from, to).is_some() {
            return (PortSet::all(), PortSet::none());
        }
        let (from, to) = (Seen::new(table, from), Seen::new(table, to));
        let [egress, ingress] = SIDES.map(|side| table.half(side));
        passing(
            say(egress, from.groups[0], to.classes[0]),
            say(ingress, to.groups[1], from.classes[1]),
        )
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
        // By ports, pods of either side, and family: the block that waits for its other family.
        type Side<'a> = Vec<Option<&'a PodName>>;
        let mut known: BTreeMap<(PortSet, Side<'_>, Side<'_>, bool), usize> = BTreeMap::new();
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
