//! A live cluster is answered about as manifests of the same objects are.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Fault, Kind, Verb};
use crate::environment::without_settings;
use crate::world::{Ended, KINDS, World};

/// Runs a command on manifests and on the live cluster: the same exit code, and the same answer but for `places`, which takes
/// out where policies stand. Answers what the live cluster was said to be on standard error.
#[track_caller]
fn check(world: &World, command: &str, arguments: &[&str], places: fn(&str) -> String) -> Ended {
    let manifests = world.manifests();
    let offline = world.run(&[&[command, &manifests], arguments].concat());
    let live = world.live(&[&[command], arguments].concat());
    assert!(offline.code < 2, "{}", offline.stderr);
    assert_eq!(live.code, offline.code, "{}", live.stderr);
    assert_eq!(places(&live.stdout), places(&offline.stdout), "{command} {arguments:?}");
    live
}

fn all(text: &str) -> String {
    text.to_owned()
}

/// Up to the list of places.
fn without_list(text: &str) -> String {
    text.split("\nPolicies\n").next().unwrap().to_owned()
}

fn without_sources(text: &str) -> String {
    let mut answer: Value = serde_json::from_str(text).unwrap();
    answer["sources"] = json!({});
    answer.to_string()
}

/// The only line on standard error: how much was read, of what, and when.
#[track_caller]
fn origin(world: &World, ended: &Ended) -> String {
    let line = ended.stderr.strip_suffix('\n').unwrap();
    let (line, time) = line.rsplit_once(" at ").unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    world.general(line)
}

#[test]
fn compile_explain_and_matrix_answer_as_on_manifests() {
    let world = World::shop();
    let live = check(&world, "compile", &[], all);
    assert_eq!(
        origin(&world, &live),
        "10 pods, 3 policies and 2 namespaces read from SERVER (KUBECONFIG, context test)"
    );
    check(&world, "compile", &["-o", "json"], all);
    check(&world, "compile", &["--node", "worker-2", "-o", "nft"], all);
    for port in ["all", "http"] {
        let ends = [
            "--from",
            "shop/deployment/web",
            "--to",
            "shop/deployment/api",
            "--port",
            port,
        ];
        let live = check(&world, "explain", &ends, without_list);
        assert!(!live.stdout.contains("\nPolicies\n"), "{}", live.stdout);
        let json = check(
            &world,
            "explain",
            &[&ends[..], &["-o", "json"]].concat(),
            without_sources,
        );
        assert_eq!(
            serde_json::from_str::<Value>(&json.stdout).unwrap()["sources"],
            json!({})
        );
    }
    let service = ["--from", "monitoring/scraper", "--to", "10.96.0.5", "--port", "80"];
    let live = check(&world, "explain", &service, without_list);
    assert!(
        live.stdout.contains("is the address of Service shop/web"),
        "{}",
        live.stdout
    );
    check(&world, "matrix", &["--all-ports"], all);
    for output in ["json", "csv", "markdown"] {
        check(&world, "matrix", &["--port", "8080", "-o", output], all);
    }
    for call in world.api.calls() {
        assert_eq!(call.verb, Verb::List, "{call:?}");
    }
}

#[test]
fn tests_are_judged_on_the_live_cluster() {
    let world = World::shop();
    for output in ["text", "json", "junit"] {
        let arguments = ["test", "shop.yaml", "-o", output];
        let (offline, live) = (world.run(&arguments), world.live(&arguments));
        assert_eq!((live.code, &live.stdout), (1, &offline.stdout), "{}", live.stderr);
        origin(&world, &live);
    }
    // It is the cluster that counts, and not what the file names.
    assert!(world.api.delete(Kind::NetworkPolicy, "shop", "db"));
    let live = world.live(&["test", "shop.yaml"]);
    let failed = "✗ only the api reaches the database\n";
    assert!(live.code == 1 && live.stdout.contains(failed), "{}", live.stdout);
    assert!(!world.run(&["test", "shop.yaml"]).stdout.contains(failed));

    // A test file that is wrong asks nobody.
    let calls = world.api.calls().len();
    let wrong = world.live(&["test", "bad/tests/schema.yaml"]);
    assert_eq!((wrong.code, &*wrong.stdout), (2, ""), "{}", wrong.stderr);
    assert_eq!(world.api.calls().len(), calls);
}

