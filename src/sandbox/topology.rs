//! The wiring of the sandbox, as batches for `ip -batch`: pure text from a cluster.
//!
//! ```text
//!   pod eth0 --- podN node eth0 --- nodeN underlay (bridge) client --- eth0 client
//! ```
//! A pod's veth is routed through its node, as the ptp CNI does it; pod networks are routed between nodes through the
//! nodes' addresses. With [`Wiring::Bridge`] the veths of a node's pods are ports of a bridge instead, and with
//! [`Wiring::Overlay`] VXLAN carries what passes between pods of different nodes. What nobody has ends in an `unreachable` route, so that "no such address" answers at once and is
//! never mistaken for silence.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy_compiler::addresses::AddressBook;
use policy_compiler::cluster::{Cluster, Endpoint, Node, PodName};

use super::{Frontend, Options, SandboxError, Wiring};

/// More pods than this are more than one machine's sandbox is for: every pod is a namespace with its own devices.
pub(super) const POD_LIMIT: usize = 200;

/// The bridge of a node's pods.
const BRIDGE: &str = "cni0";

/// The node's end of the overlay.
const TUNNEL: &str = "flannel.1";

/// The gateway of every pod; each node-side device, or the bridge, has it.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// The `unreachable` routes of a node, answered by nft: the kernel's own answers to such a route are limited to one a
/// second and sender in IPv4, and probes would take the rest for silence. After DNAT, before any policy.
pub(super) const UNREACHABLE: &str = "table inet sandbox_unreachable {
  chain prerouting {
    type filter hook prerouting priority dstnat + 10;
    fib daddr type unicast fib daddr oif missing reject with icmpx type no-route
  }
}
";

/// A pod with a namespace of its own.
pub(super) struct PodPlan {
    pub(super) name: PodName,
    pub(super) addresses: Vec<IpAddr>,
}

/// A node and its pods.
pub(super) struct NodePlan {
    pub(super) node: Arc<Node>,
    pub(super) pods: Vec<PodPlan>,
}

/// Who is in the sandbox, and how they are wired.
pub(super) struct Topology {
    pub(super) nodes: Vec<NodePlan>,
    pub(super) wiring: Wiring,
    client: Vec<IpAddr>,
    virtual_addresses: Vec<IpAddr>,
}

