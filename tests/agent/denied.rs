//! `palisade denied --live`: the record of a kernel, with names and reasons from the API server.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::{Api, Kind, Verb};
use super::cluster::{arguments, pod, policy, runtime};
use super::{Agent, Folder, PROGRAM, in_a_namespace, nft, palisade, read, until};

/// How old names and reasons may be.
const AGE: u64 = 30;

#[test]
fn the_live_cluster_tells_names_and_reasons() {
    in_a_namespace("denied::the_live_cluster_tells_names_and_reasons", || {
        let runtime = runtime();
        let api = runtime.block_on(Api::start());
        api.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
        api.put(Kind::Node, json!({"metadata": {"name": "worker-1"}}));
        api.put(Kind::Pod, pod("web", "worker-1", "10.244.1.2"));
        api.put(Kind::Pod, pod("batch", "worker-2", "10.244.2.2"));
        api.put(Kind::NetworkPolicy, policy(8080));
        let folder = tempfile::tempdir().expect("directory");
        let arguments = arguments("worker-1", folder.path(), &api.kubeconfig(None), &[]);
        let agent = Agent::with(&arguments, folder.path().join("log"));
        let kubeconfig = arguments.last().expect("the kubeconfig").clone();
        agent.until_ready();
        assert!(agent.stop().success());
        let asked = api.calls().len();

        // As the rules would have recorded it.
        let deny = |from: &str, port: u16| {
            nft(&format!(
                "add element inet palisade denied4 {{ {from} . 10.244.1.2 . tcp . {port} }}"
            ));
        };
        deny("10.244.2.2", 8080);
        let live = ["--live", "--kubeconfig", &kubeconfig];
        let output = palisade(&[&["denied", "--pod", "shop/batch"], &live[..]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for words in [
            "shop/batch",
            "shop/web",
            "8080/TCP",
            "ingress[0] wants labels app=client",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let calls = api.calls().split_off(asked);
        let lists: Vec<Kind> = calls.iter().filter(|c| c.verb == Verb::List).map(|c| c.kind).collect();
        assert_eq!(calls.len(), lists.len(), "{calls:?}");
        // Services are nobody's question here, and the agent's own credentials do not reach them.
        assert_eq!(lists.len(), Kind::ALL.len(), "{lists:?}");
        assert!(Kind::ALL.iter().all(|kind| lists.contains(kind)), "{lists:?}");

        // What is watched for longer is read again when there are news, and not all the time.
        let log = folder.path().join("watch");
        let before = api.count(Kind::Pod, Verb::List);
        let start = Instant::now();
        let mut child = Command::new(PROGRAM)
            .args([&["denied", "--watch", "-o", "json"], &live[..]].concat())
            .stdout(fs::File::create(&log).expect("file"))
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let told = |name: Value| {
            let text = read(&log);
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.filter(|line| line["from"]["pod"] == name).count()
        };
        until("what is there is told", || told(json!("batch")) == 1);
        api.put(Kind::Pod, pod("newcomer", "worker-2", "10.244.2.9"));
        let mut port = 9000;
        while told(json!("newcomer")) == 0 {
            assert!(start.elapsed() < Duration::from_secs(120), "{}", read(&log));
            deny("10.244.2.9", port);
            port += 1;
            std::thread::sleep(Duration::from_secs(2));
        }
        let lists = api.count(Kind::Pod, Verb::List) - before;
        let took = start.elapsed();
        let most = usize::try_from(took.as_secs() / AGE).expect("small") + 1;
        assert!((2..=most).contains(&lists), "{lists} lists in {took:?}");
        let _ = child.kill();
        let _ = child.wait();

        // No cluster, no answer.
        api.set_outage(true);
        let output = palisade(&[&["denied"], &live[..]].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    });
}

/// Whoever tries policies out sees that nothing was dropped; and what passed then is not among what is dropped later.
#[test]
fn what_passed_in_audit_mode_is_told_apart() {
    in_a_namespace("denied::what_passed_in_audit_mode_is_told_apart", || {
        let folder = Folder::new();
        let arguments = folder.arguments("127.0.0.1:9440");
        let start = |arguments: &[String]| {
            let agent = Agent::with(arguments, folder.root.path().join("log"));
            agent.until_ready();
            agent
        };
        let denied = || {
            let output = palisade(&["denied"]);
            assert!(output.status.success());
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let audit = start(&[&arguments[..], &["--mode=audit".to_owned()]].concat());
        // As the rules would have recorded it.
        nft("add element inet palisade denied4 { 10.244.2.2 . 10.244.1.2 . tcp . 22 }");
        let [stdout, stderr] = denied();
        assert!(
            stdout.contains("22/TCP") && stderr.contains("--mode audit"),
            "{stdout} {stderr}"
        );
        assert!(audit.stop().success());
        let enforce = start(&arguments);
        let [stdout, stderr] = denied();
        assert!(
            !stdout.contains("22/TCP") && !stderr.contains("audit"),
            "{stdout} {stderr}"
        );

        // What an agent finds that was there in its own mode, it leaves.
        nft("add element inet palisade denied4 { 10.244.2.2 . 10.244.1.2 . tcp . 23 }");
        assert!(enforce.stop().success());
        let enforce = start(&arguments);
        assert!(denied()[0].contains("23/TCP"), "{:?}", denied());

        // A second one, and a cleanup, while it runs.
        let second = Command::new(PROGRAM).args(&arguments).output().expect("started");
        let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(2), "{complaint}");
        assert!(
            complaint.contains("cannot serve HTTP on 127.0.0.1:9440: if another agent does"),
            "{complaint}"
        );
        let told = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("an agent runs here");
        // It asks the agent for five seconds, which puts the table back meanwhile.
        until("a cleanup beside it tells", || told(&palisade(&["cleanup"])));
        assert!(enforce.stop().success());
        assert!(!told(&palisade(&["cleanup"])));
    });
}
