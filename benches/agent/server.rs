//! The API server of the benchmark, a process of its own: a generated cluster in it, and events at the pace that a line on
//! standard input asks for. What the kernel of the agent's node must come to know of each is told on standard output, with the
//! time at which the API server learned of it.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use policy_compiler::cluster::{Cluster, Node, Pod, PodName};
use policy_compiler::compile::Event;
use policy_compiler::convert;
use policy_compiler::generate::{self, Events, Spec};
use policy_compiler::labels::Selector;
use policy_compiler::policy::{
    Action, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule, Tier,
};
use policy_compiler::ports::{PortRange, Protocol};
use tokio::time::{Instant, sleep_until};

use crate::api::{Api, Kind};
use crate::objects::{self, Stage};

/// The real one sends a bookmark about once a minute.
const BOOKMARKS: Duration = Duration::from_secs(10);

/// A kubelet tells its node's status every five minutes when nothing changes.
const NODE_STATUS: Duration = Duration::from_secs(300);

/// Pods of a busy node.
const PODS_OF_A_NODE: usize = 105;

/// A cluster of so many pods, with a policy for every ten of them, on busy nodes.
pub(crate) fn spec(pods: usize) -> Spec {
    Spec {
        nodes: pods.div_ceil(PODS_OF_A_NODE),
        ..Spec::realistic(pods)
    }
}

/// What the agent's node will have to know: the cluster of the spec, and a policy by which every pod of the cluster is a peer
/// with an element of its own. And the node: of those with about as many pods as all have, the first.
pub(crate) fn cluster(spec: &Spec) -> (Cluster, Node) {
    let mut cluster = generate::cluster(spec);
    let mut pods: BTreeMap<&str, usize> = BTreeMap::new();
    let placed = cluster
        .pods
        .values()
        .filter(|pod| judged(pod))
        .filter_map(|pod| pod.node.as_deref());
    placed.for_each(|node| *pods.entry(node).or_default() += 1);
    let usual = spec.pods / spec.nodes;
    let near = |node: &&Arc<Node>| pods.get(&*node.name).copied().unwrap_or_default().abs_diff(usual);
    let node = Node::clone(cluster.nodes.values().min_by_key(near).unwrap());
    let local = |pod: &&Arc<Pod>| pod.node.as_ref() == Some(&node.name) && judged(pod);
    let own = cluster.pods.values().find(local).unwrap().name.namespace.clone();
    cluster.add_policy(Policy {
        enforcement: None,
        name: PolicyName {
            namespace: Some(own.clone()),
            name: "from-every-pod".into(),
        },
        tier: Tier::NetworkPolicy,
        subject: PodSelection {
            namespaces: NamespaceScope::Named(own),
            pods: Selector::everything(),
        },
        ingress: Some(vec![Rule {
            action: Action::Accept,
            peers: Peers::Listed(vec![Peer::Pods(PodSelection {
                namespaces: NamespaceScope::everywhere(),
                pods: Selector::everything(),
            })]),
            ports: Ports::Listed(vec![PortMatch::Range(Protocol::Tcp, PortRange::one(9000))]),
        }]),
        egress: None,
    });
    (cluster, node)
}

/// Whether policy knows its addresses.
pub(crate) fn judged(pod: &Pod) -> bool {
    !pod.host_network && !pod.ended && !pod.addresses.is_empty()
}

/// Nanoseconds of a clock that all processes of a machine share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Serves until standard input ends.
pub(crate) fn serve(pods: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let spec = spec(pods);
        let (cluster, node) = cluster(&spec);
        let mut server = Server {
            api: Api::start().await,
            events: generate::events(&spec),
            pods: cluster.pods.clone(),
            nodes: cluster.nodes.values().cloned().collect(),
            node,
            told: Vec::new(),
            steps: VecDeque::new(),
            extra: 0,
            beats: 0,
        };
        server.fill(&cluster);
        let sizes = server.sizes();
        println!("{} {sizes}", server.api.url());
        // Waiting for a line keeps this thread; the worker serves.
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<usize>().unwrap();
            let begin = now();
            let sent = match words[0] {
                "single" => server.single(number(1), Duration::from_millis(number(2) as u64)).await,
                "roll" => server.roll(number(1), number(2)).await,
                "storm" => server.storm(number(1), number(2)).await,
                "quiet" => server.quiet(Duration::from_secs(number(1) as u64)).await,
                "streaming" => {
                    server.api.set_streaming(words[1] == "on");
                    0
                }
                other => panic!("{other} is nothing to do"),
            };
            server.report(begin, sent);
        }
    });
}

