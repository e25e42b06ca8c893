//! Rules as the compiler works with them: peers as numbered terms, ports as numbered sets.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;

use crate::labels::Name;
use crate::policy::{Action, IpBlock, NamespaceScope, Peer, Peers, PortMatch, Ports, Rule};
use crate::population::Declared;
use crate::ports::{PortSet, Protocol, Traffic};
use crate::table::Kind;

/// Port sets by number: equal sets have equal numbers. It remembers what it has worked out, until [`Sets::keep`] is told what
/// is in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sets {
    sets: Slab<PortSet>,
    ids: FxHashMap<PortSet, u32>,
    unions: FxHashMap<(u32, u32), u32>,
    /// The fixed ports of rules, and their names; many rules ask for the same.
    by_rule: FxHashMap<Ports, (u32, Arc<[PortName]>)>,
    /// How many sets were in use when that was last looked at.
    in_use: usize,
}

impl Sets {
    pub(crate) fn get(&self, id: u32) -> &PortSet {
        &self.sets[id as usize]
    }

    pub(crate) fn id(&mut self, set: PortSet) -> u32 {
        *self
            .ids
            .entry(set)
            .or_insert_with_key(|set| self.sets.insert(set.clone()) as u32)
    }

    pub(crate) fn union(&mut self, a: u32, b: u32) -> u32 {
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

    /// Whether so much is remembered that most of it may be of no use; looking is then paid for by what was worked out since.
    pub(crate) fn is_full(&self) -> bool {
        const ROOM: usize = 4096;
        self.sets.len() + self.unions.len() + self.by_rule.len() > ROOM + 8 * self.in_use
    }

    /// Forgets every set but these, and all that was worked out. Those that stay keep their numbers.
    pub(crate) fn keep(&mut self, live: impl Iterator<Item = u32>) {
        let live: FxHashSet<u32> = live.collect();
        let (sets, ids) = (&mut self.sets, &mut self.ids);
        sets.retain(|id, set| {
            let stays = live.contains(&(id as u32));
            if !stays {
                ids.remove(set);
            }
            stays
        });
        self.unions.clear();
        self.by_rule.clear();
        self.in_use = live.len();
        self.sets.shrink_to_fit();
        self.ids.shrink_to_fit();
    }
}

impl Sets {
    /// The union of many. Each step of a long chain of unions would be kept for ever, and they grow with its length.
    pub(crate) fn union_of(&mut self, ids: &[u32]) -> u32 {
        const FEW: usize = 8;
        match ids {
            [first, rest @ ..] if rest.len() < FEW => rest.iter().fold(*first, |sum, id| self.union(sum, *id)),
            _ => self.id(PortSet::union_of(ids.iter().map(|id| self.get(*id)))),
        }
    }

    /// The fixed ports that a rule asks for, and the names.
    fn of_rule(&mut self, ports: &Ports) -> (u32, Arc<[PortName]>) {
        if let Some((fixed, names)) = self.by_rule.get(ports) {
            return (*fixed, names.clone());
        }
        let (mut names, mut ranges) = (Vec::new(), Vec::new());
        let fixed = match ports {
            Ports::All => PortSet::all(),
            Ports::Listed(list) => {
                for port in list {
                    match port {
                        PortMatch::Range(protocol, range) => ranges.push((*protocol, *range)),
                        PortMatch::Named(protocol, name) => names.push((*protocol, name.clone())),
                    }
                }
                PortSet::of_ranges(ranges)
            }
        };
        let prepared: (u32, Arc<[PortName]>) = (self.id(fixed), names.into());
        self.by_rule.insert(ports.clone(), prepared.clone());
        prepared
    }
}

/// A port by name, as a rule asks for it.
pub(crate) type PortName = (Protocol, Name);

/// A rule, with its peers as numbered terms.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) action: Action,
    /// The kinds of peer that it matches whole.
    pub(crate) kinds: [bool; 6],
    /// Other terms, any of which matches.
    pub(crate) terms: Vec<u32>,
    pub(crate) fixed: u32,
    pub(crate) names: Arc<[PortName]>,
}

