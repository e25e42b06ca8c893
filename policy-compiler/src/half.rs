//! Builds the table of one direction: subjects with the policies that select them in, groups x classes out.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::cells;
use crate::cluster::{AddressBook, Pod};
use crate::compile::Population;
use crate::labels::Name;
use crate::matching::SelectionIndex;
use crate::policy::{Action, Direction, Peer, Peers, Policy, PortMatch, Ports, Rule, Tier};
use crate::ports::{PortSet, Protocol};
use crate::table::{Cell, Class, ClassId, Group, GroupId, Half, Kind, PodIndex};

/// A pod with the policies that judge it in this direction, in their order of evaluation.
pub(crate) struct Subject {
    pub(crate) pod: PodIndex,
    pub(crate) policies: Vec<u32>,
}

/// Port sets by number: equal sets have equal numbers.
#[derive(Default)]
struct Sets {
    sets: Vec<PortSet>,
    ids: FxHashMap<PortSet, u32>,
    unions: FxHashMap<(u32, u32), u32>,
}

impl Sets {
    fn id(&mut self, set: PortSet) -> u32 {
        let next = self.sets.len() as u32;
        *self.ids.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            next
        })
    }

    fn union(&mut self, a: u32, b: u32) -> u32 {
        if a == b {
            return a;
        }
        let key = (a.min(b), a.max(b));
        if let Some(known) = self.unions.get(&key) {
            return *known;
        }
        let id = self.id(self.sets[a as usize].union(&self.sets[b as usize]));
        self.unions.insert(key, id);
        id
    }
}

/// A rule, with its peers and port names as numbers.
struct Prepared {
    action: Action,
    /// The kinds of peer that it matches whole.
    kinds: [bool; 6],
    /// Other terms, any of which matches.
    terms: Vec<u32>,
    fixed: PortSet,
    names: Vec<u32>,
}

/// What is in use: peers that are neither everything nor all of a kind, and names of ports.
#[derive(Default)]
struct InUse<'a> {
    terms: FxHashMap<&'a Peer, u32>,
    names: FxHashMap<(Protocol, &'a Name), u32>,
}

impl<'a> InUse<'a> {
    fn prepare(&mut self, rule: &'a Rule) -> Prepared {
        let mut prepared = Prepared {
            action: rule.action,
            kinds: [false; 6],
            terms: Vec::new(),
            fixed: PortSet::none(),
            names: Vec::new(),
        };
        match &rule.peers {
            Peers::All => prepared.kinds = [true; 6],
            Peers::Listed(peers) => {
                for peer in peers {
                    let whole = whole_kinds(peer);
                    if whole.is_empty() {
                        let next = self.terms.len() as u32;
                        prepared.terms.push(*self.terms.entry(peer).or_insert(next));
                    }
                    for kind in whole {
                        prepared.kinds[*kind as usize] = true;
                    }
                }
            }
        }
        match &rule.ports {
            Ports::All => prepared.fixed = PortSet::all(),
            Ports::Listed(ports) => {
                for port in ports {
                    match port {
                        PortMatch::Range(protocol, range) => {
                            prepared.fixed = prepared.fixed.union(&PortSet::of(*protocol, *range));
                        }
                        PortMatch::Named(protocol, name) => {
                            let next = self.names.len() as u32;
                            prepared
                                .names
                                .push(*self.names.entry((*protocol, name)).or_insert(next));
                        }
                    }
                }
            }
        }
        prepared
    }

    /// The names among `wanted` that stand for something on a pod, with what they stand for; sorted.
    fn resolve(&self, wanted: impl Fn(u32) -> bool, pod: &Pod, sets: &mut Sets) -> Resolved {
        let mut out: Resolved = pod
            .ports
            .iter()
            .filter_map(|port| {
                let name = port.name.as_ref()?;
                let id = *self.names.get(&(port.protocol, name))?;
                wanted(id).then(|| (id, sets.id(pod.named_port(port.protocol, name))))
            })
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }
}

/// The kinds that a peer matches whole: "all pods", or a whole address family.
fn whole_kinds(peer: &Peer) -> &'static [Kind] {
    match peer {
        Peer::Pods(s) if s.pods.is_everything() && s.namespaces == crate::policy::NamespaceScope::everywhere() => {
            &[Kind::PodV4, Kind::PodV6, Kind::PodWithoutAddress]
        }
        Peer::Block(b) if b.cidr.prefix_len() == 0 && b.except.is_empty() => match b.cidr {
            ipnet::IpNet::V4(_) => &[Kind::PodV4, Kind::OutsideV4],
            ipnet::IpNet::V6(_) => &[Kind::PodV6, Kind::OutsideV6],
        },
        _ => &[],
    }
}

