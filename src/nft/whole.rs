//! The whole table: what start-up and the last resort write, whatever is in the kernel.

use super::draft::{add_rules, additions};
use super::interim::interim;
use super::listing::Listing;
use super::ruleset::Ruleset;
use super::transaction::{Operation, OperationError, Transaction};

/// The whole table anew, whatever is there now. Packets are judged by the old rules or by the new ones, at first without
/// interval maps.
///
/// None leaks, because what is not found is denied, and for the same reason a few may be lost (measured: one in ten
/// replacements, of a flow of 6,000 a second): a packet that is on its way through the old rules when the new ones come
/// into force looks its peer up in a map that is gone. [`restore`] knows when this can be avoided.
pub fn replace(new: &Ruleset) -> Result<Transaction, OperationError> {
    let mut transaction = Transaction::default();
    // `delete` needs a table to be there, and `destroy` is newer than the oldest nft that is supported.
    transaction.add(Operation::AddTable)?;
    transaction.add(Operation::DeleteTable)?;
    transaction.add(Operation::AddTable)?;
    let interim = interim(new);
    let first = interim.as_ref().unwrap_or(new);
    additions(
        first.chains.iter().collect(),
        first.sets.iter().collect(),
        &mut transaction,
    )?;
    if let Some(interim) = interim {
        transaction.next_step();
        for (name, rules) in new
            .chains
            .iter()
            .filter(|(name, rules)| interim.chains.get(name) != Some(rules))
        {
            transaction.add(Operation::FlushChain(*name))?;
            add_rules(*name, rules, &mut transaction)?;
        }
    }
    Ok(transaction)
}

/// The whole table, where this has been found. When only rules can be wrong, only rules are written: no packet is lost,
/// and none of the elements is touched, so it takes milliseconds whatever their number. Otherwise [`replace`].
///
/// The kernel may refuse that, when a chain is of another type than its name tells; then [`replace`] is what is left.
pub fn restore(found: Option<&Listing>, new: &Ruleset) -> Result<Transaction, OperationError> {
    let expected = Listing::of(new);
    let fits = |found: &&Listing| {
        let ours = found.chains.keys().all(|name| expected.chains.contains_key(name));
        // What passed in audit mode is not to stand among what was dropped.
        let same_mode = found.audits() == expected.audits();
        ours && same_mode && !found.flagged && found.sets == expected.sets && found.definitions == expected.definitions
    };
    if found.filter(fits).is_none() {
        return replace(new);
    }
    let mut transaction = Transaction::default();
    for name in new.chains.keys() {
        transaction.add(Operation::AddChain(*name))?;
        transaction.add(Operation::FlushChain(*name))?;
    }
    for (name, rules) in &new.chains {
        add_rules(*name, rules, &mut transaction)?;
    }
    Ok(transaction)
}
