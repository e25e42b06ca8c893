//! The compiled answer: for each direction a table of subject groups by peer classes, each cell a set of ports.
//! Everything else (a pod's allow set, one connection's verdict, the kernel's rules) is a view of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cells::AddressRange;
use crate::cluster::{AddressBook, Endpoint, Pod, PodName};
use crate::diagnostics::Diagnostic;
use crate::policy::{Direction, Policy, PolicyName};
use crate::ports::PortSet;

/// A pod, as an index into [`Table::pods`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIndex(pub u32);

/// A subject group, as an index into [`Half::groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// A peer class, as an index into [`Half::classes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u32);

/// What sort of peer a class holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Pods, through their IPv4 address.
    PodV4,
    /// Pods, through their IPv6 address.
    PodV6,
    /// Pods that have no address: no `ipBlock` matches them.
    PodWithoutAddress,
    /// IPv4 addresses that are no pod's.
    OutsideV4,
    /// IPv6 addresses that are no pod's.
    OutsideV6,
    /// Host-network pods whose node's address is not known: only a rule without peers matches them.
    OutsideWithoutAddress,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Kind; 6] = [
        Kind::PodV4,
        Kind::PodV6,
        Kind::PodWithoutAddress,
        Kind::OutsideV4,
        Kind::OutsideV6,
        Kind::OutsideWithoutAddress,
    ];

    pub(crate) fn of_pod(address: Option<IpAddr>) -> Kind {
        match address {
            Some(IpAddr::V4(_)) => Kind::PodV4,
            Some(IpAddr::V6(_)) => Kind::PodV6,
            None => Kind::PodWithoutAddress,
        }
    }

    pub(crate) fn outside(address: IpAddr) -> Kind {
        if address.is_ipv4() {
            Kind::OutsideV4
        } else {
            Kind::OutsideV6
        }
    }
}

/// Pods that the same policies select, with the same numbers behind the names of ports in use: one row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The policies that judge it in this direction, in their order of evaluation; indices into [`Table::policies`].
    pub policies: Vec<u32>,
    /// Whether a NetworkPolicy isolates it.
    pub isolated: bool,
    /// Its pods, sorted.
    pub members: Vec<PodIndex>,
    pub(crate) defaults: [u32; 6],
}

/// Peers that every policy in use treats alike: one column of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// What sort of peer it holds.
    pub kind: Kind,
    /// The cells that differ from the default of their group, sorted by group.
    pub(crate) column: Vec<(GroupId, u32)>,
}

/// A range of addresses that are no known pod's, all of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The range. A known pod's address may lie within; it is looked up first, among [`Half::peers`].
    pub range: AddressRange,
    /// The class.
    pub class: ClassId,
}

/// The table of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    pub(crate) direction: Direction,
    pub(crate) sets: Vec<PortSet>,
    pub(crate) groups: Vec<Group>,
    pub(crate) classes: Vec<Class>,
    /// By pod.
    pub(crate) group_of: Vec<Option<GroupId>>,
    /// Every known pod address, sorted.
    pub(crate) peers: Vec<(IpAddr, ClassId)>,
    /// Pods without an address, sorted.
    pub(crate) unaddressed: Vec<(PodIndex, ClassId)>,
    pub(crate) cells: Vec<Cell>,
    /// The class of [`Kind::OutsideWithoutAddress`].
    pub(crate) nowhere: ClassId,
}

impl Half {
    /// The direction.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The rows; [`GroupId`] points here.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// One row.
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0 as usize]
    }

    /// The columns; [`ClassId`] points here.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// One column.
    pub fn class(&self, id: ClassId) -> &Class {
        &self.classes[id.0 as usize]
    }

    /// The group of a pod; none when no policy judges it in this direction, so that everything passes.
    pub fn group_of(&self, pod: PodIndex) -> Option<GroupId> {
        self.group_of[pod.0 as usize]
    }

    /// What a group lets every peer of a kind do at least. Every cell of that kind holds at least this.
    pub fn default_ports(&self, group: GroupId, kind: Kind) -> &PortSet {
        &self.sets[self.group(group).defaults[kind as usize] as usize]
    }

    /// The cells of a class that differ from their group's default, sorted by group.
    pub fn column(&self, class: ClassId) -> impl Iterator<Item = (GroupId, &PortSet)> {
        self.class(class)
            .column
            .iter()
            .map(|(group, set)| (*group, &self.sets[*set as usize]))
    }

    /// The ports on which a group and a class may talk.
    pub fn ports(&self, group: GroupId, class: ClassId) -> &PortSet {
        let class = self.class(class);
        let set = match class.column.binary_search_by_key(&group, |(g, _)| *g) {
            Ok(at) => class.column[at].1,
            Err(_) => self.group(group).defaults[class.kind as usize],
        };
        &self.sets[set as usize]
    }

    /// Every known pod address with its class, sorted by address.
    pub fn peers(&self) -> &[(IpAddr, ClassId)] {
        &self.peers
    }

    /// Every pod without an address with its class, sorted.
    pub fn unaddressed(&self) -> &[(PodIndex, ClassId)] {
        &self.unaddressed
    }

    /// The class of every other address: sorted, disjoint ranges that cover both families without a gap.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The class of an address.
    pub fn class_of_address(&self, address: IpAddr) -> ClassId {
        match self.peers.binary_search_by_key(&address, |(a, _)| *a) {
            Ok(at) => self.peers[at].1,
            Err(_) => {
                let at = self.cells.partition_point(|c| c.range.last < address);
                self.cells[at.min(self.cells.len() - 1)].class
            }
        }
    }
}

