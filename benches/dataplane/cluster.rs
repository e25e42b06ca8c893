//! Clusters of a given number of policies and peers, all about one connection: what every encoding is made from.

use std::net::{IpAddr, Ipv4Addr};

use policy_compiler::cluster::{Cluster, Namespace, Node, Pod, PodName};
use policy_compiler::labels::{Labels, Selector};
use policy_compiler::policy::{
    Action, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule, Tier,
};
use policy_compiler::ports::{PortRange, Protocol};

use crate::world::{CLIENT, OTHER, SERVER, STRANGER};

/// The node that packets pass.
pub(crate) const NODE: &str = "node-1";
/// The port that only the last policy admits, to the client.
pub(crate) const PORT: u16 = 8080;
/// The port that the first of several policies admits; the others follow.
pub(crate) const FIRST_PORT: u16 = 10_000;
/// Pods of the same node that are isolated both ways and have nothing to do with the connection.
const BYSTANDERS: u8 = 20;

/// Which ends of the connection policies isolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Isolated {
    /// The server, for ingress.
    One,
    /// Also the client, for egress, by as many policies again.
    Both,
}

impl Isolated {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isolated::One => "one",
            Isolated::Both => "both",
        }
    }
}

/// What is measured at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) isolated: Isolated,
    /// Policies that select the server; as many again select the client when both are isolated.
    pub(crate) policies: usize,
    /// Pods that some policy admits.
    pub(crate) peers: usize,
}

impl Point {
    /// Peers come in this many groups, each with a label of its own.
    fn groups(self) -> usize {
        self.peers.min(self.policies)
    }

    /// The group that a policy admits. The client is in the last, and only the last policy admits that.
    fn group_of(self, policy: usize) -> usize {
        let last = self.groups() - 1;
        if policy + 1 == self.policies {
            last
        } else {
            policy % last
        }
    }

    /// Every policy admits a port of its own, so that no two classes of peers are the same.
    fn ports_of(self, policy: usize) -> Ports {
        let single = |protocol, port| {
            PortMatch::Range(
                protocol,
                PortRange {
                    first: port,
                    last: port,
                },
            )
        };
        Ports::Listed(if policy + 1 == self.policies {
            vec![single(Protocol::Udp, PORT), single(Protocol::Tcp, PORT)]
        } else {
            let number = u16::try_from(policy).expect("at most a few thousand policies");
            vec![single(Protocol::Udp, FIRST_PORT + number)]
        })
    }

    /// The cluster.
    pub(crate) fn cluster(self) -> Cluster {
        let mut cluster = Cluster::default();
        cluster.add_namespace(Namespace::new("bench", Labels::default()));
        for node in [NODE, "elsewhere"] {
            cluster.add_node(Node {
                name: node.into(),
                labels: Labels::default(),
                addresses: Vec::new(),
                pod_cidrs: Vec::new(),
            });
        }
        let last = group(self.groups() - 1);
        cluster.add_pod(pod("server", NODE, SERVER, &[("app", "server"), ("group", &last)]));
        cluster.add_pod(pod("client", NODE, CLIENT, &[("app", "client"), ("group", &last)]));
        cluster.add_pod(pod("stranger", "elsewhere", STRANGER, &[("app", "stranger")]));
        // The client is the last of the peers, and the other one the first, when there is a policy of its own for it.
        for peer in 0..self.peers - 1 {
            let address = match peer {
                0 => OTHER,
                _ => peer_address(peer),
            };
            let own = group(peer * self.groups() / self.peers);
            cluster.add_pod(pod(&format!("peer-{peer}"), "elsewhere", address, &[("group", &own)]));
        }
        for number in 0..BYSTANDERS {
            let address = Ipv4Addr::new(10, 244, 0, 100 + number);
            cluster.add_pod(pod(
                &format!("bystander-{number}"),
                NODE,
                address,
                &[("app", "bystander")],
            ));
        }
        let bystander = Selector::labels([("app", "bystander")]);
        cluster.add_policy(policy("bystanders", bystander, Some(Vec::new()), Some(Vec::new())));
        for number in 0..self.policies {
            let rule = Rule {
                action: Action::Accept,
                peers: Peers::Listed(vec![Peer::Pods(selection(Selector::labels([(
                    "group",
                    group(self.group_of(number)),
                )])))]),
                ports: self.ports_of(number),
            };
            let app = |name: &str| Selector::labels([("app", name)]);
            // Policies are walked in the order of their names.
            cluster.add_policy(policy(
                &format!("in-{number:06}"),
                app("server"),
                Some(vec![rule.clone()]),
                None,
            ));
            if self.isolated == Isolated::Both {
                cluster.add_policy(policy(
                    &format!("out-{number:06}"),
                    app("client"),
                    None,
                    Some(vec![rule]),
                ));
            }
        }
        cluster
    }
}

/// The address of a peer that sends nothing: `10.1.0.0` and so on.
pub(crate) fn peer_address(number: usize) -> Ipv4Addr {
    let base = u32::from(Ipv4Addr::new(10, 1, 0, 0));
    Ipv4Addr::from(base + u32::try_from(number).expect("at most a few million peers"))
}

fn group(number: usize) -> String {
    format!("group-{number}")
}

fn pod(name: &str, node: &str, address: Ipv4Addr, labels: &[(&str, &str)]) -> Pod {
    Pod {
        name: PodName {
            namespace: "bench".into(),
            name: name.into(),
        },
        labels: labels.iter().copied().collect(),
        addresses: vec![IpAddr::V4(address)],
        node: Some(node.into()),
        ..Pod::default()
    }
}

fn selection(pods: Selector) -> PodSelection {
    PodSelection {
        namespaces: NamespaceScope::Named("bench".into()),
        pods,
    }
}

fn policy(name: &str, subject: Selector, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Policy {
    Policy {
        enforcement: None,
        name: PolicyName {
            namespace: Some("bench".into()),
            name: name.into(),
        },
        tier: Tier::NetworkPolicy,
        subject: selection(subject),
        ingress,
        egress,
    }
}
