//! Events on policies that are not enforced as they are written, from the agent as it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use super::api::{Api, Fault, Kind, Verb, but_for_the_hour};
use super::cluster::{pod, policy};
use super::{Agent, PROGRAM, in_a_namespace, table, until};

/// An API server with two pods, and what an agent needs to reach it.
struct World {
    api: Api,
    folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let api = runtime.block_on(Api::start());
        api.put(Kind::Node, json!({"metadata": {"name": "worker-1"}}));
        api.put(Kind::Pod, pod("web", "worker-1", "10.244.1.2"));
        api.put(Kind::Pod, pod("client", "worker-2", "10.244.2.2"));
        let folder = tempfile::tempdir().expect("directory");
        fs::write(folder.path().join("kubeconfig"), api.kubeconfig(None)).expect("write");
        World {
            api,
            folder,
            _runtime: runtime,
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "agent",
                "--node-name",
                "worker-1",
                "--http-addr",
                "127.0.0.1:0",
                "--kubeconfig",
            ])
            .arg(self.folder.path().join("kubeconfig"));
        command
    }
}

#[test]
fn without_the_right_to_create_events_all_else_goes_on() {
    in_a_namespace("announce::without_the_right_to_create_events_all_else_goes_on", || {
        let world = World::new();
        let api = &world.api;
        let mut broken = policy(8080);
        broken["spec"]["ingress"][0]["ports"] = json!([{"port": 70000}]);
        api.put(Kind::NetworkPolicy, broken);
        api.fault(Kind::Event, Verb::Create, 1, Fault::Status(403));
        let agent = Agent::run(&mut world.command(), world.log());
        agent.until_ready();
        until("it has been refused", || {
            agent.metric("palisade_policy_events_total{outcome=\"failed\"} 1")
        });
        api.put(Kind::NetworkPolicy, policy(9090));
        until("policies are followed", || table().is_some_and(|t| t.contains("9090")));
        assert_eq!(agent.get("/readyz").0, 200);
        assert_eq!(api.count(Kind::Event, Verb::Create), 1);
        let text = fs::read_to_string(world.log()).expect("a log");
        assert_eq!(text.matches("no Events tell of policies").count(), 1, "{text}");
        assert!(agent.stop().success());
    });
}

#[test]
fn a_thousand_bad_policies_make_a_request_a_second_and_delay_nothing() {
    in_a_namespace(
        "announce::a_thousand_bad_policies_make_a_request_a_second_and_delay_nothing",
        || {
            let world = World::new();
            let api = &world.api;
            for at in 0..1000 {
                let mut broken = policy(8080);
                broken["metadata"]["name"] = json!(format!("bad-{at}"));
                broken["spec"]["ingress"][0]["ports"] = json!([{"port": 70000}]);
                api.put(Kind::NetworkPolicy, broken);
            }
            let start = Instant::now();
            let agent = Agent::run(&mut world.command(), world.log());
            agent.until_ready();
            until("some are told", || api.objects(Kind::Event).len() >= 3);
            api.put(Kind::NetworkPolicy, policy(9090));
            until("policies are followed", || table().is_some_and(|t| t.contains("9090")));
            let told = api.count(Kind::Event, Verb::Create);
            // The first at once, and then one each second.
            let most = 1 + usize::try_from(start.elapsed().as_secs()).expect("not so long");
            assert!(told <= most, "{told} requests, and {most} are the most");
            assert_eq!(agent.get("/readyz").0, 200);
            assert!(agent.metric("palisade_watch_invalid_objects{resource=\"networkpolicies\"} 1000"));
            assert!(agent.stop().success());
        },
    );
}

/// An nft that takes everything but port 54321.
const PARTIAL: &str = "#!/bin/sh
for word; do [ \"$word\" = -f ] && reads=yes; done
[ \"$reads\" ] || exec REAL \"$@\"
file=$(mktemp -p 'FOLDER') && cat > \"$file\"
if grep -q 54321 \"$file\"; then echo 'Error: Could not process rule: Operation not supported' >&2; exit 1; fi
exec REAL \"$@\" < \"$file\"
";

#[test]
fn what_the_kernel_refuses_is_told_to_who_wrote_it() {
    in_a_namespace("announce::what_the_kernel_refuses_is_told_to_who_wrote_it", || {
        let world = World::new();
        let api = &world.api;
        api.put(Kind::NetworkPolicy, policy(54321));
        let real = Command::new("sh")
            .args(["-c", "command -v nft"])
            .output()
            .expect("sh")
            .stdout;
        let real = String::from_utf8(real).expect("a path");
        let script = PARTIAL.replace("REAL", real.trim());
        let script = script.replace("FOLDER", &world.folder.path().display().to_string());
        let nft = world.folder.path().join("nft");
        fs::write(&nft, script).expect("write");
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).expect("executable");
        let path = std::env::var("PATH").expect("a PATH");
        let path = format!("{}:{path}", world.folder.path().display());
        let agent = Agent::run(world.command().env("PATH", path), world.log());
        agent.until_ready();
        assert!(agent.metric("palisade_isolated_policies 1"));
        until("an Event tells it", || {
            but_for_the_hour(api.objects(Kind::Event)).len() == 1
        });
        let event = api.objects(Kind::Event).remove(0);
        assert_eq!(event["reason"], "PolicyRefused");
        let stored = api.objects(Kind::NetworkPolicy).remove(0);
        assert_eq!(event["regarding"]["uid"], stored["metadata"]["uid"]);
        let note = event["note"].as_str().expect("a note");
        assert!(
            note.starts_with("on node worker-1: the kernel refuses its rules"),
            "{note}"
        );

        api.put(Kind::NetworkPolicy, policy(9090));
        until("it is mended", || table().is_some_and(|t| t.contains("9090")));
        until("nothing is left to tell", || {
            agent.metric("palisade_policy_events_waiting 0") && agent.metric("palisade_isolated_policies 0")
        });
        assert_eq!(but_for_the_hour(api.objects(Kind::Event)).len(), 1);
        assert!(agent.stop().success());
    });
}
