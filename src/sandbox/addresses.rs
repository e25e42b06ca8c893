//! Addresses for what has none yet: manifests as people write them name neither nodes nor addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use policy_compiler::cluster::{Cluster, Node};
use policy_compiler::labels::{Labels, Name};

use super::SandboxError;

/// The nodes that are invented for a cluster without any.
const INVENTED_NODES: [&str; 2] = ["node-1", "node-2"];

/// Completes a cluster so that it can be built: nodes are invented when there are none, nodes get addresses
/// (`172.18.0.N`, `fd00:172:18::N`) and pod networks (`10.244.N.0/24`, `fd00:10:244:N::/64`), pods without a node are
/// spread over them, and pods without addresses get one from each pod network of their node. What is there stays.
pub fn assign_addresses(cluster: &mut Cluster) -> Result<(), SandboxError> {
    add_missing_nodes(cluster);
    let mut taken = addresses_in_use(cluster);
    let mut networks: BTreeSet<IpNet> = cluster.nodes.values().flat_map(|n| n.pod_cidrs.clone()).collect();
    let names: Vec<Name> = cluster.nodes.keys().cloned().collect();
    for name in &names {
        let mut node = Node::clone(&cluster.nodes[name]);
        // Both families are needed on the way between nodes, whichever the manifests speak of.
        if !node.addresses.iter().any(IpAddr::is_ipv4) {
            let free = (2..=254).map(|n| IpAddr::from(Ipv4Addr::new(172, 18, 0, n)));
            node.addresses.push(take(free, &mut taken, &node.name)?);
        }
        if !node.addresses.iter().any(IpAddr::is_ipv6) {
            let free = (2..=254).map(|n| IpAddr::from(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, n)));
            node.addresses.push(take(free, &mut taken, &node.name)?);
        }
        if node.pod_cidrs.is_empty() {
            let number = (1..=254u8).find(|n| pod_networks(*n).iter().all(|net| !networks.contains(net)));
            let number = number.ok_or_else(|| SandboxError::NoFreeAddress {
                object: format!("node {}", node.name),
            })?;
            node.pod_cidrs = pod_networks(number).to_vec();
            networks.extend(&node.pod_cidrs);
        }
        cluster.add_node(node);
    }
    let lonely: Vec<_> = cluster.pods.values().filter(|p| !p.ended).cloned().collect();
    for (at, pod) in lonely.into_iter().enumerate() {
        if pod.node.is_some() && !pod.addresses.is_empty() {
            continue;
        }
        let mut pod = Arc::unwrap_or_clone(pod);
        let node = pod.node.get_or_insert_with(|| names[at % names.len()].clone());
        let node = cluster.nodes[node].clone();
        if pod.addresses.is_empty() && pod.host_network {
            pod.addresses = node.addresses.clone();
        } else if pod.addresses.is_empty() {
            for network in &node.pod_cidrs {
                // The first address is left to the node, as CNIs do.
                let hosts: Box<dyn Iterator<Item = IpAddr>> = match network {
                    IpNet::V4(net) => Box::new(net.hosts().skip(1).map(IpAddr::from)),
                    IpNet::V6(net) => Box::new(net.hosts().skip(2).map(IpAddr::from)),
                };
                pod.addresses.push(take(hosts, &mut taken, &pod.name)?);
            }
        }
        cluster.add_pod(pod);
    }
    Ok(())
}

/// Nodes that pods name without being there, and two when there would be none at all.
fn add_missing_nodes(cluster: &mut Cluster) {
    let named = cluster
        .pods
        .values()
        .filter(|p| !p.ended)
        .filter_map(|p| p.node.clone());
    let mut missing: BTreeSet<Name> = named.filter(|n| !cluster.nodes.contains_key(n)).collect();
    if cluster.nodes.is_empty() && missing.is_empty() {
        missing.extend(INVENTED_NODES.map(Name::from));
    }
    for name in missing {
        cluster.add_node(Node {
            name,
            labels: Labels::default(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
        });
    }
}

fn addresses_in_use(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let pods = cluster.pods.values().flat_map(|p| p.addresses.clone());
    pods.chain(cluster.nodes.values().flat_map(|n| n.addresses.clone()))
        .collect()
}

fn pod_networks(number: u8) -> [IpNet; 2] {
    let six = Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0);
    [
        ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24).into(),
        ipnet::Ipv6Net::new_assert(six, 64).into(),
    ]
}

fn take(
    mut free: impl Iterator<Item = IpAddr>,
    taken: &mut BTreeSet<IpAddr>,
    owner: &dyn std::fmt::Display,
) -> Result<IpAddr, SandboxError> {
    let address = free
        .find(|a| !taken.contains(a))
        .ok_or_else(|| SandboxError::NoFreeAddress {
            object: owner.to_string(),
        })?;
    taken.insert(address);
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_compiler::cluster::{Pod, PodName};

    fn pod(name: &str, node: Option<&str>, addresses: &[&str], host_network: bool) -> Pod {
        Pod {
            name: PodName {
                namespace: "shop".into(),
                name: name.into(),
            },
            labels: Labels::default(),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            node: node.map(Name::from),
            host_network,
            ended: false,
            started: None,
            ports: Vec::new(),
            workload: None,
        }
    }

    fn addresses(cluster: &Cluster) -> Vec<String> {
        let pods = cluster.pods.values();
        pods.map(|p| {
            let list: Vec<String> = p.addresses.iter().map(ToString::to_string).collect();
            format!(
                "{} on {}: {}",
                p.name.name,
                p.node.as_deref().unwrap_or("none"),
                list.join(" ")
            )
        })
        .collect()
    }

    #[test]
    fn what_is_missing_is_invented_and_what_is_there_stays() {
        let mut cluster = Cluster::default();
        for pod in [
            pod("a", None, &[], false),
            pod("b", None, &[], false),
            pod("c", Some("own"), &[], true),
            pod("d", Some("own"), &["10.244.1.2"], false),
            pod("e", Some("own"), &[], false),
        ] {
            cluster.add_pod(pod);
        }
        assign_addresses(&mut cluster).expect("there are enough addresses");
        assert_eq!(
            addresses(&cluster),
            [
                "a on own: 10.244.1.3 fd00:10:244:1::2",
                "b on own: 10.244.1.4 fd00:10:244:1::3",
                "c on own: 172.18.0.2 fd00:172:18::2",
                "d on own: 10.244.1.2",
                "e on own: 10.244.1.5 fd00:10:244:1::4",
            ]
        );
    }

    #[test]
    fn a_cluster_without_nodes_gets_two() {
        let mut cluster = Cluster::default();
        cluster.add_pod(pod("a", None, &[], false));
        cluster.add_pod(pod("b", None, &[], false));
        assign_addresses(&mut cluster).expect("there are enough addresses");
        assert_eq!(
            addresses(&cluster),
            [
                "a on node-1: 10.244.1.2 fd00:10:244:1::2",
                "b on node-2: 10.244.2.2 fd00:10:244:2::2",
            ]
        );
    }
}
