//! The ways between pods, nodes and the outside that are no Service, and connections that policy changes under.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::{Expect, Options, Place, Wiring};
use policy_compiler::ports::{Protocol, Traffic};

use crate::connections::{go_on, open, stand_still};
use crate::packets::{Datagrams, only_db, waited};
use crate::shop::{CLUSTER, DENY_ALL, NONE, ONLY_API, ONLY_DB};
use crate::ways::{CLIENT, EVERYWHERE, Way, blocks, egress, ingress, judge, over_each, way};
use crate::world::{Family, Result, World, must, node, pod, possible, tcp, udp};

/// What the overlay is for: between nodes the underlay carries no address of a pod, and policy holds all the same.
pub(crate) fn an_overlay_carries_pods_between_nodes() -> Result {
    if !possible(Wiring::Overlay, "an_overlay_carries_pods_between_nodes") {
        return Ok(());
    }
    let options = Options {
        wiring: Wiring::Overlay,
        ..Options::default()
    };
    let mut world = World::wired(CLUSTER, Mode::Enforce, &options)?;
    let mut guard = String::from("table bridge guard {\nchain forward { type filter hook forward priority 0;\n");
    for name in ["a", "b"] {
        for network in world.pod_networks(name) {
            let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
            guard += &format!("{family} saddr {network} drop\n{family} daddr {network} drop\n");
        }
    }
    // Before the pods' traffic is forwarded by it: the guard is seen to hold the outside's.
    for family in Family::BOTH {
        world.passes(&Place::Client, &pod("db"), tcp(80), family)?;
    }
    world.sandbox.underlay().nft(&(guard + "}\n}\n"))?;
    for family in Family::BOTH {
        world.policies(NONE)?;
        world.dropped(&Place::Client, &pod("db"), tcp(80), family)?;
        for (from, to) in [("web", "db"), ("db", "web"), ("web", "api")] {
            world.passes(&pod(from), &pod(to), tcp(80), family)?;
        }
        world.policies(ONLY_DB)?;
        world.passes(&pod("web"), &pod("db"), tcp(80), family)?;
        for (from, to) in [("db", "web"), ("web", "api")] {
            world.dropped(&pod(from), &pod(to), tcp(80), family)?;
        }
    }
    Ok(())
}

/// Pods of a node's network are that node: the pods there reach them and are reached, whatever the policy. From another
/// node they are an address, which an `ipBlock` matches and no selector.
pub(crate) fn host_network_pods_are_their_node() -> Result {
    over_each("host_network_pods_are_their_node", |mut world, wiring| {
        let (web, host_a, host_b) = (pod("web"), pod("host-a"), pod("host-b"));
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            let to = |place: &Place| world.address(place, family);
            Ok(vec![
                way(&host_a, to(&web)?, tcp(80), &web),
                way(&web, to(&host_a)?, tcp(9100), &host_a),
                way(&host_a, to(&host_b)?, tcp(9100), &host_b),
                way(&node("b"), to(&host_a)?, tcp(9100), &host_a),
                way(&host_b, to(&web)?, tcp(80), &web),
                way(&web, to(&host_b)?, tcp(9100), &host_b),
            ])
        };
        let node_b = Family::BOTH
            .into_iter()
            .map(|family| world.address(&node("b"), family))
            .collect::<Result<Vec<IpAddr>>>()?;
        let selected = "{podSelector: {matchLabels: {app: host}}}";
        judge(
            &mut world,
            ways,
            &[
                (DENY_ALL, "++++--"),
                (
                    &(ingress("web", selected) + &egress("web", selected) + &ingress("host", "{podSelector: {}}")),
                    "++++--",
                ),
                (
                    &(ingress("web", &blocks(&node_b)) + &egress("web", &blocks(&node_b))),
                    "++++++",
                ),
            ],
        )?;
        if wiring != Wiring::Overlay {
            return Ok(());
        }
        // A node's own packets into the overlay come from its end of it, unless a program says otherwise.
        let tunnel: Vec<IpAddr> = world.pod_networks("b").iter().map(ipnet::IpNet::network).collect();
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            let source = tunnel.iter().copied().find(|a| a.is_ipv4() == (family == Family::V4));
            let way = way(&node("b"), world.address(&web, family)?, tcp(80), &web);
            Ok(vec![Way { source, ..way }])
        };
        judge(
            &mut world,
            ways,
            &[
                (&ingress("web", &blocks(&node_b)), "-"),
                (&ingress("web", &blocks(&tunnel)), "+"),
            ],
        )
    })
}

