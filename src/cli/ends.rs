//! What endpoints stand for: an endpoint's syntax and a compiled cluster in, the ends of connections out (pods through
//! their addresses, and regions of addresses that no policy tells apart).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policy_compiler::cells::{AddressRange, predecessor, successor};
use policy_compiler::cluster::{Cluster, Endpoint, Pod};
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::diagnostics::{Diagnostic, diagnose};
use policy_compiler::policy::{Direction, NamespaceScope, Peer, Peers, PodSelection};
use policy_compiler::table::Table;

use super::endpoint::EndpointSpec;

/// A cluster with its compiled table: what every command looks its endpoints up in.
pub(crate) struct Compiled {
    /// The snapshot.
    pub(crate) cluster: Cluster,
    /// All of its pods' allow sets.
    pub(crate) table: Table,
    /// Every CIDR and exception of every policy, and the nodes' addresses; sorted so that a net comes before those in it.
    nets: Vec<IpNet>,
}

/// One end of connections that a command speaks of. Pods come before addresses, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// A pod, through one of its addresses; none when it has no address.
    Pod(Arc<Pod>, Option<IpAddr>),
    /// Addresses of no pod, alike to every policy.
    Region(Region),
}

/// The addresses of a CIDR that are in no smaller CIDR of any policy, are no pod's and, unless it is a single one, no node's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Region {
    /// The CIDR.
    pub(crate) cidr: IpNet,
    /// The largest CIDRs within it that are regions of their own.
    pub(crate) holes: Vec<IpNet>,
    /// One of its addresses.
    pub(crate) example: IpAddr,
}

/// Why an endpoint stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownEnd {
    /// There is no such pod or workload.
    #[error("there is no {endpoint}; {}", nearest_names(.nearest))]
    Absent {
        /// The endpoint as it was asked for.
        endpoint: String,
        /// Existing names, the nearest first.
        nearest: Vec<String>,
    },
    /// The pod's phase is Succeeded or Failed.
    #[error("{0} has ended (its phase is Succeeded or Failed), so it takes part in no connection: name a running pod")]
    Ended(String),
}

fn nearest_names(nearest: &[String]) -> String {
    match nearest {
        [] => "there are no pods and no workloads".to_owned(),
        [one] => format!("did you mean {one}?"),
        [most @ .., last] => format!("did you mean {} or {last}?", most.join(", ")),
    }
}

impl End {
    /// This end, or for a region an example of it.
    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            End::Pod(pod, address) => Endpoint::Pod(pod.clone(), *address),
            End::Region(region) => Endpoint::Address(region.example),
        }
    }

    /// The addresses, when they are no pod's.
    pub(crate) fn region(&self) -> Option<&Region> {
        match self {
            End::Pod(..) => None,
            End::Region(region) => Some(region),
        }
    }

    /// The pod.
    pub(crate) fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            End::Pod(pod, _) => Some(pod),
            End::Region(_) => None,
        }
    }
}

impl Region {
    /// The region as the fewest CIDRs; addresses of pods may be among them.
    pub(crate) fn cidrs(&self) -> Vec<IpNet> {
        let mut cidrs = Vec::new();
        let mut next = Some(self.cidr.network());
        // The holes are sorted and disjoint.
        for hole in &self.holes {
            let range = next.zip(predecessor(hole.network()));
            cidrs.extend(
                range
                    .into_iter()
                    .flat_map(|(first, last)| AddressRange { first, last }.cidrs()),
            );
            next = successor(hole.broadcast()).filter(|a| self.cidr.contains(a));
        }
        let rest = next.map(|first| AddressRange {
            first,
            last: self.cidr.broadcast(),
        });
        cidrs.extend(rest.iter().flat_map(AddressRange::cidrs));
        cidrs
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cidr.prefix_len() == self.cidr.max_prefix_len() {
            return self.cidr.addr().fmt(f);
        }
        write!(f, "{}", self.cidr)?;
        match self.holes.as_slice() {
            [] => Ok(()),
            [one] => write!(f, " except {one}"),
            [one, other] => write!(f, " except {one}, {other}"),
            _ => f.write_str(" (rest)"),
        }
    }
}