impl Topology {
    /// Sorts a cluster into nodes and pods, and refuses what cannot be built.
    pub(super) fn of(cluster: &Cluster, options: &Options, frontends: &[Frontend]) -> Result<Topology, SandboxError> {
        let book = AddressBook::new(cluster);
        let mut nodes: Vec<NodePlan> = Vec::new();
        for node in cluster.nodes.values() {
            // Both families, because pods of either may live there.
            for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
                if !node.addresses.iter().any(family) {
                    return Err(incomplete(format!("node {}", node.name), "an IPv4 and an IPv6 address"));
                }
            }
            nodes.push(NodePlan {
                node: node.clone(),
                pods: Vec::new(),
            });
        }
        let mut found = 0;
        for pod in cluster.pods.values().filter(|p| !p.ended && !p.host_network) {
            let object = || format!("pod {}", pod.name);
            let home = nodes.iter_mut().find(|n| Some(&n.node.name) == pod.node.as_ref());
            let home = home.ok_or_else(|| incomplete(object(), "a node"))?;
            if pod.addresses.is_empty() {
                return Err(incomplete(object(), "an address"));
            }
            let addresses: Vec<IpAddr> = book.endpoints(pod).iter().filter_map(Endpoint::address).collect();
            // All its addresses belong to pods started later: there is nothing left to build.
            if addresses.is_empty() {
                continue;
            }
            found += 1;
            home.pods.push(PodPlan {
                name: pod.name.clone(),
                addresses,
            });
        }
        if found > POD_LIMIT {
            return Err(SandboxError::TooManyPods { found });
        }
        let in_use = |a: &IpAddr| book.pod(*a).is_some() || nodes.iter().any(|n| n.node.addresses.contains(a));
        if let Some(address) = options.client.iter().find(|a| in_use(a)) {
            return Err(SandboxError::ClientAddressTaken { address: *address });
        }
        Ok(Topology {
            nodes,
            wiring: options.wiring,
            client: options.client.clone(),
            virtual_addresses: frontends.iter().map(|f| f.address).collect(),
        })
    }

    /// The switch between the nodes and the client; the paths are their namespaces.
    pub(super) fn underlay(&self, nodes: &[String], client: &str) -> String {
        let mut batch = String::from("link set lo up\nlink add br0 type bridge mcast_snooping 0\nlink set br0 up\n");
        let ports = nodes
            .iter()
            .enumerate()
            .map(|(at, path)| (format!("node{at}"), path.as_str()));
        for (at, (port, path)) in ports.chain([("client".to_owned(), client)]).enumerate() {
            let address = hardware(at);
            let _ = writeln!(
                batch,
                "link add {port} type veth peer name eth0 address {address} netns {path}"
            );
            let _ = writeln!(batch, "link set {port} master br0 up");
        }
        batch
    }

    /// A node: its uplink, a device for each of its pods, and routes to everybody else.
    pub(super) fn node(&self, at: usize, pods: &[String]) -> String {
        let own = &self.nodes[at];
        let mut batch = uplink(&own.node.addresses);
        neighbours(&mut batch, "eth0", self.nodes.len(), self.client.iter().copied());
        for network in &own.node.pod_cidrs {
            let _ = writeln!(batch, "route replace unreachable {network}");
        }
        if self.wiring.bridged() {
            own.bridge(&mut batch);
        }
        for (number, (pod, path)) in own.pods.iter().zip(pods).enumerate() {
            let port = format!("pod{number}");
            let _ = writeln!(batch, "link add {port} type veth peer name eth0 netns {path}");
            let device = if self.wiring.bridged() {
                // What Services hand back to the pod that it came from leaves by the port that it came in by.
                let _ = writeln!(batch, "link set {port} master {BRIDGE}");
                let _ = writeln!(batch, "link set {port} type bridge_slave hairpin on");
                BRIDGE
            } else {
                gateways(&mut batch, &port);
                &port
            };
            let _ = writeln!(batch, "link set {port} up");
            for address in &pod.addresses {
                route(&mut batch, host(*address), device, None, &own.node.addresses);
            }
        }
        for address in self.client.iter().chain(&self.virtual_addresses) {
            // A virtual address needs some route, or the node's own programs could not even try it.
            route(&mut batch, host(*address), "eth0", None, &own.node.addresses);
        }
        if self.wiring == Wiring::Overlay {
            own.tunnel(at, &mut batch);
        }
        for (other, plan) in self.others(at) {
            neighbours(&mut batch, "eth0", other, plan.node.addresses.iter().copied());
            if self.wiring == Wiring::Overlay {
                neighbours(&mut batch, TUNNEL, other, plan.tunnel_addresses());
            }
            plan.routes(&mut batch, &own.node.addresses, self.wiring);
        }
        batch
    }

    /// For `bridge -batch`: on which node each end of the overlay is.
    pub(super) fn forwarding(&self, at: usize) -> String {
        let mut batch = String::new();
        for (other, plan) in self.others(at) {
            if let Some(node) = plan.node.addresses.iter().find(|a| a.is_ipv4()) {
                let _ = writeln!(batch, "fdb append {} dev {TUNNEL} dst {node}", hardware(other));
            }
        }
        batch
    }

    fn others(&self, at: usize) -> impl Iterator<Item = (usize, &NodePlan)> {
        self.nodes.iter().enumerate().filter(move |(other, _)| *other != at)
    }

    /// The client outside of the cluster: it knows the nodes, and the pods through them.
    pub(super) fn client(&self) -> String {
        let mut batch = uplink(&self.client);
        for (at, node) in self.nodes.iter().enumerate() {
            neighbours(&mut batch, "eth0", at, node.node.addresses.iter().copied());
            node.routes(&mut batch, &self.client, Wiring::Routed);
        }
        batch
    }
}

impl NodePlan {
    /// The bridge, with the first free address of each pod network, and the gateway of all pods.
    fn bridge(&self, batch: &mut String) {
        let _ = writeln!(batch, "link add {BRIDGE} type bridge mcast_snooping 0");
        let _ = writeln!(batch, "link set {BRIDGE} up");
        for network in &self.node.pod_cidrs {
            let taken = |a: &IpAddr| self.pods.iter().any(|pod| pod.addresses.contains(a));
            // The very first address of an IPv6 network is every router's.
            let mut free = network.hosts().filter(|a| *a != network.network() && !taken(a));
            if let Some(address) = free.next() {
                let _ = writeln!(batch, "addr add {} dev {BRIDGE} {}", host(address), nodad(address));
            }
        }
        gateways(batch, BRIDGE);
    }

    /// This node's end of the overlay, as flannel makes it: it has the network addresses of the node's pod networks.
    fn tunnel(&self, at: usize, batch: &mut String) {
        if let Some(node) = self.node.addresses.iter().find(|a| a.is_ipv4()) {
            let kind = "vxlan id 1 dstport 8472 nolearning dev eth0";
            let _ = writeln!(batch, "link add {TUNNEL} type {kind} local {node}");
            let _ = writeln!(batch, "link set {TUNNEL} address {} mtu 1450 up", hardware(at));
        }
        for address in self.tunnel_addresses() {
            let _ = writeln!(batch, "addr add {} dev {TUNNEL} {}", host(address), nodad(address));
        }
    }

