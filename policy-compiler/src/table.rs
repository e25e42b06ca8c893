//! The compiled answer: for each direction a table of subject groups by peer classes, each cell a set of ports.
//! Everything else (a pod's allow set, one connection's verdict, the kernel's rules) is a view of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use slab::Slab;

use crate::addresses::AddressBook;
use crate::cells::AddressRange;
use crate::cluster::{Endpoint, Pod, PodName};
pub use crate::half::{Half, Origin};
use crate::labels::Name;
use crate::policy::{Direction, Policy, PolicyName};
use crate::population::Population;
use crate::ports::PortSet;
use crate::rules::Resolved;

/// A live pod's number in a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIndex(pub u32);

/// A subject group's number in a [`Half`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// A peer class's number in a [`Half`].
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
#[derive(Clone, Debug)]
pub struct Group {
    /// The policies that judge it in this direction, in their order of evaluation; see [`Table::policy`].
    pub policies: Vec<u32>,
    /// Whether a NetworkPolicy that is in force isolates it.
    pub isolated: bool,
    /// Whether these policies are audited, all of them: what they deny passes, and is told. Its cells are what they would allow.
    pub audited: bool,
    /// Its pods, sorted.
    pub members: BTreeSet<PodIndex>,
    pub(crate) defaults: [u32; 6],
    /// What the names of ports in its rules stand for on its pods (ingress only).
    pub(crate) names: Resolved,
}

/// Peers that every policy in use treats alike: one column of the table.
#[derive(Clone, Debug)]
pub struct Class {
    /// What sort of peer it holds.
    pub kind: Kind,
    /// The cells that differ from the default of their group, sorted by group.
    pub(crate) column: Vec<(GroupId, u32)>,
    /// How many signatures share it.
    pub(crate) signatures: usize,
}

/// A range of addresses that are no known pod's, all of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The range. A known pod's address may lie within; it is looked up first, among [`Half::peers`].
    pub range: AddressRange,
    /// The class.
    pub class: ClassId,
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

/// Which group judges a pod: that in force, or the audited one as well.
type GroupOf = fn(&Half, PodIndex) -> Option<GroupId>;

/// The compiled policies of a cluster, or of one node.
#[derive(Clone, Debug)]
pub struct Table {
    pub(crate) population: Population,
    pub(crate) policies: Slab<Arc<Policy>>,
    pub(crate) addresses: AddressBook,
    /// The ranges of the pods of each node whose pods are subjects.
    pub(crate) pod_ranges: BTreeMap<Name, Vec<IpNet>>,
    pub(crate) ingress: Half,
    pub(crate) egress: Half,
}

impl Table {
    /// Live pods with their numbers; a freshly compiled table has them sorted by name.
    pub fn pods(&self) -> impl Iterator<Item = (PodIndex, &Arc<Pod>)> {
        self.population
            .pods
            .iter()
            .map(|(index, pod)| (PodIndex(index as u32), pod))
    }

    /// How many live pods there are.
    pub fn pod_count(&self) -> usize {
        self.population.pods.len()
    }

    /// One pod.
    pub fn pod(&self, index: PodIndex) -> &Arc<Pod> {
        self.population.pod(index)
    }

    /// The number of a live pod.
    pub fn pod_index(&self, name: &PodName) -> Option<PodIndex> {
        self.population.index(name)
    }

    /// Who has which address.
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// The ranges (`spec.podCIDRs`) that the nodes whose pods are subjects take their pods' addresses from, as far as these nodes
    /// are known and say so; host bits are cleared.
    pub fn pod_ranges(&self) -> BTreeSet<IpNet> {
        self.pod_ranges.values().flatten().map(IpNet::trunc).collect()
    }

    /// One policy, by the number that a group gives.
    pub fn policy(&self, id: u32) -> &Arc<Policy> {
        &self.policies[id as usize]
    }

    /// The names of the policies that judge a group.
    pub fn policy_names<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a PolicyName> {
        group.policies.iter().map(|p| &self.policy(*p).name)
    }

