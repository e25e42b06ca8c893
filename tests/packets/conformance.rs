//! Every scenario of the fixtures with real packets: the kernel must do what the reference evaluator says.
//!
//! Scenarios that share a cluster share a sandbox, and only their policies change, so each transaction but the first is
//! the difference to the scenario before it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use palisade::manifests;
use palisade::nft::Mode;
use palisade::sandbox::{Expect, Options, Outcome, Probe, Wiring, assign_addresses};
use policy_compiler::cluster::{Cluster, Node};
use policy_compiler::policy::Direction;
use policy_compiler::ports::Protocol;

use crate::plan::{Expected, Plan, UNNAMED, edges, plan, ports};
use crate::world::{Counts, Result, World, marks, possible, with_marks};

/// Scenarios that packets cannot show, with the reason. One that is no longer there fails the test.
const LEFT_OUT: [(&str, &str); 1] = [(
    "traps/pod-without-an-address",
    "nothing can be sent to or from a pod without an address; the sandbox would give it one",
)];

/// How many sandboxes are at work at once, of all groups together: most of the time is spent listening to silence, and
/// many more would not fit into the machine's table of neighbours.
const AT_ONCE: usize = 8;

/// How many more may be built.
static SEATS: (Mutex<usize>, Condvar) = (Mutex::new(AT_ONCE), Condvar::new());

/// The right to one more sandbox, until it is dropped.
pub(crate) struct Seat;

impl Seat {
    /// Waits until fewer than [`AT_ONCE`] are taken.
    pub(crate) fn take() -> Seat {
        let (free, given_back) = (&SEATS.0, &SEATS.1);
        let free = free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = (given_back.wait_while(free, |free| *free == 0)).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Seat
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *SEATS.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        SEATS.1.notify_one();
    }
}

/// How many scenarios a sandbox plays; more of one cluster are played in several at once.
const SCENARIOS: usize = 8;

/// A scenario of a cluster.
struct Scenario {
    name: String,
    /// Only its policies.
    policies: Cluster,
}

/// A cluster and scenarios of it.
struct Play {
    /// What is built.
    staged: Cluster,
    /// What the enforcers and the evaluator know.
    known: Cluster,
    /// Whether the pods have IPv6 addresses that their manifests do not speak of.
    added_family: bool,
    scenarios: Vec<Scenario>,
}

/// Plays all scenarios of a group of fixtures in sandboxes of one wiring.
pub(crate) fn group(group: &str, wiring: Wiring) -> Result {
    if !possible(wiring, &format!("{group} over {wiring:?}")) {
        return Ok(());
    }
    let plays = plays(group)?;
    let next = AtomicUsize::new(0);
    let mask = marks();
    let work = || -> std::result::Result<(), String> {
        while let Some(play) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
            let names = || {
                play.scenarios
                    .iter()
                    .map(|s| s.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            play_all(play, wiring).map_err(|error| format!("{error}\n(played in one sandbox: {})", names()))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| with_marks(mask, work))).collect();
        let failures: Vec<String> = workers
            .into_iter()
            .filter_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err("a worker panicked".to_owned()))
                    .err()
            })
            .collect();
        match failures.is_empty() {
            true => Ok(()),
            false => Err(failures.join("\n").into()),
        }
    })
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policy-compiler/tests/fixtures")
}

/// The scenarios of a group, by cluster.
fn plays(group: &str) -> Result<Vec<Play>> {
    let left_out = |name: &str| LEFT_OUT.iter().any(|(out, _)| *out == format!("{group}/{name}"));
    for (name, _) in LEFT_OUT {
        if !fixtures().join(name).is_dir() {
            return Err(format!("the scenario {name} is left out, and is not there any more").into());
        }
    }
    let folder = fixtures().join(group);
    let mut by_cluster: BTreeMap<PathBuf, Vec<Scenario>> = BTreeMap::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if left_out(&name) || !path.join("policy.yaml").is_file() {
            continue;
        }
        let own = path.join("cluster.yaml");
        let cluster = if own.is_file() {
            own
        } else {
            folder.join("_cluster/cluster.yaml")
        };
        by_cluster.entry(cluster).or_default().push(Scenario {
            name,
            policies: load(&path.join("policy.yaml"))?,
        });
    }
    let mut plays = Vec::new();
    for (cluster, mut scenarios) in by_cluster {
        let loaded = load(&cluster)?;
        scenarios.sort_by(|a, b| a.name.cmp(&b.name));
        let shared = cluster.parent().is_some_and(|folder| folder.ends_with("_cluster"));
        let (staged, known) = complete(loaded, shared)?;
        while !scenarios.is_empty() {
            let rest = scenarios.split_off(scenarios.len().min(SCENARIOS));
            plays.push(Play {
                staged: staged.clone(),
                known: known.clone(),
                added_family: shared,
                scenarios: std::mem::replace(&mut scenarios, rest),
            });
        }
    }
    // The longest first, so that no worker is left alone with it at the end.
    plays.sort_by_key(|play| std::cmp::Reverse(play.scenarios.len()));
    Ok(plays)
}

fn load(file: &Path) -> Result<Cluster> {
    let loaded = manifests::load(&[file.to_owned()]).map_err(|e| e.to_string())?;
    Ok(loaded.cluster)
}