/// TCP, UDP, SCTP and echo, within a node and between nodes: each needs a rule of its own.
pub(crate) fn every_protocol_needs_its_rule() -> Result {
    over_each("every_protocol_needs_its_rule", |mut world, _| {
        let sctp = Traffic::Port(Protocol::Sctp, 90);
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            let mut ways = Vec::new();
            for to in [pod("db"), pod("api")] {
                for traffic in [tcp(80), udp(53), sctp, Traffic::Other] {
                    ways.push(way(&pod("web"), world.address(&to, family)?, traffic, &to));
                }
            }
            Ok(ways)
        };
        let with_ports = |ports: &str| {
            let all = egress("web", "{podSelector: {}}") + &ingress("db", "{podSelector: {}}");
            all.replace("}]}]}", &format!("}}], ports: [{ports}]}}]}}"))
        };
        judge(
            &mut world,
            ways,
            &[
                (DENY_ALL, "--------"),
                (ONLY_DB, "++------"),
                (&with_ports("{port: 80}"), "+---+---"),
                (&with_ports("{port: 53, protocol: UDP}"), "-+---+--"),
                (&with_ports("{port: 90, protocol: SCTP}"), "--+---+-"),
                (&with_ports("{port: 89, protocol: SCTP}"), "--------"),
                (&egress("web", "{podSelector: {matchLabels: {app: db}}}"), "++++----"),
            ],
        )
    })
}

/// A pod that may do nothing reaches its own node and itself, and no other node.
pub(crate) fn a_pod_reaches_its_own_node_and_no_other() -> Result {
    over_each("a_pod_reaches_its_own_node_and_no_other", |mut world, _| {
        let (web, a, b) = (pod("web"), node("a"), node("b"));
        let ways = |world: &World, family| -> Result<Vec<Way>> {
            let mut ways = Vec::new();
            for traffic in [tcp(EVERYWHERE), Traffic::Other] {
                ways.extend([
                    way(&web, world.address(&a, family)?, traffic, &a),
                    way(&a, world.address(&web, family)?, traffic, &web),
                    way(&web, world.address(&web, family)?, traffic, &web),
                    way(&web, world.address(&b, family)?, traffic, &b),
                    way(&b, world.address(&web, family)?, traffic, &web),
                ]);
            }
            Ok(ways)
        };
        judge(&mut world, ways, &[(DENY_ALL, "+++--+++--")])
    })
}

/// The containers of a pod share its network: what passes between them meets no node.
pub(crate) fn containers_of_a_pod_reach_each_other() -> Result {
    over_each("containers_of_a_pod_reach_each_other", |mut world, _| {
        world.policies(DENY_ALL)?;
        for family in Family::BOTH {
            // Denied everything indeed.
            world.dropped(&pod("db"), &pod("web"), tcp(80), family)?;
            let localhost: IpAddr = if family == Family::V4 { "127.0.0.1" } else { "::1" }.parse()?;
            for address in [localhost, world.address(&pod("web"), family)?] {
                let listener = world.netns(&pod("web"))?.run(|| TcpListener::bind((address, 8081)))??;
                let to = listener.local_addr()?;
                let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(8));
                let mut client = world.netns(&pod("web"))?.run(connect)??;
                client.write_all(b"x")?;
                let mut heard = [0];
                listener.accept()?.0.read_exact(&mut heard)?;
            }
        }
        Ok(())
    })
}

/// A node that masquerades what pods send to the outside changes no verdict, for new connections and open ones.
pub(crate) fn masqueraded_egress_is_judged_before() -> Result {
    over_each("masqueraded_egress_is_judged_before", |mut world, _| {
        let (web, a) = (pod("web"), node("a"));
        for family in ["ip", "ip6"] {
            let pods = world
                .pod_networks("a")
                .iter()
                .find(|net| net.addr().is_ipv4() == (family == "ip"));
            let pods = pods.ok_or("a node without a pod network")?.trunc();
            let rule = format!("{family} saddr {pods} oifname eth0 masquerade");
            world.netns(&a)?.nft(&format!(
                "table {family} own_masquerade {{\nchain postrouting {{ type nat hook postrouting priority srcnat - 1;\n{rule}\n}}\n}}\n"
            ))?;
        }
        let mut flows = Vec::new();
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            let to: IpAddr = CLIENT[0][at].parse()?;
            let outside = world.netns(&Place::Client)?.run(|| UdpSocket::bind((to, 5353)))??;
            outside.set_read_timeout(Some(Duration::from_secs(8)))?;
            let from = world.socket(&web, family, 0)?;
            let inside = world.netns(&web)?.run(|| UdpSocket::bind(from))??;
            inside.send_to(b"x", outside.local_addr()?)?;
            let (_, seen) = waited(|| outside.recv_from(&mut [0]))?.ok_or("nothing is heard outside")?;
            must(
                seen.ip() == world.address(&a, family)?,
                format!("nothing is masqueraded: {seen}"),
            )?;
            flows.push((
                format!("web to {to}"),
                open(&world, &web, SocketAddr::new(to, EVERYWHERE))?,
            ));
        }
        let ways = |_: &World, family| -> Result<Vec<Way>> {
            let client = |at: usize| CLIENT[at][usize::from(family == Family::V6)].parse();
            Ok(vec![
                way(&web, client(0)?, tcp(EVERYWHERE), &Place::Client),
                way(&web, client(1)?, tcp(EVERYWHERE), &Place::Client),
                way(&pod("api"), client(1)?, tcp(EVERYWHERE), &Place::Client),
            ])
        };
        let (first, second) = (egress("web", &blocks(&CLIENT[0])), egress("web", &blocks(&CLIENT[1])));
        judge(
            &mut world,
            ways,
            &[(&first, "+-+"), (&second, "-++"), (DENY_ALL, "---")],
        )?;
        for _ in 0..2 {
            stand_still(&mut flows)?;
            world.policies(&first)?;
            go_on(&mut flows)?;
            world.policies(&second)?;
        }
        Ok(())
    })
}

