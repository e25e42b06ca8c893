//! Random clusters on the wire: every pair of ends on the ports at the boundaries of all policies, held against the
//! reference evaluator, before and after each of a few random events that are applied as differences. Some policies are
//! audited: what only they deny passes, and the kernel counts it.
//!
//! The clusters are those of the property tests, made fit to be built. `PALISADE_SEEDS=40` plays so many of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use palisade::nft::Mode;
use palisade::sandbox::Options;
use policy_compiler::cluster::{Cluster, Namespace, Pod, PodName};
use policy_compiler::labels::Labels;
use policy_compiler::policy::{Policy, PolicyName, Tier};
use policy_compiler::ports::Protocol;
use policy_compiler::testing::{self, Tiers};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::conformance::{Seat, observe};
use crate::plan::{Expected, UNNAMED, edges, plan, ports};
use crate::world::{Result, World, marks, must, with_marks};

/// How many clusters are played when nobody asks for more.
const SEEDS: u64 = 6;

/// How many are at work at once: most of the time is spent listening to silence.
const AT_ONCE: usize = 3;

/// How many events follow each other.
const EVENTS: usize = 4;

/// The addresses of pods, of which the blocks of the random policies hold some.
const ADDRESSES: [[&str; 2]; 5] = [
    ["10.0.0.1", "fd00::1"],
    ["10.0.0.2", "fd00::2"],
    ["10.0.0.3", "fd00::3"],
    ["10.0.0.4", "fd00::4"],
    ["10.0.1.1", "fd00:1::1"],
];

/// Plays all seeds.
pub(crate) fn clusters() -> Result {
    let seeds = match std::env::var("PALISADE_SEEDS") {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("PALISADE_SEEDS={text} is not a number"))?,
        Err(_) => SEEDS,
    };
    let (next, probes, told) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mask = marks();
    let work = || -> std::result::Result<(), String> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok(());
            }
            let (sent, counted) = play(seed).map_err(|error| format!("seed {seed}: {error}"))?;
            probes.fetch_add(sent, Ordering::Relaxed);
            told.fetch_add(counted, Ordering::Relaxed);
        }
    };
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| with_marks(mask, work))).collect();
        let ends = workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())));
        ends.filter_map(std::result::Result::err).collect()
    });
    let told = told.into_inner();
    println!(
        "{seeds} random clusters: {} probes, {told} of them pass thanks to audit",
        probes.into_inner()
    );
    match failures.is_empty() {
        true if seeds >= SEEDS => must(told > 0, "no audited policy decides anything in these clusters"),
        true => Ok(()),
        false => Err(failures.join("\n").into()),
    }
}

/// Plays one cluster; says how many probes that took, and how many of them passed because policies were audited.
fn play(seed: u64) -> Result<(u64, u64)> {
    let _seat = Seat::take();
    let mut random = Random::new(seed);
    let states = random.states()?;
    let mut extra_ports: BTreeSet<(Protocol, u16)> = Protocol::ALL.into_iter().map(|p| (p, UNNAMED)).collect();
    let mut client = Options::default().client;
    for (_, cluster) in &states {
        extra_ports.extend(ports(cluster, cluster));
        client.extend(edges(cluster));
    }
    let staged = &states[0].1;
    let mut seen: BTreeSet<IpAddr> = (staged.pods.values().flat_map(|p| p.addresses.clone()))
        .chain(staged.nodes.values().flat_map(|n| n.addresses.clone()))
        .collect();
    client.retain(|a| seen.insert(*a));
    let options = Options {
        client,
        extra_ports,
        ..Options::default()
    };
    let mut world = World::stage(staged, staged.clone(), &options, Mode::Enforce)?;
    let plans: Vec<_> = (states.iter())
        .map(|(_, cluster)| plan(&world, cluster, false, cluster))
        .collect::<Result<_>>()?;

    // Without policy everybody must answer: silence later on is then the work of a policy.
    world.enforce(&Cluster::default())?;
    let mut baseline = BTreeMap::new();
    for (key, expected) in plans.iter().flatten() {
        baseline.entry(key.clone()).or_insert_with(|| Expected {
            answerer: expected.answerer.clone(),
            allowed: true,
            told: None,
            reason: "no policy".to_owned(),
        });
    }
    observe(&world, "without any policy", &baseline)?;
    let (mut sent, mut told) = (baseline.len(), 0);
    for ((event, cluster), plan) in states.into_iter().zip(&plans) {
        let policies: Vec<String> = cluster.policies.values().map(|p| format!("{p:?}")).collect();
        world.follow(cluster)?;
        observe(&world, &event, plan).map_err(|error| format!("{error}\nwith {}", policies.join("\n")))?;
        if let Some(difference) = world.drift()? {
            return Err(format!("{event}: {difference}").into());
        }
        sent += plan.len();
        told += plan.values().filter(|expected| expected.told.is_some()).count();
    }
    Ok((sent as u64, told as u64))
}

/// Clusters and events of one seed.
struct Random {
    runner: TestRunner,
}

