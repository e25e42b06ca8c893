//! The table of one direction, kept while pods and policies come and go: groups x classes -> port sets.
//!
//! A *term* is a peer of some rule in use. A *signature* is all that the compiler can tell of a peer: its kind, the terms that match
//! it, its port names. Signatures with equal columns are one *class*. Changes are made at once to groups and columns;
//! [`Half::settle`] then sorts peers anew whose terms changed, and drops what is no longer used.

mod columns;
pub(crate) mod coverage;
mod groups;
mod origin;
mod peers;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;

pub use self::origin::Origin;
use crate::cells::{self, BlockCell};
use crate::changes::HalfChanges;
use crate::policy::{Direction, Peer, Tier};
use crate::population::Declared;
use crate::ports::PortSet;
use crate::rules::{PortName, Prepared, Resolved, Sets};
use crate::table::{Cell, Class, ClassId, Group, GroupId, Kind, PodIndex};

type SignatureId = u32;

/// Something that has a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum PeerKey {
    Address(IpAddr),
    Unaddressed(PodIndex),
    /// A cell of the address space, by its first address.
    Cell(IpAddr),
    Nowhere,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SignatureKey {
    kind: Kind,
    /// Sorted.
    pods: Arc<[u32]>,
    /// Sorted.
    blocks: Arc<[u32]>,
    /// Egress only: an ingress rule's names are those of the subject.
    names: Declared,
}

#[derive(Clone, Debug)]
struct Signature {
    key: SignatureKey,
    class: ClassId,
    members: FxHashSet<PeerKey>,
}

/// What a rule of a group adds for the peers that a term matches.
#[derive(Clone, Debug)]
struct Contribution {
    fixed: u32,
    names: Arc<[PortName]>,
}

type Contributions = FxHashMap<GroupId, Vec<Contribution>>;

#[derive(Clone, Debug)]
struct Term {
    peer: Peer,
    /// How often rules in use name it.
    uses: usize,
    /// Whether peers have been sorted by it.
    applied: bool,
    contributions: Contributions,
    signatures: FxHashSet<SignatureId>,
}

/// A policy that judges some group.
#[derive(Clone, Debug)]
struct Usage {
    rules: Arc<[Prepared]>,
    groups: usize,
    tiered: Option<Tier>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    policies: Vec<u32>,
    names: Resolved,
    audited: bool,
}

/// The table of one direction.
#[derive(Clone, Debug)]
pub struct Half {
    direction: Direction,
    sets: Sets,
    none: u32,
    no_terms: Arc<[u32]>,
    no_names: Resolved,
    none_declared: Declared,

    usages: FxHashMap<u32, Usage>,
    groups: Slab<Group>,
    group_ids: FxHashMap<GroupKey, GroupId>,
    /// By pod.
    group_of: Vec<Option<GroupId>>,
    tiered: BTreeSet<GroupId>,
    /// Rules that match a whole kind and name ports of the peer (egress only), by kind.
    by_kind: [Contributions; 6],

    terms: Slab<Term>,
    term_ids: FxHashMap<Peer, u32>,
    selections: crate::matching::SelectionIndex,
    /// By identity: the selections among the terms that match it; sorted.
    identity_terms: Vec<Arc<[u32]>>,
    cut: Vec<BlockCell>,

    signatures: Slab<Signature>,
    signature_ids: FxHashMap<SignatureKey, SignatureId>,
    classes: Slab<Class>,
    class_ids: FxHashMap<(Kind, Vec<(GroupId, u32)>), ClassId>,
    /// By address: the pod that has it, and its signature.
    peers: BTreeMap<IpAddr, (PodIndex, SignatureId)>,
    unaddressed: BTreeMap<PodIndex, SignatureId>,
    cells: Vec<SignatureId>,
    nowhere: SignatureId,

    pending: Pending,
}

/// What [`Half::settle`] has to look at.
#[derive(Clone, Debug, Default)]
struct Pending {
    terms: Vec<u32>,
    groups: Vec<GroupId>,
    signatures: Vec<SignatureId>,
    classes: Vec<ClassId>,
    /// Peers that have moved, with the class that they had.
    moved: FxHashMap<PeerKey, Option<ClassId>>,
    changes: HalfChanges,
}

impl Half {
    pub(crate) fn new(direction: Direction) -> Self {
        let mut sets = Sets::default();
        let none = sets.id(PortSet::none());
        let mut half = Half {
            direction,
            sets,
            none,
            no_terms: Arc::new([]),
            no_names: Arc::new([]),
            none_declared: Arc::new([]),
            usages: FxHashMap::default(),
            groups: Slab::new(),
            group_ids: FxHashMap::default(),
            group_of: Vec::new(),
            tiered: BTreeSet::new(),
            by_kind: Default::default(),
            terms: Slab::new(),
            term_ids: FxHashMap::default(),
            selections: Default::default(),
            identity_terms: Vec::new(),
            cut: Vec::new(),
            signatures: Slab::new(),
            signature_ids: FxHashMap::default(),
            classes: Slab::new(),
            class_ids: FxHashMap::default(),
            peers: BTreeMap::new(),
            unaddressed: BTreeMap::new(),
            cells: Vec::new(),
            nowhere: 0,
            pending: Pending::default(),
        };
        half.nowhere = half.sign(
            PeerKey::Nowhere,
            half.outside_key(Kind::OutsideWithoutAddress, half.no_terms.clone()),
        );
        half.recut();
        half
    }