/// One change in the API server.
enum Step {
    Put(Arc<Pod>, Stage),
    Delete(Arc<Pod>),
}

struct Server {
    api: Api,
    events: Events,
    pods: BTreeMap<PodName, Arc<Pod>>,
    nodes: Vec<Arc<Node>>,
    /// The agent's.
    node: Node,
    /// When the API server learned what the kernel must come to know.
    told: Vec<(u64, char, IpAddr, bool)>,
    steps: VecDeque<Step>,
    extra: u8,
    beats: usize,
}

impl Server {
    fn fill(&self, cluster: &Cluster) {
        self.api.set_bookmarks(BOOKMARKS);
        for namespace in cluster.namespaces.values() {
            self.api.put(Kind::Namespace, objects::namespace(namespace));
        }
        for node in cluster.nodes.values() {
            self.api.put(Kind::Node, objects::node(node, 0));
        }
        for (at, policy) in cluster.policies.values().enumerate() {
            let object = objects::policy(policy);
            if at % 50 == 0 {
                // The object says what the generator meant.
                let read = serde_json::from_value(object.clone()).unwrap();
                assert_eq!(convert::network_policy(&read).unwrap().0, **policy);
            }
            self.api.put(Kind::NetworkPolicy, object);
        }
        for pod in cluster.pods.values() {
            self.api.put(Kind::Pod, objects::pod(pod, Stage::Ready));
        }
    }

    /// Bytes of all objects of each kind, and how many there are.
    fn sizes(&self) -> String {
        let size = |kind| {
            let objects = self.api.objects(kind);
            let bytes: usize = objects.iter().map(|object| object.to_string().len()).sum();
            format!("{} {bytes}", objects.len())
        };
        Kind::ALL.map(size).join(" ")
    }

    /// Says when what was done, and that it is done.
    fn report(&mut self, begin: u64, sent: usize) {
        let mut out = std::io::stdout().lock();
        for (time, sign, address, here) in self.told.drain(..) {
            let place = if here { "here" } else { "there" };
            writeln!(out, "{time} {sign} {address} {place}").unwrap();
        }
        writeln!(out, "done {begin} {} {sent}", now()).unwrap();
    }

    fn tell(&mut self, time: u64, sign: char, pod: &Pod) {
        if judged(pod) {
            let here = pod.node.as_ref() == Some(&self.node.name);
            self.told
                .extend(pod.addresses.iter().map(|address| (time, sign, *address, here)));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put(pod, stage) => {
                let object = objects::pod(&pod, stage);
                let time = now();
                self.api.put(Kind::Pod, object);
                let known = self.pods.insert(pod.name.clone(), pod.clone());
                let had = known.is_some_and(|known| known.addresses == pod.addresses);
                if stage == Stage::Running || (stage == Stage::Ready && !had) {
                    self.tell(time, '+', &pod);
                }
            }
            Step::Delete(pod) => {
                let time = now();
                self.api.delete(Kind::Pod, &pod.name.namespace, &pod.name.name);
                self.pods.remove(&pod.name);
                self.tell(time, '-', &pod);
            }
        }
    }