/// What is built and what is known of it. A shared cluster gets a second family; the host network of nodes without Node
/// objects is built, and still nobody knows those objects.
fn complete(mut cluster: Cluster, second_family: bool) -> Result<(Cluster, Cluster)> {
    if second_family {
        for mut pod in cluster.pods.clone().into_values().map(|p| (*p).clone()) {
            if let [IpAddr::V4(four)] = pod.addresses[..] {
                let [_, _, node, host] = four.octets();
                pod.addresses.push(format!("fd00:10:244:{node}::{host}").parse()?);
                cluster.add_pod(pod);
            }
        }
    }
    let hosts: Vec<_> = (cluster.pods.values())
        .filter(|p| p.host_network && !p.ended)
        .cloned()
        .collect();
    let without_objects = cluster.nodes.is_empty() && !hosts.is_empty();
    for pod in hosts.iter().filter(|_| without_objects) {
        cluster.add_node(Node {
            name: pod.node.clone().ok_or("a host-network pod without a node")?,
            labels: Default::default(),
            addresses: pod.addresses.clone(),
            pod_cidrs: Vec::new(),
        });
    }
    assign_addresses(&mut cluster)?;
    let mut known = cluster.clone();
    if without_objects {
        known.nodes.clear();
    }
    Ok((cluster, known))
}

fn play_all(play: &Play, wiring: Wiring) -> Result {
    let _seat = Seat::take();
    let mut extra_ports: BTreeSet<(Protocol, u16)> = Protocol::ALL.into_iter().map(|p| (p, UNNAMED)).collect();
    let mut client = Options::default().client;
    for scenario in &play.scenarios {
        extra_ports.extend(ports(&scenario.policies, &play.known));
        client.extend(edges(&scenario.policies));
    }
    let taken: BTreeSet<IpAddr> = (play.staged.pods.values().flat_map(|p| p.addresses.clone()))
        .chain(play.staged.nodes.values().flat_map(|n| n.addresses.clone()))
        .collect();
    let mut seen = taken;
    client.retain(|a| seen.insert(*a));
    if wiring.bridged() {
        // Pods look for an address of their own network among their neighbours: nobody outside can have it.
        let inside =
            |a: &IpAddr| (play.staged.nodes.values()).any(|node| node.pod_cidrs.iter().any(|net| net.contains(a)));
        client.retain(|a| !inside(a));
    }
    let options = Options {
        client,
        extra_ports,
        wiring,
    };
    let mut world = World::stage(&play.staged, play.known.clone(), &options, Mode::Enforce)?;

    let plans: Vec<_> = (play.scenarios.iter())
        .map(|scenario| plan(&world, &play.known, play.added_family, &scenario.policies))
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
    for (scenario, plan) in play.scenarios.iter().zip(&plans) {
        world.enforce(&scenario.policies)?;
        observe(&world, &scenario.name, plan)?;
        if let Some(difference) = world.drift()? {
            return Err(format!("{}: {difference}", scenario.name).into());
        }
        if world.enforce(&scenario.policies)? != 0 {
            return Err(format!("{}: applying it again changes the kernel", scenario.name).into());
        }
    }
    Ok(())
}

/// Sends all probes of a plan and lists what differs; what passes only because its policies are audited must be counted.
pub(crate) fn observe(world: &World, name: &str, plan: &Plan) -> Result {
    let probes: Vec<Probe> = plan
        .iter()
        .map(|((from, source, to, traffic), expected)| Probe {
            from: from.clone(),
            source: Some(*source),
            to: *to,
            traffic: *traffic,
            expect: if expected.allowed {
                Expect::Answer
            } else {
                Expect::Silence
            },
        })
        .collect();
    let told = told(plan);
    let before = if told.is_empty() {
        Counts::new()
    } else {
        world.counts()?
    };
    let outcomes = world.sandbox.probe_all(&probes, |_| {})?;
    let mut differences = Vec::new();
    for ((probe, expected), outcome) in probes.iter().zip(plan.values()).zip(outcomes) {
        let wanted = match expected.allowed {
            true => Outcome::Answered(expected.answerer.clone()),
            false => Outcome::Silent,
        };
        if outcome != wanted {
            let Probe { from, to, traffic, .. } = probe;
            let source = probe.source.map(|s| s.to_string()).unwrap_or_default();
            differences.push(format!(
                "  {from} ({source}) to {} ({to}) on {traffic}: {outcome}, expected {wanted}: {}",
                expected.answerer, expected.reason
            ));
        }
    }
    let after = if told.is_empty() {
        Counts::new()
    } else {
        world.counts()?
    };
    for (end, packets) in told {
        let count = |counts: &Counts| counts.get(&end).copied().unwrap_or_default();
        let more = count(&after) - count(&before);
        if more < packets {
            let (direction, address) = end;
            differences.push(format!(
                "  {direction} of {address}: audited policies would deny {packets} probes that pass, {more} packets were counted"
            ));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let (count, all) = (differences.len(), probes.len());
    differences.truncate(20);
    Err(format!("{name}: {count} of {all} probes differ:\n{}", differences.join("\n")).into())
}

/// At which ends the kernel must count what audited policies would deny, and how many packets at least.
fn told(plan: &Plan) -> Counts {
    let mut told = Counts::new();
    for ((_, source, to, _), expected) in plan {
        if let Some(direction) = expected.told {
            let address = match direction {
                Direction::Egress => source,
                Direction::Ingress => to,
            };
            *told.entry((direction, *address)).or_default() += 1;
        }
    }
    told
}
