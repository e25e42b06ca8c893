//! ClusterIP Services of the sandbox: destination NAT in every node, as kube-proxy would do it, in tables of its own.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use policy_compiler::addresses::AddressBook;
use policy_compiler::cluster::{Cluster, Endpoint, Pod, PodName, Service, ServicePort, TargetPort};
use policy_compiler::ports::{Protocol, Traffic};

/// A pod behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The pod.
    pub pod: PodName,
    /// Its address and port.
    pub address: SocketAddr,
}

/// One port of a Service on one of its cluster IPs, with the ends that it is spread over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// The Service, as `namespace/name`.
    pub service: String,
    /// The cluster IP.
    pub address: IpAddr,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// The pods behind it; without any it answers nothing.
    pub backends: Vec<Backend>,
}

/// The ports of all Services that have a cluster IP, in the order of their names.
pub fn frontends(cluster: &Cluster) -> Vec<Frontend> {
    let book = AddressBook::new(cluster);
    let mut frontends = Vec::new();
    for service in cluster.services.values() {
        for address in &service.cluster_ips {
            for port in &service.ports {
                frontends.push(Frontend {
                    service: service.name.to_string(),
                    address: *address,
                    protocol: port.protocol,
                    port: port.port,
                    backends: backends(cluster, &book, service, port, *address),
                });
            }
        }
    }
    frontends
}

/// The pods that a Service selects, on the port that its target means on each of them.
fn backends(
    cluster: &Cluster,
    book: &AddressBook,
    service: &Service,
    port: &ServicePort,
    like: IpAddr,
) -> Vec<Backend> {
    let Some(selector) = &service.selector else {
        return Vec::new();
    };
    let target = |pod: &Pod| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named(name) => match pod.named_port(port.protocol, name).example() {
            Some(Traffic::Port(_, number)) => Some(number),
            _ => None,
        },
    };
    let mut backends = Vec::new();
    let own = |p: &&std::sync::Arc<Pod>| p.name.namespace == service.name.namespace && selector.matches(&p.labels);
    for pod in cluster.pods.values().filter(own) {
        let addresses = book
            .endpoints(pod)
            .into_iter()
            .filter_map(|end| Endpoint::address(&end));
        let address = addresses.into_iter().find(|a| a.is_ipv4() == like.is_ipv4());
        backends.extend(address.zip(target(pod)).map(|end| Backend {
            pod: pod.name.clone(),
            address: end.into(),
        }));
    }
    backends
}

/// The rules of one node, as nft text.
pub(super) fn rules(frontends: &[Frontend], node: &[IpAddr]) -> String {
    let mut text = String::new();
    for (family, four) in [("ip", true), ("ip6", false)] {
        let mut dnat = String::new();
        let mut hairpin = String::new();
        for frontend in frontends
            .iter()
            .filter(|f| f.address.is_ipv4() == four && !f.backends.is_empty())
        {
            let ends: Vec<String> = (frontend.backends.iter().enumerate())
                .map(|(at, end)| format!("{at} : {} . {}", end.address.ip(), end.address.port()))
                .collect();
            let protocol = frontend.protocol.to_string().to_lowercase();
            let _ = writeln!(
                dnat,
                "    {family} daddr {} {protocol} dport {} dnat to numgen inc mod {} map {{ {} }}",
                frontend.address,
                frontend.port,
                ends.len(),
                ends.join(", ")
            );
            // A pod that is handed back to itself would see its own address as the sender, and drop the packet.
            if let Some(node) = node.iter().find(|a| a.is_ipv4() == four) {
                for end in frontend.backends.iter().map(|b| b.address.ip()) {
                    let _ = writeln!(hairpin, "    {family} saddr {end} {family} daddr {end} snat to {node}");
                }
            }
        }
        if dnat.is_empty() {
            continue;
        }
        let _ = write!(
            text,
            "table {family} sandbox_services {{\n  \
             chain services {{\n{dnat}  }}\n  \
             chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n  \
             chain output {{ type nat hook output priority -100; jump services; }}\n  \
             chain postrouting {{\n    type nat hook postrouting priority srcnat;\n{hairpin}  }}\n}}\n"
        );
    }
    text
}
