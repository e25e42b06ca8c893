//! The agent in a pod: the service account in its fixed place, in a mount namespace of its own, as the kubelet projects it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::api::{Api, Authority, Kind};
use super::cluster::{fill, policy, runtime};
use super::{Agent, in_namespaces, read, table, until, until_within};

const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Replaces the files all at once, as the kubelet does: a folder of the new ones, and a link that is swapped.
fn project(at: u8, token: &str, authority: &Authority) {
    let place = Path::new(PLACE);
    let name = format!("..2026_01_02_{at}");
    fs::create_dir(place.join(&name)).expect("folder");
    for (file, text) in [
        ("token", token),
        ("ca.crt", authority.pem()),
        ("namespace", "kube-system"),
    ] {
        fs::write(place.join(&name).join(file), text).expect("write");
    }
    let before = fs::read_link(place.join("..data"));
    symlink(&name, place.join("..data_tmp")).expect("link");
    fs::rename(place.join("..data_tmp"), place.join("..data")).expect("swap");
    match before {
        Ok(before) => fs::remove_dir_all(place.join(before)).expect("remove"),
        Err(_) => {
            for file in ["token", "ca.crt", "namespace"] {
                symlink(Path::new("..data").join(file), place.join(file)).expect("link");
            }
        }
    }
}

#[test]
fn the_service_account_of_a_pod_is_used_and_followed() {
    let name = "service_account::the_service_account_of_a_pod_is_used_and_followed";
    in_namespaces(name, &["--mount"], || {
        let run = fs::canonicalize("/var/run").expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(run).status();
        assert!(mounted.expect("mount, of Debian's mount").success());
        fs::create_dir_all(PLACE).expect("folder");
        let (first, second) = (Authority::new(), Authority::new());
        project(1, "one", &first);

        let runtime = runtime();
        let serving = first.server(&["127.0.0.1"]).serving(None);
        let api = runtime.block_on(Api::start_tls("127.0.0.1:0", serving));
        fill(&api);
        api.set_token(Some("one"));
        let folder = tempfile::tempdir().expect("directory");
        let log = folder.path().join("log");
        let port = api.address().port().to_string();
        let arguments = ["agent", "--node-name", "worker-1", "--http-addr", "127.0.0.1:0"];
        let variables = [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
            ("KUBERNETES_SERVICE_PORT", &port),
        ];
        let agent = Agent::within(&arguments.map(str::to_owned), &variables, log.clone());
        agent.until_ready();
        assert!(table().is_some_and(|t| t.contains("8080")));
        assert!(read(&log).contains("the pod's service account"));

        // The kubelet replaces the token long before the old one ends; nobody notices.
        api.set_tokens(&["one", "two"]);
        project(2, "two", &first);
        api.set_token(Some("two"));
        api.put(Kind::NetworkPolicy, policy(9090));
        until("the new token is used", || table().is_some_and(|t| t.contains("9090")));
        assert!(
            !read(&log).contains("401 Unauthorized"),
            "the old one was never refused"
        );

        // And when it is late: what was wrong is told, what is known stays.
        let before = table();
        api.set_token(Some("three"));
        api.put(Kind::NetworkPolicy, policy(7070));
        until("the refusal is told", || {
            agent.metric("palisade_watch_failing{resource=\"networkpolicies\"} 1")
                && read(&log).contains("401 Unauthorized")
        });
        assert_eq!((table(), agent.get("/readyz").0), (before, 200));
        project(3, "three", &first);
        until("the late token is used", || table().is_some_and(|t| t.contains("7070")));

        // Another authority, the server first.
        let before = table();
        api.set_server(second.server(&["127.0.0.1"]).serving(None));
        api.reset();
        api.put(Kind::NetworkPolicy, policy(6060));
        until("the stranger is told", || {
            read(&log).contains("is not signed by the authority that the credentials name")
        });
        assert_eq!((table(), agent.get("/readyz").0), (before, 200));
        project(4, "three", &second);
        until_within(Duration::from_secs(90), "the new authority is believed", || {
            table().is_some_and(|t| t.contains("6060"))
        });
        for line in read(&log).lines() {
            assert!(!line.contains("kube_client"), "told by the agent itself, once: {line}");
        }
        assert!(agent.stop().success());
    });
}