    /// The next step of a cluster whose pods are replaced one after the other; `whole` with all that a pod goes through, otherwise
    /// only its coming and its going.
    fn next(&mut self, whole: bool) -> Step {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            let known = |pod: &Pod| {
                self.pods
                    .get(&pod.name)
                    .is_some_and(|known| known.addresses == pod.addresses)
            };
            let steps: Vec<Step> = match self.events.next().unwrap() {
                // A changed label, for which the kernel may have no use.
                Event::Pod(pod) if known(&pod) => vec![],
                Event::Pod(pod) if pod.addresses.is_empty() => match whole {
                    true => vec![Step::Put(pod.clone(), Stage::Pending), Step::Put(pod, Stage::Placed)],
                    false => vec![],
                },
                Event::Pod(pod) if whole => vec![Step::Put(pod.clone(), Stage::Running), Step::Put(pod, Stage::Ready)],
                Event::Pod(pod) if judged(&pod) => vec![Step::Put(pod, Stage::Ready)],
                Event::PodGone(name) => match self.pods.get(&name).cloned() {
                    Some(pod) if whole => vec![
                        Step::Put(pod.clone(), Stage::Ending),
                        Step::Put(pod.clone(), Stage::Ended),
                        Step::Delete(pod),
                    ],
                    Some(pod) if judged(&pod) => vec![Step::Delete(pod)],
                    _ => vec![],
                },
                _ => vec![],
            };
            self.steps.extend(steps);
        }
    }

    /// So many changes, one at a time: of pods of other nodes, and every other pair of the agent's own.
    async fn single(&mut self, count: usize, gap: Duration) -> usize {
        let local = |pod: &&Arc<Pod>| pod.node.as_ref() == Some(&self.node.name) && judged(pod);
        let model = self.pods.values().find(local).unwrap().clone();
        let begin = Instant::now();
        let mut own: Option<Arc<Pod>> = None;
        for at in 0..count {
            sleep_until(begin + gap * at as u32).await;
            let step = match (at / 2 % 2, own.take()) {
                (0, _) => self.next(false),
                (_, Some(pod)) => Step::Delete(pod),
                (_, None) => {
                    let pod = Arc::new(self.one_more(&model));
                    own = Some(pod.clone());
                    Step::Put(pod, Stage::Ready)
                }
            };
            self.step(step);
        }
        count
    }

    /// A pod of the agent's node like another one there, with an address that nobody has had.
    fn one_more(&mut self, model: &Pod) -> Pod {
        self.extra += 1;
        let range = self.node.pod_cidrs[0].broadcast();
        let IpAddr::V4(last) = range else {
            panic!("the cluster speaks IPv4")
        };
        let mut pod = model.clone();
        pod.name.name = format!("one-more-{}", self.extra).into();
        pod.addresses = vec![Ipv4Addr::from_bits(last.to_bits() - u32::from(self.extra)).into()];
        pod
    }

    /// A rolling update: so many pods a second are replaced, for so many seconds, with all that a pod goes through.
    async fn roll(&mut self, pods: usize, seconds: usize) -> usize {
        // Each pod that is replaced makes seven changes: four of the new one, three of the old one.
        self.pace(pods * 7, seconds, true).await
    }

    /// So many changes a second, each of which the kernel must come to know.
    async fn storm(&mut self, events: usize, seconds: usize) -> usize {
        self.pace(events, seconds, false).await
    }

    async fn pace(&mut self, each_second: usize, seconds: usize, whole: bool) -> usize {
        let begin = Instant::now();
        let count = each_second * seconds;
        for at in 0..count {
            sleep_until(begin + Duration::from_secs_f64(at as f64 / each_second as f64)).await;
            let step = self.next(whole);
            self.step(step);
        }
        count
    }

    /// Nothing happens but that kubelets tell the status of their nodes.
    async fn quiet(&mut self, time: Duration) -> usize {
        let begin = Instant::now();
        let gap = NODE_STATUS / self.nodes.len() as u32;
        let mut sent = 0;
        while begin.elapsed() < time {
            self.beats += 1;
            let node = &self.nodes[self.beats % self.nodes.len()];
            self.api.put(Kind::Node, objects::node(node, self.beats));
            sent += 1;
            sleep_until(begin + gap * sent as u32).await;
        }
        sent
    }
}
