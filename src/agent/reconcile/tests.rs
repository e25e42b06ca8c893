//! The loop with an in-memory kernel whose failures are scripted, on a clock that the tests wind.

use std::sync::{Arc, Mutex, MutexGuard};

use policy_compiler::cluster::{Namespace, Pod, PodName};
use policy_compiler::labels::{Labels, Name, Selector};
use policy_compiler::policy::{
    Action, NamespaceScope, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule, Tier,
};
use policy_compiler::ports::{PortRange, Protocol};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::*;
use crate::agent::folder;
use crate::nft::fake::Fake;
use crate::nft::listing::Listing;
use crate::nft::transaction::Operation;
use crate::nft::{Clearing, KernelError, MarkMask, Mode, Settings, Transaction};

/// What the loop sees, and what it did.
#[derive(Default)]
struct World {
    kernel: Fake,
    /// How many calls of nft fail from now on.
    failures: u32,
    /// Whatever has this in it is refused.
    refuses: Option<&'static str>,
    /// After so many transactions that succeed.
    passes: u32,
    /// Whether they are such that nobody knows what the kernel holds.
    hanging: bool,
    /// The transactions that were tried.
    tried: Vec<Transaction>,
    manifests: Option<Result<Cluster, Vec<String>>>,
    reads: usize,
}

/// The world, shared by the loop and the scene beside it.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<World>>);

impl Shelf {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test has panicked while it held the world")
    }

    /// What the kernel holds, as text; empty without a table.
    fn table(&self) -> String {
        self.world().kernel.to_string()
    }

    fn tried(&self) -> usize {
        self.world().tried.len()
    }

    fn refuse(&self, transaction: &Transaction) -> Result<(), KernelError> {
        match self.world().refuses {
            Some(text) if transaction.to_string().contains(text) => {
                Err(KernelError::Refused(format!("{text} is not to the kernel's taste")))
            }
            _ => Ok(()),
        }
    }

    fn pass(&self) {
        let mut world = self.world();
        world.passes = world.passes.saturating_sub(1);
    }

    fn fail(&self) -> Result<(), KernelError> {
        let mut world = self.world();
        if world.failures == 0 || world.passes > 0 {
            return Ok(());
        }
        world.failures -= 1;
        if world.hanging {
            return Err(KernelError::TimedOut(Duration::from_secs(30)));
        }
        Err(KernelError::Refused("as the test says".to_owned()))
    }
}

impl Kernel for Shelf {
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.world().tried.push(transaction.clone());
        self.fail()?;
        self.refuse(transaction)?;
        self.pass();
        self.world().kernel.apply(transaction)
    }

    fn check(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.refuse(transaction)?;
        self.world().kernel.check(transaction)
    }

    fn read(&self) -> Result<Option<Listing>, KernelError> {
        self.fail()?;
        self.world().kernel.read()
    }

    fn delete(&self) -> Result<(), KernelError> {
        self.world().kernel.delete()
    }

    fn clear_marks(&self, mask: MarkMask) -> Clearing {
        self.world().kernel.clear_marks(mask)
    }
}

/// A pod on node-1, isolated by these policies: for egress by the one of that name, for ingress by any other.
fn cluster(policies: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.add_namespace(Namespace::new("shop", Labels::default()));
    cluster.add_pod(Pod {
        name: PodName {
            namespace: "shop".into(),
            name: "web".into(),
        },
        labels: Labels::default(),
        addresses: vec!["10.244.1.2".parse().expect("an address")],
        node: Some("node-1".into()),
        host_network: false,
        ended: false,
        started: None,
        ports: Vec::new(),
        workload: None,
    });
    for policy in policies {
        cluster.add_policy(Policy {
            name: PolicyName {
                namespace: Some("shop".into()),
                name: (*policy).into(),
            },
            tier: Tier::NetworkPolicy,
            enforcement: None,
            subject: PodSelection {
                namespaces: NamespaceScope::Named("shop".into()),
                pods: Selector::default(),
            },
            ingress: (*policy != "egress").then(Vec::new),
            egress: (*policy == "egress").then(Vec::new),
        });
    }
    cluster
}

/// Whether a transaction makes the whole table anew.
fn replaces(transaction: Option<&Transaction>) -> bool {
    let operations = transaction.expect("a transaction").steps().flatten();
    operations
        .into_iter()
        .any(|operation| *operation == Operation::DeleteTable)
}

