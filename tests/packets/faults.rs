//! What becomes of packets while the table is replaced, changed, damaged, or an apply is cut off: the counts of a flood tell.

use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::Place;

use crate::flood::{Flood, Lane};
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