/// Names of ports, by number, each with the number of the port set that it stands for on some pod; sorted.
type Resolved = Vec<(u32, u32)>;

/// What a matching term adds to a group.
struct Contribution {
    group: u32,
    fixed: u32,
    names: Vec<u32>,
}

/// What the compiler can tell peers apart by.
#[derive(PartialEq, Eq, Hash)]
struct Signature {
    kind: Kind,
    /// The number of its set of pod selections, and of its set of blocks.
    pods: u32,
    blocks: u32,
    /// Names of ports in use with what they stand for on it.
    names: Resolved,
}

/// Lists by number: equal lists have equal numbers.
#[derive(Default)]
struct Lists {
    lists: Vec<Vec<u32>>,
    ids: FxHashMap<Vec<u32>, u32>,
}

impl Lists {
    fn id(&mut self, list: Vec<u32>) -> u32 {
        let next = self.lists.len() as u32;
        *self.ids.entry(list).or_insert_with_key(|list| {
            self.lists.push(list.clone());
            next
        })
    }
}

/// The rows: their rules, and what each term adds to which of them.
struct Rows<'a> {
    direction: Direction,
    policies: &'a [Arc<Policy>],
    prepared: FxHashMap<u32, Vec<Prepared>>,
    groups: Vec<Group>,
    /// What the names of ports stand for on the members of a group (ingress only), by group.
    resolved: Vec<Resolved>,
    /// By term.
    by_term: Vec<Vec<Contribution>>,
    /// Rules that match a whole kind and name ports of the peer (egress only), by kind.
    by_kind: [Vec<Contribution>; 6],
    /// Groups with a policy of another tier: a rule of theirs can take away, so their cells are worked out one by one.
    tiered: Vec<u32>,
}

/// Builds the table of a direction.
pub(crate) fn build(
    direction: Direction,
    population: &Population<'_>,
    policies: &[Arc<Policy>],
    addresses: &AddressBook,
    subjects: Vec<Subject>,
) -> Half {
    let mut sets = Sets::default();
    let mut in_use = InUse::default();
    let mut prepared: FxHashMap<u32, Vec<Prepared>> = FxHashMap::default();
    for policy in subjects.iter().flat_map(|s| &s.policies) {
        prepared.entry(*policy).or_insert_with(|| {
            let rules = policies[*policy as usize].rules(direction).unwrap_or_default();
            rules.iter().map(|rule| in_use.prepare(rule)).collect()
        });
    }
    let mut rows = Rows {
        direction,
        policies,
        prepared,
        groups: Vec::new(),
        resolved: Vec::new(),
        by_term: (0..in_use.terms.len()).map(|_| Vec::new()).collect(),
        by_kind: Default::default(),
        tiered: Vec::new(),
    };
    let mut group_of = vec![None; population.pods.len()];
    rows.group_subjects(subjects, population, &in_use, &mut sets, &mut group_of);
    rows.contribute(&mut sets);

    // What matches each identity, and each cell of the address space.
    let mut selections = SelectionIndex::default();
    let mut blocks = Vec::new();
    for (peer, id) in &in_use.terms {
        match peer {
            Peer::Pods(selection) => selections.insert(selection, *id),
            Peer::Block(block) => blocks.push((block, *id)),
        }
    }
    let cut = cells::cut(blocks);
    let mut lists = Lists::default();
    let nothing = lists.id(Vec::new());
    let identity_terms: Vec<u32> = population
        .matches(&selections, |_| true)
        .into_iter()
        .map(|terms| lists.id(terms))
        .collect();

    let mut columns = Columns {
        rows: &rows,
        sets: &mut sets,
        by_signature: FxHashMap::default(),
        by_column: FxHashMap::default(),
        classes: Vec::new(),
    };
    let mut peers = Vec::new();
    let mut unaddressed = Vec::new();
    for (index, (pod, identity)) in (0..).zip(population.pods.iter().zip(&population.identity_of)) {
        let Some(identity) = identity else { continue };
        let names = match direction {
            Direction::Egress if !in_use.names.is_empty() => in_use.resolve(|_| true, pod, columns.sets),
            _ => Vec::new(),
        };
        let mut addressed = false;
        let owned = |a: &&std::net::IpAddr| addresses.pod(**a).is_some_and(|p| p.name == pod.name);
        for address in pod.addresses.iter().filter(owned) {
            addressed = true;
            let blocks = lists.id(cells::find(&cut, *address).blocks.clone());
            let signature = Signature {
                kind: Kind::of_pod(Some(*address)),
                pods: identity_terms[*identity as usize],
                blocks,
                names: names.clone(),
            };
            peers.push((*address, columns.class(signature, &lists)));
        }
        if !addressed {
            let signature = Signature {
                kind: Kind::PodWithoutAddress,
                pods: identity_terms[*identity as usize],
                blocks: nothing,
                names,
            };
            unaddressed.push((PodIndex(index), columns.class(signature, &lists)));
        }
    }
    peers.sort_unstable();
    peers.dedup();
    let mut outside: Vec<Cell> = Vec::new();
    for cell in &cut {
        let kind = Kind::outside(cell.range.first);
        let blocks = lists.id(cell.blocks.clone());
        let class = columns.class(
            Signature {
                kind,
                pods: nothing,
                blocks,
                names: Vec::new(),
            },
            &lists,
        );
        match outside.last_mut() {
            Some(last) if last.class == class => last.range.last = cell.range.last,
            _ => outside.push(Cell {
                range: cell.range,
                class,
            }),
        }
    }
    let signature = Signature {
        kind: Kind::OutsideWithoutAddress,
        pods: nothing,
        blocks: nothing,
        names: Vec::new(),
    };
    let nowhere = columns.class(signature, &lists);
    let classes = columns.classes;
    Half {
        direction,
        sets: sets.sets,
        groups: rows.groups,
        classes,
        group_of,
        peers,
        unaddressed,
        cells: outside,
        nowhere,
    }
}

