//! Ends that changed alike, in few words: numbers of compared ends in, names of namespaces, workloads, pods, nodes and CIDRs out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use policy_compiler::cluster::{Endpoint, PodName};
use policy_compiler::difference::End;
use policy_compiler::labels::Name;
use serde::Serialize;

use super::patterns::{Known, Tree, by_namespace, few, items, spoken, with_exceptions};
use crate::cli::describe::title;
use crate::cli::ends::{Compiled, Region};

/// One side of connections that changed alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Party {
    /// In words.
    #[serde(skip)]
    pub(super) words: Vec<String>,
    /// Pods by pattern: all, those of a namespace, those of a workload, or one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pods: Vec<String>,
    /// Patterns of pods that `pods` does not mean.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except_pods: Vec<String>,
    /// Single addresses of pods of which not all are meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pod_addresses: Vec<String>,
    /// Host-network pods, by the same patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    host_network_pods: Vec<String>,
    /// Nodes by name, or all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<String>,
    /// Addresses that are no pod's and no node's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidrs: Vec<String>,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Family {
    IPv4,
    IPv6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::IPv4 => "IPv4",
            Family::IPv6 => "IPv6",
        })
    }
}

/// Whether an end has an IPv4 address; none of one without an address.
fn family(end: &End) -> Option<bool> {
    end.after.address().map(|a| a.is_ipv4())
}

/// What an end is, as far as its name goes.
enum Who {
    Pod(usize),
    HostNetwork(usize),
    Node(Name),
    Outside(usize),
}

/// Names ends of a comparison; all means all that both clusters have.
pub(super) struct Words {
    ends: Vec<End>,
    who: Vec<Who>,
    pods: Vec<Known>,
    tree: Tree,
    host_network: Vec<Known>,
    host_tree: Tree,
    /// How many ends every node has.
    nodes: BTreeMap<Name, usize>,
    regions: Vec<Region>,
    /// Of every region, whether it holds a pod's address.
    holds_pods: Vec<bool>,
}

impl Words {
    /// `regions` are those that the addresses among the ends are examples of.
    pub(super) fn new(versions: [&Compiled; 2], ends: Vec<End>, regions: &[Region]) -> Self {
        let books = versions.map(|compiled| compiled.table.addresses());
        let mut taken: Vec<IpAddr> = books.iter().flat_map(|b| b.pod_addresses().map(|(a, _)| a)).collect();
        taken.sort_unstable();
        let by_example: BTreeMap<IpAddr, &Region> = regions.iter().map(|r| (r.example, r)).collect();
        let mut words = Words {
            ends: Vec::new(),
            who: Vec::with_capacity(ends.len()),
            pods: Vec::new(),
            tree: Tree::new(),
            host_network: Vec::new(),
            host_tree: Tree::new(),
            nodes: BTreeMap::new(),
            regions: Vec::new(),
            holds_pods: Vec::new(),
        };
        let mut known: BTreeMap<PodName, usize> = BTreeMap::new();
        for end in &ends {
            let who = match &end.after {
                Endpoint::Pod(pod, _) => {
                    let (list, tree) = match pod.host_network {
                        true => (&mut words.host_network, &mut words.host_tree),
                        false => (&mut words.pods, &mut words.tree),
                    };
                    let at = *known.entry(pod.name.clone()).or_insert_with(|| {
                        list.push(Known {
                            pod: pod.clone(),
                            ends: Vec::new(),
                        });
                        let titles = tree.entry(pod.name.namespace.clone()).or_default();
                        titles.entry(title(pod)).or_default().insert(list.len() - 1);
                        list.len() - 1
                    });
                    list[at].ends.push(family(end));
                    match pod.host_network {
                        true => Who::HostNetwork(at),
                        false => Who::Pod(at),
                    }
                }
                Endpoint::Address(address) => {
                    let [before, after] = [books[0].node(&end.before), books[1].node(&end.after)];
                    match (after.or(before), by_example.get(address)) {
                        (Some(node), _) => {
                            *words.nodes.entry(node.clone()).or_default() += 1;
                            Who::Node(node.clone())
                        }
                        (None, region) => {
                            let region = region.map_or_else(|| single(*address), |r| (*r).clone());
                            let first = taken.partition_point(|a| *a < region.cidr.network());
                            let holds = taken.get(first).is_some_and(|a| region.cidr.contains(a));
                            words.holds_pods.push(holds);
                            words.regions.push(region);
                            Who::Outside(words.regions.len() - 1)
                        }
                    }
                }
            };
            words.who.push(who);
        }
        words.ends = ends;
        words
    }

    /// The ends, by number.
    pub(super) fn ends(&self) -> &[End] {
        &self.ends
    }

    /// The one family that a block is about, where both sides have pods that could talk over the other one too.
    pub(super) fn family(&self, from: &[usize], to: &[usize]) -> Option<Family> {
        let mut families = from.iter().chain(to).map(|at| family(&self.ends[*at]));
        let first = families.next().flatten()?;
        let one = families.all(|other| other == Some(first));
        let more = [from, to].iter().all(|ends| self.families(ends).len() > 1);
        (one && more).then_some(if first { Family::IPv4 } else { Family::IPv6 })
    }

