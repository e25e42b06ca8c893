//! What becomes of packets while the table is replaced, changed, damaged, or an apply is cut off: the counts of a flood tell.

use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::Place;

use crate::flood::{Flood, Lane, Tally};
use crate::shop::CLUSTER;
use crate::world::{Result, World, must, node, pod};

/// `web` reaches `api` (same node), `db` (other node) and half of the client's network; the client's network reaches `db`;
/// nothing else passes. The blocks make interval maps in both directions and families.
pub(crate) const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to:
    - podSelector: {matchExpressions: [{key: app, operator: In, values: [api, db]}]}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    - ipBlock: {cidr: '2001:db8:ffff::/64', except: ['2001:db8:ffff::8000/113']}
    ports: [{port: 5000, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-api-and-db, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [api, db]}]}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5000, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: outside-to-db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    - ipBlock: {cidr: '2001:db8:ffff::/64', except: ['2001:db8:ffff::8000/113']}
    ports: [{port: 5000, protocol: UDP}]
";

/// The lanes between the pods of the shop and the client, under [`POLICIES`].
pub(crate) fn lanes() -> Vec<Lane> {
    let lane = |from: Place, to: Place, port, passes| Lane { from, to, port, passes };
    vec![
        lane(pod("web"), pod("api"), 5000, true),
        lane(pod("web"), pod("db"), 5000, true),
        lane(pod("web"), Place::Client, 5000, true),
        lane(Place::Client, pod("db"), 5000, true),
        lane(pod("web"), pod("api"), 5001, false),
        lane(pod("web"), pod("db"), 5001, false),
        lane(pod("web"), Place::Client, 5001, false),
        lane(Place::Client, pod("db"), 5001, false),
        lane(Place::Client, pod("web"), 5000, false),
        lane(pod("api"), pod("db"), 5000, false),
        lane(pod("db"), pod("api"), 5000, false),
    ]
}

/// Without policy every datagram arrives, on every lane: whatever is missing later is the work of the table.
pub(crate) fn proven(world: &mut World) -> Result {
    world.policies("kind: NetworkPolicyList\napiVersion: networking.k8s.io/v1\nitems: []\n")?;
    let open: Vec<Lane> = lanes().into_iter().map(|lane| Lane { passes: true, ..lane }).collect();
    let flood = Flood::start(world, &open, Duration::from_micros(200))?;
    std::thread::sleep(Duration::from_millis(300));
    flood.stop(world)?.flawless()
}

/// The whole table a hundred times over, on both nodes.
pub(crate) fn a_hundred_whole_tables_lose_and_leak_nothing() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let flood = Flood::start(&world, &lanes(), Duration::ZERO)?;
    let start = Instant::now();
    for _ in 0..50 {
        for name in ["a", "b"] {
            let changed = world.resync(&node(name))?;
            must(changed, "nothing was applied")?;
        }
    }
    let took = start.elapsed();
    let tally = flood.stop(&world)?;
    println!(
        "100 whole tables in {took:?}: {} datagrams, {} lost, {} leaked",
        tally.sent(),
        tally.lost(),
        tally.leaked()
    );
    tally.flawless()
}

/// Whatever is there, the whole table in place of it: nothing leaks. The kernel takes a hash map's elements away a moment
/// before the rules that use it, so a few packets may be lost; they are counted, and must stay few.
pub(crate) fn replacing_the_table_leaks_nothing() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let mut tallies = Vec::new();
    for _ in 0..5 {
        let flood = Flood::start(&world, &lanes(), Duration::ZERO)?;
        for _ in 0..10 {
            for name in ["a", "b"] {
                world.replace(&node(name))?;
            }
        }
        tallies.push(flood.stop(&world)?);
    }
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    println!(
        "100 replacements: {} datagrams, {} lost, {} leaked",
        sum(Tally::sent),
        sum(Tally::lost),
        sum(Tally::leaked)
    );
    few_lost_and_none_leaked(&tallies)
}

/// Of floods through the same fault. What is lost in the moment when a table takes another's place depends on how long the machine
/// makes that moment: most of the floods lose one datagram in two hundred at most, and none loses half of them.
pub(crate) fn few_lost_and_none_leaked(tallies: &[Tally]) -> Result {
    let told: Vec<String> = (tallies.iter())
        .map(|tally| {
            let (sent, lost, leaked) = (tally.sent(), tally.lost(), tally.leaked());
            format!("of {sent} datagrams {lost} were lost and {leaked} leaked")
        })
        .collect();
    let fine = |tally: &Tally| tally.leaked() == 0 && tally.lost() * 2 < tally.sent();
    must(tallies.iter().all(fine), told.join("\n"))?;
    let many = tallies
        .iter()
        .filter(|tally| tally.lost() * 200 >= tally.sent())
        .count();
    must(many * 2 < tallies.len(), told.join("\n"))
}

/// A policy about other ports, so that classes change under the lanes.
const OTHER_PORTS: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other-ports, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 7000}, {port: 7100, endPort: 7200, protocol: UDP}]
";

/// A policy about another block, so that every interval map of the lanes is made anew.
const OTHER_BLOCK: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other-block, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8:aaaa::/64'}}]}]
  egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8:aaaa::/64'}}]}]
";

/// Policies and pods come and go, and each time the lanes stay what they are.
pub(crate) fn a_thousand_changes_lose_and_leak_nothing() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let flood = Flood::start(&world, &lanes(), Duration::ZERO)?;
    let start = Instant::now();
    let mut applied = 0;
    for round in 0.. {
        if applied >= 1000 {
            break;
        }
        let policies = match round % 6 {
            0 => format!("{POLICIES}{OTHER_PORTS}"),
            2 => format!("{POLICIES}{OTHER_BLOCK}"),
            _ => POLICIES.to_owned(),
        };
        if round % 6 == 4 {
            world.add_pod(&format!("web-{round}"), [10, 244, 9, (round % 250) as u8].into());
        }
        let loaded = palisade::manifests::parse("policies.yaml", &policies).map_err(|e| e.to_string())?;
        applied += world.enforce(&loaded.cluster)?;
    }
    let took = start.elapsed();
    let tally = flood.stop(&world)?;
    println!(
        "{applied} changes in {took:?}: {} datagrams, {} lost, {} leaked",
        tally.sent(),
        tally.lost(),
        tally.leaked()
    );
    tally.flawless()
}
