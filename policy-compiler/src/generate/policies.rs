//! The policies of a namespace, as people write them: default-deny first, then what everybody needs, then what is particular.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::roles::{ROLES, SYSTEM};
use super::world::World;
use crate::labels::{NAMESPACE_NAME_LABEL, Name, Operator, Requirement, Selector};
use crate::policy::{
    Action, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule, Tier,
};
use crate::ports::{PortRange, Protocol};

/// A NetworkPolicy.
pub(super) fn policy(
    namespace: &Name,
    name: &str,
    pods: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
) -> Policy {
    Policy {
        name: PolicyName {
            namespace: Some(namespace.clone()),
            name: name.into(),
        },
        tier: Tier::NetworkPolicy,
        enforcement: None,
        subject: PodSelection {
            namespaces: NamespaceScope::Named(namespace.clone()),
            pods,
        },
        ingress,
        egress,
    }
}

/// A rule of a NetworkPolicy.
pub(super) fn rule(peers: impl IntoIterator<Item = Peer>, ports: Ports) -> Rule {
    Rule {
        action: Action::Accept,
        peers: Peers::Listed(peers.into_iter().collect()),
        ports,
    }
}

/// A peer by namespaces and labels.
pub(super) fn peer(namespaces: NamespaceScope, pods: Selector) -> Peer {
    Peer::Pods(PodSelection { namespaces, pods })
}

/// Adds `count` policies to one of the teams' namespaces.
pub(super) fn add(world: &mut World, names: &[Name], index: usize, count: usize) {
    let own = &names[index];
    // Four in ten teams close egress as well.
    let strict = world.random.chance(40);
    let common = if strict { 5 } else { 4 };
    for number in 0..count {
        let policy = match (number, strict) {
            (0, false) => policy(
                own,
                "default-deny-ingress",
                Selector::everything(),
                Some(Vec::new()),
                None,
            ),
            (0, true) => policy(
                own,
                "default-deny",
                Selector::everything(),
                Some(Vec::new()),
                Some(Vec::new()),
            ),
            (1, _) => same_namespace(own, strict),
            (2, true) => dns(own),
            (2, false) | (3, true) => monitoring(own),
            (3, false) | (4, true) => ingress_controller(own),
            _ => particular(world, names, index, number - common),
        };
        world.cluster.add_policy(policy);
    }
}

fn same_namespace(own: &Name, strict: bool) -> Policy {
    let rules = vec![rule([peer(named(own), Selector::everything())], Ports::All)];
    policy(
        own,
        "allow-same-namespace",
        Selector::everything(),
        Some(rules.clone()),
        strict.then_some(rules),
    )
}

fn dns(own: &Name) -> Policy {
    let pods = Selector::labels([("k8s-app", "kube-dns")]);
    let servers = peer(by_name(SYSTEM[0]), pods);
    let ports = Ports::Listed(vec![range(Protocol::Udp, 53, 53), range(Protocol::Tcp, 53, 53)]);
    policy(
        own,
        "allow-dns",
        Selector::everything(),
        None,
        Some(vec![rule([servers], ports)]),
    )
}

fn monitoring(own: &Name) -> Policy {
    let from = peer(by_name(SYSTEM[1]), Selector::everything());
    let rules = vec![rule([from], Ports::Listed(vec![port("metrics")]))];
    policy(own, "allow-monitoring", Selector::everything(), Some(rules), None)
}

fn ingress_controller(own: &Name) -> Policy {
    let from = peer(by_name(SYSTEM[2]), Selector::labels([("app", "ingress-nginx")]));
    let rules = vec![rule([from], Ports::Listed(vec![port("http")]))];
    policy(own, "allow-ingress-controller", app("web"), Some(rules), None)
}

