//! What each kind of change costs from the event to the kernel, at 50,000 peers: compiling, rendering, writing JSON, and the
//! nft program with the kernel behind it.
//!
//! `cargo bench --bench updates` (as root, for a network namespace of its own) prints a table and writes `target/bench/updates.json`;
//! `-- --pods N` and `--rounds N` change the size, `--json PATH` writes elsewhere.
//!
//! It has its own main because a round changes the kernel and the next one changes it back, and because the cost of a child
//! process counts; no benchmark framework measures that.

#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use palisade::nft::{Kernel, Nft, Renderer, Settings, Transaction, replace};
use policy_compiler::changes::Changes;
use policy_compiler::cluster::{Cluster, Pod, PodName};
use policy_compiler::compile::{Compiler, Event, Subjects};
use policy_compiler::generate::{self, Spec};
use policy_compiler::labels::{NAMESPACE_NAME_LABEL, Operator, Requirement, Selector};
use policy_compiler::policy::{
    Action, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule, Tier,
};
use policy_compiler::ports::{PortRange, Protocol};

const NODE: &str = "node-000042";

/// The label of a pod that moves from class to class.
const ELSE: &str = "somebody-else";

/// A pod event reaches the kernel within this time.
const BUDGET: Duration = Duration::from_millis(30);

/// What one update took.
#[derive(Clone, Copy, Default)]
struct Cost {
    compile: Duration,
    render: Duration,
    json: Duration,
    /// From starting nft to its end.
    nft: Duration,
    /// What nft, and the kernel on its behalf, took of a core.
    user: Duration,
    system: Duration,
    operations: usize,
}

impl Cost {
    fn total(&self) -> Duration {
        self.compile + self.render + self.json + self.nft
    }
}

/// A node's agent without its loop.
struct Agent {
    compiler: Compiler,
    renderer: Renderer,
    nft: Nft,
}

impl Agent {
    fn new(cluster: &Cluster) -> (Self, Cost) {
        let mut cost = Cost::default();
        let compiler = timed(&mut cost.compile, || {
            Compiler::new(cluster, Subjects::Node(NODE.into()))
        });
        let renderer = timed(&mut cost.render, || {
            Renderer::new(compiler.table(), Settings::default())
        });
        let agent = Agent {
            compiler,
            renderer,
            nft: Nft::default(),
        };
        agent.replace(&mut cost);
        (agent, cost)
    }

    fn replace(&self, cost: &mut Cost) {
        let transaction = timed(&mut cost.render, || replace(self.renderer.ruleset()).unwrap());
        self.apply(&transaction, cost);
    }

    fn follow(&mut self, event: Event) -> Cost {
        let mut cost = Cost::default();
        let compiler = &mut self.compiler;
        let changes: Changes = timed(&mut cost.compile, || compiler.apply(event));
        let renderer = &mut self.renderer;
        let transaction = timed(&mut cost.render, || {
            renderer.follow(compiler.table(), &changes).unwrap()
        });
        self.apply(&transaction, &mut cost);
        cost
    }

    fn apply(&self, transaction: &Transaction, cost: &mut Cost) {
        timed(&mut cost.json, || transaction.to_json().unwrap());
        let before = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        let mut whole = Duration::ZERO;
        timed(&mut whole, || self.nft.apply(transaction).unwrap());
        cost.nft = whole.saturating_sub(cost.json);
        let after = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        let spent =
            |after: TimeVal, before: TimeVal| Duration::from_micros((after - before).num_microseconds().unsigned_abs());
        cost.user = spent(after.user_time(), before.user_time());
        cost.system = spent(after.system_time(), before.system_time());
        cost.operations = transaction.size();
    }
}

fn timed<T>(into: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    *into += begin.elapsed();
    result
}

