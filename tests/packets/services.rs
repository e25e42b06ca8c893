//! Traffic through Services: whom policy sees when addresses are translated on the way.

use std::net::{IpAddr, SocketAddr};

use palisade::sandbox::{Outcome, Place, Wiring};

use crate::shop::{DENY_ALL, NONE, ONLY_DB};
use crate::ways::{CLIENT, EVERYWHERE, Way, blocks, egress, ingress, judge, over_each, translate, way};
use crate::world::{Family, Result, World, node, pod, tcp, udp};

const DB: [&str; 2] = ["10.96.0.5", "fd00:10:96::5"];
const WEB: [&str; 2] = ["10.96.0.6", "fd00:10:96::6"];
const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// Nobody's, until a test translates it.
const FREE: [&str; 2] = ["10.96.0.9", "fd00:10:96::9"];
/// Outside of all networks of the cluster.
const BALANCER: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
const NODE_PORT: u16 = 30080;

fn at(addresses: [&str; 2], family: Family) -> Result<IpAddr> {
    Ok(addresses[usize::from(family == Family::V6)].parse()?)
}

fn in_namespace(namespace: &str, name: &str) -> Place {
    Place::Pod(policy_compiler::cluster::PodName {
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// Through a ClusterIP to a back end on the client's node and on another: policy speaks of the back end, never of the
/// ClusterIP.
pub(crate) fn a_cluster_ip_stands_for_its_back_ends() -> Result {
    over_each("a_cluster_ip_stands_for_its_back_ends", |mut world, _| {
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            Ok(vec![
                way(&pod("web"), at(DB, family)?, tcp(8000), &pod("db")),
                way(&pod("api"), at(WEB, family)?, tcp(8000), &pod("web")),
                way(&pod("db"), at(WEB, family)?, tcp(8000), &pod("web")),
                way(&pod("api"), world.address(&pod("web"), family)?, tcp(80), &pod("web")),
            ])
        };
        let cluster_ips = blocks(&[DB, WEB].concat());
        let to_web = "{podSelector: {matchLabels: {app: web}}}";
        judge(
            &mut world,
            ways,
            &[
                (DENY_ALL, "----"),
                (ONLY_DB, "+---"),
                (&egress("web", &cluster_ips), "-+++"),
                (&(egress("api", &cluster_ips) + &ingress("db", &cluster_ips)), "--+-"),
                (&ingress("web", "{podSelector: {matchLabels: {app: api}}}"), "++-+"),
                (&(egress("api", to_web) + &egress("db", "{podSelector: {}}")), "++++"),
            ],
        )
    })
}

/// What a pod sends to itself through a Service reaches it also where the node does not masquerade it. The answer then never
/// leaves the pod, whatever the policy, so that only the request is seen to arrive.
pub(crate) fn a_pod_reaches_itself_without_masquerade_too() -> Result {
    over_each("a_pod_reaches_itself_without_masquerade_too", |mut world, _| {
        // The sandbox masquerades for the back ends of its Services; this pod is none.
        let api = pod("api");
        // A packet with its own address as the sender is no use to a pod by default.
        world.netns(&api)?.sysctl(&[("ipv4/conf/all/accept_local", "1")])?;
        for family in Family::BOTH {
            let free = SocketAddr::new(at(FREE, family)?, 8053);
            translate(
                &world,
                &node("a"),
                (free, "udp"),
                world.socket(&api, family, 53)?,
                false,
            )?;
        }
        for policies in [NONE, DENY_ALL] {
            world.policies(policies)?;
            for family in Family::BOTH {
                world.check(&api, (at(FREE, family)?, udp(8053)), &Outcome::OneWay)?;
            }
        }
        for family in Family::BOTH {
            world.check(&pod("web"), (at(FREE, family)?, udp(8053)), &Outcome::Silent)?;
        }
        Ok(())
    })
}

/// The address that a node's masquerade gives to what it sends to pods of other nodes.
fn masquerade(world: &World, wiring: Wiring, name: &str) -> Result<Vec<IpAddr>> {
    match wiring {
        Wiring::Overlay => Ok(world.pod_networks(name).iter().map(ipnet::IpNet::network).collect()),
        _ => Family::BOTH
            .into_iter()
            .map(|family| world.address(&node(name), family))
            .collect(),
    }
}

/// A client outside through a port of a node. When the node masquerades (`externalTrafficPolicy: Cluster`), policy on
/// another node sees that node; on the node itself it sees the client, for it looks before the masquerade.
pub(crate) fn a_node_port_with_masquerade_shows_the_node() -> Result {
    over_each("a_node_port_with_masquerade_shows_the_node", |mut world, wiring| {
        for family in Family::BOTH {
            for (through, port) in [("a", NODE_PORT), ("b", NODE_PORT + 1)] {
                let from = world.socket(&node(through), family, port)?;
                translate(
                    &world,
                    &node(through),
                    (from, "tcp"),
                    world.socket(&pod("db"), family, 80)?,
                    true,
                )?;
            }
        }
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            let (client, db) = (Place::Client, pod("db"));
            Ok(vec![
                way(&client, world.address(&node("a"), family)?, tcp(NODE_PORT), &db),
                way(&client, world.address(&node("b"), family)?, tcp(NODE_PORT + 1), &db),
                way(&client, world.address(&db, family)?, tcp(80), &db),
            ])
        };
        let node_a = masquerade(&world, wiring, "a")?;
        let node_b = masquerade(&world, wiring, "b")?;
        judge(
            &mut world,
            ways,
            &[
                (DENY_ALL, "---"),
                (&ingress("db", &blocks(&CLIENT.concat())), "-++"),
                (&ingress("db", &blocks(&node_a)), "+--"),
                (&ingress("db", &blocks(&node_b)), "---"),
                (&ingress("db", "{podSelector: {}}"), "---"),
                // Egress policy on the pods of the node in between has no say.
                (&egress("web", "{podSelector: {}}"), "+++"),
            ],
        )
    })
}

/// Ports of a node (`externalTrafficPolicy: Local`) and load balancers that keep the client's address: policy sees it.
pub(crate) fn a_kept_client_address_is_what_policy_sees() -> Result {
    over_each("a_kept_client_address_is_what_policy_sees", |mut world, _| {
        for family in Family::BOTH {
            let (db, b) = (
                world.socket(&pod("db"), family, 80)?,
                world.address(&node("b"), family)?,
            );
            let balancer = SocketAddr::new(at(BALANCER, family)?, 443);
            translate(&world, &node("b"), (SocketAddr::new(b, NODE_PORT), "tcp"), db, false)?;
            translate(&world, &node("b"), (balancer, "tcp"), db, false)?;
            // The balancer's part: packets come to a node of a back end as they are.
            let route = format!(
                "route replace {} via {b} dev eth0 onlink src {}\n",
                balancer.ip(),
                at(CLIENT[0], family)?
            );
            world.netns(&Place::Client)?.ip(&route)?;
        }
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            let other = Some(at(CLIENT[1], family)?);
            let port = || -> Result<Way> {
                Ok(way(
                    &Place::Client,
                    world.address(&node("b"), family)?,
                    tcp(NODE_PORT),
                    &pod("db"),
                ))
            };
            let balanced = || -> Result<Way> { Ok(way(&Place::Client, at(BALANCER, family)?, tcp(443), &pod("db"))) };
            Ok(vec![
                port()?,
                Way {
                    source: other,
                    ..port()?
                },
                balanced()?,
                Way {
                    source: other,
                    ..balanced()?
                },
            ])
        };
        let nodes: Vec<IpAddr> = [node("a"), node("b")]
            .iter()
            .flat_map(|n| Family::BOTH.map(|family| world.address(n, family)))
            .collect::<Result<_>>()?;
        judge(
            &mut world,
            ways,
            &[
                (DENY_ALL, "----"),
                (&ingress("db", &blocks(&CLIENT[0])), "+-+-"),
                (&ingress("db", &blocks(&CLIENT[1])), "-+-+"),
                (&ingress("db", &blocks(&nodes)), "----"),
                (&ingress("db", &blocks(&BALANCER)), "----"),
            ],
        )
    })
}

