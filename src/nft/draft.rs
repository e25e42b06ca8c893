//! Changes to a ruleset, and the transaction that does the same to a kernel that held what the ruleset was before.
//!
//! A set of intervals that is created and used in one transaction is seen empty for a moment, and hash sets are not
//! (measured). So a new interval map comes with everything else that is new in a first step, in which no rule in use speaks
//! of it; the next step, still one transaction, changes what is in use and removes what is not needed any more. Pods become
//! unknown in a step before that, and known in one after it (`unknown.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::names::{ChainName, KeyType, SetName, Side};
use super::ruleset::{Element, Elements, Key, Rule, Ruleset};
use super::transaction::{Operation, OperationError, Transaction};

/// A ruleset that is being changed. Each chain, set and element is written at most once; what is written as it was is no change.
pub(super) struct Draft<'a> {
    ruleset: &'a mut Ruleset,
    chains: Touched<ChainName>,
    sets: Touched<SetName>,
    /// Elements of sets that stay.
    elements: BTreeMap<SetName, Moves>,
}

/// The elements of a set that go, and those that come.
#[derive(Default)]
struct Moves {
    gone: Vec<Key>,
    come: Vec<(Key, Element)>,
}

/// The names of what is new, what has other rules than before, and what is gone.
struct Touched<N> {
    new: BTreeSet<N>,
    changed: BTreeSet<N>,
    gone: BTreeSet<N>,
}

impl<N> Default for Touched<N> {
    fn default() -> Self {
        Touched {
            new: BTreeSet::new(),
            changed: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }
}

impl<'a> Draft<'a> {
    pub(super) fn new(ruleset: &'a mut Ruleset) -> Self {
        Draft {
            ruleset,
            chains: Touched::default(),
            sets: Touched::default(),
            elements: BTreeMap::new(),
        }
    }

    /// The elements of a set; none when there is no such set.
    pub(super) fn elements(&self, name: SetName) -> Option<&Elements> {
        self.ruleset.sets.get(&name)
    }

    /// The generation of a side's CIDR map, when it has one.
    pub(super) fn cidrs(&self, side: Side) -> Option<u32> {
        self.ruleset.cidrs(side).map(|(generation, _)| generation)
    }

    /// Makes a chain consist of these rules; without any it goes.
    pub(super) fn chain(&mut self, name: ChainName, rules: Vec<Rule>) {
        if rules.is_empty() {
            if self.ruleset.chains.remove(&name).is_some() {
                self.chains.gone.insert(name);
            }
            return;
        }
        match self.ruleset.chains.get_mut(&name) {
            Some(before) if *before == rules => {}
            Some(before) => {
                *before = rules;
                self.chains.changed.insert(name);
            }
            None => {
                self.ruleset.chains.insert(name, rules);
                self.chains.new.insert(name);
            }
        }
    }

    /// Makes a set consist of these elements; without any it stays, empty.
    pub(super) fn set(&mut self, name: SetName, elements: Elements) {
        let Some(before) = self.ruleset.sets.get(&name) else {
            self.ruleset.sets.insert(name, elements);
            self.sets.new.insert(name);
            return;
        };
        let gone = before.keys().filter(|key| !elements.contains_key(key)).copied();
        let gone: Vec<Key> = gone.collect();
        let come = elements
            .into_iter()
            .filter(|(key, element)| before.get(key) != Some(element));
        let come: Vec<(Key, Element)> = come.collect();
        gone.into_iter().for_each(|key| self.element(name, key, None));
        come.into_iter()
            .for_each(|(key, element)| self.element(name, key, Some(element)));
    }

    /// Makes a set consist of these elements; without any it goes.
    pub(super) fn set_or_none(&mut self, name: SetName, elements: Elements) {
        if !elements.is_empty() {
            self.set(name, elements);
        } else if self.ruleset.sets.remove(&name).is_some() {
            self.sets.gone.insert(name);
        }
    }

