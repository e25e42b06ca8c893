//! The table that follows events against the table compiled from scratch, on random sequences of events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_compiler::cells::AddressRange;
use policy_compiler::changes::Changes;
use policy_compiler::cluster::{Cluster, PodName};
use policy_compiler::compile::{Compiler, Event, Subjects, compile};
use policy_compiler::policy::{Direction, PolicyName};
use policy_compiler::ports::PortSet;
use policy_compiler::table::{Kind, Table};
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;

/// A peer, by what it is and not by a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Address(IpAddr),
    Pod(PodName),
    Range(AddressRange),
}

/// A group: its policies, whether they isolate, whether they are audited, and the cell of each class, by the class's first member.
type Row = (Vec<PolicyName>, bool, bool, BTreeMap<Peer, PortSet>);

/// One direction of a table without the numbers that it gives: two tables of the same meaning, split into groups and classes the same
/// way, are the same value.
#[derive(Debug, PartialEq)]
struct Meaning {
    /// By the members.
    groups: BTreeMap<BTreeSet<PodName>, Row>,
    classes: BTreeMap<BTreeSet<Peer>, Kind>,
}

fn meaning(table: &Table, direction: Direction) -> Meaning {
    let half = table.half(direction);
    let mut classes: BTreeMap<_, BTreeSet<Peer>> = BTreeMap::new();
    for (address, class) in half.peers() {
        classes.entry(class).or_default().insert(Peer::Address(address));
    }
    for (pod, class) in half.unaddressed() {
        classes
            .entry(class)
            .or_default()
            .insert(Peer::Pod(table.pod(pod).name.clone()));
    }
    for cell in half.cells() {
        classes.entry(cell.class).or_default().insert(Peer::Range(cell.range));
    }
    let groups = half.groups().map(|(id, group)| {
        let members = group.members.iter().map(|p| table.pod(*p).name.clone()).collect();
        let cells = classes
            .iter()
            .map(|(class, peers)| (peers.first().expect("a member").clone(), half.ports(id, *class).clone()));
        let policies = table.policy_names(group).cloned().collect();
        (members, (policies, group.isolated, group.audited, cells.collect()))
    });
    let groups = groups.collect();
    // The one class without members here is that of host-network pods without an address.
    assert_eq!(
        half.classes().count(),
        classes.len() + 1,
        "a class that nobody has was left behind"
    );
    let classes = classes
        .into_iter()
        .map(|(class, peers)| (peers, half.class(class).kind))
        .collect();
    Meaning { groups, classes }
}

/// What another copy of the table would hold, kept up to date by what each event is said to have changed.
#[derive(Debug, Default, PartialEq)]
struct Copy {
    peers: BTreeMap<IpAddr, u32>,
    columns: BTreeMap<u32, BTreeMap<u32, PortSet>>,
    subjects: BTreeMap<u32, u32>,
    /// Whether each group is audited.
    groups: BTreeMap<u32, bool>,
    cells: Vec<(AddressRange, u32)>,
}

impl Copy {
    fn whole(table: &Table, direction: Direction) -> Self {
        let half = table.half(direction);
        let column = |id| half.column(id).map(|(g, p)| (g.0, p.clone())).collect();
        Copy {
            peers: half.peers().map(|(a, c)| (a, c.0)).collect(),
            columns: half.classes().map(|(id, _)| (id.0, column(id))).collect(),
            subjects: table
                .pods()
                .filter_map(|(pod, _)| Some((pod.0, half.group_of(pod)?.0)))
                .collect(),
            groups: half.groups().map(|(id, group)| (id.0, group.audited)).collect(),
            cells: half.cells().iter().map(|c| (c.range, c.class.0)).collect(),
        }
    }