/// Open connections within a node and between nodes, over bridges and an overlay as over routed links: a change stops them,
/// and another one lets them go on; datagrams of one client port as well.
pub(crate) fn a_change_stops_what_is_running_on_every_wiring() -> Result {
    over_each("a_change_stops_what_is_running_on_every_wiring", |mut world, _| {
        let (mut to_db, mut to_api, mut datagrams) = (Vec::new(), Vec::new(), Vec::new());
        for family in Family::BOTH {
            let (db, api) = (
                world.socket(&pod("db"), family, 80)?,
                world.socket(&pod("api"), family, 80)?,
            );
            to_db.push((format!("web to {db}"), open(&world, &pod("web"), db)?));
            to_api.push((format!("web to {api}"), open(&world, &pod("web"), api)?));
            datagrams.push(Datagrams::new(&world, &pod("web"), &pod("db"), family)?);
        }
        let only_db = only_db();
        for (policies, db, api) in [(NONE, true, true), (&only_db, true, false), (ONLY_API, false, true)]
            .into_iter()
            .chain([(DENY_ALL, false, false), (&only_db, true, false), (NONE, true, true)])
        {
            world.policies(policies)?;
            for (flows, alive) in [(&mut to_db, db), (&mut to_api, api)] {
                if alive { go_on(flows)? } else { stand_still(flows)? }
            }
            for datagrams in &datagrams {
                let expected = if db { Expect::Answer } else { Expect::Silence };
                must(
                    datagrams.arrives(10, 10, expected)? == db,
                    format!("datagrams, expected: {db}, under {policies}"),
                )?;
            }
        }
        Ok(())
    })
}

/// A connection whose SYN, or whose answer to it, got lost on the way: tried again under a policy that denies it, it does
/// not come about, and under one that allows it, it does.
pub(crate) fn a_half_open_connection_is_judged() -> Result {
    over_each("a_half_open_connection_is_judged", |mut world, _| {
        let policies = ONLY_DB.replace("port: 80}", "port: 8080}");
        // Where packets get lost, before the pod itself sees them.
        for (lossy, lost) in [("db", "tcp dport 8080"), ("web", "tcp sport 8080")] {
            world.policies(&policies)?;
            let hole = format!(
                "table inet hole {{\nchain input {{ type filter hook input priority 0;\n\
                 meta nfproto ipv4 {lost} counter drop\nmeta nfproto ipv6 {lost} counter drop\n}}\n}}\n"
            );
            world.netns(&pod(lossy))?.nft(&hole)?;
            let mut ends = Vec::new();
            for family in Family::BOTH {
                let to = world.socket(&pod("db"), family, 8080)?;
                let listener = world.netns(&pod("db"))?.run(|| TcpListener::bind(to))??;
                listener.set_nonblocking(true)?;
                ends.push((to, listener));
            }
            std::thread::scope(|scope| -> Result {
                let web = world.sandbox.netns(&pod("web"))?.clone();
                let clients: Vec<_> = (ends.iter())
                    .map(|(to, _)| {
                        let (web, to) = (web.clone(), *to);
                        // Kernels before 6.15 pause between attempts for as long as they have tried already.
                        scope.spawn(move || web.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(90))))
                    })
                    .collect();
                // One of each family is lost, before what follows.
                let start = Instant::now();
                while {
                    let lost = world.nft(&pod(lossy), &["list", "chain", "inet", "hole", "input"])?;
                    lost.matches("counter packets").count() != 2 || lost.contains("counter packets 0 ")
                } {
                    must(start.elapsed() < Duration::from_secs(30), "nothing gets lost")?;
                    sleep(Duration::from_millis(20));
                }
                world.policies(DENY_ALL)?;
                world.netns(&pod(lossy))?.nft("delete table inet hole\n")?;
                // Both ends try again at least twice in that time.
                sleep(Duration::from_millis(3500));
                for ((to, listener), client) in ends.iter().zip(&clients) {
                    let came = listener.accept();
                    let waits = came.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                    must(
                        waits && !client.is_finished(),
                        format!("{to}, lost {lost}: connected though denied: {came:?}"),
                    )?;
                }
                world.policies(&policies)?;
                for ((to, _), client) in ends.iter().zip(clients) {
                    let connected = client.join().map_err(|_| "a panic")??;
                    must(
                        connected.is_ok(),
                        format!("{to}, lost {lost}: not connected though allowed: {connected:?}"),
                    )?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}