impl Rows<'_> {
    /// Sorts subjects into groups.
    fn group_subjects(
        &mut self,
        subjects: Vec<Subject>,
        population: &Population<'_>,
        in_use: &InUse<'_>,
        sets: &mut Sets,
        group_of: &mut [Option<GroupId>],
    ) {
        let mut ids: FxHashMap<(Vec<u32>, Resolved), u32> = FxHashMap::default();
        for Subject { pod, policies } in subjects {
            let resolved = match self.direction {
                Direction::Ingress if !in_use.names.is_empty() => {
                    let named = |id| {
                        let rules = policies.iter().flat_map(|p| &self.prepared[p]);
                        rules.flat_map(|r| &r.names).any(|n| *n == id)
                    };
                    in_use.resolve(named, &population.pods[pod.0 as usize], sets)
                }
                _ => Vec::new(),
            };
            let id = *ids
                .entry((policies, resolved))
                .or_insert_with_key(|(policies, resolved)| {
                    let isolated = policies
                        .iter()
                        .any(|p| self.policies[*p as usize].isolates(self.direction));
                    self.groups.push(Group {
                        policies: policies.clone(),
                        isolated,
                        members: Vec::new(),
                        defaults: [0; 6],
                    });
                    self.resolved.push(resolved.clone());
                    self.groups.len() as u32 - 1
                });
            self.groups[id as usize].members.push(pod);
            group_of[pod.0 as usize] = Some(GroupId(id));
        }
    }

    /// Works out the defaults of each group, and what each term adds to it.
    fn contribute(&mut self, sets: &mut Sets) {
        for id in 0..self.groups.len() as u32 {
            let group = &self.groups[id as usize];
            let plain = |p: &u32| self.policies[*p as usize].tier == Tier::NetworkPolicy;
            if !group.policies.iter().all(plain) {
                self.tiered.push(id);
                let none = sets.id(PortSet::none());
                self.groups[id as usize].defaults = [none; 6];
                continue;
            }
            let mut defaults = [sets.id(PortSet::none()); 6];
            for rule in group.policies.iter().flat_map(|p| &self.prepared[p]) {
                let fixed = sets.id(rule.fixed.clone());
                let (fixed, names) = match self.direction {
                    // A name is the same number for every peer: that of the group's own pods.
                    Direction::Ingress => {
                        let resolved = self.resolved[id as usize]
                            .iter()
                            .filter(|(n, _)| rule.names.contains(n));
                        (resolved.fold(fixed, |set, (_, ports)| sets.union(set, *ports)), &[][..])
                    }
                    Direction::Egress => (fixed, &rule.names[..]),
                };
                for (kind, default) in defaults.iter_mut().enumerate() {
                    if rule.kinds[kind] {
                        *default = sets.union(*default, fixed);
                        if !names.is_empty() {
                            self.by_kind[kind].push(Contribution {
                                group: id,
                                fixed,
                                names: names.to_vec(),
                            });
                        }
                    }
                }
                for term in &rule.terms {
                    self.by_term[*term as usize].push(Contribution {
                        group: id,
                        fixed,
                        names: names.to_vec(),
                    });
                }
            }
            self.groups[id as usize].defaults = defaults;
        }
    }

    /// The cell of a group with policies of several tiers, by set algebra: what is still open goes from tier to tier.
    fn tiered_cell(&self, group: u32, kind: Kind, terms: &[u32], names: &[(u32, u32)], sets: &Sets) -> PortSet {
        let names = match self.direction {
            Direction::Ingress => &self.resolved[group as usize][..],
            Direction::Egress => names,
        };
        let matching =
            |rule: &&Prepared| rule.kinds[kind as usize] || rule.terms.iter().any(|t| terms.binary_search(t).is_ok());
        let ports = |rule: &Prepared| {
            let named = names.iter().filter(|(n, _)| rule.names.contains(n));
            named.fold(rule.fixed.clone(), |set, (_, id)| set.union(&sets.sets[*id as usize]))
        };
        let (mut open, mut allowed) = (PortSet::all(), PortSet::none());
        let group = &self.groups[group as usize];
        let tier_of = |p: &u32| std::mem::discriminant(&self.policies[*p as usize].tier);
        for tier in group.policies.chunk_by(|a, b| tier_of(a) == tier_of(b)) {
            let rules = tier.iter().flat_map(|p| &self.prepared[p]).filter(matching);
            if self.policies[tier[0] as usize].tier == Tier::NetworkPolicy {
                let union = rules.fold(PortSet::none(), |set, rule| set.union(&ports(rule)));
                allowed = allowed.union(&union.intersection(&open));
                open = PortSet::none();
                continue;
            }
            let mut passed = PortSet::none();
            for rule in rules {
                let hit = ports(rule).intersection(&open).minus(&passed);
                match rule.action {
                    Action::Accept => {
                        allowed = allowed.union(&hit);
                        open = open.minus(&hit);
                    }
                    Action::Deny => open = open.minus(&hit),
                    Action::Pass => passed = passed.union(&hit),
                }
            }
        }
        allowed.union(&open)
    }
}

