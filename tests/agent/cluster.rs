//! The agent on an API server.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::api::{Api, Fault, Kind, Verb, but_for_the_hour};
use super::held::value;
use super::{Agent, in_a_namespace, palisade, table, until};

pub(crate) fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

pub(crate) fn policy(port: u16) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": port}]}],
        },
    })
}

/// What serves while a test waits.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}

/// What starts an agent of a node with this kubeconfig, which goes into the folder.
pub(crate) fn arguments(node: &str, folder: &Path, kubeconfig: &str, more: &[&str]) -> Vec<String> {
    let file = folder.join("kubeconfig");
    fs::write(&file, kubeconfig).expect("write");
    let file = file.display().to_string();
    let fixed = [
        "agent",
        "--node-name",
        node,
        "--http-addr",
        "127.0.0.1:0",
        "--kubeconfig",
        &file,
    ];
    fixed
        .into_iter()
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect()
}

/// A small cluster.
pub(crate) fn fill(api: &Api) {
    api.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
    api.put(Kind::Node, json!({"metadata": {"name": "worker-1"}}));
    api.put(Kind::Pod, pod("web", "worker-1", "10.244.1.2"));
    api.put(Kind::Pod, pod("client", "worker-2", "10.244.2.2"));
    api.put(Kind::NetworkPolicy, policy(8080));
}

#[test]
fn the_kernel_follows_the_api_server() {
    in_a_namespace("cluster::the_kernel_follows_the_api_server", || {
        let runtime = runtime();
        let api = runtime.block_on(Api::start());
        fill(&api);
        api.set_outage(true);

        let folder = tempfile::tempdir().expect("directory");
        let arguments = arguments("worker-1", folder.path(), &api.kubeconfig(None), &[]);
        let agent = Agent::with(&arguments, folder.path().join("log"));
        until("what is missing is told", || {
            let (code, text) = agent.get("/readyz");
            code == 503 && text.contains("pods cannot be watched: the API server answers 503 ServiceUnavailable")
        });
        assert_eq!(table(), None, "nothing is applied before all is known");
        api.set_outage(false);
        agent.until_ready();
        let first = table().expect("a table");
        assert!(first.contains("8080") && first.contains("10.244.2.2"), "{first}");

        let start = Instant::now();
        api.put(Kind::NetworkPolicy, policy(9090));
        until("a policy is followed", || {
            table().is_some_and(|t| t.contains("9090") && !t.contains("8080"))
        });
        api.put(Kind::Pod, pod("client", "worker-2", "10.244.2.3"));
        until("a pod is followed", || {
            table().is_some_and(|t| t.contains("10.244.2.3") && !t.contains("10.244.2.2"))
        });

        let lag = &agent.status().1["lastApply"]["lagSeconds"];
        let most = start.elapsed().as_secs_f64();
        assert!(
            lag.as_f64().is_some_and(|lag| lag > 0.0 && lag < most),
            "{lag} of {most}"
        );

        // An outage freezes what is there, and what happens meanwhile is made up for.
        let before = table();
        api.set_outage(true);
        until("the outage is seen", || {
            agent.metric("palisade_watch_failing{resource=\"pods\"} 1")
        });
        api.delete(Kind::Pod, "shop", "client");
        api.compact();
        assert_eq!((table(), agent.get("/readyz").0), (before, 200));
        api.set_outage(false);
        until("it is made up for", || {
            table().is_some_and(|t| !t.contains("10.244.2.3"))
        });

        // One that cannot be read is told, also by an Event, though not at the first attempt; and the rest goes on.
        api.fault(Kind::Event, Verb::Create, 1, Fault::Status(500));
        let mut broken = policy(9090);
        broken["spec"]["ingress"][0]["ports"] = json!([{"port": 70000}]);
        api.put(Kind::NetworkPolicy, broken);
        until("it is told", || {
            agent
                .get("/readyz")
                .1
                .contains("warning: NetworkPolicy shop/web: spec.ingress[0].ports[0].port")
        });
        api.put(Kind::Pod, pod("client", "worker-2", "10.244.2.4"));
        until("the rest goes on", || {
            table().is_some_and(|t| t.contains("10.244.2.4") && t.contains("9090"))
        });

        until("an Event tells it", || {
            but_for_the_hour(api.objects(Kind::Event)).len() == 1
        });
        let event = api.objects(Kind::Event).remove(0);
        assert_eq!(
            (&event["regarding"]["namespace"], &event["regarding"]["name"]),
            (&json!("shop"), &json!("web"))
        );
        assert_eq!(event["reportingInstance"], "worker-1");
        let note = event["note"].as_str().expect("a note");
        assert!(note.ends_with("its last good version stays in force"), "{note}");
        until("it is counted", || {
            value(&agent, "palisade_policy_events_total{outcome=\"posted\"}") >= 1
        });

        for call in api.calls() {
            let reads = matches!(call.verb, Verb::List | Verb::Watch | Verb::StreamingList);
            assert!(
                reads || (call.kind, call.verb) == (Kind::Event, Verb::Create),
                "{call:?}"
            );
        }
        let last = table();
        assert!(agent.stop().success());
        assert_eq!(table(), last, "the rules stay");
    });
}

