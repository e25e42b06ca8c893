//! What differs between two compiled clusters: connections that were opened or closed, what audit tells, who is isolated, and which objects
//! changed. Two tables and the ends to compare go in; few blocks of pairs that changed alike come out. Works on groups and classes, never on
//! pods times pods.

mod blocks;
mod comparison;
mod isolation;
mod objects;
mod pods;

use crate::cluster::Endpoint;
use crate::ports::PortSet;
use crate::table::Table;

use comparison::Comparison;
pub use isolation::{Isolation, isolation};
pub use objects::{Aspect, Change, NamespaceChange, Object, PolicyChange, Revert, namespaces, policies};
pub use pods::{Pods, ends};

/// One end of connections as it was and as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// In the cluster before.
    pub before: Endpoint,
    /// In the cluster after.
    pub after: Endpoint,
}

/// Sources and destinations of which every pair changed alike, save those that have no connection to judge: a pod with itself, two
/// addresses of different families, and (unless the block is about just these) a pod with its own node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The numbers of the sources among the ends, sorted.
    pub from: Vec<usize>,
    /// The numbers of the destinations, sorted.
    pub to: Vec<usize>,
    /// The ports of the destination that it is about.
    pub ports: PortSet,
    /// Whether it is about pods and nodes of which only one cluster has the one on the other, where everything passes.
    pub own_node: bool,
}

/// The connections that differ. No two blocks of one list speak of one pair and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// What passes after and did not before.
    pub opened: Vec<Block>,
    /// What passed before and does not after.
    pub closed: Vec<Block>,
    /// What audit tells after (it passes, and would not if audited policies were in force) and did not before.
    pub told: Vec<Block>,
    /// What audit told before and does not after.
    pub untold: Vec<Block>,
}

impl Differences {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty())
    }

    fn lists(&self) -> [&Vec<Block>; 4] {
        [&self.opened, &self.closed, &self.told, &self.untold]
    }
}

/// Compares every pair of these ends, on every port.
pub fn differences(before: &Table, after: &Table, ends: &[End]) -> Differences {
    Comparison { before, after, ends }.differences()
}

/// The first pair of a block, by number, of which it speaks.
pub fn example<'e>(before: &Table, after: &Table, ends: &'e [End], block: &Block) -> Option<(&'e End, &'e End)> {
    let comparison = Comparison { before, after, ends };
    let pair = comparison.first(&block.from, &block.to, block.own_node);
    pair.map(|(from, to)| (&ends[from], &ends[to]))
}
