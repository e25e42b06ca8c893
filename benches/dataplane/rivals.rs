//! The two common encodings, rendered from the same cluster as Palisade's, in their best form: pods are found by a map,
//! every set is a hash set, an admitted packet leaves at once, and no mark is needed. They judge every packet by its
//! connection, with the same guards in front, so that verdicts are the same and a changed policy stops a running
//! connection; and once more with `ct state established accept` in front, which is fast and never revokes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use policy_compiler::cluster::Cluster;
use policy_compiler::labels::Labels;
use policy_compiler::policy::{Direction, Peer, Peers, Policy, PortMatch, Ports, Rule};

use crate::cluster::NODE;

/// How the policies of a pod are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A chain for each policy, with a peer set for each of its rules; a pod jumps through the chains of the policies
    /// that select it.
    ChainPerPolicy,
    /// One chain for each pod, with a rule for each selector and port; a selector's peers are one set, whoever uses it.
    RulePerSelector,
}

/// What packets of established connections meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Established {
    /// The policies, as every packet.
    Judged,
    /// An accept.
    Accepted,
}

/// The table as nft text.
pub(crate) fn render(cluster: &Cluster, table: &str, layout: Layout, established: Established) -> String {
    let mut rival = Rival {
        cluster,
        layout,
        alike: BTreeMap::new(),
        shared: BTreeMap::new(),
        sets: 0,
        filled: String::new(),
        chains: String::new(),
    };
    for pod in cluster.pods.values() {
        rival
            .alike
            .entry(pod.labels.clone())
            .or_default()
            .extend(ipv4(&pod.addresses));
    }
    let isolated = Direction::BOTH.map(|direction| rival.direction(direction));
    let [ingress, egress] = isolated.map(|pods| dispatch(&pods));
    let shortcut = match established {
        Established::Judged => "",
        Established::Accepted => "ct state established,related accept\n",
    };
    let (sets, chains) = (rival.filled, rival.chains);
    // Chains come before the maps that name them; an admitted packet goes on from the egress check to the ingress check.
    format!(
        "add table inet {table}
table inet {table} {{
{sets}chain ingress {{
}}
{chains}map in_pods {{
type ipv4_addr : verdict
{ingress}
}}
map out_pods {{
type ipv4_addr : verdict
{egress}
}}
set isolated {{
type ipv4_addr
{isolated_elements}
}}
chain stray {{
ip saddr @isolated drop
ip daddr @isolated drop
}}
chain forward {{
type filter hook forward priority 7; policy accept;
{shortcut}ip6 hoplimit 255 icmpv6 type 133-137 accept
ct state invalid,untracked jump stray
ct state new tcp flags & (fin|syn|rst|ack) != syn jump stray
ct original ip saddr vmap @out_pods
goto ingress
}}
}}
add rule inet {table} ingress ct reply ip saddr vmap @in_pods
add rule inet {table} ingress accept
",
        isolated_elements = elements(&isolated_addresses(cluster)),
    )
}

struct Rival<'a> {
    cluster: &'a Cluster,
    layout: Layout,
    /// The addresses of pods, by their labels.
    alike: BTreeMap<Labels, Vec<Ipv4Addr>>,
    /// The names of sets by their selector, where sets are shared.
    shared: BTreeMap<String, String>,
    /// How many sets there are.
    sets: usize,
    filled: String,
    chains: String,
}

