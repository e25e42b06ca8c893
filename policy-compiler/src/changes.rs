//! What an event changed in the table: what a kernel, or any other copy of the table, must bring up to date.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::policy::Direction;
use crate::table::{ClassId, GroupId, PodIndex};

/// What changed in one direction. A number may stand for something that is gone, or for something new: the table tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HalfChanges {
    /// Groups that came, went, or were replaced by another of the same number.
    pub groups: BTreeSet<GroupId>,
    /// Pods that were added to a group, or removed from one.
    pub subjects: BTreeSet<PodIndex>,
    /// Classes that came, went, were replaced, or whose cells or [origin](crate::table::Half::origins) may have changed.
    pub classes: BTreeSet<ClassId>,
    /// Of those, the ones that came; another class may have had such a number before. All of its peers are among those that changed.
    pub created: BTreeSet<ClassId>,
    /// Pod addresses that came, went, or are of another class now.
    pub peers: BTreeSet<IpAddr>,
    /// Pods without an address that came, went, or are of another class now.
    pub unaddressed: BTreeSet<PodIndex>,
    /// Whether [`crate::table::Half::cells`] may have changed.
    pub cells: bool,
}

impl HalfChanges {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == HalfChanges::default()
    }

    /// Adds what changed later.
    pub fn extend(&mut self, later: HalfChanges) {
        self.groups.extend(later.groups);
        self.subjects.extend(later.subjects);
        self.classes.extend(later.classes);
        self.created.extend(later.created);
        self.peers.extend(later.peers);
        self.unaddressed.extend(later.unaddressed);
        self.cells |= later.cells;
    }
}

/// What changed in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of the ingress half.
    pub ingress: HalfChanges,
    /// Of the egress half.
    pub egress: HalfChanges,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty()
    }

    /// Adds what changed later: whoever follows many events at once need look at each thing only once.
    pub fn extend(&mut self, later: Changes) {
        self.ingress.extend(later.ingress);
        self.egress.extend(later.egress);
    }

    /// What changed in one direction.
    pub fn half(&self, direction: Direction) -> &HalfChanges {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
