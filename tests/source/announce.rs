//! Events on policies that are not enforced as they are written: one in the cluster, however many agents find it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::events::v1::Event;
use palisade::agent::announce::{Announcer, Finding, Reason};
use palisade::agent::metrics::Metrics;
use palisade::agent::source::{Access, Identity, Resource, Target};
use policy_compiler::policy::PolicyName;
use serde_json::{Value, json};

use crate::api::{Api, Fault, Kind, Verb};
use crate::objects::policy;
use crate::world::{SOON, World};

struct Agents {
    agents: Vec<Announcer>,
    metrics: Metrics,
    now: SystemTime,
}

/// The announcers of agents on so many nodes; they count together.
fn agents(api: &Api, nodes: usize) -> Agents {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    std::fs::write(&file, api.kubeconfig(None)).unwrap();
    let metrics = Metrics::default();
    let announcer = |at| {
        let target = Target::Kubeconfig {
            file: Some(file.clone()),
            context: None,
        };
        let access = Arc::new(Access::new(target).unwrap());
        Announcer::new(access, format!("n{at}").as_str().into(), metrics.clone())
    };
    let agents = (0..nodes).map(announcer).collect();
    Agents {
        agents,
        metrics,
        now: SystemTime::UNIX_EPOCH,
    }
}

impl Agents {
    /// One turn of each, and how long the last would wait.
    async fn turn(&mut self, findings: &[Finding]) -> Duration {
        let nodes = self.agents.len();
        let mut wait = Duration::ZERO;
        for agent in &mut self.agents {
            wait = agent.turn(findings, nodes, self.now).await;
        }
        wait
    }