impl Rival<'_> {
    /// Writes the chains of a direction; the pods that it isolates, and the chain of each.
    fn direction(&mut self, direction: Direction) -> Vec<(Ipv4Addr, String)> {
        let short = short(direction);
        let policies: Vec<&Policy> = self.cluster.policies.values().map(|p| &**p).collect();
        if self.layout == Layout::ChainPerPolicy {
            for (number, policy) in policies.iter().enumerate() {
                let Some(rules) = policy.rules(direction) else { continue };
                let body = self.rules(direction, rules);
                let _ = write!(self.chains, "chain {short}_policy_{number} {{\n{body}}}\n");
            }
        }
        let mut isolated = Vec::new();
        for (name, address, labels) in local_pods(self.cluster) {
            let mut body = String::new();
            for (number, policy) in policies.iter().enumerate() {
                let Some(rules) = policy.rules(direction) else { continue };
                if !policy.subject.pods.matches(&labels) {
                    continue;
                }
                match self.layout {
                    Layout::ChainPerPolicy => {
                        let _ = writeln!(body, "jump {short}_policy_{number}");
                    }
                    Layout::RulePerSelector => body += &self.rules(direction, rules),
                }
            }
            if policies
                .iter()
                .any(|p| p.isolates(direction) && p.subject.pods.matches(&labels))
            {
                let chain = format!("{short}_{}", name.replace('-', "_"));
                let _ = write!(self.chains, "chain {chain} {{\n{body}drop\n}}\n");
                isolated.push((address, chain));
            }
        }
        isolated
    }

    /// Rules that let admitted packets go.
    fn rules(&mut self, direction: Direction, rules: &[Rule]) -> String {
        let (peer, admitted) = match direction {
            Direction::Ingress => ("ct original ip saddr", "accept"),
            Direction::Egress => ("ct reply ip saddr", "goto ingress"),
        };
        let mut out = String::new();
        for rule in rules {
            let (Peers::Listed(peers), Ports::Listed(ports)) = (&rule.peers, &rule.ports) else {
                panic!("the clusters of this benchmark list peers and ports");
            };
            for selection in peers {
                let set = self.set(selection);
                for port in ports {
                    let PortMatch::Range(protocol, range) = port else {
                        panic!("the clusters of this benchmark have no named ports");
                    };
                    let protocol = protocol.to_string().to_lowercase();
                    let _ = writeln!(
                        out,
                        "{peer} @{set} meta l4proto {protocol} ct reply proto-src {} {admitted}",
                        range.first
                    );
                }
            }
        }
        out
    }

    /// The set of a rule's peers.
    fn set(&mut self, peer: &Peer) -> String {
        let Peer::Pods(selection) = peer else {
            panic!("the clusters of this benchmark have no blocks");
        };
        let shown = selection.pods.to_string();
        if let Some(name) = self.shared.get(&shown) {
            return name.clone();
        }
        let name = format!("peers_{}", self.sets);
        self.sets += 1;
        let matching = self.alike.iter().filter(|(labels, _)| selection.pods.matches(labels));
        let addresses: Vec<Ipv4Addr> = matching.flat_map(|(_, addresses)| addresses.clone()).collect();
        let elements = elements(&addresses);
        let _ = write!(self.filled, "set {name} {{\ntype ipv4_addr\n{elements}\n}}\n");
        if self.layout == Layout::RulePerSelector {
            self.shared.insert(shown, name.clone());
        }
        name
    }
}

fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

fn dispatch(pods: &[(Ipv4Addr, String)]) -> String {
    let elements: Vec<String> = pods.iter().map(|(a, chain)| format!("{a} : goto {chain}")).collect();
    match elements.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }}", elements.join(", ")),
    }
}

fn elements(addresses: &[Ipv4Addr]) -> String {
    let elements: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    match elements.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }}", elements.join(", ")),
    }
}

fn isolated_addresses(cluster: &Cluster) -> Vec<Ipv4Addr> {
    let isolated = |labels: &_| {
        let mut policies = cluster.policies.values();
        policies.any(|p| Direction::BOTH.iter().any(|d| p.isolates(*d)) && p.subject.pods.matches(labels))
    };
    let pods = local_pods(cluster).into_iter();
    pods.filter(|(_, _, labels)| isolated(labels))
        .map(|(_, address, _)| address)
        .collect()
}

fn local_pods(cluster: &Cluster) -> Vec<(String, Ipv4Addr, Labels)> {
    let pods = cluster.pods.values().filter(|pod| pod.node.as_deref() == Some(NODE));
    pods.filter_map(|pod| Some((pod.name.name.to_string(), ipv4(&pod.addresses)?, pod.labels.clone())))
        .collect()
}

fn ipv4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|a| match a {
        IpAddr::V4(a) => Some(*a),
        IpAddr::V6(_) => None,
    })
}
