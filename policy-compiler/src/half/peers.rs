//! Peers sorted by signature: pods through each of their addresses, and the cells of the address space.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{Half, PeerKey, Signature, SignatureId, SignatureKey};
use crate::cells;
use crate::cluster::Pod;
use crate::policy::Direction;
use crate::population::Population;
use crate::rules::resolve;
use crate::table::{Kind, PodIndex};

impl Half {
    /// Sorts the identity of a pod by the terms, when it is new.
    pub(crate) fn add_identity(&mut self, id: u32, population: &Population) {
        if self.identity_terms.len() <= id as usize {
            self.identity_terms.resize(id as usize + 1, self.no_terms.clone());
        }
        let identity = population.identity(id);
        let namespace = population.namespace_labels(&identity.namespace);
        self.identity_terms[id as usize] = self
            .selections
            .matches(&identity.namespace, &namespace, &identity.labels)
            .into();
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
    pub(crate) fn add_peer(&mut self, index: PodIndex, pod: &Pod, identity: u32, addresses: &[IpAddr]) {
        let names = match self.direction {
            Direction::Egress => resolve(pod, |_| true, &mut self.sets),
            Direction::Ingress => self.no_names.clone(),
        };
        let pods = self.identity_terms[identity as usize].clone();
        for address in addresses {
            let blocks = self.cut[cells::position(&self.cut, *address)].blocks.clone();
            let key = SignatureKey {
                kind: Kind::of_pod(Some(*address)),
                pods: pods.clone(),
                blocks,
                names: names.clone(),
            };
            let signature = self.sign(PeerKey::Address(*address), key);
            self.peers.insert(*address, (index, signature));
        }
        if addresses.is_empty() {
            let key = SignatureKey {
                kind: Kind::PodWithoutAddress,
                pods,
                blocks: self.no_terms.clone(),
                names,
            };
            let signature = self.sign(PeerKey::Unaddressed(index), key);
            self.unaddressed.insert(index, signature);
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
            names: self.no_names.clone(),
        }
    }

    /// Enters a peer under a signature.
    pub(super) fn sign(&mut self, peer: PeerKey, key: SignatureKey) -> SignatureId {
        let id = match self.signature_ids.get(&key) {
            Some(id) => *id,
            None => {
                let column = self.column_of(&key);
                let class = self.class_for(key.kind, column);
                self.classes[class.0 as usize].signatures += 1;
                let id = self.signatures.insert(Signature {
                    key: key.clone(),
                    class,
                    members: FxHashSet::default(),
                }) as u32;
                for term in key.pods.iter().chain(key.blocks.iter()) {
                    self.terms[*term as usize].signatures.insert(id);
                }
                self.signature_ids.insert(key, id);
                id
            }
        };
        self.signatures[id as usize].members.insert(peer);
        self.pending.moved.entry(peer).or_insert(None);
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