/// What may reach a pod, or what a pod may reach: every peer that has at least one port, by peer. Canonical: two allow sets of
/// the same meaning are the same value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowSet {
    /// Known pods, each through one address.
    pub pods: BTreeMap<(PodName, Option<IpAddr>), PortSet>,
    /// Addresses that are no known pod's, as sorted ranges that neither overlap nor touch another one with the same ports.
    /// A known pod's address may lie within; only `pods` speaks of it.
    pub addresses: Vec<(AddressRange, PortSet)>,
}

/// The compiled policies of a cluster, or of one node.
#[derive(Clone, Debug)]
pub struct Table {
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) policies: Vec<Arc<Policy>>,
    pub(crate) addresses: AddressBook,
    pub(crate) ingress: Half,
    pub(crate) egress: Half,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Table {
    /// Live pods, sorted by name; [`PodIndex`] points here.
    pub fn pods(&self) -> &[Arc<Pod>] {
        &self.pods
    }

    /// One pod.
    pub fn pod(&self, index: PodIndex) -> &Arc<Pod> {
        &self.pods[index.0 as usize]
    }

    /// Where a live pod stands in [`Table::pods`].
    pub fn pod_index(&self, name: &PodName) -> Option<PodIndex> {
        let at = self.pods.binary_search_by(|p| p.name.cmp(name)).ok()?;
        Some(PodIndex(at as u32))
    }

    /// Who has which address.
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// All policies, in their order of evaluation.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// The names of the policies that judge a group.
    pub fn policy_names<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a PolicyName> {
        group.policies.iter().map(|p| &self.policies[*p as usize].name)
    }

    /// The table of a direction.
    pub fn half(&self, direction: Direction) -> &Half {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// What is odd about the input.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The class of an end of a connection.
    pub fn class_of(&self, direction: Direction, peer: &Endpoint) -> ClassId {
        let half = self.half(direction);
        match (peer.address(), peer.pod()) {
            (Some(address), _) => half.class_of_address(address),
            (None, Some(pod)) => self
                .pod_index(&pod.name)
                .and_then(|index| {
                    let at = half.unaddressed.binary_search_by_key(&index, |(p, _)| *p).ok()?;
                    Some(half.unaddressed[at].1)
                })
                .unwrap_or(half.nowhere),
            (None, None) => half.nowhere,
        }
    }

    /// The ports on which a connection passes one end's policies in one direction.
    pub fn side(&self, direction: Direction, subject: &Endpoint, peer: &Endpoint) -> PortSet {
        let half = self.half(direction);
        let group = subject
            .pod()
            .and_then(|pod| self.pod_index(&pod.name))
            .and_then(|pod| half.group_of(pod));
        match group {
            Some(group) => half.ports(group, self.class_of(direction, peer)).clone(),
            None => PortSet::all(),
        }
    }

    /// The ports of the destination on which connections pass: the egress of the source and the ingress of the
    /// destination, exemptions included. Nothing passes between addresses of two families. A pod that was no subject of
    /// the compilation counts as judged by no policy.
    pub fn allowed(&self, from: &Endpoint, to: &Endpoint) -> PortSet {
        if !from.same_family(to) {
            return PortSet::none();
        }
        if self.addresses.exemption(from, to).is_some() {
            return PortSet::all();
        }
        let egress = self.side(Direction::Egress, from, to);
        egress.intersection(&self.side(Direction::Ingress, to, from))
    }

    /// The allow set of a pod, from policies alone: that it reaches itself and its node is not in it.
    pub fn allow_set(&self, pod: PodIndex, direction: Direction) -> AllowSet {
        let half = self.half(direction);
        let group = half.group_of(pod);
        let everything = PortSet::all();
        let ports = |class: ClassId| match group {
            Some(group) => half.ports(group, class),
            None => &everything,
        };
        let mut set = AllowSet {
            pods: BTreeMap::new(),
            addresses: Vec::new(),
        };
        let addressed = half.peers.iter().filter_map(|(address, class)| {
            let peer = self.addresses.pod(*address)?;
            Some(((peer.name.clone(), Some(*address)), *class))
        });
        let unaddressed = half
            .unaddressed
            .iter()
            .map(|(peer, class)| ((self.pod(*peer).name.clone(), None), *class));
        for (peer, class) in addressed.chain(unaddressed) {
            let ports = ports(class);
            if !ports.is_empty() {
                set.pods.insert(peer, ports.clone());
            }
        }
        for cell in &half.cells {
            let ports = ports(cell.class);
            if ports.is_empty() {
                continue;
            }
            match set.addresses.last_mut() {
                Some((range, last))
                    if *last == *ports && crate::cells::successor(range.last) == Some(cell.range.first) =>
                {
                    range.last = cell.range.last;
                }
                _ => set.addresses.push((cell.range, ports.clone())),
            }
        }
        set
    }
}
