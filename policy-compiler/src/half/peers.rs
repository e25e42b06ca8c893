//! Peers sorted by signature: pods through each of their addresses, and the cells of the address space.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Half, PeerKey, Signature, SignatureId, SignatureKey};
use crate::cells;
use crate::policy::Direction;
use crate::population::Population;
use crate::rules::PortName;
use crate::table::{Kind, PodIndex};

/// What replicas have in common: identity, kind, cell, declared port names (one list is shared by all that declare the same).
type Look = (u32, Kind, Option<usize>, *const (PortName, u16));

impl Half {
    /// Sorts the identity of a pod by the terms, when it is new.
    pub(crate) fn add_identity(&mut self, id: u32, population: &Population) {
        if self.identity_terms.len() <= id as usize {
            self.identity_terms.resize(id as usize + 1, self.no_terms.clone());
        }
        let identity = population.identity(id);
        let namespace = population.namespace_labels(&identity.namespace);
        let terms = self
            .selections
            .matches(&identity.namespace, &namespace, &identity.labels);
        self.identity_terms[id as usize] = if terms.is_empty() {
            self.no_terms.clone()
        } else {
            terms.into()
        };
    }

    /// Sorts an identity anew after its namespace's labels changed, with all of its peers.
    pub(crate) fn resort_identity(&mut self, id: u32, population: &Population) {
        let before = self.identity_terms[id as usize].clone();
        self.add_identity(id, population);
        if self.identity_terms[id as usize] != before {
            self.resign_identity(id, population);
        }
    }

    /// Adds a pod as a peer through the addresses that it has; one without any is a peer too.
    pub(crate) fn add_peer(&mut self, index: PodIndex, population: &Population, addresses: &[IpAddr]) {
        let Some(identity) = population.identity_of(index) else {
            return;
        };
        for address in addresses {
            let cell = cells::position(&self.cut, *address);
            let key = self.pod_key(index, identity, population, Kind::of_pod(Some(*address)), Some(cell));
            let signature = self.sign(PeerKey::Address(*address), key);
            self.peers.insert(*address, (index, signature));
        }
        if addresses.is_empty() {
            let key = self.pod_key(index, identity, population, Kind::PodWithoutAddress, None);
            let signature = self.sign(PeerKey::Unaddressed(index), key);
            self.unaddressed.insert(index, signature);
        }
    }

    /// Adds the pods of a whole cluster, sorted by address; no peer is there yet. It records no change: there was no table before.
    pub(crate) fn fill(&mut self, addressed: &[(IpAddr, PodIndex)], population: &Population) {
        for (id, _) in population.identities.iter() {
            self.add_identity(id as u32, population);
        }
        // Replicas differ in nothing but their addresses: what was found for one serves the next.
        let mut known: FxHashMap<Look, SignatureId> = FxHashMap::default();
        let mut peers = Vec::with_capacity(addressed.len());
        let mut has_address = vec![false; population.pods.len()];
        let mut place =
            |half: &mut Self, index: PodIndex, identity: u32, kind: Kind, cell: Option<usize>, peer: PeerKey| {
                let declared = population.declared(index).as_ptr();
                let signature = *known.entry((identity, kind, cell, declared)).or_insert_with(|| {
                    let key = half.pod_key(index, identity, population, kind, cell);
                    half.signature_for(key)
                });
                half.signatures[signature as usize].members.insert(peer);
                signature
            };
        for (address, index) in addressed {
            let Some(identity) = population.identity_of(*index) else {
                continue;
            };
            has_address[index.0 as usize] = true;
            let cell = cells::position(&self.cut, *address);
            let kind = Kind::of_pod(Some(*address));
            let signature = place(self, *index, identity, kind, Some(cell), PeerKey::Address(*address));
            peers.push((*address, (*index, signature)));
        }
        let unaddressed = population.pods.iter().map(|(index, _)| PodIndex(index as u32));
        for index in unaddressed.filter(|index| !has_address[index.0 as usize]) {
            let Some(identity) = population.identity_of(index) else {
                continue;
            };
            let peer = PeerKey::Unaddressed(index);
            let signature = place(self, index, identity, Kind::PodWithoutAddress, None, peer);
            self.unaddressed.insert(index, signature);
        }
        self.peers = peers.into_iter().collect();
    }

