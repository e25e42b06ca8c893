//! Whether the packets between pods on a bridge meet the rules at all. The addresses of the node's pods go in; the bridges
//! that carry them are found, made to hand their packets to netfilter where that is permitted, and what then still escapes
//! comes out as reasons not to be ready.
//!
//! A bridge hands what it forwards to the hooks of IP only when the module br_netfilter is loaded, and the sysctl
//! `net.bridge.bridge-nf-call-iptables` of its network namespace (for IPv6 `…-ip6tables`) or its own option of the same
//! meaning is 1. The agent sets the option and never the sysctl: it concerns the pods' bridge and no other, and needs no
//! writable `/proc/sys`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use policy_compiler::cluster::Cluster;
use policy_compiler::labels::Name;
use tracing::info;

use super::links::{Bridge, Links, Netlink};

/// What the agent does about bridges whose packets meet no rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It switches them on, and is not ready where it cannot.
    #[default]
    Auto,
    /// It changes nothing, and is not ready.
    Require,
    /// It does not look.
    Ignore,
}

/// The check, and what it remembers.
#[derive(Debug)]
pub struct Bridges {
    mode: Mode,
    links: Box<dyn Links>,
    /// `/proc/sys/net/bridge`.
    sysctls: PathBuf,
}

/// A family's switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    On,
    Off,
    /// There is no br_netfilter.
    Missing,
}

impl Bridges {
    /// Asks the kernel.
    pub fn new(mode: Mode) -> Self {
        Bridges::of(mode, Box::new(Netlink), "/proc/sys/net/bridge".into())
    }

    fn of(mode: Mode, links: Box<dyn Links>, sysctls: PathBuf) -> Self {
        Bridges { mode, links, sysctls }
    }

    /// What keeps the packets of a node's pods from meeting its rules, one reason a line; nothing when all is well.
    pub fn check(&self, cluster: &Cluster, node: &Name) -> Vec<String> {
        if self.mode == Mode::Ignore {
            return Vec::new();
        }
        let (ipv4, ipv6) = (
            self.switch("bridge-nf-call-iptables"),
            self.switch("bridge-nf-call-ip6tables"),
        );
        if (ipv4, ipv6) == (Switch::On, Switch::On) {
            return Vec::new();
        }
        // Without the module a bridge's own option is only a promise.
        let kept = |on, switch| switch == Switch::On || on && switch == Switch::Off;
        let open = |bridge: &Bridge| !(kept(bridge.ipv4, ipv4) && kept(bridge.ipv6, ipv6));
        let find = || -> std::io::Result<Vec<Bridge>> {
            let open: Vec<Bridge> = self.links.bridges()?.into_iter().filter(open).collect();
            if open.is_empty() {
                return Ok(open);
            }
            let carrying = self.carrying(cluster, node)?;
            Ok(open
                .into_iter()
                .filter(|bridge| carrying.contains(&bridge.index))
                .collect())
        };
        let found = match find() {
            Ok(found) => found,
            Err(error) => return vec![format!("bridge: cannot tell whether pods are on a bridge: {error}")],
        };
        if ipv4 == Switch::Missing || ipv6 == Switch::Missing {
            return found
                .iter()
                .map(|bridge| complaint(bridge, "br_netfilter is not loaded"))
                .collect();
        }
        if self.mode == Mode::Require {
            return found
                .iter()
                .map(|bridge| complaint(bridge, "bridge-nf-call-iptables or its twin for IPv6 is 0"))
                .collect();
        }
        found.iter().filter_map(|bridge| self.switch_on(bridge)).collect()
    }

    /// Sets the option of a bridge and reads it back; the reason when that fails.
    fn switch_on(&self, bridge: &Bridge) -> Option<String> {
        if let Err(error) = self.links.filter(bridge) {
            return Some(complaint(bridge, &format!("it cannot be switched on ({error})")));
        }
        let now = self.links.bridges().unwrap_or_default();
        if !now.iter().any(|b| b.index == bridge.index && b.ipv4 && b.ipv6) {
            return Some(complaint(bridge, "it does not stay switched on"));
        }
        info!(
            bridge = bridge.name,
            "packets between pods on this bridge did not meet the rules: switched on (nf_call_iptables, nf_call_ip6tables)"
        );
        None
    }

    /// The devices that lead to this node's pods. A pod without a way to it is not there yet, or any more.
    fn carrying(&self, cluster: &Cluster, node: &Name) -> std::io::Result<BTreeSet<u32>> {
        let local = |pod: &&std::sync::Arc<policy_compiler::cluster::Pod>| {
            pod.node.as_ref() == Some(node) && !pod.ended && !pod.host_network
        };
        let addresses: Vec<IpAddr> = cluster
            .pods
            .values()
            .filter(local)
            .flat_map(|pod| pod.addresses.clone())
            .collect();
        let mut devices = BTreeSet::new();
        for address in addresses {
            devices.extend(self.links.way_to(address)?);
        }
        Ok(devices)
    }

    fn switch(&self, name: &str) -> Switch {
        match std::fs::read_to_string(self.sysctls.join(name)) {
            Ok(text) if text.trim() == "0" => Switch::Off,
            Ok(_) => Switch::On,
            Err(_) => Switch::Missing,
        }
    }
}

fn complaint(bridge: &Bridge, why: &str) -> String {
    format!(
        "bridge: what passes between pods on the bridge {} meets no rule: {why}. Run on this node: modprobe br_netfilter && \
         sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        bridge.name
    )
}

#[cfg(test)]
mod tests;