impl Compiled {
    /// What is odd about the cluster: where the answers may not be what was meant.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        diagnose(&self.cluster, &self.table)
    }

    /// Compiles a cluster.
    pub(crate) fn new(cluster: Cluster) -> Self {
        let table = compile(&cluster, &Subjects::All);
        let nets = nets(&cluster, &table);
        Compiled { cluster, table, nets }
    }

    /// The ends that an endpoint stands for, sorted; never empty.
    pub(crate) fn ends(&self, endpoint: &EndpointSpec) -> Result<Vec<End>, UnknownEnd> {
        let book = self.table.addresses();
        match endpoint {
            EndpointSpec::Pod(name) => match self.cluster.pods.get(name) {
                Some(pod) if pod.ended => Err(UnknownEnd::Ended(format!("pod {name}"))),
                Some(pod) => Ok(self.pod_ends(pod).collect()),
                None => Err(self.unknown(format!("pod {name}"), endpoint)),
            },
            EndpointSpec::Workload(namespace, workload) => {
                let of_it =
                    |pod: &&Arc<Pod>| pod.name.namespace == *namespace && pod.workload.as_ref() == Some(workload);
                let pods = || self.cluster.pods.values().filter(of_it);
                let ends: Vec<End> = pods().flat_map(|pod| self.pod_ends(pod)).collect();
                if !ends.is_empty() {
                    return Ok(ends);
                }
                match pods().next() {
                    Some(_) => Err(UnknownEnd::Ended(format!("every pod of {endpoint}"))),
                    None => Err(self.unknown(endpoint.to_string(), endpoint)),
                }
            }
            EndpointSpec::Address(address) => Ok(vec![match book.pod(*address) {
                Some(pod) => End::Pod(pod.clone(), Some(*address)),
                None => End::Region(Region {
                    cidr: IpNet::from(*address),
                    holes: Vec::new(),
                    example: *address,
                }),
            }]),
            EndpointSpec::Block(cidr) => {
                let pods = book.pod_addresses().filter(|(address, _)| cidr.contains(address));
                let mut ends: BTreeSet<End> = pods.map(|(a, pod)| End::Pod(pod.clone(), Some(a))).collect();
                ends.extend(self.regions(*cidr).into_iter().map(End::Region));
                Ok(ends.into_iter().collect())
            }
        }
    }

    /// The ends of a pod: one for each of its addresses, or one without an address.
    pub(crate) fn pod_ends(&self, pod: &Arc<Pod>) -> impl Iterator<Item = End> + use<> {
        let ends = self.table.addresses().endpoints(pod).into_iter();
        let pod = pod.clone();
        ends.map(move |end| End::Pod(pod.clone(), end.address()))
    }

    /// The live pods, sorted by name.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.table.pods().map(|(_, pod)| pod)
    }

    /// The pods that a selector can match, hence no host-network pods; live ones only.
    pub(crate) fn selectable_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods().filter(|p| !p.host_network)
    }

    /// Whether a selection matches a pod.
    pub(crate) fn selects(&self, selection: &PodSelection, pod: &Pod) -> bool {
        let in_scope = || match &selection.namespaces {
            NamespaceScope::Named(name) => *name == pod.name.namespace,
            NamespaceScope::Matching(scope) => scope.matches(&self.cluster.namespace_labels(&pod.name.namespace)),
        };
        !pod.host_network && selection.pods.matches(&pod.labels) && in_scope()
    }

    /// A CIDR cut into regions: at every CIDR of every policy, and around each node's address.
    pub(crate) fn regions(&self, cidr: IpNet) -> Vec<Region> {
        regions(&self.nets, cidr, |address| {
            self.table.addresses().pod(address).is_some()
        })
    }

    /// All addresses but those of pods of either cluster, cut into regions at what either cluster tells apart; of IPv6 only where one of
    /// them knows it.
    pub(crate) fn common_regions(&self, other: &Compiled) -> Vec<Region> {
        let mut nets: Vec<IpNet> = self.nets.iter().chain(&other.nets).copied().collect();
        order(&mut nets);
        let books = [self, other].map(|compiled| compiled.table.addresses());
        let taken = |address: IpAddr| books.iter().any(|book| book.pod(address).is_some());
        let mut found = regions(&nets, IpNet::V4(Ipv4Net::default()), taken);
        let six = regions(&nets, IpNet::V6(Ipv6Net::default()), taken);
        let mut pods = books.iter().flat_map(|book| book.pod_addresses());
        if six.len() > 1 || pods.any(|(address, _)| address.is_ipv6()) {
            found.extend(six);
        }
        found
    }

    /// The smallest CIDR of any policy (or node's address) that holds an address: two addresses with the same one are
    /// alike to every policy.
    pub(crate) fn innermost(&self, address: IpAddr) -> Option<IpNet> {
        self.nets.iter().rfind(|net| net.contains(&address)).copied()
    }

    fn unknown(&self, asked: String, endpoint: &EndpointSpec) -> UnknownEnd {
        let mut names: BTreeSet<String> = BTreeSet::new();
        for pod in self.pods() {
            names.insert(pod.name.to_string());
            names.extend(workload_name(pod));
        }
        let wanted = endpoint.to_string();
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let mut nearest: Vec<(usize, String)> = names
            .into_iter()
            .map(|name| {
                // The kind left out or another one is the likeliest mistake, so equal last names count as near.
                let whole = strsim::damerau_levenshtein(&wanted, &name);
                let by_name = strsim::damerau_levenshtein(&last(&wanted), &last(&name)) * 2 + 1;
                (whole.min(by_name), name)
            })
            .collect();
        nearest.sort();
        UnknownEnd::Absent {
            endpoint: asked,
            nearest: nearest.into_iter().take(3).map(|(_, name)| name).collect(),
        }
    }
}

