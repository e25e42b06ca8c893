//! A connection table that is full, or that somebody tries to fill.
//!
//! Its size cannot be set in one namespace, so it is filled to the size that it has. The kernel then takes the place of a
//! connection that was never answered, or drops the packet that would open another.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::{Flow, Place};

use crate::shop::CLUSTER;
use crate::world::{Family, Result, World, must, node, pod, tcp};

/// `web` reaches `db` on TCP 80 and the client on everything; nothing else passes.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-out, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}
  - {to: [{ipBlock: {cidr: 192.0.2.0/24}}]}
";

/// A table of more than this takes too long to fill.
const MOST: usize = 400_000;

/// How long filling it may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long an unanswered datagram is remembered: longer than filling the table takes.
const REMEMBERED: &str = "600";

/// A number of connection tracking in the namespace of node `a`.
fn tracked(world: &World, what: &str) -> Result<usize> {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{what}");
    let text = world.netns(&node("a"))?.run(|| std::fs::read_to_string(path))??;
    Ok(text.trim().parse()?)
}

/// Datagrams from `web` to so many ports of an address, in as many connections.
fn datagrams(world: &World, to: &Place, count: usize) -> Result {
    let address = world.address(to, Family::V4)?;
    let from = world.socket(&pod("web"), Family::V4, 0)?;
    for _ in 0..count.div_ceil(65_535) {
        let socket = world.netns(&pod("web"))?.run(|| UdpSocket::bind(from))??;
        for port in 1..=u16::MAX {
            // A full table may be told to the sender.
            let _ = socket.send_to(b"crowd", (address, port));
        }
    }
    Ok(())
}

pub(crate) fn a_full_connection_table_lets_nothing_pass() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    // Nobody answers the crowd.
    (world.netns(&Place::Client)?).nft(
        "table inet crowd {\nchain crowd {\ntype filter hook prerouting priority raw;\nmeta l4proto udp drop\n}\n}\n",
    )?;
    for traffic in [tcp(80), tcp(81)] {
        // Nobody listens on the second; it shows that the first is somebody.
        let outcome = match traffic == tcp(80) {
            true => palisade::sandbox::Outcome::Answered("shop/api".to_owned()),
            false => palisade::sandbox::Outcome::Refused,
        };
        world.check(
            &pod("web"),
            (world.address(&pod("api"), Family::V4)?, traffic),
            &outcome,
        )?;
    }
    world.policies(POLICIES)?;
    let to = world.socket(&pod("db"), Family::V4, 80)?;
    let mut flow: Flow = (world.sandbox.open(&pod("web"), to)?).map_err(|outcome| outcome.to_string())?;
    must(
        flow.exchange(Duration::from_secs(30)),
        "the connection stands still at once",
    )?;

    // What is denied is never entered, so nobody fills the table with it.
    let before = tracked(&world, "count")?;
    datagrams(&world, &pod("api"), 65_535)?;
    let after = tracked(&world, "count")?;
    must(
        after < before + 100,
        format!("{before} connections before the denied ones, {after} after"),
    )?;

    let timeout = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
    (world.netns(&node("a"))?).run(|| std::fs::write(timeout, REMEMBERED))??;
    let most = tracked(&world, "max")?;
    if most > MOST {
        println!("NOT RUN: a full connection table: this machine's takes {most} connections, too many to fill");
        return Ok(());
    }
    // On a busy machine queues overflow and some are lost: others are sent in their place.
    let start = Instant::now();
    let mut count = 0;
    while count * 10 <= most * 9 {
        must(
            start.elapsed() < PATIENCE,
            format!("only {count} of {most} connections are there"),
        )?;
        datagrams(&world, &Place::Client, most - count)?;
        count = tracked(&world, "count")?;
    }
    println!("{count} of {most} connections");
    // A full table, whatever was lost.
    datagrams(&world, &Place::Client, 65_535)?;
    must(
        flow.exchange(Duration::from_secs(30)) && flow.push(Duration::from_secs(30)),
        "a connection that was there stands still",
    )?;
    for family in Family::BOTH {
        world.dropped(&pod("web"), &pod("api"), tcp(80), family)?;
        world.dropped(&pod("api"), &pod("web"), tcp(80), family)?;
    }
    world.policies(&POLICIES.replace("port: 80}", "port: 8}"))?;
    must(
        !flow.exchange(Duration::from_millis(500)),
        "a change does not stop the connection",
    )?;
    must(world.drift()?.is_none(), "the table is not what it should be")
}