/// The columns as they are found: one for each signature, then merged where nothing tells them apart.
struct Columns<'a, 'b> {
    rows: &'a Rows<'b>,
    sets: &'a mut Sets,
    by_signature: FxHashMap<Signature, ClassId>,
    by_column: FxHashMap<(Kind, Vec<(GroupId, u32)>), ClassId>,
    classes: Vec<Class>,
}

impl Columns<'_, '_> {
    fn class(&mut self, signature: Signature, lists: &Lists) -> ClassId {
        if let Some(known) = self.by_signature.get(&signature) {
            return *known;
        }
        let column = self.column(&signature, lists);
        let next = ClassId(self.classes.len() as u32);
        let class = *self
            .by_column
            .entry((signature.kind, column))
            .or_insert_with_key(|(kind, column)| {
                self.classes.push(Class {
                    kind: *kind,
                    column: column.clone(),
                });
                next
            });
        self.by_signature.insert(signature, class);
        class
    }

    fn column(&mut self, signature: &Signature, lists: &Lists) -> Vec<(GroupId, u32)> {
        let kind = signature.kind;
        let default = |group: u32| self.rows.groups[group as usize].defaults[kind as usize];
        let (pods, blocks) = (
            &lists.lists[signature.pods as usize],
            &lists.lists[signature.blocks as usize],
        );
        let by_kind = if signature.names.is_empty() {
            &[][..]
        } else {
            &self.rows.by_kind[kind as usize][..]
        };
        let by_term = pods
            .iter()
            .chain(blocks)
            .flat_map(|term| &self.rows.by_term[*term as usize]);
        let mut found: FxHashMap<u32, u32> = FxHashMap::default();
        for contribution in by_term.chain(by_kind) {
            let named = signature.names.iter().filter(|(n, _)| contribution.names.contains(n));
            let ports = named.fold(contribution.fixed, |set, (_, ports)| self.sets.union(set, *ports));
            let cell = found
                .entry(contribution.group)
                .or_insert_with(|| default(contribution.group));
            *cell = self.sets.union(*cell, ports);
        }
        if !self.rows.tiered.is_empty() {
            let mut terms: Vec<u32> = pods.iter().chain(blocks).copied().collect();
            terms.sort_unstable();
            for group in &self.rows.tiered {
                let cell = self.rows.tiered_cell(*group, kind, &terms, &signature.names, self.sets);
                found.insert(*group, self.sets.id(cell));
            }
        }
        let mut column: Vec<(GroupId, u32)> = found
            .into_iter()
            .filter(|(group, set)| *set != default(*group))
            .map(|(g, s)| (GroupId(g), s))
            .collect();
        column.sort_unstable();
        column
    }
}