    /// The table of a direction.
    pub fn half(&self, direction: Direction) -> &Half {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The class of an end of a connection.
    pub fn class_of(&self, direction: Direction, peer: &Endpoint) -> ClassId {
        let half = self.half(direction);
        match (peer.address(), peer.pod()) {
            (Some(address), _) => half.class_of_address(address),
            (None, Some(pod)) => {
                let index = self.pod_index(&pod.name);
                index
                    .and_then(|index| half.class_of_unaddressed(index))
                    .unwrap_or_else(|| half.class_of_nowhere())
            }
            (None, None) => half.class_of_nowhere(),
        }
    }

    /// The ports on which a connection passes one end's policies in one direction. Audited policies take nothing away.
    pub fn side(&self, direction: Direction, subject: &Endpoint, peer: &Endpoint) -> PortSet {
        self.ports_of(direction, subject, peer, Half::group_in_force)
    }

    /// The ports of the destination on which connections pass: the egress of the source and the ingress of the
    /// destination, exemptions included. Nothing passes between addresses of two families. A pod that was no subject of
    /// the compilation counts as judged by no policy, and one that only audited policies judge is let do everything.
    pub fn allowed(&self, from: &Endpoint, to: &Endpoint) -> PortSet {
        self.both_sides(from, to, Half::group_in_force)
    }

    /// The ports on which connections would still pass if the policies of audited groups were in force: never more than those of
    /// [`Table::allowed`]; what is missing is what audit tells.
    pub fn would_allow(&self, from: &Endpoint, to: &Endpoint) -> PortSet {
        self.both_sides(from, to, Half::group_of)
    }

    fn both_sides(&self, from: &Endpoint, to: &Endpoint, group: GroupOf) -> PortSet {
        if !from.same_family(to) {
            return PortSet::none();
        }
        if self.addresses.exemption(from, to).is_some() {
            return PortSet::all();
        }
        let egress = self.ports_of(Direction::Egress, from, to, group);
        egress.intersection(&self.ports_of(Direction::Ingress, to, from, group))
    }

    fn ports_of(&self, direction: Direction, subject: &Endpoint, peer: &Endpoint, group: GroupOf) -> PortSet {
        let half = self.half(direction);
        let pod = subject.pod().and_then(|pod| self.pod_index(&pod.name));
        match pod.and_then(|pod| group(half, pod)) {
            Some(group) => half.ports(group, self.class_of(direction, peer)).clone(),
            None => PortSet::all(),
        }
    }

    /// The allow set of a pod, from policies alone: that it reaches itself and its node is not in it. Audited policies take nothing away.
    pub fn allow_set(&self, pod: PodIndex, direction: Direction) -> AllowSet {
        let half = self.half(direction);
        self.allow_set_of(half, half.group_in_force(pod))
    }

    /// The allow set that a pod would have if the audited policies were in force; none when none of them judges it in this direction.
    pub fn audited_allow_set(&self, pod: PodIndex, direction: Direction) -> Option<AllowSet> {
        let half = self.half(direction);
        let group = half.group_of(pod).filter(|id| half.group(*id).audited)?;
        Some(self.allow_set_of(half, Some(group)))
    }

    fn allow_set_of(&self, half: &Half, group: Option<GroupId>) -> AllowSet {
        let everything = PortSet::all();
        let ports = |class: ClassId| match group {
            Some(group) => half.ports(group, class),
            None => &everything,
        };
        let mut set = AllowSet {
            pods: BTreeMap::new(),
            addresses: Vec::new(),
        };
        let addressed = half.peers().filter_map(|(address, class)| {
            let peer = self.addresses.pod(address)?;
            Some(((peer.name.clone(), Some(address)), class))
        });
        let unaddressed = half
            .unaddressed()
            .map(|(peer, class)| ((self.pod(peer).name.clone(), None), class));
        for (peer, class) in addressed.chain(unaddressed) {
            let ports = ports(class);
            if !ports.is_empty() {
                set.pods.insert(peer, ports.clone());
            }
        }
        for cell in half.cells() {
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