/// `namespace/kind/name` of the workload that a pod belongs to.
pub(crate) fn workload_name(pod: &Pod) -> Option<String> {
    let workload = pod.workload.as_ref()?;
    Some(format!("{}/{}/{}", pod.name.namespace, workload.kind, workload.name))
}

fn nets(cluster: &Cluster, table: &Table) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = Vec::new();
    for policy in cluster.policies.values() {
        let rules = Direction::BOTH.into_iter().filter_map(|d| policy.rules(d)).flatten();
        for rule in rules {
            let Peers::Listed(peers) = &rule.peers else { continue };
            for peer in peers {
                if let Peer::Block(block) = peer {
                    nets.push(block.cidr);
                    nets.extend(&block.except);
                }
            }
        }
    }
    let book = table.addresses();
    let nodes = cluster.nodes.values().flat_map(|node| &node.addresses);
    let hosts = table
        .pods()
        .map(|(_, pod)| pod)
        .filter(|p| p.host_network)
        .flat_map(|p| &p.addresses);
    // A node's address is apart from its neighbours: it and the pods of its node always reach each other.
    let on_a_node = |address: &&IpAddr| book.node(&Endpoint::Address(**address)).is_some();
    nets.extend(nodes.chain(hosts).filter(on_a_node).map(|a| IpNet::from(*a)));
    order(&mut nets);
    nets
}

/// Sorts so that a net comes before those in it.
fn order(nets: &mut Vec<IpNet>) {
    nets.sort_by_key(|net| (net.network(), net.prefix_len()));
    nets.dedup();
}

