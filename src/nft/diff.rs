//! From one content of the table to another, by as little as it takes.
//!
//! A set of intervals that is created and used in one transaction is seen empty for a moment, and hash sets are not
//! (measured). So a new interval map comes with everything else that is new in a first step, in which no rule in use speaks
//! of it; the second step, still one transaction, changes what is in use and removes what is not needed any more.

use super::interim::interim;
use super::listing::Listing;
use super::names::{ChainName, KeyType, SetName};
use super::ruleset::{Element, Elements, Key, Rule, Ruleset};
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
    additions(&Ruleset::default(), interim.as_ref().unwrap_or(new), &mut transaction)?;
    if let Some(interim) = interim {
        transaction.next_step();
        changes(&interim, new, &mut transaction)?;
    }
    Ok(transaction)
}

/// The whole table, where this has been found. When only rules can be wrong, only rules are written: no packet is lost,
/// and none of the elements is touched, so it takes milliseconds whatever their number. Otherwise [`replace`].
///
/// The kernel may refuse that, when a chain or set is of another type than its name and elements tell; then [`replace`] is
/// what is left.
pub fn restore(found: Option<&Listing>, new: &Ruleset) -> Result<Transaction, OperationError> {
    let expected = Listing::of(new);
    let fits = |found: &&Listing| {
        let ours = found.chains.keys().all(|name| expected.chains.contains_key(name));
        ours && !found.flagged && found.sets == expected.sets
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

/// What makes one content into the other; none when they are the same. Without an old one: [`replace`].
pub fn diff(old: Option<&Ruleset>, new: &Ruleset) -> Result<Option<Transaction>, OperationError> {
    let Some(old) = old else {
        return replace(new).map(Some);
    };
    if old == new {
        return Ok(None);
    }
    let interval = |name: &SetName| name.key_type() == KeyType::Interval;
    let rewritten = |(name, elements): (&SetName, &Elements)| {
        interval(name) && old.sets.get(name).is_some_and(|before| before != elements)
    };
    if new.sets.iter().any(rewritten) {
        // Rulesets that do not descend from each other: no step leads from one interval map to another of its name.
        return replace(new).map(Some);
    }
    let mut transaction = Transaction::default();
    additions(old, new, &mut transaction)?;
    if new
        .sets
        .keys()
        .any(|name| interval(name) && !old.sets.contains_key(name))
    {
        transaction.next_step();
    }
    changes(old, new, &mut transaction)?;
    removals(old, new, &mut transaction)?;
    Ok((!transaction.is_empty()).then_some(transaction))
}

/// Chains and sets that are new, whole. Chains come first because elements name them, rules after the sets that they name.
fn additions(old: &Ruleset, new: &Ruleset, transaction: &mut Transaction) -> Result<(), OperationError> {
    let chains: Vec<_> = new
        .chains
        .iter()
        .filter(|(name, _)| !old.chains.contains_key(name))
        .collect();
    let sets: Vec<_> = new
        .sets
        .iter()
        .filter(|(name, _)| !old.sets.contains_key(name))
        .collect();
    // The base chain comes last, so that nothing is judged by half a table even if nft should split the batch.
    let (base, others): (Vec<_>, Vec<_>) = chains.into_iter().partition(|(name, _)| **name == ChainName::Forward);
    let chains = || others.iter().chain(&base);
    for (name, _) in chains() {
        transaction.add(Operation::AddChain(**name))?;
    }
    for (name, _) in &sets {
        transaction.add(Operation::AddSet(**name))?;
    }
    for (name, elements) in sets {
        let elements = elements.iter().map(|(key, element)| (*key, element.clone())).collect();
        add_elements(*name, elements, transaction)?;
    }
    for (name, rules) in chains() {
        add_rules(**name, rules, transaction)?;
    }
    Ok(())
}

/// Elements and rules that differ in sets and chains that stay.
fn changes(old: &Ruleset, new: &Ruleset, transaction: &mut Transaction) -> Result<(), OperationError> {
    for (name, elements) in &new.sets {
        let Some(before) = old.sets.get(name) else { continue };
        let stays = |key: &Key, element: &Element, other: &Elements| other.get(key) == Some(element);
        // A changed verdict or comment is a deletion and an addition; within one transaction nobody sees the gap.
        let gone: Vec<Key> = before
            .iter()
            .filter(|(key, element)| !stays(key, element, elements))
            .map(|(key, _)| *key)
            .collect();
        let come = elements
            .iter()
            .filter(|(key, element)| !stays(key, element, before))
            .map(|(key, element)| (*key, element.clone()))
            .collect();
        if !gone.is_empty() {
            transaction.add(Operation::DeleteElements(*name, gone))?;
        }
        add_elements(*name, come, transaction)?;
    }
    for (name, rules) in &new.chains {
        match old.chains.get(name) {
            Some(before) if before != rules => {
                transaction.add(Operation::FlushChain(*name))?;
                add_rules(*name, rules, transaction)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Chains and sets that are not needed any more: first the rules that hold on to them, last the chains.
fn removals(old: &Ruleset, new: &Ruleset, transaction: &mut Transaction) -> Result<(), OperationError> {
    let chains = || old.chains.keys().filter(|name| !new.chains.contains_key(name));
    for name in chains() {
        transaction.add(Operation::FlushChain(*name))?;
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(name)) {
        transaction.add(Operation::DeleteSet(*name))?;
    }
    for name in chains() {
        transaction.add(Operation::DeleteChain(*name))?;
    }
    Ok(())
}

fn add_elements(
    name: SetName,
    elements: Vec<(Key, Element)>,
    transaction: &mut Transaction,
) -> Result<(), OperationError> {
    if elements.is_empty() {
        return Ok(());
    }
    transaction.add(Operation::AddElements(name, elements))
}

fn add_rules(name: ChainName, rules: &[Rule], transaction: &mut Transaction) -> Result<(), OperationError> {
    rules
        .iter()
        .try_for_each(|rule| transaction.add(Operation::AddRule(name, rule.clone())))
}