    /// The direction.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The rows.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups.iter().map(|(id, group)| (GroupId(id as u32), group))
    }

    /// One row.
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0 as usize]
    }

    /// The columns.
    pub fn classes(&self) -> impl Iterator<Item = (ClassId, &Class)> {
        self.classes.iter().map(|(id, class)| (ClassId(id as u32), class))
    }

    /// One column.
    pub fn class(&self, id: ClassId) -> &Class {
        &self.classes[id.0 as usize]
    }

    /// One column, when there is one of this number.
    pub fn find_class(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(id.0 as usize)
    }

    /// The group of a pod; none when no policy judges it in this direction, so that everything passes. Everything passes in an audited group
    /// too: see [`Half::group_in_force`].
    pub fn group_of(&self, pod: PodIndex) -> Option<GroupId> {
        self.group_of.get(pod.0 as usize).copied().flatten()
    }

    /// The group of a pod whose cells are in force; none when everything passes, be it audited or not.
    pub fn group_in_force(&self, pod: PodIndex) -> Option<GroupId> {
        self.group_of(pod).filter(|id| !self.group(*id).audited)
    }

    /// What the policies that judge a group let every peer of a kind do at least. Every cell of that kind holds at least this.
    pub fn default_ports(&self, group: GroupId, kind: Kind) -> &PortSet {
        self.sets.get(self.group(group).defaults[kind as usize])
    }

    /// The cells of a class that differ from their group's default, sorted by group.
    pub fn column(&self, class: ClassId) -> impl Iterator<Item = (GroupId, &PortSet)> {
        self.class(class)
            .column
            .iter()
            .map(|(group, set)| (*group, self.sets.get(*set)))
    }

    /// The ports on which the policies that judge a group let it talk with a class; those of an audited group only would.
    pub fn ports(&self, group: GroupId, class: ClassId) -> &PortSet {
        let class = self.class(class);
        let set = match class.column.binary_search_by_key(&group, |(g, _)| *g) {
            Ok(at) => class.column[at].1,
            Err(_) => self.group(group).defaults[class.kind as usize],
        };
        self.sets.get(set)
    }

    /// Every known pod address with its class, sorted by address.
    pub fn peers(&self) -> impl Iterator<Item = (IpAddr, ClassId)> {
        self.peers
            .iter()
            .map(|(address, (_, signature))| (*address, self.class_of_signature(*signature)))
    }

    /// How many known pod addresses there are.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The class of a known pod's address; none of any other.
    pub fn class_of_peer(&self, address: IpAddr) -> Option<ClassId> {
        let (_, signature) = self.peers.get(&address)?;
        Some(self.class_of_signature(*signature))
    }

    /// Every pod without an address with its class, sorted.
    pub fn unaddressed(&self) -> impl Iterator<Item = (PodIndex, ClassId)> {
        self.unaddressed
            .iter()
            .map(|(pod, signature)| (*pod, self.class_of_signature(*signature)))
    }

    /// The class of a pod without an address.
    pub(crate) fn class_of_unaddressed(&self, pod: PodIndex) -> Option<ClassId> {
        self.unaddressed
            .get(&pod)
            .map(|signature| self.class_of_signature(*signature))
    }

    /// The class of a host-network pod whose address is not known.
    pub(crate) fn class_of_nowhere(&self) -> ClassId {
        self.class_of_signature(self.nowhere)
    }

    /// The class of every other address: sorted, disjoint ranges that cover both families without a gap. Two that touch are of
    /// different classes.
    pub fn cells(&self) -> Vec<Cell> {
        let mut out: Vec<Cell> = Vec::new();
        for (cell, signature) in self.cut.iter().zip(&self.cells) {
            let class = self.class_of_signature(*signature);
            match out.last_mut() {
                // A class holds one family only, so that ranges of two families never merge.
                Some(last) if last.class == class => last.range.last = cell.range.last,
                _ => out.push(Cell {
                    range: cell.range,
                    class,
                }),
            }
        }
        out
    }

    /// The class of an address.
    pub fn class_of_address(&self, address: IpAddr) -> ClassId {
        let signature = match self.peers.get(&address) {
            Some((_, signature)) => *signature,
            None => self.cells[cells::position(&self.cut, address)],
        };
        self.class_of_signature(signature)
    }

    fn class_of_signature(&self, id: SignatureId) -> ClassId {
        self.signatures[id as usize].class
    }
}