    /// All that can be told of a pod as a peer; `cell` is the one that holds its address.
    fn pod_key(
        &self,
        index: PodIndex,
        identity: u32,
        population: &Population,
        kind: Kind,
        cell: Option<usize>,
    ) -> SignatureKey {
        let names = match self.direction {
            Direction::Egress => population.declared(index).clone(),
            Direction::Ingress => self.none_declared.clone(),
        };
        let blocks = cell.map_or_else(|| self.no_terms.clone(), |cell| self.cut[cell].blocks.clone());
        let pods = self.identity_terms[identity as usize].clone();
        SignatureKey {
            kind,
            pods,
            blocks,
            names,
        }
    }

    /// Removes a pod as a peer.
    pub(crate) fn remove_peer(&mut self, index: PodIndex, addresses: &[IpAddr]) {
        for address in addresses {
            if let Some((_, signature)) = self.peers.remove(address) {
                self.unsign(PeerKey::Address(*address), signature);
            }
        }
        if let Some(signature) = self.unaddressed.remove(&index) {
            self.unsign(PeerKey::Unaddressed(index), signature);
        }
    }

    pub(super) fn outside_key(&self, kind: Kind, blocks: Arc<[u32]>) -> SignatureKey {
        SignatureKey {
            kind,
            pods: self.no_terms.clone(),
            blocks,
            names: self.none_declared.clone(),
        }
    }

    /// Enters a peer under a signature.
    pub(super) fn sign(&mut self, peer: PeerKey, key: SignatureKey) -> SignatureId {
        let id = self.signature_for(key);
        self.signatures[id as usize].members.insert(peer);
        self.pending.moved.entry(peer).or_insert(None);
        id
    }

    fn signature_for(&mut self, key: SignatureKey) -> SignatureId {
        if let Some(id) = self.signature_ids.get(&key) {
            return *id;
        }
        let column = self.column_of(&key);
        let class = self.class_for(key.kind, column);
        self.classes[class.0 as usize].signatures += 1;
        self.pending.changes.classes.insert(class);
        let signature = Signature {
            key: key.clone(),
            class,
            members: FxHashSet::default(),
        };
        let id = self.signatures.insert(signature) as u32;
        for term in key.pods.iter().chain(key.blocks.iter()) {
            self.terms[*term as usize].signatures.insert(id);
        }
        self.signature_ids.insert(key, id);
        id
    }

    /// Strikes a peer out from under its signature.
    pub(super) fn unsign(&mut self, peer: PeerKey, id: SignatureId) {
        let signature = &mut self.signatures[id as usize];
        signature.members.remove(&peer);
        self.pending.moved.entry(peer).or_insert(Some(signature.class));
        if signature.members.is_empty() {
            self.pending.signatures.push(id);
        }
    }

    /// Moves a peer to the signature that its terms now ask for.
    pub(super) fn resign(
        &mut self,
        peer: PeerKey,
        id: SignatureId,
        change: impl FnOnce(&mut SignatureKey),
    ) -> SignatureId {
        let mut key = self.signatures[id as usize].key.clone();
        change(&mut key);
        self.unsign(peer, id);
        self.sign(peer, key)
    }

    pub(super) fn resign_identity(&mut self, id: u32, population: &Population) {
        let pods = self.identity_terms[id as usize].clone();
        for index in &population.identity(id).pods {
            for address in &population.pod(*index).addresses {
                // An address that another pod has is that pod's peer.
                let Some((holder, signature)) = self.peers.get(address).copied() else {
                    continue;
                };
                if holder == *index {
                    let signature = self.resign(PeerKey::Address(*address), signature, |key| key.pods = pods.clone());
                    self.peers.insert(*address, (holder, signature));
                }
            }
            if let Some(signature) = self.unaddressed.get(index).copied() {
                let signature = self.resign(PeerKey::Unaddressed(*index), signature, |key| key.pods = pods.clone());
                self.unaddressed.insert(*index, signature);
            }
        }
    }
}