/// A Service without selector, whose endpoints lie outside: egress policy judges the endpoint.
pub(crate) fn endpoints_outside_are_judged_by_their_address() -> Result {
    over_each("endpoints_outside_are_judged_by_their_address", |mut world, _| {
        for family in Family::BOTH {
            let outside = SocketAddr::new(at(CLIENT[0], family)?, EVERYWHERE);
            translate(
                &world,
                &node("a"),
                (SocketAddr::new(at(FREE, family)?, 443), "tcp"),
                outside,
                true,
            )?;
        }
        let ways = |_: &World, family| -> Result<Vec<Way>> {
            Ok(vec![
                way(&pod("web"), at(FREE, family)?, tcp(443), &Place::Client),
                way(&pod("web"), at(CLIENT[0], family)?, tcp(EVERYWHERE), &Place::Client),
            ])
        };
        judge(
            &mut world,
            ways,
            &[
                (DENY_ALL, "--"),
                (&egress("web", &blocks(&FREE)), "--"),
                (&egress("web", &blocks(&CLIENT[1])), "--"),
                (&egress("web", &blocks(&CLIENT[0])), "++"),
                (&egress("web", "{podSelector: {}}"), "--"),
            ],
        )
    })
}

/// The pods of an ingress controller reach back ends, directly and through their Service, on the same node and another.
pub(crate) fn an_ingress_controller_reaches_its_back_ends() -> Result {
    over_each("an_ingress_controller_reaches_its_back_ends", |mut world, _| {
        let controller = in_namespace("ingress", "controller");
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            Ok(vec![
                way(&controller, world.address(&pod("web"), family)?, tcp(80), &pod("web")),
                way(&controller, at(WEB, family)?, tcp(8000), &pod("web")),
                way(&controller, at(DB, family)?, tcp(8000), &pod("db")),
                way(&pod("db"), at(WEB, family)?, tcp(8000), &pod("web")),
                way(&pod("web"), world.address(&controller, family)?, tcp(80), &controller),
            ])
        };
        let controllers = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ingress}}}";
        judge(
            &mut world,
            ways,
            &[
                (
                    &format!(
                        "{DENY_ALL}{}{}",
                        ingress("web", controllers),
                        ingress("db", controllers)
                    ),
                    "+++--",
                ),
                (
                    &ingress("web", "{podSelector: {matchLabels: {app: controller}}}"),
                    "--+-+",
                ),
            ],
        )
    })
}

