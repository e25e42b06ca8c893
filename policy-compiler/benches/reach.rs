//! Who reaches whom, counted from a table: pods that stand in the same rows and columns are counted together, never
//! pair by pair.

use std::collections::HashMap;

use policy_compiler::policy::Direction;
use policy_compiler::ports::PortSet;
use policy_compiler::table::{ClassId, GroupId, Half, Kind, Table};

/// Where a pod stands in both halves: its rows as a subject, its columns as a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    groups: [Option<GroupId>; 2],
    classes: [ClassId; 2],
}

/// How many ordered pairs of pods have at least one port, each pod through its first address; host-network pods left out.
pub(crate) fn count(table: &Table) -> u64 {
    let places = places(table);
    let everything = PortSet::all();
    let mut sets = Sets::new(&everything);
    let cells = Direction::BOTH.map(|direction| Cells::new(table.half(direction), &mut sets));
    let meets = sets.meets();
    let mut pairs = 0;
    for (from, senders) in &places {
        for (to, receivers) in &places {
            let egress = cells[1].set(from.groups[1], to.classes[1]);
            let ingress = cells[0].set(to.groups[0], from.classes[0]);
            let kinds = [from, to].map(|place| table.half(Direction::Ingress).class(place.classes[0]).kind);
            let passes = meets[egress as usize * sets.sets.len() + ingress as usize] && same_family(kinds);
            if passes {
                pairs += senders * receivers;
            } else if from == to {
                // Each pod reaches itself, and none of the others here.
                pairs += senders;
            }
        }
    }
    pairs
}

/// The same number, asked pair by pair.
pub(crate) fn count_pair_by_pair(table: &Table) -> u64 {
    let ends: Vec<_> = table
        .pods()
        .filter(|(_, p)| !p.host_network)
        .map(|(_, p)| table.addresses().endpoints(p).swap_remove(0))
        .collect();
    let reachable = |from| ends.iter().filter(|to| !table.allowed(from, to).is_empty()).count() as u64;
    ends.iter().map(reachable).sum()
}

fn same_family(kinds: [Kind; 2]) -> bool {
    !matches!(kinds, [Kind::PodV4, Kind::PodV6] | [Kind::PodV6, Kind::PodV4])
}

fn places(table: &Table) -> Vec<(Place, u64)> {
    let mut places: HashMap<Place, u64> = HashMap::new();
    for (index, pod) in table.pods() {
        if pod.host_network {
            continue;
        }
        let end = table.addresses().endpoints(pod).swap_remove(0);
        let place = Place {
            groups: Direction::BOTH.map(|d| table.half(d).group_of(index)),
            classes: Direction::BOTH.map(|d| table.class_of(d, &end)),
        };
        *places.entry(place).or_default() += 1;
    }
    places.into_iter().collect()
}

/// Port sets by number; 0 is everything.
struct Sets<'a> {
    sets: Vec<&'a PortSet>,
    ids: HashMap<&'a PortSet, u32>,
}

impl<'a> Sets<'a> {
    fn new(everything: &'a PortSet) -> Self {
        let mut sets = Sets {
            sets: Vec::new(),
            ids: HashMap::new(),
        };
        sets.id(everything);
        sets
    }

    fn id(&mut self, set: &'a PortSet) -> u32 {
        *self.ids.entry(set).or_insert_with(|| {
            self.sets.push(set);
            self.sets.len() as u32 - 1
        })
    }

    /// For each two sets, whether they have a port in common.
    fn meets(&self) -> Vec<bool> {
        let pairs = self.sets.iter().flat_map(|a| self.sets.iter().map(|b| (*a, *b)));
        pairs.map(|(a, b)| !a.intersection(b).is_empty()).collect()
    }
}

/// The port sets of a half by number, group by class; one more row for pods that nothing judges.
struct Cells {
    classes: usize,
    sets: Vec<u32>,
}

impl Cells {
    fn new<'a>(half: &'a Half, sets: &mut Sets<'a>) -> Self {
        // Numbers may have gaps; the last row is that of pods that nothing judges.
        let classes = half.classes().map(|(id, _)| id.0 as usize + 1).max().unwrap_or(0);
        let groups = half.groups().map(|(id, _)| id.0 as usize + 1).max().unwrap_or(0);
        let mut cells = vec![0; (groups + 1) * classes];
        for (group, _) in half.groups() {
            let defaults = Kind::ALL.map(|kind| sets.id(half.default_ports(group, kind)));
            for (class, is) in half.classes() {
                cells[group.0 as usize * classes + class.0 as usize] = defaults[is.kind as usize];
            }
        }
        for (class, _) in half.classes() {
            for (group, ports) in half.column(class) {
                cells[group.0 as usize * classes + class.0 as usize] = sets.id(ports);
            }
        }
        Cells { classes, sets: cells }
    }

    fn set(&self, group: Option<GroupId>, class: ClassId) -> u32 {
        let row = group.map_or(self.sets.len() / self.classes - 1, |group| group.0 as usize);
        self.sets[row * self.classes + class.0 as usize]
    }
}