#[test]
fn a_large_cluster_comes_page_by_page_and_in_one_piece() {
    let world = World::empty();
    world.put(json!({"kind": "Namespace", "metadata": {"name": "shop"}}));
    let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true});
    for at in 0..1203 {
        let address = format!("10.1.{}.{}", at / 250, at % 250);
        world.put(json!({
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": format!("p{at}"), "ownerReferences": [owner]},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        }));
    }
    let lists = |world: &World| world.api.count(Kind::Pod, Verb::List);
    check(&world, "matrix", &["--port", "80", "-o", "json"], all);
    assert_eq!(lists(&world), 3);
    let calls = world.api.calls();
    let sizes = calls.iter().filter(|call| call.kind == Kind::Pod);
    assert!(sizes.clone().all(|call| call.query.contains("limit=500")), "{calls:?}");
    assert_eq!(sizes.filter(|call| call.query.contains("continue=")).count(), 2);

    // Between two pages the API server forgets how the list stood: no page of it counts any more.
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Slow(Duration::ZERO));
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Status(410));
    let live = check(&world, "matrix", &["--port", "80", "-o", "json"], all);
    assert!(live.stderr.starts_with("1203 pods, "), "{}", live.stderr);
    assert_eq!((lists(&world), world.api.faults_left()), (3 + 2 + 3, 0));
}

#[test]
fn what_passes_is_waited_for() {
    let world = World::shop();
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::TooManyRequests(2));
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Status(500));
    world.api.fault(Kind::Node, Verb::List, 2, Fault::Status(503));
    let start = std::time::Instant::now();
    check(&world, "compile", &[], all);
    assert!(start.elapsed() > Duration::from_secs(2), "sooner than it was asked to");
    assert_eq!(world.api.faults_left(), 0);
    let counts = KINDS.map(|kind| world.api.count(kind, Verb::List));
    assert_eq!(counts, [1, 3, 1, 3, 1]);
}

#[test]
fn the_kubeconfig_is_found_where_kubectl_finds_it() {
    let world = World::shop();
    let text = std::fs::read_to_string(&world.kubeconfig).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["contexts"][0]["name"] = "other".into();
    other["current-context"] = "".into();
    let elsewhere = world.folder.path().join("elsewhere");
    std::fs::write(&elsewhere, other.to_string()).unwrap();
    let ask = |arguments: &[&str], variable: bool| {
        let mut command = world.command(&[&["matrix", "--port", "80", "--live"], arguments].concat());
        if variable {
            command.env("KUBECONFIG", &elsewhere);
        }
        Ended::from(command)
    };
    std::fs::create_dir(world.folder.path().join(".kube")).unwrap();
    std::fs::write(world.folder.path().join(".kube/config"), text).unwrap();
    let home = ask(&[], false);
    assert!(
        home.stderr.contains("(~/.kube/config, context test)"),
        "{}",
        home.stderr
    );
    let variable = ask(&["--context", "other"], true);
    let expected = format!("({}, context other)", elsewhere.display());
    assert!(variable.stderr.contains(&expected), "{}", variable.stderr);
    assert_eq!((home.code, &home.stdout), (0, &variable.stdout));

    let none = ask(&[], true);
    let expected = "elsewhere: the file has no current context: name one with --context; there are other\n";
    assert_eq!(
        (none.code, none.stderr.ends_with(expected)),
        (2, true),
        "{}",
        none.stderr
    );
    let wrong = ask(&["--context", "prod"], false);
    let expected = "error: ~/.kube/config: there is no context \"prod\": name one with --context; there are test\n";
    assert_eq!((wrong.code, &*wrong.stderr), (2, expected));
}

#[test]
fn whoever_waits_at_a_terminal_sees_how_far_it_is() {
    let world = World::shop();
    world
        .api
        .fault(Kind::Pod, Verb::List, 1, Fault::Slow(Duration::from_secs(4)));
    let quiet = world.live(&["matrix", "--port", "80", "-o", "json"]);
    origin(&world, &quiet);

    // `script` lends its terminal.
    let program = world.command(&[]).get_program().to_str().unwrap().to_owned();
    let line = format!(
        "'{program}' matrix --port 80 -o json --live --kubeconfig '{}'",
        world.kubeconfig
    );
    let mut command = std::process::Command::new("script");
    without_settings(&mut command)
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Held);
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let told = format!("reading the cluster at {}/: ", world.api.url());
    let (mut shown, mut piece) = (Vec::new(), [0; 4096]);
    // The answer comes when the line has; when it does not, the program gives up.
    while let count @ 1.. = stdout.read(&mut piece).unwrap() {
        shown.extend_from_slice(&piece[..count]);
        if String::from_utf8_lossy(&shown).contains(&told) {
            world.api.let_go();
        }
    }
    let shown = String::from_utf8_lossy(&shown);
    assert!(child.wait().unwrap().success() && shown.contains(&told), "{shown}");
}