/// One of the policies that differ from namespace to namespace.
fn particular(world: &mut World, names: &[Name], index: usize, number: usize) -> Policy {
    let own = &names[index];
    let random = &mut world.random;
    let other = &names[random.below(names.len())];
    let subject = &ROLES[random.below(6)];
    let from = *random.pick(&["web", "api", "worker"]);
    // In proportion to how often one meets them; a policy with several of these would only be several policies in one.
    let sort = *random.pick(&[0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 7]);
    let name = |what: &str| format!("{what}-{number}");
    let ingress = |what: &str, rules| policy(own, &name(what), app(subject.name), Some(rules), None);
    match sort {
        0 => {
            let rules = vec![rule(
                [peer(named(own), app(from))],
                Ports::Listed(vec![service_port(subject.name)]),
            )];
            ingress(&format!("allow-{from}-to-{}", subject.name), rules)
        }
        1 => {
            let ports = Ports::Listed(vec![service_port(subject.name)]);
            ingress(
                "allow-other-namespace",
                vec![rule([peer(by_name(other), app(from))], ports)],
            )
        }
        2 => {
            let team = label_of(world, other, "team");
            let peers = [peer(
                NamespaceScope::Matching(Selector::labels([("team", team)])),
                app(from),
            )];
            ingress(
                "allow-team",
                vec![rule(peers, Ports::Listed(vec![range(Protocol::Tcp, 8000, 8999)]))],
            )
        }
        3 => {
            // The internet, and not the networks inside.
            let private = [[10, 0, 0, 0, 8], [172, 16, 0, 0, 12], [192, 168, 0, 0, 16]];
            let private = private.map(|[a, b, c, d, bits]| v4([a, b, c, d], bits));
            let mut peers = vec![Peer::Block(IpBlock::new(v4([0, 0, 0, 0], 0), private))];
            if world.dual_stack {
                let (all, inside) = (
                    Ipv6Net::default(),
                    Ipv6Net::new_assert([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
                );
                peers.push(Peer::Block(IpBlock::new(all.into(), [inside.into()])));
            }
            let rules = vec![rule(peers, Ports::Listed(vec![range(Protocol::Tcp, 443, 443)]))];
            policy(own, &name("allow-internet"), app(subject.name), None, Some(rules))
        }
        4 => {
            // A partner's network, or a database outside the cluster.
            let (a, b) = (64 + random.below(64) as u8, random.below(256) as u8);
            let whole = v4([100, a, b, 0], *random.pick(&[20, 24, 26, 28]));
            let gateway = v4([100, a, b, 1], 32);
            let ports = Ports::Listed(vec![range(Protocol::Tcp, 5671, 5672), range(Protocol::Tcp, 443, 443)]);
            let rules = vec![rule([Peer::Block(IpBlock::new(whole, [gateway]))], ports)];
            policy(own, &name("allow-partner"), app(subject.name), None, Some(rules))
        }
        5 => {
            let office = v4([192, 0, 2, 0], 24);
            let guests = v4([192, 0, 2, 32 * random.below(8) as u8], 27);
            let rules = vec![rule(
                [Peer::Block(IpBlock::new(office, [guests]))],
                Ports::Listed(vec![port("http")]),
            )];
            policy(own, &name("allow-office"), app("web"), Some(rules), None)
        }
        6 => {
            let elsewhere = requirement("env", Operator::NotIn(vec!["prod".into()]));
            let tiers = requirement("tier", Operator::In(vec!["frontend".into(), "backend".into()]));
            let peers = [peer(NamespaceScope::Matching(elsewhere), tiers)];
            ingress(
                "allow-test-environments",
                vec![rule(peers, Ports::Listed(vec![range(Protocol::Tcp, 8000, 8999)]))],
            )
        }
        _ => {
            let to = [peer(by_name(other), app("db"))];
            let rules = vec![rule(
                to,
                Ports::Listed(vec![port("postgres"), range(Protocol::Udp, 33434, 33534)]),
            )];
            policy(own, &name("allow-to-database"), app(from), None, Some(rules))
        }
    }
}

fn named(namespace: &Name) -> NamespaceScope {
    NamespaceScope::Named(namespace.clone())
}

fn by_name(namespace: &str) -> NamespaceScope {
    NamespaceScope::Matching(Selector::labels([(NAMESPACE_NAME_LABEL, namespace)]))
}

fn app(name: &str) -> Selector {
    Selector::labels([("app", name)])
}

fn requirement(key: &str, operator: Operator) -> Selector {
    Selector::new([Requirement {
        key: key.into(),
        operator,
    }])
}

fn label_of(world: &World, namespace: &Name, key: &str) -> Name {
    let labels = world.cluster.namespace_labels(namespace);
    labels.get(key).cloned().unwrap_or_else(|| "platform".into())
}

fn port(name: &str) -> PortMatch {
    PortMatch::Named(Protocol::Tcp, name.into())
}

/// The port that others use a role through.
fn service_port(role: &str) -> PortMatch {
    match role {
        "web" | "api" => port("http"),
        "db" => port("postgres"),
        "cache" => range(Protocol::Tcp, 6379, 6379),
        "queue" => port("amqp"),
        _ => port("metrics"),
    }
}

fn range(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch::Range(protocol, PortRange { first, last })
}

fn v4(octets: [u8; 4], bits: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from(octets), bits).into()
}
