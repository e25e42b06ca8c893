//! Packets through a kernel in memory, on a clock that the tests wind.

use std::sync::Mutex;

use policy_compiler::cluster::{Namespace, Node, Workload};
use policy_compiler::labels::{Labels, Selector};
use policy_compiler::policy::{NamespaceScope, PodSelection, Policy, PolicyName, Tier};
use tokio::time::advance;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::nft::Settings;
use crate::nft::fake::Fake;
use crate::nft::tracer::Packet;

mod crowded;

/// Two pods here, one elsewhere; nobody reaches those of `app: web`.
fn cluster() -> Cluster {
    let pod = |name: &str, app: &str, node: &str, address: &str| Pod {
        name: PodName {
            namespace: "shop".into(),
            name: name.into(),
        },
        labels: Labels::default().with("app", app),
        addresses: vec![address.parse().expect("an address")],
        node: Some(node.into()),
        host_network: false,
        ended: false,
        started: None,
        ports: Vec::new(),
        workload: Some(Workload {
            kind: "deployment".into(),
            name: app.into(),
        }),
    };
    let mut cluster = Cluster::default();
    cluster.add_namespace(Namespace::new("shop", Labels::default()));
    cluster.add_pod(pod("web-1", "web", "here", "10.0.0.1"));
    cluster.add_pod(pod("web-2", "web", "here", "10.0.0.2"));
    cluster.add_pod(pod("api-1", "api", "there", "10.0.0.3"));
    cluster.add_policy(Policy {
        enforcement: None,
        name: PolicyName {
            namespace: Some("shop".into()),
            name: "web".into(),
        },
        tier: Tier::NetworkPolicy,
        subject: PodSelection {
            namespaces: NamespaceScope::Named("shop".into()),
            pods: Selector::labels([("app", "web")]),
        },
        ingress: Some(Vec::new()),
        egress: None,
    });
    cluster
}

/// The first of a connection.
fn packet(from: &str, to: &str, port: u16) -> Packet {
    Packet::opening(from.parse().expect("ip"), to.parse().expect("ip"), port)
}

struct Scene {
    enforcer: Enforcer<Fake>,
    cluster: Cluster,
    denials: Denials,
    metrics: Metrics,
    log: Lines,
}

/// The log, in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

/// Does something with its log in memory. Every look in these tests is one: where a thread without a subscriber is the first to log
/// a line, that line is switched off for the subscriber that another thread has at this moment.
fn logged(log: &Lines, work: impl FnOnce()) {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .finish();
    tracing::subscriber::with_default(subscriber, work);
}

impl Scene {
    fn new() -> Self {
        Scene::of(cluster(), Settings::default())
    }

    fn of(cluster: Cluster, settings: Settings) -> Self {
        let mut scene = Scene {
            enforcer: Enforcer::new("here".into(), settings, Fake::default()),
            cluster,
            denials: Denials::default(),
            metrics: Metrics::default(),
            log: Lines::default(),
        };
        scene.replace();
        scene
    }

    /// The whole table anew: the kernel's counters begin from nothing.
    fn replace(&mut self) {
        self.enforcer.kernel().delete().expect("deleted");
        self.enforcer.load(&self.cluster).expect("applied");
    }

    fn send(&self, from: &str, to: &str, port: u16) {
        self.enforcer.kernel().send(&packet(from, to, port)).expect("traced");
    }

    fn look(&mut self) {
        logged(&self.log, || {
            self.denials.look(&mut self.enforcer, &self.cluster, &self.metrics);
        });
    }

