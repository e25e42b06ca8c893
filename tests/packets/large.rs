//! Fifty thousand peers: the packets of those at the edges, and of their neighbours, are judged rightly, and one pod more is
//! judged as soon as it is told.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use palisade::manifests;
use palisade::nft::Mode;
use palisade::sandbox::{Expect, Options, Outcome, Place, Probe, assign_addresses};
use policy_compiler::cluster::{Cluster, Pod, PodName};

use crate::shop::{CLUSTER, DB_INGRESS};
use crate::world::{Result, World, must, pod, tcp};

const PEERS: u32 = 50_000;
/// The address of the first.
const FIRST: u32 = 0x0a80_0000;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(FIRST + number).into()
}

/// A pod that the policy of the shop admits, on a node that is not built.
fn peer(number: u32) -> Pod {
    Pod {
        name: PodName {
            namespace: "shop".into(),
            name: format!("peer-{number}").into(),
        },
        labels: [("app", "web")].into_iter().collect(),
        addresses: vec![address(number)],
        node: Some("elsewhere".into()),
        host_network: false,
        ended: false,
        started: None,
        ports: Vec::new(),
        workload: None,
    }
}

/// Root outside user namespaces: only it may send nft's larger messages.
fn is_real_root() -> Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/uid_map")?.contains("4294967295"))
}

pub(crate) fn fifty_thousand_peers_are_judged() -> Result {
    if !is_real_root()? {
        println!("NOT RUN: fifty_thousand_peers_are_judged: so much needs root outside user namespaces");
        return Ok(());
    }
    // Odd numbers are peers, so that the client's address beside each is nobody's.
    let numbers: Vec<u32> = (0..PEERS).map(|n| 2 * n + 1).collect();
    let late = 2 * PEERS + 1;
    let mut staged = manifests::parse("cluster.yaml", CLUSTER)
        .map_err(|e| e.to_string())?
        .cluster;
    assign_addresses(&mut staged)?;
    let checked: Vec<u32> = [0, 1, 127, 128, PEERS / 2, PEERS - 2, PEERS - 1]
        .map(|n| 2 * n + 1)
        .into();
    let mut options = Options::default();
    for number in checked.iter().chain([&late]) {
        options.client.extend([address(*number), address(number - 1)]);
    }
    let mut known = staged.clone();
    numbers.iter().for_each(|number| known.add_pod(peer(*number)));
    let policies = manifests::parse("policies.yaml", DB_INGRESS)
        .map_err(|e| e.to_string())?
        .cluster;
    known.policies = policies.policies;
    let mut world = World::stage(&staged, known.clone(), &options, Mode::Enforce)?;

    // Without policy all of them are answered.
    world.enforce(&Cluster::default())?;
    check(&world, &checked, true, true)?;
    check(&world, &[late], true, true)?;
    let start = Instant::now();
    world.follow(known.clone())?;
    let whole = start.elapsed();
    check(&world, &checked, true, false)?;
    check(&world, &[late], false, false)?;

    let start = Instant::now();
    known.add_pod(peer(late));
    world.follow(known.clone())?;
    let one = start.elapsed();
    check(&world, &[late], true, false)?;
    // One of them goes.
    known.pods.remove(&peer(checked[0]).name);
    world.follow(known)?;
    check(&world, &checked[..1], false, false)?;
    check(&world, &checked[1..], true, false)?;
    println!("{PEERS} peers on two nodes in {whole:?}, one more in {one:?}");
    Ok(())
}

/// Whether the peers of these numbers, and the addresses just before each, are answered by `db`.
#[track_caller]
fn check(world: &World, numbers: &[u32], peers: bool, others: bool) -> Result {
    let to = world.address(&pod("db"), crate::world::Family::V4)?;
    let mut probes = Vec::new();
    let mut expected = Vec::new();
    for number in numbers {
        for (source, passes) in [(address(*number), peers), (address(number - 1), others)] {
            probes.push(Probe {
                from: Place::Client,
                source: Some(source),
                to,
                traffic: tcp(80),
                expect: if passes { Expect::Answer } else { Expect::Silence },
            });
            expected.push(if passes {
                Outcome::Answered("shop/db".to_owned())
            } else {
                Outcome::Silent
            });
        }
    }
    let outcomes = world.sandbox.probe_all(&probes, |_| {})?;
    let sources: Vec<_> = probes.iter().filter_map(|p| p.source).collect();
    must(
        outcomes == expected,
        format!("from {sources:?}: {outcomes:?}, expected {expected:?}"),
    )
}