    fn follow(&mut self, table: &Table, direction: Direction, changes: &Changes) {
        let half = table.half(direction);
        let changes = changes.half(direction);
        let now: BTreeMap<IpAddr, u32> = half.peers().map(|(a, c)| (a, c.0)).collect();
        for address in &changes.peers {
            match now.get(address) {
                Some(class) => self.peers.insert(*address, *class),
                None => self.peers.remove(address),
            };
        }
        for class in &changes.classes {
            match half.classes().find(|(id, _)| id == class) {
                Some((id, _)) => {
                    let column = half.column(id).map(|(g, p)| (g.0, p.clone())).collect();
                    self.columns.insert(id.0, column);
                }
                None => {
                    self.columns.remove(&class.0);
                }
            }
        }
        for id in &changes.groups {
            match half.groups().find(|(known, _)| known == id) {
                Some((_, group)) => self.groups.insert(id.0, group.audited),
                None => self.groups.remove(&id.0),
            };
        }
        for pod in &changes.subjects {
            match half.group_of(*pod) {
                Some(group) => self.subjects.insert(pod.0, group.0),
                None => self.subjects.remove(&pod.0),
            };
        }
        if changes.cells {
            self.cells = half.cells().iter().map(|c| (c.range, c.class.0)).collect();
        }
    }
}

fn check(start: Cluster, events: Vec<Event>, subjects: Subjects) -> Result<(), TestCaseError> {
    let mut cluster = start;
    let mut compiler = Compiler::new(&cluster, subjects.clone());
    let mut copies = Direction::BOTH.map(|d| Copy::whole(compiler.table(), d));
    for (number, event) in events.into_iter().enumerate() {
        event.clone().apply_to(&mut cluster);
        let said = format!("step {number}: {event:?}");
        let changes = compiler.apply(event);
        let scratch = compile(&cluster, &subjects);
        for (direction, copy) in Direction::BOTH.into_iter().zip(&mut copies) {
            prop_assert_eq!(
                meaning(compiler.table(), direction),
                meaning(&scratch, direction),
                "{}: {}",
                direction,
                said
            );
            copy.follow(compiler.table(), direction, &changes);
            prop_assert_eq!(
                &*copy,
                &Copy::whole(compiler.table(), direction),
                "{}: {}",
                direction,
                said
            );
        }
        prop_assert_eq!(compiler.table().addresses(), scratch.addresses(), "{}", said);
        prop_assert_eq!(compiler.events_to(&cluster), Vec::new(), "{}", said);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn following_events_equals_compiling_from_scratch((start, events) in testing::history(300)) {
        check(start, events, Subjects::All)?;
    }

    #[test]
    fn following_events_on_one_node_equals_compiling_from_scratch((start, events) in testing::history(300)) {
        check(start, events, Subjects::Node("node-1".into()))?;
    }

    /// A snapshot after another is the events between them.
    #[test]
    fn the_events_to_a_snapshot_lead_there(
        (before, after) in (testing::cluster(Tiers::All), testing::cluster(Tiers::All)),
    ) {
        let mut compiler = Compiler::new(&before, Subjects::All);
        for event in compiler.events_to(&after) {
            compiler.apply(event);
        }
        prop_assert_eq!(compiler.events_to(&after), Vec::new());
        let scratch = compile(&after, &Subjects::All);
        for direction in Direction::BOTH {
            prop_assert_eq!(meaning(compiler.table(), direction), meaning(&scratch, direction));
        }
    }

    /// A relist tells everything again, and what is gone as gone: nothing changes but that.
    #[test]
    fn a_relist_of_the_same_changes_nothing(cluster in testing::cluster(Tiers::All)) {
        let mut compiler = Compiler::new(&cluster, Subjects::All);
        let pods = cluster.pods.values().map(|p| Event::Pod(Arc::new((**p).clone())));
        let namespaces = cluster.namespaces.values().cloned().map(Event::Namespace);
        let nodes = cluster.nodes.values().cloned().map(Event::Node);
        let policies = cluster.policies.values().cloned().map(Event::Policy);
        for event in pods.chain(namespaces).chain(nodes).chain(policies) {
            let said = format!("{event:?}");
            prop_assert!(compiler.apply(event).is_empty(), "{}", said);
        }
    }
}
