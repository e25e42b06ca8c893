//! What whoever builds a sandbox chooses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy_compiler::ports::Protocol;

/// How the pods of a sandbox are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wiring {
    /// Each pod by a link of its own, and everything by routes (ptp, kindnet, most clouds).
    #[default]
    Routed,
    /// The pods of a node by a bridge, and nodes by routes (bridge, kubenet, flannel's host-gw). Needs br_netfilter.
    Bridge,
    /// The pods of a node by a bridge, and the pods of different nodes by VXLAN (flannel). Needs br_netfilter.
    Overlay,
}

impl Wiring {
    /// All of them.
    pub const ALL: [Wiring; 3] = [Wiring::Routed, Wiring::Bridge, Wiring::Overlay];

    /// Whether the pods of a node are neighbours on a bridge.
    pub fn bridged(self) -> bool {
        self != Wiring::Routed
    }
}

/// What a sandbox has beside the cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The addresses of the client outside of the cluster.
    pub client: Vec<IpAddr>,
    /// Ports that everybody listens on, pods, nodes and the client, beside the container ports.
    pub extra_ports: BTreeSet<(Protocol, u16)>,
    /// How the pods are connected.
    pub wiring: Wiring,
}

impl Default for Options {
    /// A client with an address for documentation in each family, and nothing else.
    fn default() -> Self {
        Options {
            client: vec![
                Ipv4Addr::new(192, 0, 2, 10).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10).into(),
            ],
            extra_ports: BTreeSet::new(),
            wiring: Wiring::default(),
        }
    }
}