/// What a scene has at hand.
struct Stage {
    shelf: Shelf,
    shared: Shared,
    events: mpsc::Sender<()>,
}

impl Stage {
    /// The folder now says this, and inotify has seen it.
    async fn change(&self, manifests: Result<Cluster, Vec<String>>) {
        self.shelf.world().manifests = Some(manifests);
        self.events.try_send(()).expect("room");
        sleep(Duration::from_millis(300)).await;
    }

    fn metric(&self, line: &str) -> bool {
        self.shared
            .metrics
            .encode()
            .expect("text")
            .contains(&format!("palisade_{line}\n"))
    }

    #[track_caller]
    fn not_ready(&self, reason: &str) {
        let report = self.shared.readiness.report().expect_err("ready");
        assert!(report.contains(reason), "{report}");
    }
}

/// Plays a scene beside the loop, which has started with these manifests.
async fn play(manifests: Cluster, failures: u32, scene: impl AsyncFnOnce(&Stage)) {
    play_with(Settings::default(), manifests, failures, scene).await;
}

/// The same with other settings.
async fn play_with(settings: Settings, manifests: Cluster, failures: u32, scene: impl AsyncFnOnce(&Stage)) {
    let shelf = Shelf::default();
    shelf.world().manifests = Some(Ok(manifests));
    shelf.world().failures = failures;
    let source = {
        let shelf = shelf.clone();
        move || {
            let mut world = shelf.world();
            world.reads += 1;
            world.manifests.clone().expect("a test says what is in the folder")
        }
    };
    let shared = Shared::default();
    let enforcer = Enforcer::new("node-1".into(), settings, shelf.clone());
    let mut reconciler = Reconciler::new(source, enforcer, shared.clone());
    assert!(!shared.readiness.is_ready());
    reconciler.start().expect("good manifests");
    let (events, mut changes) = folder::changes();
    let stage = Stage { shelf, shared, events };
    tokio::select! {
        biased;
        () = scene(&stage) => {}
        () = reconciler.run(&mut changes, std::future::pending()) => panic!("nobody stopped the loop"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_followed_and_nothing_is_applied_when_nothing_changed() {
    play(cluster(&["a"]), 0, async |stage| {
        assert_eq!(stage.shared.readiness.report(), Ok("ready\n".to_owned()));
        assert_eq!(stage.shelf.tried(), 1);
        let before = stage.shelf.table();

        stage.change(Ok(cluster(&["a"]))).await;
        assert_eq!(stage.shelf.world().reads, 2);
        assert_eq!(stage.shelf.tried(), 1, "the same manifests");
        assert!(stage.metric("applies_total{outcome=\"unchanged\"} 1"));

        let mut other = cluster(&["a"]);
        other.add_namespace(Namespace::new("elsewhere", Labels::default()));
        stage.change(Ok(other)).await;
        assert_eq!(stage.shelf.tried(), 1, "other manifests, the same rules");

        stage.change(Ok(cluster(&[]))).await;
        assert_eq!(stage.shelf.tried(), 2);
        assert!(!replaces(stage.shelf.world().tried.last()), "a difference is enough");
        assert_ne!(stage.shelf.table(), before);
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_folder_is_read_now_and_then_although_nothing_is_seen_to_change() {
    play(cluster(&["a"]), 0, async |stage| {
        stage.shelf.world().manifests = Some(Ok(cluster(&[])));
        sleep(READ_EVERY + Duration::from_secs(1)).await;
        assert_eq!(stage.shelf.world().reads, 2);
        assert_eq!(stage.shelf.tried(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn broken_manifests_leave_the_kernel_alone_until_they_are_mended() {
    play(cluster(&["a"]), 0, async |stage| {
        let before = stage.shelf.table();
        let errors = vec!["shop/a.yaml:3: no".to_owned(), "b.yaml:1: no".to_owned()];
        stage.change(Err(errors)).await;
        stage.not_ready("manifests: shop/a.yaml:3: no\nmanifests: b.yaml:1: no\n");
        assert!(stage.metric("manifest_errors 2"));
        assert_eq!(stage.shelf.table(), before);

        stage.shelf.world().kernel.delete().expect("a fake never fails");
        sleep(CHECK_EVERY * 2).await;
        assert_eq!(stage.shelf.table(), before, "the last good policy is still defended");
        stage.not_ready("manifests: ");

        stage.change(Ok(cluster(&["a"]))).await;
        assert!(stage.shared.readiness.is_ready());
        assert!(stage.metric("manifest_errors 0"));
        assert_eq!(stage.shelf.tried(), 2, "the first, and the repair");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nft_fails_twice_and_is_tried_again_with_the_whole_table() {
    // Reading the table fails as well each time.
    play(cluster(&["a"]), 4, async |stage| {
        stage.not_ready("kernel: ");
        stage.not_ready("starting: ");
        assert_eq!((stage.shelf.tried(), stage.shelf.table()), (1, String::new()));
        // The first wait is half a second to a whole one, in ticks of a millisecond; the second is twice as long.
        sleep(Duration::from_millis(1100)).await;
        assert_eq!((stage.shelf.tried(), stage.shelf.table()), (2, String::new()));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(stage.shelf.tried(), 3);
        assert!(
            replaces(stage.shelf.world().tried.last()),
            "after a failure nobody knows what is there"
        );
        assert!(stage.shared.readiness.is_ready());
        assert!(stage.metric("applies_total{outcome=\"failed\"} 2"));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(stage.shelf.tried(), 3, "no more than needed");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_next_change_brings_the_whole_table() {
    play(cluster(&["a"]), 0, async |stage| {
        sleep(Duration::from_millis(100)).await;
        stage.shelf.world().failures = 1;
        stage.change(Ok(cluster(&["a", "egress"]))).await;
        stage.not_ready("kernel: ");
        stage.change(Ok(cluster(&[]))).await;
        assert_eq!(stage.shelf.tried(), 3, "sooner than the retry");
        assert!(
            replaces(stage.shelf.world().tried.last()),
            "nobody knows what the failure left"
        );
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_nft_refuses_does_not_wait_for_the_backoff_when_it_is_mended() {
    play(cluster(&["a"]), 0, async |stage| {
        let before = stage.shelf.table();
        stage.shelf.world().failures = 1000;
        stage.change(Ok(cluster(&["a", "egress"]))).await;
        sleep(Duration::from_secs(300)).await;
        let tried = stage.shelf.tried();
        assert!((8..20).contains(&tried), "backoff: {tried} attempts in five minutes");
        stage.not_ready("kernel: ");
        assert_eq!(stage.shelf.table(), before);

        stage.shelf.world().failures = 0;
        stage.change(Ok(cluster(&[]))).await;
        assert!(stage.shared.readiness.is_ready());
        assert_ne!(stage.shelf.table(), before);
    })
    .await;
}

/// The cluster with one policy more, which admits everybody on one port.
fn with_port(mut cluster: Cluster, name: &str, port: u16) -> Cluster {
    let rule = Rule {
        action: Action::Accept,
        peers: Peers::All,
        ports: Ports::Listed(vec![PortMatch::Range(Protocol::Tcp, PortRange::one(port))]),
    };
    let template = self::cluster(&[name]).policies.into_values().next();
    let template = Policy::clone(&template.expect("one policy"));
    cluster.add_policy(Policy {
        ingress: Some(vec![rule]),
        ..template
    });
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_the_kernel_refuses_is_closed_and_the_others_apply() {
    play(cluster(&["egress"]), 0, async |stage| {
        stage.shelf.world().refuses = Some(". 666 ");
        let both = with_port(with_port(cluster(&["egress"]), "bad", 666), "good", 80);
        stage.change(Ok(both.clone())).await;
        let table = stage.shelf.table();
        assert!(
            table.contains("10.244.1.2 . tcp . 80,") && !table.contains("666"),
            "{table}"
        );
        let report = stage.shared.readiness.report().expect("ready");
        assert!(
            report.contains("warning: the kernel refuses the rules of NetworkPolicy shop/bad: what only it allows"),
            "{report}"
        );
        assert!(stage.metric("isolated_policies 1"));
        assert_eq!(refused(stage), ["shop/bad"]);
        // Neither the same manifests nor the passing of time tries it again.
        let tried = stage.shelf.tried();
        stage.change(Ok(both.clone())).await;
        sleep(Duration::from_secs(120)).await;
        assert_eq!(stage.shelf.tried(), tried);

        // Only it admitted anybody: the pod stays isolated.
        stage.change(Ok(with_port(cluster(&["egress"]), "bad", 666))).await;
        let table = stage.shelf.table();
        assert!(!table.contains("10.244.1.2 . tcp"), "{table}");
        assert!(
            table.contains("set in4_isolated { type ipv4_addr;\n\t\telements = {\n\t\t\t10.244.1.2"),
            "{table}"
        );
        assert!(stage.metric("isolated_policies 1"));

        stage.change(Ok(with_port(both, "bad", 667))).await;
        let table = stage.shelf.table();
        assert!(
            table.contains("10.244.1.2 . tcp . 667,") && table.contains("10.244.1.2 . tcp . 80,"),
            "{table}"
        );
        assert_eq!(stage.shared.readiness.report(), Ok("ready\n".to_owned()));
        assert!(stage.metric("isolated_policies 0"));
        assert_eq!(refused(stage), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nodes_are_counted_at_the_start_and_once_a_minute() {
    play_events(cluster(&["egress"]), async |stage, sender| {
        assert!(stage.metric("nodes 1"));
        let elsewhere = Pod {
            name: PodName {
                namespace: "shop".into(),
                name: "elsewhere".into(),
            },
            node: Some("node-2".into()),
            ..Pod::clone(cluster(&[]).pods.values().next().expect("a pod"))
        };
        send(stage, sender, [Event::Pod(Arc::new(elsewhere))]).await;
        sleep(Duration::from_secs(61)).await;
        assert!(stage.metric("nodes 2"));
    })
    .await;
}

/// The policies of which Events are to tell.
fn refused(stage: &Stage) -> Vec<String> {
    stage.shared.noted.refused().iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_the_kernel_refuses_at_the_start_is_closed() {
    let shelf = Shelf::default();
    shelf.world().refuses = Some(". 666 ");
    let manifests = with_port(with_port(cluster(&[]), "bad", 666), "good", 80);
    let enforcer = Enforcer::new("node-1".into(), Mode::Enforce, shelf.clone());
    let shared = Shared::default();
    let mut reconciler = Reconciler::new(move || Ok(manifests.clone()), enforcer, shared.clone());
    reconciler.start().expect("good manifests");
    assert!(shared.readiness.is_ready());
    assert!(shelf.table().contains("10.244.1.2 . tcp . 80,"), "{}", shelf.table());
}

/// Plays a scene beside the loop, which has started with a snapshot and then hears the events that the scene sends.
async fn play_events(first: Cluster, scene: impl AsyncFnOnce(&Stage, &mpsc::UnboundedSender<Event>)) {
    struct Script {
        first: Option<Cluster>,
        events: mpsc::UnboundedReceiver<Event>,
    }
    impl Read for Script {
        fn read(&mut self) -> Result<Told, Vec<String>> {
            if let Some(cluster) = self.first.take() {
                return Ok(Told::Snapshot(cluster));
            }
            let events = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
            let since = std::time::Instant::now();
            Ok(Told::Events { events, since })
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let source = Script {
        first: Some(first),
        events: receiver,
    };
    let (shelf, shared) = (Shelf::default(), Shared::default());
    let enforcer = Enforcer::new("node-1".into(), Mode::Enforce, shelf.clone());
    let mut reconciler = Reconciler::new(source, enforcer, shared.clone());
    reconciler.start().expect("a snapshot");
    let (events, mut changes) = folder::changes();
    let stage = Stage { shelf, shared, events };
    tokio::select! {
        biased;
        () = scene(&stage, &sender) => {}
        () = reconciler.run(&mut changes, std::future::pending()) => panic!("nobody stopped the loop"),
    }
}

/// Sends events, and waits until the loop has dealt with them, but not for so long that it tries again what failed.
async fn send(stage: &Stage, sender: &mpsc::UnboundedSender<Event>, events: impl IntoIterator<Item = Event>) {
    for event in events {
        sender.send(event).expect("the loop lives");
    }
    stage.events.try_send(()).expect("the loop lives");
    sleep(Duration::from_millis(100)).await;
}

fn at(address: &str) -> Event {
    let pod = cluster(&[]).pods.into_values().next().expect("one pod");
    Event::Pod(Arc::new(Pod {
        addresses: vec![address.parse().expect("an address")],
        ..Pod::clone(&pod)
    }))
}

fn policies(cluster: Cluster) -> Vec<Event> {
    cluster.policies.into_values().map(Event::Policy).collect()
}

#[tokio::test(start_paused = true)]
async fn events_are_followed_and_those_that_change_nothing_apply_nothing() {
    play_events(cluster(&["a"]), async |stage, sender| {
        let tried = stage.shelf.tried();
        send(stage, sender, [at("10.244.1.2")]).await;
        assert_eq!(stage.shelf.tried(), tried);
        assert!(stage.metric("event_to_kernel_seconds_count 0"));

        send(stage, sender, [at("10.244.1.9")]).await;
        let table = stage.shelf.table();
        assert!(table.contains("10.244.1.9") && !table.contains("10.244.1.2"), "{table}");
        assert_eq!(stage.shelf.tried(), tried + 1);
        assert!(!replaces(stage.shelf.world().tried.last()), "only what changed");
        assert!(stage.metric("event_to_kernel_seconds_count 1"));

        let gone = policies(cluster(&["a"])).remove(0);
        let Event::Policy(policy) = gone else {
            panic!("a policy")
        };
        send(stage, sender, [Event::PolicyGone(policy.tier, policy.name.clone())]).await;
        assert!(!stage.shelf.table().contains("10.244.1.9"), "{}", stage.shelf.table());
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn while_nft_fails_pods_wait_for_the_next_attempt_and_policies_do_not() {
    play_events(cluster(&["a"]), async |stage, sender| {
        let before = stage.shelf.table();
        stage.shelf.world().failures = 1;
        send(stage, sender, [at("10.244.1.3")]).await;
        stage.not_ready("kernel: ");
        let tried = stage.shelf.tried();
        send(stage, sender, [at("10.244.1.4")]).await;
        assert_eq!((stage.shelf.tried(), stage.shelf.table()), (tried, before));
        send(stage, sender, policies(cluster(&["egress"]))).await;
        assert!(
            replaces(stage.shelf.world().tried.last()),
            "what the kernel holds is not certain"
        );
        let table = stage.shelf.table();
        assert!(table.contains("10.244.1.4") && !table.contains("10.244.1.3"), "{table}");
        assert!(stage.shared.readiness.is_ready());

        stage.shelf.world().failures = 1;
        send(stage, sender, [at("10.244.1.5")]).await;
        send(stage, sender, [at("10.244.1.6")]).await;
        stage.not_ready("kernel: ");
        sleep(Duration::from_secs(2)).await;
        assert!(stage.shelf.table().contains("10.244.1.6"), "time passes");
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_the_kernel_refuses_stays_closed_while_pods_come_and_go() {
    play_events(cluster(&["egress"]), async |stage, sender| {
        stage.shelf.world().refuses = Some(". 666 ");
        let both = with_port(with_port(cluster(&[]), "bad", 666), "good", 80);
        send(stage, sender, policies(both)).await;
        let warned = |stage: &Stage| stage.shared.readiness.report().expect("ready").contains("shop/bad");
        assert!(warned(stage) && stage.metric("isolated_policies 1"));

        send(stage, sender, [at("10.244.1.7")]).await;
        let table = stage.shelf.table();
        assert!(
            table.contains("10.244.1.7 . tcp . 80,") && !table.contains("666"),
            "{table}"
        );
        assert!(warned(stage));

        send(stage, sender, policies(with_port(cluster(&[]), "bad", 667))).await;
        let table = stage.shelf.table();
        assert!(table.contains("10.244.1.7 . tcp . 667,"), "{table}");
        send(stage, sender, [at("10.244.1.8")]).await;
        let table = stage.shelf.table();
        assert!(
            table.contains("10.244.1.8 . tcp . 667,") && table.contains("10.244.1.8 . tcp . 80,"),
            "{table}"
        );
        assert_eq!(stage.shared.readiness.report(), Ok("ready\n".to_owned()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_others_do_to_the_table_is_undone() {
    play(cluster(&["a"]), 0, async |stage| {
        sleep(Duration::from_millis(100)).await;
        let before = stage.shelf.table();
        for repairs in 1..=3 {
            stage.shelf.world().kernel.delete().expect("a fake never fails");
            sleep(CHECK_EVERY * 2).await;
            assert_eq!(stage.shelf.table(), before);
            assert!(stage.metric(&format!("drift_repairs_total {repairs}")));
        }
        sleep(Duration::from_secs(20)).await;
        assert!(stage.metric("drift_repairs_total 3"), "and then there is peace");
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_cannot_be_read_takes_readiness_away_until_it_can() {
    play(cluster(&["a"]), 0, async |stage| {
        stage.shelf.world().failures = 1;
        // Less than the shortest wait before the retry.
        sleep(Duration::from_millis(100)).await;
        stage.not_ready("kernel: ");
        // The same manifests again are no reason to trust the kernel.
        stage.shelf.world().failures = 2;
        stage.change(Ok(cluster(&["a"]))).await;
        stage.not_ready("kernel: ");
        sleep(Duration::from_secs(3)).await;
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn manifests_that_change_while_they_are_read_are_read_again() {
    let shelf = Shelf::default();
    let (events, mut changes) = folder::changes();
    let source = {
        let shelf = shelf.clone();
        let events = events.clone();
        move || {
            let mut world = shelf.world();
            world.reads += 1;
            match world.reads {
                1 => Ok(cluster(&["a"])),
                2 => {
                    // Half a file: its writer is still at work.
                    events.try_send(()).expect("room");
                    Err(vec!["a.yaml:1: half a line".to_owned()])
                }
                _ => Ok(cluster(&["a", "egress"])),
            }
        }
    };
    let shared = Shared::default();
    let enforcer = Enforcer::new("node-1".into(), Mode::Enforce, shelf.clone());
    let mut reconciler = Reconciler::new(source, enforcer, shared.clone());
    reconciler.start().expect("good manifests");
    let before = shelf.table();
    events.try_send(()).expect("room");
    reconciler.run(&mut changes, sleep(Duration::from_secs(2))).await;
    assert_eq!(shelf.world().reads, 3);
    assert_ne!(shelf.table(), before);
    let metrics = shared.metrics.encode().expect("text");
    assert!(
        metrics.contains("palisade_manifest_reads_total{outcome=\"failed\"} 0\n"),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_loop_stops_when_told_and_leaves_the_rules() {
    let shelf = Shelf::default();
    let enforcer = Enforcer::new("node-1".into(), Mode::Enforce, shelf.clone());
    let mut reconciler = Reconciler::new(|| Ok(cluster(&["a"])), enforcer, Shared::default());
    reconciler.start().expect("good manifests");
    let (_events, mut changes) = folder::changes();
    reconciler.run(&mut changes, sleep(Duration::from_secs(5))).await;
    assert!(shelf.table().contains("10.244.1.2"), "{}", shelf.table());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_before_the_manifests_are_good() {
    let shelf = Shelf::default();
    let enforcer = Enforcer::new("node-1".into(), Mode::Enforce, shelf.clone());
    let mut reconciler = Reconciler::new(|| Err(vec!["a.yaml:1: no".to_owned()]), enforcer, Shared::default());
    assert_eq!(reconciler.start(), Err(vec!["a.yaml:1: no".to_owned()]));
    assert_eq!(shelf.tried(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_nobody_knows_is_ready_with_a_warning() {
    let mut elsewhere = cluster(&["a"]);
    let pods: Vec<Pod> = elsewhere.pods.values().map(|pod| Pod::clone(pod)).collect();
    for pod in pods {
        elsewhere.add_pod(Pod {
            node: Some(Name::from("node-2")),
            ..pod
        });
    }
    play(elsewhere, 0, async |stage| {
        let report = stage.shared.readiness.report().expect("ready");
        assert!(
            report.contains("warning: there is neither a Node node-1 nor a pod on it"),
            "{report}"
        );
        stage.change(Ok(cluster(&["a"]))).await;
        assert_eq!(stage.shared.readiness.report(), Ok("ready\n".to_owned()));
    })
    .await;
}

#[test]
fn a_line_is_news_once_until_it_is_gone() {
    let mut known = BTreeSet::new();
    let mut tell = |lines: &[&str]| {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        news(&mut known, &lines).into_iter().cloned().collect::<Vec<String>>()
    };
    assert_eq!(tell(&["a", "b", "a"]), ["a", "b"]);
    assert_eq!(tell(&["b", "c"]), ["c"]);
    assert_eq!(tell(&[]), [""; 0]);
    assert_eq!(tell(&["b"]), ["b"]);
}

mod marks;
mod unknown;