/// Changes that lead from the cluster as it is and back to it.
struct Scene {
    what: [&'static str; 3],
    /// Added, changed (when there is such a thing), removed.
    events: [Option<Event>; 3],
    budget: bool,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).cloned()
    };
    let number = |name: &str, default: usize| option(name).map_or(default, |text| text.parse().unwrap());
    let (pods, rounds) = (number("--pods", 50_000), number("--rounds", 21));
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        eprintln!("NOT RUN: updates: needs root, for a network namespace of its own");
        return;
    }
    let mut cluster = generate::cluster(&Spec::realistic(pods));
    let local = local_pod(&cluster);
    // Every pod of the cluster is a peer with an element of its own.
    cluster.add_policy(policy(&local, "from-every-pod", NamespaceScope::everywhere(), 9000));
    // Those of this label are a class of their own.
    let theirs = PodSelection {
        namespaces: NamespaceScope::Named(local.name.namespace.clone()),
        pods: Selector::labels([("app", ELSE)]),
    };
    cluster.add_policy(from(&local, "from-somebody-else", Peer::Pods(theirs), 9002));
    let outside = |cidr: &str| {
        from(
            &local,
            "from-outside",
            Peer::Block(IpBlock::new(cidr.parse().unwrap(), [])),
            9001,
        )
    };
    cluster.add_policy(outside("203.0.113.0/24"));

    let mut rows: Vec<(&str, Vec<Cost>, bool)> = Vec::new();
    let mut whole = Vec::new();
    let mut agent = None;
    for _ in 0..rounds.min(5) {
        drop(agent.take());
        let (new, cost) = Agent::new(&cluster);
        whole.push(cost);
        agent = Some(new);
    }
    let mut agent = agent.unwrap();
    let peers = agent.renderer.ruleset().to_string().matches(" : goto ").count();
    eprintln!("{pods} pods, {peers} elements of verdict maps on {NODE}");
    rows.push(("the whole table", whole, false));
    for scene in scenes(&cluster, &local, outside("203.0.112.0/23"), outside("203.0.113.0/24")) {
        let mut costs: [Vec<Cost>; 3] = Default::default();
        for _ in 0..rounds {
            for (event, costs) in scene.events.iter().zip(&mut costs) {
                costs.extend(event.clone().map(|event| agent.follow(event)));
            }
        }
        let measured = scene.what.into_iter().zip(costs).filter(|(_, costs)| !costs.is_empty());
        rows.extend(measured.map(|(what, costs)| (what, costs, scene.budget)));
    }
    let listing = agent.nft.read().unwrap().unwrap();
    assert_eq!(
        listing.difference(agent.renderer.ruleset()),
        None,
        "the kernel followed"
    );
    print!("{}", table(&rows));
    let path = option("--json").unwrap_or_else(|| "target/bench/updates.json".to_owned());
    std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
    std::fs::write(&path, serde_json::to_string_pretty(&json(pods, peers, &rows)).unwrap()).unwrap();
    eprintln!("written to {path}");
}

/// A pod of the node that others may reach.
fn local_pod(cluster: &Cluster) -> Arc<Pod> {
    let here = |pod: &&Arc<Pod>| pod.node.as_deref() == Some(NODE) && !pod.host_network && !pod.addresses.is_empty();
    let own_policies = |pod: &&Arc<Pod>| {
        let in_namespace = |name: &&PolicyName| name.namespace.as_ref() == Some(&pod.name.namespace);
        cluster
            .policies
            .keys()
            .map(|(_, name)| name)
            .filter(in_namespace)
            .count()
    };
    let pods = cluster.pods.values().filter(here);
    pods.max_by_key(own_policies)
        .expect("the generator puts pods on every node")
        .clone()
}

fn from(local: &Pod, name: &str, peer: Peer, port: u16) -> Policy {
    let own = &local.name.namespace;
    Policy {
        enforcement: None,
        name: PolicyName {
            namespace: Some(own.clone()),
            name: name.into(),
        },
        tier: Tier::NetworkPolicy,
        subject: PodSelection {
            namespaces: NamespaceScope::Named(own.clone()),
            pods: Selector::everything(),
        },
        ingress: Some(vec![Rule {
            action: Action::Accept,
            peers: Peers::Listed(vec![peer]),
            ports: Ports::Listed(vec![PortMatch::Range(Protocol::Tcp, PortRange::one(port))]),
        }]),
        egress: None,
    }
}

fn policy(local: &Pod, name: &str, namespaces: NamespaceScope, port: u16) -> Policy {
    let pods = Selector::everything();
    from(local, name, Peer::Pods(PodSelection { namespaces, pods }), port)
}