    fn counted(&self, outcome: &str) -> usize {
        let text = self.metrics.encode().unwrap();
        let start = format!("palisade_policy_events_total{{outcome=\"{outcome}\"}} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&start))
            .map(|number| number.parse().unwrap())
            .unwrap()
    }
}

fn findings(world: &World) -> Vec<Finding> {
    world.watches.unreadable().into_iter().map(Finding::from).collect()
}

/// A policy that the API server takes and this release does not understand.
fn unknown(name: &str) -> Value {
    let mut object = policy("shop", name, "web", 80);
    object["spec"]["ingress"]
        .as_array_mut()
        .unwrap()
        .push(json!({"from": [{"serviceSelector": {}}]}));
    object
}

async fn until_invalid(world: &World, count: usize) {
    world
        .until("is told", |h| h.invalid == count, Resource::NetworkPolicies)
        .await;
}

#[tokio::test]
async fn five_agents_make_one_event_and_another_when_it_is_broken_again() {
    let world = World::synced().await;
    let mut agents = agents(&world.api, 5);
    assert_eq!(findings(&world), []);
    agents.turn(&findings(&world)).await;
    assert_eq!(world.api.count(Kind::Event, Verb::Create), 0);

    world.api.put(Kind::NetworkPolicy, unknown("new"));
    until_invalid(&world, 1).await;
    for _ in 0..3 {
        agents.turn(&findings(&world)).await;
    }
    let events = world.api.objects(Kind::Event);
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(world.api.count(Kind::Event, Verb::Create), 5, "each asks once");
    assert_eq!((agents.counted("posted"), agents.counted("known")), (1, 4));
    let stored = &world.api.objects(Kind::NetworkPolicy)[1]["metadata"];
    // The API server reads six digits, no more and no less.
    let time = events[0]["eventTime"].as_str().unwrap();
    let fraction = time.rsplit_once('.').map(|(_, fraction)| fraction.len());
    assert_eq!(fraction, Some("000000Z".len()), "{time}");
    let event: Event = serde_json::from_value(events[0].clone()).unwrap();
    let regarding = event.regarding.unwrap();
    assert_eq!(regarding.kind.as_deref(), Some("NetworkPolicy"));
    assert_eq!(regarding.namespace.as_deref(), Some("shop"));
    assert_eq!(regarding.name.as_deref(), Some("new"));
    assert_eq!(regarding.uid.as_deref(), stored["uid"].as_str());
    assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(event.reason.as_deref(), Some("PolicyInvalid"));
    assert_eq!(event.reporting_controller.as_deref(), Some("palisade.dev/agent"));
    assert_eq!(event.reporting_instance.as_deref(), Some("n0"));
    assert!(event.event_time.is_some());
    let note = event.note.unwrap();
    assert!(note.starts_with("on node n0: "), "{note}");
    assert!(note.contains("spec.ingress[1].from[0]: the peer is empty"), "{note}");
    assert!(
        note.ends_with("it isolates its pods, and its rules that can be read are in force"),
        "{note}"
    );

    // An agent that begins anew knows nothing of it, and the API server does.
    let mut anew = self::agents(&world.api, 1);
    anew.turn(&findings(&world)).await;
    assert_eq!((anew.counted("posted"), anew.counted("known")), (0, 1));

    // What lasts is told again when the API server has forgotten.
    agents.now += Duration::from_secs(3600);
    agents.turn(&findings(&world)).await;
    assert_eq!((agents.counted("posted"), agents.counted("known")), (2, 8));

    // Mended: nothing to tell. Broken again: another version of it.
    world.api.put(Kind::NetworkPolicy, policy("shop", "new", "web", 80));
    until_invalid(&world, 0).await;
    agents.turn(&findings(&world)).await;
    world.api.put(Kind::NetworkPolicy, unknown("new"));
    until_invalid(&world, 1).await;
    for _ in 0..3 {
        agents.turn(&findings(&world)).await;
    }
    assert_eq!(world.api.objects(Kind::Event).len(), 3);
    assert_eq!((agents.counted("posted"), agents.counted("failed")), (3, 0));
}

#[tokio::test]
async fn a_mode_that_is_none_is_told_and_the_policy_is_enforced() {
    let mut world = World::synced().await;
    let mut object = policy("shop", "trial", "web", 80);
    object["metadata"]["annotations"] = json!({"palisade.dev/mode": "audti"});
    world.api.put(Kind::NetworkPolicy, object);
    world.converge().await;
    until_invalid(&world, 1).await;
    let found = findings(&world);
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .message
            .contains("\"audti\" is not a mode: write enforce or audit; it is enforced"),
        "{found:?}"
    );
    world.api.put(Kind::NetworkPolicy, policy("shop", "trial", "web", 80));
    until_invalid(&world, 0).await;
    assert_eq!(findings(&world), []);
}

#[tokio::test]
async fn policies_that_are_gone_are_forgotten_also_by_a_list() {
    let world = World::synced().await;
    for name in ["one", "two"] {
        world.api.put(Kind::NetworkPolicy, unknown(name));
    }
    until_invalid(&world, 2).await;
    assert_eq!(findings(&world).len(), 2);
    world.api.delete(Kind::NetworkPolicy, "shop", "one");
    until_invalid(&world, 1).await;
    world.api.hold(Kind::NetworkPolicy, true);
    world.api.delete(Kind::NetworkPolicy, "shop", "two");
    world.api.cut();
    world.api.compact();
    world.api.hold(Kind::NetworkPolicy, false);
    until_invalid(&world, 0).await;
    assert_eq!(findings(&world), []);
}