    /// Writes or removes one element of a set that is there.
    pub(super) fn element(&mut self, name: SetName, key: Key, element: Option<Element>) {
        let set = self.ruleset.sets.entry(name).or_default();
        let before = match &element {
            Some(element) => set.insert(key, element.clone()),
            None => set.remove(&key),
        };
        if before == element || self.sets.new.contains(&name) {
            return;
        }
        // A changed verdict or comment is a deletion and an addition; within one transaction nobody sees the gap.
        let moves = self.elements.entry(name).or_default();
        moves.gone.extend(before.map(|_| key));
        moves.come.extend(element.map(|element| (key, element)));
    }

    /// What leads the kernel from the former ruleset to the one that is there now.
    pub(super) fn transaction(self) -> Result<Transaction, OperationError> {
        let mut transaction = Transaction::default();
        let chains = self
            .chains
            .new
            .iter()
            .filter_map(|name| self.ruleset.chains.get_key_value(name));
        let sets = self
            .sets
            .new
            .iter()
            .filter_map(|name| self.ruleset.sets.get_key_value(name));
        additions(chains.collect(), sets.collect(), &mut transaction)?;
        if self.sets.new.iter().any(|name| name.key_type() == KeyType::Interval) {
            transaction.next_step();
        }
        // A packet under way may meet elements of before and after: it must never find a pod known that it finds not judged. So
        // a pod is unknown before anything else of it goes, and known after all else of it is there.
        let is_known = |name: &SetName| matches!(name, SetName::Known(_));
        let (known, elements): (Vec<_>, Vec<_>) = self.elements.into_iter().partition(|(name, _)| is_known(name));
        let rest = !(elements.is_empty() && self.chains.changed.is_empty() && self.chains.gone.is_empty());
        // Other ranges need to know others: with the rules that ask, not before or after.
        let apart = rest && !self.chains.changed.contains(&ChainName::Forward);
        let (gone, come): (Vec<_>, Vec<_>) = known
            .into_iter()
            .map(|(name, moves)| ((name, moves.gone), (name, moves.come)))
            .unzip();
        let gone: Vec<_> = gone.into_iter().filter(|(_, keys)| !keys.is_empty()).collect();
        let known: Vec<_> = come.into_iter().filter(|(_, elements)| !elements.is_empty()).collect();
        let unknown = !gone.is_empty();
        for (name, keys) in gone {
            transaction.add(Operation::DeleteElements(name, keys))?;
        }
        if unknown && apart {
            transaction.next_step();
        }
        for (name, Moves { gone, come }) in elements {
            if !gone.is_empty() {
                transaction.add(Operation::DeleteElements(name, gone))?;
            }
            add_elements(name, come, &mut transaction)?;
        }
        for name in &self.chains.changed {
            transaction.add(Operation::FlushChain(*name))?;
            let rules = self.ruleset.chains.get(name).map(Vec::as_slice).unwrap_or_default();
            add_rules(*name, rules, &mut transaction)?;
        }
        // First the rules that hold on to what goes, last the chains.
        for name in &self.chains.gone {
            transaction.add(Operation::FlushChain(*name))?;
        }
        for name in &self.sets.gone {
            transaction.add(Operation::DeleteSet(*name))?;
        }
        for name in &self.chains.gone {
            transaction.add(Operation::DeleteChain(*name))?;
        }
        if !known.is_empty() && apart {
            transaction.next_step();
        }
        for (name, elements) in known {
            add_elements(name, elements, &mut transaction)?;
        }
        Ok(transaction)
    }
}

/// Chains and sets that are new, whole. Chains come first because elements name them, rules after the sets that they name.
pub(super) fn additions(
    chains: Vec<(&ChainName, &Vec<Rule>)>,
    sets: Vec<(&SetName, &Elements)>,
    transaction: &mut Transaction,
) -> Result<(), OperationError> {
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

pub(super) fn add_rules(name: ChainName, rules: &[Rule], transaction: &mut Transaction) -> Result<(), OperationError> {
    rules
        .iter()
        .try_for_each(|rule| transaction.add(Operation::AddRule(name, rule.clone())))
}
