//! Who has which address, and which connections policy never touches.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cells::{self, AddressRange};
use crate::cluster::{Cluster, Endpoint, Exemption, Node, Pod, PodName};
use crate::labels::Name;
use crate::policy::IpBlock;

/// Two live pods that claim one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressConflict {
    /// The address.
    pub address: IpAddr,
    /// The pod started last, which has it.
    pub winner: PodName,
    /// The other one.
    pub loser: PodName,
}

/// Who has which address. Ended pods have none, host-network pods have their node's, and of two live pods with one address
/// the one started last has it (then the one whose name sorts last).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressBook {
    pods: BTreeMap<IpAddr, Arc<Pod>>,
    /// The other claimants of contested addresses, the next heir last.
    losers: BTreeMap<IpAddr, Vec<Arc<Pod>>>,
    /// Nodes by address: what a Node says of itself goes before what its host-network pods say.
    nodes: BTreeMap<IpAddr, Vec<(Claim, Name)>>,
}

/// On whose word an address is a node's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Node(Name),
    Pod(PodName),
}

/// Who wins a contested address: the greatest.
fn rank(pod: &Pod) -> (Option<i64>, &PodName) {
    (pod.started, &pod.name)
}

impl AddressBook {
    /// The addresses of a cluster.
    pub fn new(cluster: &Cluster) -> Self {
        let pods: Vec<&Arc<Pod>> = cluster.pods.values().filter(|p| !p.ended).collect();
        Self::assign(cluster, &pods).0
    }

    /// The addresses of a cluster whose live pods are these, and which of them has which, sorted by address.
    pub(crate) fn assign(cluster: &Cluster, pods: &[&Arc<Pod>]) -> (Self, Vec<(IpAddr, usize)>) {
        let mut book = AddressBook::default();
        cluster.nodes.values().for_each(|node| book.add_node(node));
        let mut claims: Vec<(IpAddr, usize)> = Vec::with_capacity(pods.len());
        for (at, pod) in pods.iter().enumerate() {
            if pod.host_network {
                book.add_pod(pod);
            } else {
                claims.extend(pod.addresses.iter().map(|address| (*address, at)));
            }
        }
        claims.sort_unstable();
        claims.dedup();
        let mut holders = Vec::with_capacity(claims.len());
        for same in claims.chunk_by_mut(|a, b| a.0 == b.0) {
            if let [(address, _), _, ..] = same {
                let address = *address;
                same.sort_unstable_by(|a, b| rank(pods[a.1]).cmp(&rank(pods[b.1])));
                let losers = same[..same.len() - 1].iter().map(|(_, at)| pods[*at].clone());
                book.losers.insert(address, losers.collect());
            }
            holders.extend(same.last().copied());
        }
        book.pods = holders
            .iter()
            .map(|(address, at)| (*address, pods[*at].clone()))
            .collect();
        (book, holders)
    }

    pub(crate) fn add_node(&mut self, node: &Node) {
        for address in &node.addresses {
            self.claim_node(*address, Claim::Node(node.name.clone()), &node.name);
        }
    }

    pub(crate) fn remove_node(&mut self, node: &Node) {
        for address in &node.addresses {
            self.release_node(*address, &Claim::Node(node.name.clone()));
        }
    }

    /// Enters the addresses of a live pod.
    pub(crate) fn add_pod(&mut self, pod: &Arc<Pod>) {
        for address in &pod.addresses {
            if pod.host_network {
                if let Some(node) = &pod.node {
                    self.claim_node(*address, Claim::Pod(pod.name.clone()), node);
                }
                continue;
            }
            match self.pods.get_mut(address) {
                None => {
                    self.pods.insert(*address, pod.clone());
                }
                Some(holder) if holder.name == pod.name => {}
                Some(holder) => {
                    let mut loser = pod.clone();
                    if rank(pod) > rank(holder) {
                        std::mem::swap(holder, &mut loser);
                    }
                    let losers = self.losers.entry(*address).or_default();
                    losers.push(loser);
                    losers.sort_unstable_by(|a, b| rank(a).cmp(&rank(b)));
                }
            }
        }
    }

    /// Strikes out the addresses of a pod.
    pub(crate) fn remove_pod(&mut self, pod: &Pod) {
        for address in &pod.addresses {
            if pod.host_network {
                self.release_node(*address, &Claim::Pod(pod.name.clone()));
                continue;
            }
            if let Some(losers) = self.losers.get_mut(address) {
                losers.retain(|p| p.name != pod.name);
            }
            if self.pods.get(address).is_some_and(|p| p.name == pod.name) {
                let heir = self.losers.get_mut(address).and_then(Vec::pop);
                match heir {
                    Some(heir) => self.pods.insert(*address, heir),
                    None => self.pods.remove(address),
                };
            }
            if self.losers.get(address).is_some_and(Vec::is_empty) {
                self.losers.remove(address);
            }
        }
    }

    fn claim_node(&mut self, address: IpAddr, claim: Claim, node: &Name) {
        let claims = self.nodes.entry(address).or_default();
        claims.retain(|(c, _)| *c != claim);
        claims.push((claim, node.clone()));
        claims.sort_unstable();
    }