impl Prepared {
    /// Prepares a rule; `term` gives each peer that is not a whole kind its number.
    pub(crate) fn new(rule: &Rule, sets: &mut Sets, mut term: impl FnMut(&Peer) -> u32) -> Self {
        let (mut kinds, mut terms) = ([false; 6], Vec::new());
        match &rule.peers {
            Peers::All => kinds = [true; 6],
            Peers::Listed(peers) => {
                for peer in merged(peers) {
                    match whole_kinds(&peer) {
                        [] => terms.push(term(&peer)),
                        whole => whole.iter().for_each(|kind| kinds[*kind as usize] = true),
                    }
                }
            }
        }
        let (fixed, names) = sets.of_rule(&rule.ports);
        Prepared {
            action: rule.action,
            kinds,
            terms,
            fixed,
            names,
        }
    }
}

/// The peers of a rule, with the blocks of one CIDR as one: else each of thousands that differ in their exceptions would
/// count in each of the cells that the exceptions of the others cut.
fn merged(peers: &[Peer]) -> impl Iterator<Item = Cow<'_, Peer>> {
    let mut blocks: BTreeMap<IpNet, Cow<'_, Peer>> = BTreeMap::new();
    let mut rest = Vec::new();
    for peer in peers {
        let Peer::Block(block) = peer else {
            rest.push(Cow::Borrowed(peer));
            continue;
        };
        match blocks.entry(block.cidr) {
            Entry::Vacant(place) => {
                place.insert(Cow::Borrowed(peer));
            }
            Entry::Occupied(mut place) => {
                if let Peer::Block(known) = &**place.get() {
                    let except = common(&known.except, &block.except);
                    place.insert(Cow::Owned(Peer::Block(IpBlock::new(block.cidr, except))));
                }
            }
        }
    }
    rest.into_iter().chain(blocks.into_values())
}

/// The addresses that are in some network of both lists, all of one family.
fn common(left: &[IpNet], right: &[IpNet]) -> Vec<IpNet> {
    let [left, right] = [left, right].map(|nets| {
        let mut disjoint = IpNet::aggregate(&nets.to_vec());
        disjoint.sort_unstable();
        disjoint
    });
    let (mut out, mut left, mut right) = (Vec::new(), left.iter().peekable(), right.iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        if a.contains(*b) {
            out.push(**b);
        } else if b.contains(*a) {
            out.push(**a);
        }
        if a.broadcast() < b.broadcast() {
            left.next();
        } else {
            right.next();
        }
    }
    out
}

/// The kinds that a peer matches whole: "all pods", or a whole address family.
fn whole_kinds(peer: &Peer) -> &'static [Kind] {
    match peer {
        Peer::Pods(s) if s.pods.is_everything() && s.namespaces == NamespaceScope::everywhere() => {
            &[Kind::PodV4, Kind::PodV6, Kind::PodWithoutAddress]
        }
        Peer::Block(b) if b.cidr.prefix_len() == 0 && b.except.is_empty() => match b.cidr {
            ipnet::IpNet::V4(_) => &[Kind::PodV4, Kind::OutsideV4],
            ipnet::IpNet::V6(_) => &[Kind::PodV6, Kind::OutsideV6],
        },
        _ => &[],
    }
}

/// What names of ports stand for on a pod, each as the number of a port set; sorted, each name once.
pub(crate) type Resolved = Arc<[(PortName, u32)]>;

/// Resolves the names that are wanted among those that a pod declares.
pub(crate) fn resolve(declared: &Declared, wanted: impl Fn(&PortName) -> bool, sets: &mut Sets) -> Resolved {
    let mut out: Vec<(PortName, u32)> = Vec::new();
    for same in declared.chunk_by(|a, b| a.0 == b.0).filter(|same| wanted(&same[0].0)) {
        let numbers = same
            .iter()
            .map(|((protocol, _), number)| Traffic::Port(*protocol, *number));
        let ports = numbers.fold(PortSet::none(), |set, port| set.union(&PortSet::single(port)));
        out.push((same[0].0.clone(), sets.id(ports)));
    }
    out.into()
}