    /// The counters that are exposed, without their common name.
    fn exposed(&self) -> Vec<String> {
        let text = self.metrics.encode().expect("text");
        let mut lines: Vec<String> = (text.lines())
            .filter_map(|line| line.strip_prefix("palisade_denied_packets_total"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }

    /// The lines since the last call.
    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.log.0.lock().expect("no panic"));
        String::from_utf8(bytes)
            .expect("text")
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

fn series(pod: &str, packets: u64) -> String {
    format!("{{namespace=\"shop\",pod=\"{pod}\",direction=\"ingress\"}} {packets}")
}

#[tokio::test(start_paused = true)]
async fn counters_only_rise_and_go_with_their_pod() {
    let mut scene = Scene::new();
    scene.look();
    assert_eq!(scene.exposed(), [series("web-1", 0), series("web-2", 0)]);
    scene.send("10.0.0.3", "10.0.0.1", 80);
    scene.send("10.0.0.3", "10.0.0.1", 81);
    scene.look();
    assert_eq!(scene.exposed()[0], series("web-1", 0), "not before it is time to");
    advance(LOOK_EVERY).await;
    scene.look();
    assert_eq!(scene.exposed(), [series("web-1", 2), series("web-2", 0)]);

    // Somebody removed the table, and it was replaced.
    scene.replace();
    scene.send("10.0.0.3", "10.0.0.1", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert_eq!(scene.exposed(), [series("web-1", 3), series("web-2", 0)]);

    let gone = PodName {
        namespace: "shop".into(),
        name: "web-1".into(),
    };
    scene.cluster.pods.remove(&gone);
    advance(LOOK_EVERY).await;
    scene.look();
    assert_eq!(scene.exposed(), [series("web-2", 0)]);
    assert!(scene.denials.counted.keys().all(|(_, _, pod)| *pod != gone));
}

#[tokio::test(start_paused = true)]
async fn the_log_names_each_sort_once_a_minute_and_why() {
    let mut scene = Scene::new();
    // Two pods of one workload are one sort.
    scene.send("10.0.0.3", "10.0.0.1", 80);
    scene.send("10.0.0.3", "10.0.0.2", 80);
    scene.send("10.0.0.3", "10.0.0.2", 80);
    scene.look();
    let expected = " INFO denied from=shop/api-1 (10.0.0.3) to=shop/web-1 (10.0.0.1) port=\"80/TCP\" packets=1 \
                    policies=\"shop/web\" reason=\"ingress isolated by shop/web and no rule admits it\"";
    assert_eq!(scene.lines(), [expected]);
    scene.send("10.0.0.3", "10.0.0.1", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert!(scene.lines().is_empty(), "within the minute");
    advance(QUIET).await;
    scene.look();
    assert!(scene.lines().is_empty(), "nothing new was denied");
    scene.send("10.0.0.3", "10.0.0.1", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert_eq!(scene.lines(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_scan_is_a_few_lines() {
    let mut scene = Scene::new();
    for port in 1..=500 {
        scene.send("10.0.0.3", "10.0.0.1", port);
    }
    scene.look();
    assert_eq!(scene.lines().len(), LINES_OF_ONE);
    // It hides nobody else.
    scene.send("10.0.0.4", "10.0.0.1", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert!(scene.lines()[0].contains("from=10.0.0.4 "));
    advance(QUIET).await;
    scene.look();
    let more = " INFO and 495 more sorts of denied connections in the last minute: `palisade denied` shows all";
    assert_eq!(scene.lines(), [more]);
    assert_eq!(scene.exposed()[0], series("web-1", 501));
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_for_no_pod_is_told_within_a_minute() {
    let mut scene = Scene::new();
    scene.look();
    // Pods of one bridge, by addresses of which no policy knows whose they are.
    scene.send("fe80::2", "fe80::1", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert!(scene.lines().is_empty(), "no counter has moved");
    advance(READ_EVERY).await;
    scene.look();
    let lines = scene.lines();
    assert!(
        lines.len() == 1 && lines[0].contains("from=fe80::2 to=fe80::1 port=\"80/TCP\""),
        "{lines:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn many_scans_are_not_many_lines() {
    let mut scene = Scene::new();
    for source in 4..=40 {
        scene.send(&format!("10.0.0.{source}"), "10.0.0.1", 80);
    }
    scene.look();
    assert_eq!(scene.lines().len(), LINES);
}

#[tokio::test(start_paused = true)]
async fn packets_of_pods_that_nobody_knows_are_counted_and_logged() {
    let mut cluster = cluster();
    cluster.add_node(Node {
        name: "here".into(),
        labels: Labels::default(),
        addresses: Vec::new(),
        pod_cidrs: vec!["10.0.0.0/29".parse().expect("a range")],
    });
    let settings = Settings {
        unknown_pods: UnknownPods::Drop,
        ..Settings::default()
    };
    let mut scene = Scene::of(cluster, settings);
    scene.send("10.0.0.5", "192.0.2.1", 80);
    scene.send("10.0.0.5", "10.0.0.6", 80);
    // Known, elsewhere; and in nobody's range.
    scene.send("10.0.0.3", "192.0.2.1", 80);
    scene.send("10.0.0.9", "192.0.2.1", 80);
    scene.look();
    let line = |to: &str| {
        format!(
            " INFO denied from=10.0.0.5 to={to} port=\"80/TCP\" packets=1 reason=\"no pod of the cluster has 10.0.0.5 \
             (--unknown-pods drop)\""
        )
    };
    assert_eq!(scene.lines(), [line("10.0.0.6"), line("192.0.2.1")]);
    assert_eq!(scene.metrics.unknown_pod_packets.get(), 2);

    // Replaced, the kernel counts from nothing; the metric goes on.
    scene.replace();
    scene.send("192.0.2.1", "10.0.0.6", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert_eq!(scene.metrics.unknown_pod_packets.get(), 3);
}