    fn release_node(&mut self, address: IpAddr, claim: &Claim) {
        if let Some(claims) = self.nodes.get_mut(&address) {
            claims.retain(|(c, _)| c != claim);
            if claims.is_empty() {
                self.nodes.remove(&address);
            }
        }
    }

    /// The other pods that claim an address of this one.
    pub(crate) fn rivals(&self, pod: &Pod) -> Vec<PodName> {
        if pod.host_network || self.losers.is_empty() && pod.addresses.iter().all(|a| !self.pods.contains_key(a)) {
            return Vec::new();
        }
        let claimants = pod.addresses.iter().flat_map(|a| {
            let losers = self.losers.get(a).into_iter().flatten();
            losers.chain(self.pods.get(a)).map(|p| p.name.clone())
        });
        claimants.filter(|name| *name != pod.name).collect()
    }

    /// The pod that has an address.
    pub fn pod(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.pods.get(&address)
    }

    /// The addresses that a pod has, in its own order; none of a host-network pod.
    pub fn owned(&self, pod: &Pod) -> Vec<IpAddr> {
        let mut out: Vec<IpAddr> = Vec::with_capacity(pod.addresses.len());
        for address in &pod.addresses {
            let owned = self.pods.get(address).is_some_and(|p| p.name == pod.name);
            if owned && !out.contains(address) {
                out.push(*address);
            }
        }
        out
    }

    /// All pod addresses in use, sorted.
    pub fn pod_addresses(&self) -> impl Iterator<Item = (IpAddr, &Arc<Pod>)> {
        self.pods.iter().map(|(a, p)| (*a, p))
    }

    /// The pod addresses in use within a range, sorted.
    pub fn pods_in(&self, range: AddressRange) -> impl Iterator<Item = (IpAddr, &Arc<Pod>)> {
        self.pods.range(range.first..=range.last).map(|(a, p)| (*a, p))
    }

    /// The node addresses within a range, those of host-network pods included, sorted.
    pub fn nodes_in(&self, range: AddressRange) -> impl Iterator<Item = (IpAddr, &Name)> {
        let claimed = self.nodes.range(range.first..=range.last);
        claimed.filter_map(|(a, claims)| claims.first().map(|(_, node)| (*a, node)))
    }

    /// The first pod address that a block holds.
    pub(crate) fn first_in(&self, block: &IpBlock) -> Option<(IpAddr, &Arc<Pod>)> {
        let ranges = cells::block_ranges(block).into_iter();
        let mut found = ranges.filter_map(|range| self.pods.range(range.first..=range.last).next());
        found.next().map(|(address, pod)| (*address, pod))
    }

    /// The node that an end is on, or is: of a pod its node, of a node's address that node.
    pub fn node<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Name> {
        match endpoint {
            Endpoint::Pod(pod, _) => pod.node.as_ref(),
            Endpoint::Address(address) => self.nodes.get(address)?.first().map(|(_, node)| node),
        }
    }

    /// All node addresses, those of host-network pods included, sorted.
    pub fn node_addresses(&self) -> impl Iterator<Item = (IpAddr, &Name)> {
        self.nodes
            .iter()
            .filter_map(|(a, claims)| claims.first().map(|(_, node)| (*a, node)))
    }

    /// The end that an address stands for: a pod's address is that pod, through that address.
    pub fn endpoint(&self, address: IpAddr) -> Endpoint {
        match self.pods.get(&address) {
            Some(pod) => Endpoint::Pod(pod.clone(), Some(address)),
            None => Endpoint::Address(address),
        }
    }

    /// The ends that a pod stands for: one for each address that it has, or one without an address. An ended pod has none.
    pub fn endpoints(&self, pod: &Arc<Pod>) -> Vec<Endpoint> {
        if pod.ended {
            return Vec::new();
        }
        let addresses = if pod.host_network {
            pod.addresses.clone()
        } else {
            self.owned(pod)
        };
        if addresses.is_empty() {
            return vec![Endpoint::Pod(pod.clone(), None)];
        }
        addresses
            .into_iter()
            .map(|address| Endpoint::Pod(pod.clone(), Some(address)))
            .collect()
    }

    /// Addresses that more than one live pod claims.
    pub fn conflicts(&self) -> Vec<AddressConflict> {
        let mut out: Vec<AddressConflict> = self
            .losers
            .iter()
            .flat_map(|(address, losers)| {
                let winner = &self.pods[address].name;
                losers.iter().map(|loser| AddressConflict {
                    address: *address,
                    winner: winner.clone(),
                    loser: loser.name.clone(),
                })
            })
            .collect();
        out.sort_unstable();
        out
    }

    /// Why a connection is never subject to policy, if so.
    pub fn exemption(&self, from: &Endpoint, to: &Endpoint) -> Option<Exemption> {
        if let (Endpoint::Pod(a, _), Endpoint::Pod(b, _)) = (from, to)
            && a.name == b.name
        {
            return Some(Exemption::Itself);
        }
        // One end is a pod, the other its node, or a host-network pod there.
        if from.pod().is_some() != to.pod().is_some() {
            let (a, b) = (self.node(from)?, self.node(to)?);
            return (a == b).then_some(Exemption::OwnNode);
        }
        None
    }
}