/// The usual egress: names are looked up through the Service of the DNS, a part of the outside is reached, nothing else.
pub(crate) fn egress_to_dns_and_to_a_part_of_the_outside() -> Result {
    over_each("egress_to_dns_and_to_a_part_of_the_outside", |mut world, _| {
        let dns = in_namespace("kube-system", "dns");
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            Ok(vec![
                way(&pod("web"), at(DNS, family)?, udp(53), &dns),
                way(&pod("web"), at(DNS, family)?, tcp(53), &dns),
                way(&pod("web"), world.address(&dns, family)?, udp(53), &dns),
                way(&pod("web"), at(CLIENT[0], family)?, tcp(EVERYWHERE), &Place::Client),
                way(&pod("web"), at(CLIENT[1], family)?, tcp(EVERYWHERE), &Place::Client),
                way(&pod("web"), at(DB, family)?, tcp(8000), &pod("db")),
            ])
        };
        let to_dns = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app: dns}}}]
    ports: [{port: 53}, {port: 53, protocol: UDP}]
";
        let outside = "{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.20/32]}}, \
                       {ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:ffff::20/128']}}";
        judge(
            &mut world,
            ways,
            &[
                (to_dns, "+++---"),
                (&egress("web", outside), "---+--"),
                (&(to_dns.to_owned() + &egress("web", outside)), "++++--"),
            ],
        )
    })
}
