//! After a change: peers are sorted anew whose terms changed, and what is no longer used is dropped.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Half, PeerKey, SignatureId};
use crate::cells::{self, AddressRange};
use crate::changes::HalfChanges;
use crate::policy::Peer;
use crate::population::Population;
use crate::table::{Kind, PodIndex};

impl Half {
    /// Brings everything up to date with what was added and removed; answers with what is different now.
    pub(crate) fn settle(&mut self, population: &Population) -> HalfChanges {
        self.drop_empty_groups();
        self.settle_terms(population);
        for id in std::mem::take(&mut self.pending.signatures) {
            let unused = self.signatures.get(id as usize).is_some_and(|s| s.members.is_empty());
            if unused {
                let signature = self.signatures.remove(id as usize);
                for term in signature.key.pods.iter().chain(signature.key.blocks.iter()) {
                    if let Some(term) = self.terms.get_mut(*term as usize) {
                        term.signatures.remove(&id);
                    }
                }
                self.signature_ids.remove(&signature.key);
                self.pending.changes.classes.insert(signature.class);
                self.leave_class(signature.class);
            }
        }
        let mut changes = std::mem::take(&mut self.pending.changes);
        for (peer, before) in std::mem::take(&mut self.pending.moved) {
            let now = match peer {
                PeerKey::Address(address) => self.peers.get(&address).map(|(_, signature)| signature),
                PeerKey::Unaddressed(pod) => self.unaddressed.get(&pod),
                PeerKey::Cell(_) | PeerKey::Nowhere => {
                    changes.cells = true;
                    continue;
                }
            };
            if now.map(|s| self.class_of_signature(*s)) != before {
                match peer {
                    PeerKey::Address(address) => changes.peers.insert(address),
                    PeerKey::Unaddressed(pod) => changes.unaddressed.insert(pod),
                    PeerKey::Cell(_) | PeerKey::Nowhere => false,
                };
            }
        }
        for id in std::mem::take(&mut self.pending.classes) {
            let unused = self.classes.get(id.0 as usize).is_some_and(|c| c.signatures == 0);
            if unused {
                let class = self.classes.remove(id.0 as usize);
                self.class_ids.remove(&(class.kind, class.column));
                changes.classes.insert(id);
            }
        }
        self.sweep_sets();
        changes
    }

    /// Forgets port sets that nobody has any more, once there may be many of them.
    fn sweep_sets(&mut self) {
        if !self.sets.is_full() {
            return;
        }
        let groups = self.groups.iter().map(|(_, group)| group);
        let rows = groups.flat_map(|g| g.defaults.iter().copied().chain(g.names.iter().map(|(_, set)| *set)));
        let columns = self
            .classes
            .iter()
            .flat_map(|(_, class)| class.column.iter().map(|(_, set)| *set));
        let rules = self.usages.values().flat_map(|u| u.rules.iter().map(|rule| rule.fixed));
        let by_term = self.terms.iter().map(|(_, term)| &term.contributions);
        let contributions = by_term.chain(&self.by_kind).flat_map(|c| c.values()).flatten();
        let live = rows
            .chain(columns)
            .chain(rules)
            .chain(contributions.map(|c| c.fixed))
            .chain([self.none]);
        self.sets.keep(live);
    }

    pub(super) fn settle_terms(&mut self, population: &Population) {
        let (mut identities, mut ranges): (BTreeSet<u32>, Vec<AddressRange>) = (BTreeSet::new(), Vec::new());
        let mut retired = Vec::new();
        let mut pending = std::mem::take(&mut self.pending.terms);
        pending.sort_unstable();
        pending.dedup();
        for id in pending {
            let Some(term) = self.terms.get_mut(id as usize) else {
                continue;
            };
            let used = term.uses > 0;
            if term.applied != used {
                term.applied = used;
                match &term.peer {
                    Peer::Pods(selection) => {
                        if used {
                            self.selections.insert(selection, id);
                        } else {
                            self.selections.remove(selection, id);
                        }
                        identities.extend(population.matching(selection));
                    }
                    Peer::Block(block) => ranges.push(AddressRange::of(&block.cidr)),
                }
            }
            if !used {
                retired.push(id);
            }
        }
        for identity in identities {
            self.resort_identity(identity, population);
        }
        if !ranges.is_empty() {
            self.recut();
            for range in ranges {
                let inside: Vec<(IpAddr, (PodIndex, SignatureId))> = self
                    .peers
                    .range(range.first..=range.last)
                    .map(|(a, s)| (*a, *s))
                    .collect();
                for (address, (pod, signature)) in inside {
                    let blocks = self.cut[cells::position(&self.cut, address)].blocks.clone();
                    if self.signatures[signature as usize].key.blocks != blocks {
                        let signature = self.resign(PeerKey::Address(address), signature, |key| key.blocks = blocks);
                        self.peers.insert(address, (pod, signature));
                    }
                }
            }
        }
        for id in retired {
            let term = self.terms.remove(id as usize);
            self.term_ids.remove(&term.peer);
        }
    }

    /// Cuts the address space anew by the blocks in use.
    pub(super) fn recut(&mut self) {
        let blocks = self
            .terms
            .iter()
            .filter(|(_, t)| t.applied)
            .filter_map(|(id, t)| match &t.peer {
                Peer::Block(block) => Some((block, id as u32)),
                Peer::Pods(_) => None,
            });
        let cut = cells::cut(blocks);
        let before = std::mem::replace(&mut self.cut, cut);
        for (cell, signature) in before.iter().zip(std::mem::take(&mut self.cells)) {
            self.unsign(PeerKey::Cell(cell.range.first), signature);
        }
        let keys: Vec<(IpAddr, Arc<[u32]>)> = self.cut.iter().map(|c| (c.range.first, c.blocks.clone())).collect();
        for (first, blocks) in keys {
            let key = self.outside_key(Kind::outside(first), blocks);
            let signature = self.sign(PeerKey::Cell(first), key);
            self.cells.push(signature);
        }
    }
}
