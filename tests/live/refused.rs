//! What cannot be read: nothing is answered from a part of a cluster, and whoever asks hears what to do.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::api::{Fault, Kind, Verb};
use crate::world::{Ended, KINDS, World};

const MATRIX: [&str; 3] = ["matrix", "--port", "80"];

/// The error of a command that answers nothing.
#[track_caller]
fn refused(world: &World) -> String {
    let ended = world.live(&MATRIX);
    assert_eq!((ended.code, &*ended.stdout), (2, ""), "{}", ended.stderr);
    world.general(&ended.stderr)
}

#[test]
fn rights_that_are_missing_are_named_all_at_once() {
    let world = World::shop();
    for kind in [Kind::Pod, Kind::NetworkPolicy, Kind::Node] {
        world.api.fault(kind, Verb::List, 1, Fault::Status(403));
    }
    insta::assert_snapshot!(refused(&world));
    let counts = KINDS.map(|kind| world.api.count(kind, Verb::List));
    assert_eq!(counts, [1; 5], "nobody is asked twice who has refused");

    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Status(403));
    let context = [&MATRIX[..], &["--context", "test"]].concat();
    let error = world.live(&context).stderr;
    let expected = format!(
        "\n  kubectl auth can-i list pods --all-namespaces --kubeconfig {} --context test\n",
        world.kubeconfig
    );
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn without_services_the_rest_is_answered_and_says_so() {
    let world = World::shop();
    world.api.fault(Kind::Service, Verb::List, 1, Fault::Status(403));
    let ask = [
        "explain",
        "--from",
        "monitoring/scraper",
        "--to",
        "10.96.0.5",
        "--port",
        "80",
    ];
    let ended = world.live(&ask);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stdout.contains("Service"), "{}", ended.stdout);
    let warning = world.general(ended.stderr.lines().last().unwrap());
    insta::assert_snapshot!(warning);
}

#[test]
fn credentials_that_are_not_good() {
    let world = World::shop();
    world.api.set_token(Some("secret"));
    insta::assert_snapshot!(refused(&world));

    // A plugin is asked again when its token is refused after a while, for it may have expired.
    let world = World::shop();
    let log = world.folder.path().join("asked");
    let credential =
        r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t"}}"#;
    let script = format!("echo asked >> '{}'; echo '{credential}'", log.display());
    let mut kubeconfig: Value = serde_json::from_str(&world.api.kubeconfig(None)).unwrap();
    kubeconfig["users"][0]["user"] = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
        "interactiveMode": "Never",
    }});
    std::fs::write(&world.kubeconfig, kubeconfig.to_string()).unwrap();
    world.api.set_token(Some("t"));
    // The client asks several times to begin with.
    let asked = || {
        let ended = world.live(&MATRIX);
        assert_eq!((ended.code, world.api.faults_left()), (0, 0), "{}", ended.stderr);
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        text.lines().count()
    };
    let first = asked();
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::TooManyRequests(2));
    assert_eq!(asked(), first);
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::TooManyRequests(2));
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Status(401));
    assert!(asked() > first);
}

#[test]
fn a_server_that_is_out_of_order() {
    let world = World::shop();
    world.api.set_outage(true);
    insta::assert_snapshot!(refused(&world));
    let counts = KINDS.map(|kind| world.api.count(kind, Verb::List));
    assert_eq!(counts, [4; 5]);
    world.api.set_outage(false);

    world.api.fault(Kind::Pod, Verb::List, 4, Fault::TooManyRequests(1));
    let error = refused(&world);
    let expected = "list pods: the API server answers 429 TooManyRequests: please try again later";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn an_answer_of_somebody_else() {
    let world = World::shop();
    world.api.fault(Kind::Pod, Verb::List, 1, Fault::Garbage);
    insta::assert_snapshot!(refused(&world));
}

#[test]
fn nobody_there() {
    let world = World::shop();
    // Bound, so that nobody else listens there, and never listened on.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let closed = socket.local_addr().unwrap().as_socket().unwrap();
    let text = std::fs::read_to_string(&world.kubeconfig).unwrap();
    let text = text.replace(&world.api.url(), &format!("http://{closed}"));
    std::fs::write(&world.kubeconfig, text).unwrap();
    let error = refused(&world);
    let expected = format!("error: cannot read the cluster at http://{closed}/ (KUBECONFIG, context test)\n");
    assert!(error.starts_with(&expected), "{error}");
    assert!(
        error.contains("Connection refused") && error.contains("reached from here"),
        "{error}"
    );
}

#[test]
fn one_that_cannot_be_read_is_named_and_the_rest_goes_on() {
    let world = World::shop();
    let good = world.live(&["compile", "-o", "json"]).stdout;
    world.put(json!({
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "odd", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 70000}]}]},
        "status": {"phase": "Running", "podIP": "10.244.1.99", "podIPs": [{"ip": "10.244.1.99"}]},
    }));
    world.put(json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "odd"}, "spec": {"ports": 1}}));
    world.put(json!({"kind": "Pod", "metadata": {"namespace": "shop"}, "spec": 1}));
    world.put(json!({
        "kind": "Namespace", "metadata": {"name": "later", "annotations": {"palisade.dev/mode": "autid"}},
    }));
    let ended = world.live(&["compile", "-o", "json"]);
    assert_eq!((ended.code, &ended.stdout), (0, &good), "{}", ended.stderr);
    let warnings: Vec<String> = ended.stderr.lines().skip(1).map(|line| world.general(line)).collect();
    insta::assert_snapshot!(warnings.join("\n"));

    // A policy is never left out: its pods would be open.
    world.put(json!({
        "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "odd"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [{"ports": 5}]},
    }));
    let ask = [
        "explain",
        "--from",
        "shop/deployment/web",
        "--to",
        "203.0.113.1",
        "--port",
        "80",
    ];
    let ended = world.live(&ask);
    assert!(ended.stdout.contains("isolated by shop/odd"), "{}", ended.stdout);
    let named = "NetworkPolicy shop/odd: ";
    let warning = ended
        .stderr
        .lines()
        .find(|line| line.contains(named))
        .unwrap_or_default();
    assert!(
        warning.contains("its rules that can be read are in force"),
        "{}",
        ended.stderr
    );
}

#[test]
fn in_a_pod_without_a_kubeconfig_the_pods_own_cluster_is_meant() {
    let world = World::shop();
    let ask = |kubeconfig: bool| {
        let mut command = world.command(&[&MATRIX[..], &["--live"]].concat());
        command
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", "1");
        if kubeconfig {
            command.env("KUBECONFIG", &world.kubeconfig);
        }
        Ended::from(command)
    };
    let ended = ask(false);
    assert_eq!(ended.code, 2);
    assert!(
        ended.stderr.contains("the pod's service account cannot be used"),
        "{}",
        ended.stderr
    );
    assert_eq!(ask(true).code, 0);

    let ended = world.run(&[&MATRIX[..], &["--live"]].concat());
    assert_eq!((ended.code, &*ended.stdout), (2, ""));
    assert!(
        ended.stderr.contains("name one with --kubeconfig FILE"),
        "{}",
        ended.stderr
    );
}