#[tokio::test]
async fn without_the_right_there_is_one_attempt_and_then_silence() {
    let world = World::synced().await;
    world.api.put(Kind::NetworkPolicy, unknown("new"));
    until_invalid(&world, 1).await;
    let mut agents = agents(&world.api, 1);
    world.api.fault(Kind::Event, Verb::Create, 1, Fault::Status(403));
    let wait = agents.turn(&findings(&world)).await;
    assert_eq!(wait, Duration::from_secs(600));
    assert_eq!(agents.counted("failed"), 1);
    // What is not taken now may be later.
    for fault in [Fault::Status(500), Fault::TooManyRequests(1)] {
        world.api.fault(Kind::Event, Verb::Create, 1, fault);
        let wait = agents.turn(&findings(&world)).await;
        assert!(
            wait >= Duration::from_secs(1) && wait < Duration::from_secs(120),
            "{wait:?}"
        );
    }
    assert_eq!(world.api.objects(Kind::Event), Vec::<Value>::new());
    agents.turn(&findings(&world)).await;
    assert_eq!(world.api.objects(Kind::Event).len(), 1);
    // One that the API server will never take does not keep the others.
    world.api.put(Kind::NetworkPolicy, unknown("another"));
    world.api.put(Kind::NetworkPolicy, unknown("third"));
    until_invalid(&world, 3).await;
    world.api.fault(Kind::Event, Verb::Create, 1, Fault::Status(422));
    for _ in 0..3 {
        agents.turn(&findings(&world)).await;
    }
    assert_eq!(world.api.objects(Kind::Event).len(), 2);
    // Nor does one that it may take later: the others have their turn before it is tried again.
    for name in ["fourth", "fifth"] {
        world.api.put(Kind::NetworkPolicy, unknown(name));
    }
    until_invalid(&world, 5).await;
    for _ in 0..2 {
        world.api.fault(Kind::Event, Verb::Create, 1, Fault::Status(500));
        agents.turn(&findings(&world)).await;
        agents.turn(&findings(&world)).await;
    }
    assert_eq!(world.api.objects(Kind::Event).len(), 4);
}

#[tokio::test]
async fn a_thousand_bad_policies_are_told_one_at_a_time() {
    let world = World::synced().await;
    for at in 0..1200 {
        world.api.put(Kind::NetworkPolicy, unknown(&format!("bad-{at}")));
    }
    until_invalid(&world, 1200).await;
    let found = findings(&world);
    assert_eq!(found.len(), 1000, "bounded");
    let mut agents = agents(&world.api, 1);
    for turn in 1..=20 {
        let wait = agents.turn(&found).await;
        assert_eq!(wait, Duration::from_secs(1));
        assert_eq!(world.api.count(Kind::Event, Verb::Create), turn, "one request a turn");
    }
    let waiting = "palisade_policy_events_waiting 980\n";
    let text = agents.metrics.encode().unwrap();
    assert!(text.contains(waiting), "{text}");
    // In a large cluster the turns are further apart, and most of it falls to others.
    let wait = agents.agents[0].turn(&found, 5000, agents.now).await;
    assert_eq!(wait, Duration::from_secs(100));
    let text = agents.metrics.encode().unwrap();
    let waiting = text
        .lines()
        .find_map(|line| line.strip_prefix("palisade_policy_events_waiting "))
        .map(|number| number.parse::<usize>().unwrap())
        .unwrap();
    assert!(waiting < 50, "{waiting}");
}

#[tokio::test]
async fn what_one_kernel_refuses_is_told_by_its_node() {
    let world = World::synced().await;
    let finding = Finding {
        policy: PolicyName {
            namespace: Some("shop".into()),
            name: "db".into(),
        },
        identity: Identity {
            uid: "1-2-3".into(),
            generation: 1,
        },
        reason: Reason::Refused,
        message: "the kernel refuses its rules".to_owned(),
    };
    // Nothing here is left to chance: whoever finds it tells it, once.
    let began = Instant::now();
    let mut agents = agents(&world.api, 3);
    for agent in &mut agents.agents {
        for _ in 0..2 {
            agent.turn(std::slice::from_ref(&finding), 5000, agents.now).await;
        }
    }
    assert!(began.elapsed() < SOON, "a turn does not wait itself");
    assert_eq!(world.api.count(Kind::Event, Verb::Create), 3);
    let events = world.api.objects(Kind::Event);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["reason"], "PolicyRefused");
}