#[test]
fn without_credentials_it_does_not_start() {
    in_a_namespace("cluster::without_credentials_it_does_not_start", || {
        for (arguments, said) in [
            (&[][..], "this process runs in no pod"),
            (
                &["--kubeconfig", "/nonexistent"][..],
                "/nonexistent: cannot read the kubeconfig: No such file",
            ),
        ] {
            let all = [
                &["agent", "--node-name", "n", "--http-addr", "127.0.0.1:0"][..],
                arguments,
            ]
            .concat();
            let output = palisade(&all);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(text.contains(said), "{text}");
        }
    });
}

#[test]
fn a_pod_is_known_once_the_api_shows_its_address() {
    in_a_namespace("cluster::a_pod_is_known_once_the_api_shows_its_address", || {
        let runtime = runtime();
        let api = runtime.block_on(Api::start());
        api.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
        api.put(Kind::Node, json!({"metadata": {"name": "worker-1"}}));
        api.put(Kind::Pod, pod("web", "worker-1", "10.244.1.2"));

        let folder = tempfile::tempdir().expect("directory");
        let arguments = arguments(
            "worker-1",
            folder.path(),
            &api.kubeconfig(None),
            &["--unknown-pods", "drop"],
        );
        let agent = Agent::with(&arguments, folder.path().join("log"));
        agent.until_ready();
        let (_, report) = agent.get("/readyz");
        assert!(report.contains("--unknown-pods drop is without effect"), "{report}");
        let (_, status) = agent.status();
        assert_eq!(status["enforced"]["unknownPods"], "drop");

        let ranges = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]});
        api.put(Kind::Node, json!({"metadata": {"name": "worker-1"}, "spec": ranges}));
        until("the ranges are followed", || {
            table().is_some_and(|t| t.contains("10.244.1.0") && t.contains("fd00:1::"))
        });
        assert_eq!(agent.get("/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(known(), ["10.244.1.2"]);

        let mut new = pod("new", "worker-1", "10.244.1.3");
        let status = new["status"].take();
        new["status"] = json!({"phase": "Pending"});
        api.put(Kind::Pod, new.clone());
        // Another pod of the range, on whatever node, and one of elsewhere.
        api.put(Kind::Pod, pod("late", "worker-2", "10.244.1.9"));
        api.put(Kind::Pod, pod("far", "worker-2", "10.244.2.9"));
        until("others are known", || known() == ["10.244.1.2", "10.244.1.9"]);
        new["status"] = status;
        api.put(Kind::Pod, new.clone());
        until("it is known", || known() == ["10.244.1.2", "10.244.1.3", "10.244.1.9"]);
        new["status"]["phase"] = json!("Succeeded");
        api.put(Kind::Pod, new);
        api.delete(Kind::Pod, "shop", "late");
        until("none but the first is left", || known() == ["10.244.1.2"]);
        assert!(agent.stop().success());
        assert_eq!(known(), ["10.244.1.2"], "the rules stay");
    });
}

/// The addresses that the kernel takes for known, sorted.
fn known() -> Vec<String> {
    let output = std::process::Command::new("nft")
        .args(["-j", "list", "set", "inet", "palisade", "known4"])
        .output()
        .expect("nft");
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
    let set = objects.into_iter().find_map(|object| object.get("set").cloned());
    let elements = set.and_then(|set| set["elem"].as_array().cloned()).unwrap_or_default();
    let address = |element: &Value| element.as_str().expect("an address").to_owned();
    let mut all: Vec<String> = elements.iter().map(address).collect();
    all.sort();
    all
}
