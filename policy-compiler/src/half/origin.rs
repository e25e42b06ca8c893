//! Where the cells of the table come from, for people: which selectors match the peers of a class, and which policies speak of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Half, Usage};
use crate::policy::Peer;
use crate::rules::Prepared;
use crate::table::{Class, ClassId, GroupId, Kind};

/// Why the column of a class is what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Peers of rules in use that match some peer of the class.
    pub terms: BTreeSet<&'a Peer>,
    /// The policies that speak of those, for the groups in the column; see [`crate::table::Table::policy`].
    pub policies: BTreeSet<u32>,
}

impl Half {
    /// The origins of these classes. It looks at every signature once.
    pub fn origins(&self, classes: &BTreeSet<ClassId>) -> BTreeMap<ClassId, Origin<'_>> {
        let mut terms: BTreeMap<ClassId, BTreeSet<u32>> = BTreeMap::new();
        for (_, signature) in self.signatures.iter().filter(|(_, s)| classes.contains(&s.class)) {
            let matching = signature.key.pods.iter().chain(signature.key.blocks.iter());
            terms.entry(signature.class).or_default().extend(matching);
        }
        let origin = |class: ClassId, terms: BTreeSet<u32>| {
            let Class { kind, column, .. } = self.class(class);
            let speaks = |rule: &Prepared| {
                rule.terms.iter().any(|t| terms.contains(t)) || rule.kinds[*kind as usize] && !rule.names.is_empty()
            };
            let policies = column.iter().flat_map(|(group, _)| self.speaking(*group, speaks));
            Origin {
                policies: policies.collect(),
                terms: terms.iter().map(|t| &self.terms[*t as usize].peer).collect(),
            }
        };
        terms
            .into_iter()
            .map(|(class, terms)| (class, origin(class, terms)))
            .collect()
    }

    /// The policies of a group that speak of all peers of a kind.
    pub fn default_policies(&self, group: GroupId, kind: Kind) -> impl Iterator<Item = u32> {
        self.speaking(group, move |rule| rule.kinds[kind as usize])
    }

    /// The policies of a group with such a rule. Where tiers meet, what one of them leaves open is its doing too: then all.
    fn speaking(&self, id: GroupId, speaks: impl Fn(&Prepared) -> bool) -> impl Iterator<Item = u32> {
        let tiered = self.tiered.contains(&id);
        let policies = self.group(id).policies.iter().copied();
        policies.filter(move |policy| {
            let spoken = |usage: &Usage| usage.rules.iter().any(&speaks);
            tiered || self.usages.get(policy).is_some_and(spoken)
        })
    }
}
