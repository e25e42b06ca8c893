//! Numbers for classes and range chains of one side, kept as long as what they stand for, so that a change touches only what
//! changed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use policy_compiler::ports::{PortRange, Protocol};
use policy_compiler::table::ClassId;

use super::names::{ChainName, Column, Side};

/// The numbers of the classes that have a column.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    by_class: BTreeMap<ClassId, u32>,
}

impl Numbers {
    pub(super) fn get(&self, class: ClassId) -> Option<u32> {
        self.by_class.get(&class).copied()
    }

    /// The classes that have numbers.
    pub(super) fn classes(&self) -> impl Iterator<Item = ClassId> {
        self.by_class.keys().copied()
    }

    /// Takes the number of a class away; answers with it.
    pub(super) fn free(&mut self, class: ClassId) -> Option<u32> {
        self.by_class.remove(&class)
    }

    /// Gives numbers to classes that have none. The peers of such a class, and where each went before, are its claims: it takes
    /// the number, among those `freed`, that most of them had, when no other class has a better claim to it. Else it takes one that is not in use;
    /// the order of the classes then decides. What was taken is no longer `freed`.
    pub(super) fn give(
        &mut self,
        classes: &[ClassId],
        claims: impl Iterator<Item = (ClassId, ChainName)>,
        freed: &mut BTreeSet<u32>,
    ) {
        let mut count: BTreeMap<(ClassId, u32), usize> = BTreeMap::new();
        for (class, chain) in claims {
            if let ChainName::Column(_, Column::Class(number)) = chain
                && freed.contains(&number)
            {
                *count.entry((class, number)).or_insert(0) += 1;
            }
        }
        let mut count: Vec<((ClassId, u32), usize)> = count.into_iter().collect();
        // The most peers first; then an order that is the same on every run.
        count.sort_by_key(|(claim, peers)| (Reverse(*peers), *claim));
        let mut taken: BTreeSet<u32> = self.by_class.values().copied().chain(freed.iter().copied()).collect();
        for ((class, number), _) in count {
            if !self.by_class.contains_key(&class) && freed.remove(&number) {
                self.by_class.insert(class, number);
            }
        }
        // One that was freed just now is not taken by a class that has no claim to it: its chain and sets go.
        let mut next = 0;
        for class in classes {
            self.by_class.entry(*class).or_insert_with(|| {
                while !taken.insert(next) {
                    next += 1;
                }
                next
            });
        }
    }
}

/// A list of port ranges, and the chain to go on to.
pub(super) type RangeList = (Vec<(Protocol, PortRange)>, ChainName);

/// Chains of port ranges of one side, by what they compare with.
#[derive(Clone, Debug)]
pub(super) struct RangeChains {
    side: Side,
    by_list: BTreeMap<RangeList, RangeChain>,
    lists: BTreeMap<u32, RangeList>,
}

#[derive(Clone, Debug)]
struct RangeChain {
    number: u32,
    /// How many elements lead to it.
    users: usize,
}

impl RangeChains {
    pub(super) fn new(side: Side) -> Self {
        RangeChains {
            side,
            by_list: BTreeMap::new(),
            lists: BTreeMap::new(),
        }
    }

    /// One more element leads to the chain of this list; the chain, and whether it is to be made.
    pub(super) fn enter(&mut self, list: RangeList) -> (ChainName, bool) {
        if let Some(chain) = self.by_list.get_mut(&list) {
            chain.users += 1;
            return (ChainName::Ranges(self.side, chain.number), false);
        }
        let number = (0..).find(|n| !self.lists.contains_key(n)).unwrap_or(u32::MAX);
        self.lists.insert(number, list.clone());
        self.by_list.insert(list, RangeChain { number, users: 1 });
        (ChainName::Ranges(self.side, number), true)
    }

    /// One element fewer leads to a chain.
    pub(super) fn leave(&mut self, chain: ChainName) {
        let ChainName::Ranges(_, number) = chain else { return };
        if let Some(chain) = self.lists.get(&number).and_then(|list| self.by_list.get_mut(list)) {
            chain.users = chain.users.saturating_sub(1);
        }
    }

    /// Forgets the chains to which no element leads; answers with their names.
    pub(super) fn drop_unused(&mut self) -> Vec<ChainName> {
        let mut unused = Vec::new();
        self.by_list.retain(|_, chain| {
            if chain.users == 0 {
                unused.push(chain.number);
            }
            chain.users > 0
        });
        for number in &unused {
            self.lists.remove(number);
        }
        let name = |number| ChainName::Ranges(self.side, number);
        unused.into_iter().map(name).collect()
    }
}
