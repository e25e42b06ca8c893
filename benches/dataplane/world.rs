//! Three network namespaces in a row, a client, a node and a server, as a CNI of the ptp kind wires pods: packets are
//! routed by the node, and all that is measured happens between two `veth` pairs. Nothing outside of them is touched, and
//! they vanish with this process.

use std::net::Ipv4Addr;

use palisade::sandbox::{Netns, SandboxError};

/// The pod whose packets are timed.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
/// A pod that the first of several policies admits, on another port.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
/// A pod that no policy admits.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 4);
/// The pod that they talk to.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);

/// The next hop of every pod; nobody has it, as with ptp.
const GATEWAY: &str = "169.254.1.1";

/// The namespaces.
pub(crate) struct World {
    pub(crate) client: Netns,
    pub(crate) node: Netns,
    pub(crate) server: Netns,
}

impl World {
    pub(crate) fn build() -> Result<World, SandboxError> {
        let [client, node, server] = [Netns::new("client")?, Netns::new("node")?, Netns::new("server")?];
        pod(&node, &client, 1, &[CLIENT, OTHER, STRANGER])?;
        pod(&node, &server, 2, &[SERVER])?;
        node.ip("link set lo up")?;
        // Entries of connections that were opened for a measurement are gone before their ports come round again.
        node.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("netfilter/nf_conntrack_udp_timeout", "1"),
            ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
        ])?;
        client.sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
        Ok(World { client, node, server })
    }

    /// How many packets have come to the server's device.
    pub(crate) fn received(&self) -> Result<u64, SandboxError> {
        let table = self
            .server
            .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        let table = table.map_err(|error| SandboxError::Proc { error })?;
        // eth0: bytes packets ...
        let line = table.lines().find_map(|l| l.trim().strip_prefix("eth0:")).unwrap_or("");
        Ok(line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0))
    }
}

/// One `veth` pair with fixed link addresses and neighbours, so that no ARP passes while packets are timed.
fn pod(node: &Netns, pod: &Netns, number: u8, addresses: &[Ipv4Addr]) -> Result<(), SandboxError> {
    let device = format!("pod{number}");
    let [here, there] = [format!("02:00:00:00:0{number}:01"), format!("02:00:00:00:0{number}:02")];
    node.ip(&format!(
        "link add {device} address {here} type veth peer name eth0 address {there} netns {}\nlink set {device} up",
        pod.path()
    ))?;
    pod.ip("link set lo up\nlink set eth0 up")?;
    for address in addresses {
        pod.ip(&format!("addr add {address}/32 dev eth0"))?;
        node.ip(&format!(
            "route add {address}/32 dev {device}\nneigh add {address} lladdr {there} dev {device} nud permanent"
        ))?;
    }
    pod.ip(&format!(
        "neigh add {GATEWAY} lladdr {here} dev eth0 nud permanent\nroute add default via {GATEWAY} dev eth0 onlink"
    ))
}