/// A CIDR cut at these nets; a region of which every address is taken is none.
fn regions(nets: &[IpNet], cidr: IpNet, taken: impl Fn(IpAddr) -> bool) -> Vec<Region> {
    let mut found: Vec<(IpNet, Vec<IpNet>)> = vec![(cidr, Vec::new())];
    // CIDRs are nested or disjoint, so a stack of the open ones finds the smallest that holds the next.
    let mut open: Vec<usize> = vec![0];
    for net in nets.iter().filter(|n| cidr.contains(*n) && **n != cidr) {
        while open.last().is_some_and(|at| !found[*at].0.contains(net)) {
            open.pop();
        }
        if let Some(parent) = open.last() {
            found[*parent].1.push(*net);
        }
        open.push(found.len());
        found.push((*net, Vec::new()));
    }
    found
        .into_iter()
        .filter_map(|(cidr, holes)| {
            let example = example(cidr, &holes, &taken)?;
            Some(Region { cidr, holes, example })
        })
        .collect()
}

/// An address of the CIDR, outside its holes and not taken: one that documentation uses for outsiders if it can be.
fn example(cidr: IpNet, holes: &[IpNet], taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    const OUTSIDERS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    let hole = |address: &IpAddr| holes.iter().find(|h| h.contains(address));
    let free = |address: &IpAddr| cidr.contains(address) && hole(address).is_none() && !taken(*address);
    let first_host = successor(cidr.network());
    if let Some(address) = OUTSIDERS.into_iter().chain(first_host).find(free) {
        return Some(address);
    }
    let mut next = Some(cidr.network());
    while let Some(address) = next.filter(|a| cidr.contains(a)) {
        if free(&address) {
            return Some(address);
        }
        next = successor(hole(&address).map_or(address, IpNet::broadcast));
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use policy_compiler::testing::{self, Tiers};
    use proptest::prelude::*;

    use super::*;

    /// Every pod through each address, and all other addresses by region; sorted.
    pub(crate) fn all_ends(compiled: &Compiled) -> Vec<End> {
        let mut ends: Vec<End> = compiled.pods().flat_map(|p| compiled.pod_ends(p)).collect();
        for cidr in ["0.0.0.0/0", "::/0"] {
            let regions = compiled.regions(cidr.parse().expect("a CIDR"));
            ends.extend(regions.into_iter().map(End::Region));
        }
        ends.sort();
        ends.dedup();
        ends
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Regions are disjoint, cover all addresses that are no pod's, and no policy and no node tells two addresses of one apart.
        #[test]
        fn regions_are_alike_to_every_policy(cluster in testing::cluster(Tiers::All), within in prop::sample::select(vec![
            "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.0.0.0/29", "172.18.0.0/30", "fd00::/126", "10.0.0.1/32",
        ])) {
            let compiled = Compiled::new(cluster);
            let table = &compiled.table;
            let within: IpNet = within.parse().expect("a CIDR");
            let regions = compiled.regions(within);
            for end in testing::endpoints(&compiled.cluster, table) {
                let Endpoint::Address(address) = end else { continue };
                let inside: Vec<&Region> = regions
                    .iter()
                    .filter(|r| r.cidr.contains(&address) && !r.holes.iter().any(|h| h.contains(&address)))
                    .collect();
                for region in &inside {
                    prop_assert!(region.cidrs().iter().any(|c| c.contains(&address)));
                }
                if !within.contains(&address) || table.addresses().pod(address).is_some() {
                    continue;
                }
                prop_assert_eq!(inside.len(), 1, "{} in {:?}", address, regions);
                let example = Endpoint::Address(inside[0].example);
                prop_assert!(table.addresses().pod(inside[0].example).is_none());
                for direction in Direction::BOTH {
                    let class = |end: &Endpoint| table.class_of(direction, end);
                    prop_assert_eq!(class(&end), class(&example), "{} in {}", address, inside[0]);
                }
                prop_assert_eq!(table.addresses().node(&end), table.addresses().node(&example));
                prop_assert_eq!(compiled.innermost(address), compiled.innermost(inside[0].example));
            }
        }
    }
}