    fn tunnel_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node.pod_cidrs.iter().map(IpNet::network)
    }

    /// The way to this node and to its pods, seen from elsewhere on the underlay, or through the overlay.
    fn routes(&self, batch: &mut String, sources: &[IpAddr], wiring: Wiring) {
        for address in &self.node.addresses {
            route(batch, host(*address), "eth0", None, sources);
        }
        let outside = |a: &&IpAddr| !self.node.pod_cidrs.iter().any(|net| net.contains(*a));
        let strays = self
            .pods
            .iter()
            .flat_map(|p| &p.addresses)
            .filter(outside)
            .map(|a| host(*a));
        for network in self.node.pod_cidrs.iter().map(|net| net.trunc()).chain(strays) {
            let through = self
                .tunnel_addresses()
                .find(|a| a.is_ipv4() == network.addr().is_ipv4());
            if let (Wiring::Overlay, Some(through)) = (wiring, through) {
                // Without a source: the node's own packets then come from its end of the overlay.
                let _ = writeln!(batch, "route replace {network} via {through} dev {TUNNEL} onlink");
                continue;
            }
            let via = same_family(&self.node.addresses, network.addr());
            route(batch, network, "eth0", via, sources);
        }
    }
}

impl PodPlan {
    /// A pod: its addresses, its neighbours on the bridge, and everything else through its node.
    pub(super) fn batch(&self, node: &Node, wiring: Wiring) -> String {
        let mut batch = String::from("link set lo up\nlink set eth0 up\n");
        addresses(&mut batch, &self.addresses);
        for network in node.pod_cidrs.iter().filter(|_| wiring.bridged()) {
            if self.addresses.iter().any(|a| network.contains(a)) {
                route(&mut batch, network.trunc(), "eth0", None, &self.addresses);
            }
        }
        for (gateway, all) in GATEWAYS.into_iter().zip(["0.0.0.0/0", "::/0"]) {
            let four = gateway.contains('.');
            let Some(source) = self.addresses.iter().find(|a| a.is_ipv4() == four) else {
                continue;
            };
            if four {
                let _ = writeln!(batch, "route replace {gateway}/32 dev eth0");
            }
            let _ = writeln!(batch, "route replace {all} via {gateway} dev eth0 src {source}");
        }
        batch
    }
}

fn incomplete(object: String, what: &'static str) -> SandboxError {
    SandboxError::Incomplete { object, what }
}

fn host(address: IpAddr) -> IpNet {
    address.into()
}

fn same_family(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4())
}

/// The device towards the underlay; whatever no later route names does not exist.
fn uplink(own: &[IpAddr]) -> String {
    let mut batch = String::from("link set lo up\nlink set eth0 up\n");
    addresses(&mut batch, own);
    batch.push_str("route replace unreachable 0.0.0.0/0\nroute replace unreachable ::/0\n");
    batch
}

fn addresses(batch: &mut String, own: &[IpAddr]) {
    for address in own {
        let _ = writeln!(batch, "addr add {} dev eth0 {}", host(*address), nodad(*address));
    }
}

/// Duplicate detection would keep an IPv6 address out of use for a second or more.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "nodad" } else { "" }
}

fn gateways(batch: &mut String, device: &str) {
    let _ = writeln!(batch, "addr add {}/32 dev {device}", GATEWAYS[0]);
    let _ = writeln!(batch, "addr add {}/64 dev {device} nodad", GATEWAYS[1]);
}

/// The hardware address of a node on the underlay, where the client comes after the nodes, and on the overlay.
fn hardware(at: usize) -> String {
    format!("02:00:00:00:{:02x}:{:02x}", at >> 8 & 0xff, at & 0xff)
}

/// Whoever has these addresses is known to be there: nobody asks, and gives up before a busy machine lets them answer.
fn neighbours(batch: &mut String, device: &str, at: usize, addresses: impl Iterator<Item = IpAddr>) {
    let hardware = hardware(at);
    for address in addresses {
        let _ = writeln!(
            batch,
            "neigh replace {address} lladdr {hardware} dev {device} nud permanent"
        );
    }
}

/// A route whose source is the first own address of the family; none when there is no such address.
fn route(batch: &mut String, to: IpNet, device: &str, via: Option<IpAddr>, sources: &[IpAddr]) {
    let Some(source) = same_family(sources, to.addr()) else {
        return;
    };
    let via = via.map(|v| format!(" via {v} onlink")).unwrap_or_default();
    let _ = writeln!(batch, "route replace {to}{via} dev {device} src {source}");
}