    /// The families that what these ends are named by has; a node or an address outside is named by what is meant of it.
    fn families(&self, ends: &[usize]) -> BTreeSet<Option<bool>> {
        let families = ends.iter().flat_map(|at| match &self.who[*at] {
            Who::Pod(pod) => self.pods[*pod].ends.clone(),
            Who::HostNetwork(pod) => self.host_network[*pod].ends.clone(),
            Who::Node(_) | Who::Outside(_) => vec![family(&self.ends[*at])],
        });
        families.collect()
    }

    /// Some of the ends, by number, as one side of connections with others, over one family or any. A pod is meant as a whole when
    /// all of its addresses are that can talk with what the others are named by.
    pub(super) fn party(&self, ends: &[usize], others: &[usize], only: Option<Family>) -> Party {
        let mut party = Party::default();
        let families = match only {
            Some(only) => BTreeSet::from([Some(only == Family::IPv4)]),
            None => self.families(others),
        };
        let (mut pods, mut hosts) = (
            BTreeMap::<usize, Vec<usize>>::new(),
            BTreeMap::<usize, Vec<usize>>::new(),
        );
        let mut nodes: BTreeMap<&Name, Vec<usize>> = BTreeMap::new();
        let mut regions: BTreeSet<usize> = BTreeSet::new();
        for at in ends {
            match &self.who[*at] {
                Who::Pod(pod) => pods.entry(*pod).or_default().push(*at),
                Who::HostNetwork(pod) => hosts.entry(*pod).or_default().push(*at),
                Who::Node(node) => nodes.entry(node).or_default().push(*at),
                Who::Outside(region) => drop(regions.insert(*region)),
            }
        }
        let whole = |list: &[Known], found: BTreeMap<usize, Vec<usize>>, single: &mut Vec<String>| {
            let (whole, part): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|(pod, ends)| list[*pod].ends_for(&families) == ends.len());
            let ends = part.into_iter().flat_map(|(_, ends)| ends);
            single.extend(ends.map(|at| address_name(&self.ends[at])));
            whole.into_iter().map(|(pod, _)| pod).collect::<BTreeSet<usize>>()
        };
        let pods = whole(&self.pods, pods, &mut party.pod_addresses);
        self.name_pods(&pods, &mut party);
        let hosts = whole(&self.host_network, hosts, &mut party.pod_addresses);
        if hosts.len() > 1 && hosts.len() == self.host_network.len() {
            party.host_network_pods.push("*".to_owned());
            party.words.push("every host-network pod".to_owned());
        } else {
            party.host_network_pods = items(&self.host_tree, &self.host_network, &hosts);
            let names = party.host_network_pods.iter();
            party
                .words
                .extend(names.map(|name| format!("{} (host network)", spoken(name))));
        }
        party.words.extend(party.pod_addresses.iter().cloned());
        self.name_nodes(nodes, &mut party);
        self.name_regions(&regions, &mut party);
        party
    }

    /// Some pods, by pairs: of a pod that is compared, its name.
    pub(super) fn pods(&self, names: &BTreeSet<&PodName>) -> Party {
        let mut party = Party::default();
        let among = |list: &[Known]| -> BTreeSet<usize> {
            let list = list.iter().enumerate();
            list.filter(|(_, k)| names.contains(&k.pod.name))
                .map(|(at, _)| at)
                .collect()
        };
        self.name_pods(&among(&self.pods), &mut party);
        party.host_network_pods = items(&self.host_tree, &self.host_network, &among(&self.host_network));
        let hosts = party.host_network_pods.iter();
        party
            .words
            .extend(hosts.map(|name| format!("{} (host network)", spoken(name))));
        party
    }

    fn name_pods(&self, pods: &BTreeSet<usize>, party: &mut Party) {
        let plain = items(&self.tree, &self.pods, pods);
        // What is less than half is never named by its exceptions.
        if self.tree.len() > 1 && pods.len() * 2 > self.pods.len() {
            let others = (0..self.pods.len()).filter(|at| !pods.contains(at)).collect();
            let except = items(&self.tree, &self.pods, &others);
            if except.is_empty() || few(&except, &plain) {
                party.words.push(with_exceptions("every pod", &except));
                party.pods.push("*".to_owned());
                party.except_pods = except;
                return;
            }
        }
        for (namespace, here) in by_namespace(&self.pods, pods) {
            let titles = self.tree.get(namespace).into_iter().flat_map(BTreeMap::values);
            let rest: BTreeSet<usize> = titles.flatten().filter(|at| !here.contains(at)).copied().collect();
            let [plain, except] = [&here, &rest].map(|part| items(&self.tree, &self.pods, part));
            if !except.is_empty() && few(&except, &plain) {
                let all = format!("{namespace}/*");
                party.words.push(with_exceptions(&spoken(&all), &except));
                party.pods.push(all);
                party.except_pods.extend(except);
            } else {
                party.words.extend(plain.iter().map(|name| spoken(name)));
                party.pods.extend(plain);
            }
        }
    }

    fn name_nodes(&self, nodes: BTreeMap<&Name, Vec<usize>>, party: &mut Party) {
        let (whole, part): (Vec<_>, Vec<_>) = nodes
            .into_iter()
            .partition(|(node, ends)| self.nodes.get(*node) == Some(&ends.len()));
        if whole.len() > 1 && whole.len() == self.nodes.len() {
            party.nodes.push("*".to_owned());
            party.words.push("every node".to_owned());
        } else {
            let names = whole.iter().map(|(node, _)| node.to_string());
            party.nodes.extend(names);
            party.words.extend(whole.iter().map(|(node, _)| format!("node {node}")));
        }
        for (node, ends) in part {
            for address in ends.iter().filter_map(|at| self.ends[*at].after.address()) {
                party.cidrs.push(IpNet::from(address).to_string());
                party.words.push(format!("{address} (node {node})"));
            }
        }
    }

    fn name_regions(&self, regions: &BTreeSet<usize>, party: &mut Party) {
        for v4 in [true, false] {
            let of_family = |at: &usize| self.regions[*at].cidr.addr().is_ipv4() == v4;
            let all = (0..self.regions.len()).filter(of_family).count();
            let some: Vec<usize> = regions.iter().copied().filter(of_family).collect();
            if some.is_empty() {
                continue;
            }
            if some.len() == all {
                party.cidrs.push(if v4 { "0.0.0.0/0" } else { "::/0" }.to_owned());
                party.words.push(if v4 { ANY_V4 } else { ANY_V6 }.to_owned());
                continue;
            }
            for (region, holds_pods) in self.joined(&some) {
                party.cidrs.extend(region.cidrs().iter().map(ToString::to_string));
                party.words.push(match holds_pods {
                    true => format!("other addresses of {}", region_name(&region)),
                    false => region_name(&region),
                });
            }
        }
        let only_v4 = self.regions.iter().all(|r| r.cidr.addr().is_ipv4());
        let at = |words: &[String], text: &str| words.iter().position(|word| word == text);
        if let Some(four) = at(&party.words, ANY_V4) {
            let six = at(&party.words, ANY_V6);
            if only_v4 || six.is_some() {
                party.words[four] = "any address outside the cluster".to_owned();
                six.map(|six| party.words.remove(six));
            }
        }
    }

    /// Regions with those put into their holes that are among them, and whether a pod's address lies in any.
    fn joined(&self, regions: &[usize]) -> Vec<(Region, bool)> {
        let node = |net: &IpNet| {
            let single = net.prefix_len() == net.max_prefix_len();
            single && !self.regions.iter().any(|r| r.cidr == *net)
        };
        let mut sorted: Vec<(Region, bool)> = regions
            .iter()
            .map(|at| (self.regions[*at].clone(), self.holds_pods[*at]))
            .collect();
        sorted.sort_by_key(|(r, _)| (r.cidr.network(), r.cidr.prefix_len()));
        let mut done: BTreeMap<IpNet, (Region, bool)> = BTreeMap::new();
        // What lies within comes later, and so is done earlier.
        for (mut region, holds) in sorted.into_iter().rev() {
            let mut holes: Vec<IpNet> = Vec::new();
            for hole in std::mem::take(&mut region.holes) {
                match done.remove(&hole) {
                    Some((inner, _)) => holes.extend(inner.holes),
                    None if node(&hole) => {}
                    None => holes.push(hole),
                }
            }
            holes.sort_by_key(|net| (net.network(), net.prefix_len()));
            region.holes = holes;
            done.insert(region.cidr, (region, holds));
        }
        let mut out: Vec<(Region, bool)> = done.into_values().collect();
        out.sort_by_key(|(r, _)| (r.cidr.network(), r.cidr.prefix_len()));
        out
    }
}

/// A pod through one address, and what it was before if that is another.
pub(super) fn address_name(end: &End) -> String {
    let Endpoint::Pod(pod, address) = &end.after else {
        return end.after.to_string();
    };
    match (end.before.address(), address) {
        (Some(before), Some(after)) if before != *after => format!("{} ({before} → {after})", pod.name),
        (Some(before), None) => format!("{} ({before} → no address)", pod.name),
        _ => end.after.to_string(),
    }
}

/// A CIDR with what is not meant of it, in a list.
fn region_name(region: &Region) -> String {
    match region.holes.as_slice() {
        [one, other] => format!("{} except {one} and {other}", region.cidr),
        _ => region.to_string(),
    }
}

const ANY_V4: &str = "any IPv4 address outside the cluster";
const ANY_V6: &str = "any IPv6 address outside the cluster";

fn single(address: IpAddr) -> Region {
    Region {
        cidr: IpNet::from(address),
        holes: Vec::new(),
        example: address,
    }
}