fn scenes(cluster: &Cluster, local: &Arc<Pod>, wider: Policy, as_before: Policy) -> Vec<Scene> {
    let other = |address: [u8; 4], node: &str, labels: &[(&str, &str)]| {
        let mut pod = Pod::clone(local);
        pod.name = PodName {
            namespace: local.name.namespace.clone(),
            name: "one-more".into(),
        };
        pod.addresses = vec![IpAddr::V4(Ipv4Addr::from(address))];
        pod.node = Some(node.into());
        for (key, value) in labels {
            pod.labels = pod.labels.with(key, value);
        }
        (Event::Pod(Arc::new(pod.clone())), Event::PodGone(pod.name))
    };
    // The namespace's own pods are a class of their own where it has a policy that says so; another one's are another.
    let (remote, gone) = other([10, 255, 255, 1], "node-000001", &[]);
    let (relabelled, _) = other([10, 255, 255, 1], "node-000001", &[("app", ELSE)]);
    let (here, here_gone) = other([10, 255, 255, 2], NODE, &[]);
    let elsewhere = cluster
        .namespaces
        .keys()
        .find(|name| **name != local.name.namespace)
        .unwrap();
    let by_name = |values: &[&str]| {
        let operator = match values {
            [] => Operator::Exists,
            _ => Operator::In(values.iter().map(|v| (*v).into()).collect()),
        };
        let key = NAMESPACE_NAME_LABEL.into();
        NamespaceScope::Matching(Selector::new([Requirement { key, operator }]))
    };
    let few = |port| Event::Policy(Arc::new(policy(local, "a-few", by_name(&[elsewhere]), port)));
    let all = |port| Event::Policy(Arc::new(policy(local, "all-of-them", by_name(&[]), port)));
    let gone_policy = |name: &str| {
        let namespace = Some(local.name.namespace.clone());
        let name = name.into();
        Event::PolicyGone(Tier::NetworkPolicy, PolicyName { namespace, name })
    };
    vec![
        Scene {
            what: ["a pod of another node comes", "its labels change", "and it goes"],
            events: [Some(remote), Some(relabelled), Some(gone)],
            budget: true,
        },
        Scene {
            what: ["a pod of this node comes", "", "and it goes"],
            events: [Some(here), None, Some(here_gone)],
            budget: true,
        },
        Scene {
            what: ["a policy over few peers comes", "it is edited", "and it goes"],
            events: [Some(few(7000)), Some(few(7001)), Some(gone_policy("a-few"))],
            budget: false,
        },
        Scene {
            what: ["a policy over all peers comes", "it is edited", "and it goes"],
            events: [Some(all(7000)), Some(all(7001)), Some(gone_policy("all-of-them"))],
            budget: false,
        },
        Scene {
            what: ["an ipBlock is another one", "", "and the former one again"],
            events: [
                Some(Event::Policy(Arc::new(wider))),
                None,
                Some(Event::Policy(Arc::new(as_before))),
            ],
            budget: false,
        },
    ]
}

/// The median of one part of the costs.
fn median<T: Ord + Copy>(costs: &[Cost], part: impl Fn(&Cost) -> T) -> T {
    let mut parts: Vec<T> = costs.iter().map(part).collect();
    parts.sort_unstable();
    parts[parts.len() / 2]
}

fn table(rows: &[(&str, Vec<Cost>, bool)]) -> String {
    let heads = [
        "what happens",
        "operations",
        "compile",
        "render",
        "JSON",
        "nft",
        "of it user, system",
        "in all",
        "budget",
    ];
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(heads);
    for (what, costs, budget) in rows {
        let show = |part: fn(&Cost) -> Duration| format!("{:.2} ms", median(costs, part).as_secs_f64() * 1e3);
        let met = match (budget, median(costs, Cost::total) <= BUDGET) {
            (false, _) => "",
            (true, true) => "met",
            (true, false) => "missed",
        };
        table.add_row([
            (*what).to_owned(),
            median(costs, |c| c.operations).to_string(),
            show(|c| c.compile),
            show(|c| c.render),
            show(|c| c.json),
            show(|c| c.nft),
            format!("{}, {}", show(|c| c.user), show(|c| c.system)),
            show(Cost::total),
            met.to_owned(),
        ]);
    }
    format!("{table}\n")
}

fn json(pods: usize, elements: usize, rows: &[(&str, Vec<Cost>, bool)]) -> serde_json::Value {
    let row = |(what, costs, budget): &(&str, Vec<Cost>, bool)| {
        let seconds = |part: fn(&Cost) -> Duration| median(costs, part).as_secs_f64();
        serde_json::json!({
            "what": what,
            "rounds": costs.len(),
            "operations": median(costs, |c| c.operations),
            "compile": seconds(|c| c.compile),
            "render": seconds(|c| c.render),
            "json": seconds(|c| c.json),
            "nft": seconds(|c| c.nft),
            "nftUser": seconds(|c| c.user),
            "nftSystem": seconds(|c| c.system),
            "total": seconds(Cost::total),
            "budget": budget.then(|| BUDGET.as_secs_f64()),
        })
    };
    serde_json::json!({
        "apiVersion": "palisade.dev/v1alpha1",
        "kind": "Benchmark",
        "unit": "seconds",
        "pods": pods,
        "elements": elements,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