impl Random {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        Random {
            runner: TestRunner::new_with_rng(Config::default(), rng),
        }
    }

    fn pick<T>(&mut self, strategy: impl Strategy<Value = T>) -> Result<T> {
        let tree = strategy
            .new_tree(&mut self.runner)
            .map_err(|reason| reason.to_string())?;
        Ok(tree.current())
    }

    /// A cluster that can be built, with enough in it to be worth it.
    fn cluster(&mut self) -> Result<Cluster> {
        loop {
            let mut cluster = self.pick(testing::cluster(Tiers::NetworkPolicy))?;
            let all = std::mem::take(&mut cluster.pods);
            let mut addresses = ADDRESSES.iter();
            let mut hosts = 0;
            for mut pod in all.into_values().map(|p| Pod::clone(&p)).filter(|p| !p.ended) {
                pod.node.get_or_insert_with(|| "node-1".into());
                if pod.host_network {
                    hosts += 1;
                    // Its node answers on whatever it listens on.
                    pod.ports.clear();
                    if hosts == 1 && !pod.addresses.is_empty() {
                        cluster.add_pod(pod);
                    }
                } else if let Some(own) = addresses.next() {
                    pod.addresses = own.iter().map(|a| a.parse()).collect::<std::result::Result<_, _>>()?;
                    cluster.add_pod(pod);
                }
            }
            let enough = cluster.pods.len() >= 3 && cluster.policies.len() >= 2;
            if enough && has_whole_nodes(&cluster) {
                return Ok(cluster);
            }
        }
    }

    /// A cluster, and what becomes of it by one event after the other; each with a name.
    fn states(&mut self) -> Result<Vec<(String, Cluster)>> {
        let mut now = self.cluster()?;
        let mut states = vec![("at first".to_owned(), now.clone())];
        while states.len() <= EVENTS {
            let other = self.cluster()?;
            let event = match self.pick(0..5)? {
                0 => relabel(&mut now, &other),
                1 => now.policies.pop_first().map(|((_, name), _)| format!("{name} goes")),
                2 => other
                    .policies
                    .into_iter()
                    .next()
                    .map(|(key, policy)| put(&mut now, key, policy)),
                3 => edit(&mut now, &other),
                _ => self.address(&mut now)?,
            };
            if let Some(event) = event.filter(|_| states[states.len() - 1].1 != now) {
                states.push((format!("after {event}"), now.clone()));
            }
        }
        Ok(states)
    }

    /// The client's addresses become those of a pod that no policy selects, or the client's own again.
    fn address(&mut self, cluster: &mut Cluster) -> Result<Option<String>> {
        let name = PodName {
            namespace: "z".into(),
            name: "newcomer".into(),
        };
        if cluster.pods.remove(&name).is_some() {
            return Ok(Some("the addresses of z/newcomer are nobody's".to_owned()));
        }
        cluster.add_namespace(Namespace::new("z", self.pick(labels())?));
        cluster.add_pod(Pod {
            name,
            labels: self.pick(labels())?,
            addresses: Options::default().client,
            node: Some("elsewhere".into()),
            host_network: false,
            ended: false,
            started: None,
            ports: Vec::new(),
            workload: None,
        });
        Ok(Some("the client's addresses are those of z/newcomer".to_owned()))
    }
}

/// Whether every node has an address of each family and shares none: others can be known, and not built.
fn has_whole_nodes(cluster: &Cluster) -> bool {
    let mut seen = BTreeSet::new();
    cluster.nodes.values().all(|node| {
        let families: BTreeSet<bool> = node.addresses.iter().map(IpAddr::is_ipv4).collect();
        families.len() == 2 && node.addresses.iter().all(|address| seen.insert(address))
    })
}

fn labels() -> impl Strategy<Value = Labels> {
    let pair = proptest::sample::select(&[("app", "a"), ("app", "b"), ("tier", "a"), ("tier", "")][..]);
    proptest::collection::vec(pair, 0..=2).prop_map(|pairs| pairs.into_iter().collect())
}

/// The first pod takes the labels of a pod elsewhere.
fn relabel(cluster: &mut Cluster, other: &Cluster) -> Option<String> {
    let mut pod = Pod::clone(cluster.pods.values().find(|p| !p.host_network)?);
    pod.labels = other.pods.values().next()?.labels.clone();
    let event = format!("{} is labelled anew", pod.name);
    cluster.add_pod(pod);
    Some(event)
}

fn put(cluster: &mut Cluster, key: (Tier, PolicyName), policy: Arc<Policy>) -> String {
    let event = format!("{} comes", key.1);
    cluster.policies.insert(key, policy);
    event
}

/// The last policy takes the rules of a policy elsewhere.
fn edit(cluster: &mut Cluster, other: &Cluster) -> Option<String> {
    let last = Policy::clone(cluster.policies.values().next_back()?);
    let rules = other.policies.values().next_back()?;
    let edited = Policy {
        ingress: rules.ingress.clone(),
        egress: rules.egress.clone(),
        ..last
    };
    let event = format!("{} is edited", edited.name);
    cluster.add_policy(edited);
    Some(event)
}
