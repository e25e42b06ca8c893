//! What is known of the table in the kernel: as it was last listed, and what has been done to it since, so that it need not be
//! listed again after every transaction of ours or of another program.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::transaction::{Operation, Transaction};
use crate::nft::{Kernel, KernelError};

/// The table as it was last listed, and what transactions of our own have made of it since.
#[derive(Debug)]
pub(super) struct Seen {
    /// A digest of the rules of each chain, as the kernel shows them.
    rules: BTreeMap<String, u64>,
    /// The chains that we have changed since.
    unlearned: BTreeSet<String>,
    /// Whether we have changed anything since.
    followed: bool,
    generation: Option<u32>,
}

impl Seen {
    /// As it was listed, with the generation number of before that.
    pub(super) fn new(rules: BTreeMap<String, u64>, generation: Option<u32>) -> Self {
        Seen {
            rules,
            unlearned: BTreeSet::new(),
            followed: false,
            generation,
        }
    }

    /// The number of the newest transaction that is known to have been ours, or about tables of others.
    pub(super) fn generation(&self) -> Option<u32> {
        self.generation
    }

    /// Whether we have changed anything since.
    pub(super) fn is_followed(&self) -> bool {
        self.followed
    }

    /// Whether we have changed any rule since it was learned.
    pub(super) fn has_unlearned(&self) -> bool {
        !self.unlearned.is_empty()
    }

    /// What the rules look like now.
    pub(super) fn learn(&mut self, rules: BTreeMap<String, u64>) {
        self.rules = rules;
        self.unlearned.clear();
    }

    /// Passes over transactions about tables of others.
    pub(super) fn pass_over(&mut self, kernel: &impl Kernel) {
        let heard = self.generation.and_then(|known| kernel.heard(known));
        if let Some(heard) = heard.filter(|heard| heard.ours == 0) {
            self.generation = self.generation.max(Some(heard.newest));
        }
    }

    /// As [`apply`]. After an error the next look tells whether the table was changed.
    pub(super) fn follow(&mut self, kernel: &impl Kernel, transaction: &Transaction) -> Result<(), KernelError> {
        self.pass_over(kernel);
        let before = kernel.generation();
        kernel.apply(transaction)?;
        let last = before
            .filter(|_| self.generation == before)
            .and_then(|before| alone_until(kernel, before, transaction));
        let operations = || transaction.steps().flatten();
        let chains = operations().filter_map(Operation::chain);
        self.unlearned.extend(chains.map(|chain| chain.to_string()));
        // What rules fill is no part of what is compared.
        self.followed |= operations().any(|operation| !matches!(operation, Operation::Forget(..)));
        self.generation = last;
        Ok(())
    }

    /// Whether the rules that are known are as they were.
    pub(super) fn agrees(&self, rules: &BTreeMap<String, u64>) -> bool {
        let known = |(chain, _): &(&String, &u64)| !self.unlearned.contains(*chain);
        self.rules.iter().filter(known).eq(rules.iter().filter(known))
    }
}

/// Applies a transaction to a table of which this was known, and tells what is known of it then: all but the rules that we have
/// changed. Where somebody else has changed the table before or meanwhile, the number is not known, so that the next look is
/// at the whole table, with the rules that were known before.
pub(super) fn apply<K: Kernel>(
    kernel: &K,
    seen: Option<Seen>,
    transaction: &Transaction,
) -> Result<Option<Seen>, KernelError> {
    let Some(mut seen) = seen else {
        kernel.apply(transaction)?;
        return Ok(None);
    };
    seen.follow(kernel, transaction)?;
    Ok(Some(seen))
}

/// Applies a transaction that writes all rules, and looks at once what they look like, if that can be told before anybody else has
/// changed the table. Nobody has looked at the rest, so the number is not known.
pub(super) fn write<K: Kernel>(kernel: &K, transaction: &Transaction) -> Result<Option<Seen>, KernelError> {
    let before = kernel.generation();
    kernel.apply(transaction)?;
    let last = before.and_then(|before| alone_until(kernel, before, transaction));
    let rules = last.and_then(|_| kernel.rules().ok().flatten());
    let quiet = last.is_some_and(|last| is_quiet_since(kernel, last));
    Ok(rules.filter(|_| quiet).map(|rules| Seen::new(rules, None)))
}

/// Whether all transactions since this number are known to have been about tables of others.
pub(super) fn is_quiet_since(kernel: &impl Kernel, since: u32) -> bool {
    // Asked first: the kernel raises the number, then shows what is new, and then tells it. What is not told yet may be about ours.
    let newest = kernel.generation();
    let heard = kernel.heard(since).filter(|heard| heard.ours == 0);
    newest.is_some_and(|newest| newest <= heard.map_or(since, |heard| heard.newest))
}

/// The number of the last of a transaction's steps, or of a later one about tables of others, if nobody else has changed our
/// table since this number.
fn alone_until(kernel: &impl Kernel, before: u32, transaction: &Transaction) -> Option<u32> {
    let steps = transaction.steps().count();
    let alone = || {
        before
            .checked_add(u32::try_from(steps).ok()?)
            .filter(|last| kernel.generation() == Some(*last))
    };
    // Either the kernel tells that no more were about our table than these, or there were no others at all.
    kernel
        .heard(before)
        .filter(|heard| heard.ours == steps)
        .map(|heard| heard.newest)
        .or_else(alone)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::nft::listing::Listing;
    use crate::nft::monitor::Heard;

    /// Somebody else's transaction follows ours at once, and may be told only later.
    struct Busy {
        generation: Cell<u32>,
        /// The last that is told, and how many of those after ours are about our table.
        told: (u32, usize),
    }

    impl Kernel for Busy {
        fn apply(&self, _: &Transaction) -> Result<(), KernelError> {
            self.generation.set(9);
            Ok(())
        }

        fn check(&self, _: &Transaction) -> Result<(), KernelError> {
            Ok(())
        }

        fn read(&self) -> Result<Option<Listing>, KernelError> {
            Ok(None)
        }

        fn rules(&self) -> Result<Option<BTreeMap<String, u64>>, KernelError> {
            Ok(Some(BTreeMap::new()))
        }

        fn delete(&self) -> Result<(), KernelError> {
            Ok(())
        }

        fn generation(&self) -> Option<u32> {
            Some(self.generation.get())
        }

        fn heard(&self, since: u32) -> Option<Heard> {
            let (newest, ours) = match since {
                // Ours is the first after it.
                7 => (8, 1),
                _ => self.told,
            };
            Some(Heard { newest, ours })
        }
    }

    #[test]
    fn rules_are_only_learned_where_all_is_told() {
        let mut transaction = Transaction::default();
        transaction.add(Operation::AddTable).expect("valid");
        for (told, learned) in [((8, 0), false), ((9, 0), true), ((9, 1), false)] {
            let kernel = Busy {
                generation: Cell::new(7),
                told,
            };
            let seen = write(&kernel, &transaction).expect("applied");
            assert_eq!(seen.is_some(), learned, "{told:?}");
        }
    }
}
