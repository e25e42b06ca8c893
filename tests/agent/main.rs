//! The agent as users run it: the real program, a folder of manifests, and the nftables of a network namespace that holds
//! nothing else.

mod announce;
#[path = "../support/api/mod.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "other tests use the rest; it may panic on what it did not expect"
)]
mod api;
#[path = "../support/canonical.rs"]
mod canonical;
#[path = "../support/chaos.rs"]
#[allow(clippy::unwrap_used, reason = "it may panic on what it did not expect")]
mod chaos;
mod cluster;
mod denied;
#[path = "../support/environment.rs"]
mod environment;
mod held;
#[path = "../support/objects.rs"]
mod objects;
mod preflight;
mod privileges;
mod proxy;
#[path = "../support/server.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "other tests use the rest; it may panic on what it did not expect"
)]
mod server;
mod service_account;
mod soak;
mod storm;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::{Value, json};

use environment::without_settings;

const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade");
/// Set in the test that runs inside its namespace.
const INSIDE: &str = "PALISADE_TEST_IN_NAMESPACE";
/// A machine under load gets plenty; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(90);
/// After a look at the table the agent rests for up to twenty times as long: a stall of five seconds in one is a hundred.
const REPAIRED: Duration = Duration::from_secs(300);

const CLUSTER: &str = "\
apiVersion: v1
kind: Node
metadata: {name: worker-1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: worker-1, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: worker-2, containers: [{name: client, image: client}]}
status: {phase: Running, podIP: 10.244.2.2, podIPs: [{ip: 10.244.2.2}]}
";

fn policy(port: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]
    ports: [{{port: {port}}}]
"
    )
}

#[test]
fn the_kernel_follows_the_folder() {
    in_a_namespace("the_kernel_follows_the_folder", || {
        let folder = Folder::new();
        let agent = Agent::start(&folder);
        agent.until_ready();
        let first = table().expect("a table");
        assert!(first.contains("8080") && !first.contains("9090"), "{first}");
        assert_eq!(agent.get("/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(agent.get("/readyz"), (200, "ready\n".to_owned()));
        assert!(agent.metric("palisade_applies_total{outcome=\"changed\"} 1"));

        let (code, status) = agent.status();
        assert_eq!(
            (code, &status["ready"], &status["problems"]),
            (0, &json!(true), &json!([]))
        );
        let enforced = &status["enforced"];
        assert_eq!(
            (&enforced["node"], &enforced["mode"]),
            (&json!("worker-1"), &json!("enforce"))
        );
        assert_eq!(
            [&enforced["clusterPods"], &enforced["nodePods"], &enforced["policies"]],
            [2, 1, 1]
        );
        assert_eq!([&enforced["ingress"]["groups"], &enforced["egress"]["groups"]], [1, 0]);
        // At least those whom the policy names, and all others.
        assert!(enforced["ingress"]["classes"].as_u64() >= Some(2), "{enforced}");
        assert_eq!(enforced["table"]["chains"], objects("chain").len());
        assert_eq!(enforced["table"]["rules"], objects("rule").len());
        assert_eq!(enforced["table"]["sets"], objects("set").len() + objects("map").len());
        assert!(status["lastApply"]["operations"].as_u64() > Some(10), "{status}");
        assert!(
            status["heldSecondsAgo"].as_f64().is_some_and(|ago| ago < 60.0),
            "{status}"
        );
        assert_eq!(status["lastApply"]["lagSeconds"], Value::Null, "no event was followed");
        let rules = format!("palisade_rules {}", enforced["table"]["rules"]);
        assert!(agent.metric(&rules), "{rules}");
        assert!(agent.metric("palisade_groups{direction=\"ingress\"} 1"));

        // An editor's way: written beside it, then renamed.
        fs::write(folder.file(".policy.yaml.swp"), policy("9090")).expect("write");
        fs::rename(folder.file(".policy.yaml.swp"), folder.file("policy.yaml")).expect("rename");
        until("the kernel follows", || {
            table().is_some_and(|t| t.contains("9090") && !t.contains("8080"))
        });
        let second = table().expect("a table");

        fs::write(folder.file("policy.yaml"), policy("90900")).expect("write");
        until("broken manifests take readiness away", || {
            let (code, reasons) = agent.get("/readyz");
            code == 503 && reasons.contains("policy.yaml:8:")
        });
        let reasons = agent.get("/readyz").1;
        assert!(reasons.lines().all(|line| line.starts_with("manifests: ")), "{reasons}");
        assert!(agent.metric("palisade_manifest_errors 1"));
        let (code, status) = agent.status();
        assert_eq!((code, &status["ready"]), (1, &json!(false)));
        assert_eq!(
            status["problems"].as_array().map(Vec::len),
            Some(reasons.lines().count())
        );
        assert_eq!(table().as_ref(), Some(&second), "the last good policy stays");

        fs::write(folder.file("policy.yaml"), policy("9090")).expect("write");
        agent.until_ready();
        assert_eq!(table().as_ref(), Some(&second));
        assert!(
            agent.metric("palisade_applies_total{outcome=\"changed\"} 2"),
            "mending needed no transaction"
        );

        // A file that is emptied, as by a writer who takes his time, is not an order to open the node.
        fs::write(folder.file("policy.yaml"), "").expect("write");
        until("an empty file takes readiness away", || {
            agent.get("/readyz").1.contains("policy.yaml: is empty")
        });
        assert_eq!(table().as_ref(), Some(&second), "the last good policy stays");
        fs::write(folder.file("policy.yaml"), policy("9090")).expect("write");
        agent.until_ready();

        // A folder that is gone, or empty, is not an order to open the node.
        fs::rename(folder.path(), folder.path().with_extension("away")).expect("rename");
        until("a missing folder takes readiness away", || {
            agent.get("/readyz").0 == 503
        });
        fs::create_dir(folder.path()).expect("folder");
        until("an empty one as well", || {
            agent.get("/readyz").1.contains("no manifest")
        });
        assert_eq!(table().as_ref(), Some(&second));
        fs::write(folder.file("all.yaml"), format!("{CLUSTER}---\n{}", policy("7070"))).expect("write");
        until("a folder that is back is followed", || {
            table().is_some_and(|t| t.contains("7070"))
        });
        agent.until_ready();

        let last = table().expect("a table");
        assert!(agent.stop().success());
        assert_eq!(table(), Some(last), "the rules stay");
    });
}

#[test]
fn what_others_do_to_the_table_is_undone() {
    in_a_namespace("what_others_do_to_the_table_is_undone", || {
        let folder = Folder::new();
        let agent = Agent::start(&folder);
        agent.until_ready();
        let ours = table().expect("a table");
        let mut repairs = 0;
        for damage in [
            "flush ruleset".to_owned(),
            "delete table inet palisade".to_owned(),
            "flush table inet palisade".to_owned(),
            format!("flush chain inet palisade {}", chain_with_rules()),
            format!("flush set inet palisade {}", set_with_elements()),
            format!("insert rule inet palisade {} accept", chain_with_rules()),
            "chain inet palisade forward { policy drop; }".to_owned(),
        ] {
            // Long enough for the agent to have looked at what it wrote, and to repair again.
            std::thread::sleep(Duration::from_millis(1500));
            nft(&damage);
            repairs += 1;
            let counted = format!("palisade_drift_repairs_total {repairs}");
            until_within(REPAIRED, &format!("repaired: {damage}"), || agent.metric(&counted));
            assert_eq!(table().as_ref(), Some(&ours), "{damage}");
        }
        // Tables of others are none of the agent's business.
        nft("add table inet theirs");
        nft("add chain inet theirs theirs");
        std::thread::sleep(Duration::from_secs(3));
        assert!(agent.metric(&format!("palisade_drift_repairs_total {repairs}")));
        assert!(agent.metric("palisade_ready 1"));
        assert!(agent.stop().success());
        nft("list chain inet theirs theirs");
    });
}

#[test]
fn rules_outlive_the_agent_until_cleanup() {
    in_a_namespace("rules_outlive_the_agent_until_cleanup", || {
        let folder = Folder::new();
        let mut agent = Agent::start(&folder);
        agent.until_ready();
        let before = table().expect("a table");
        agent.child.kill().expect("killed");
        agent.child.wait().expect("ended");
        assert_eq!(table().as_ref(), Some(&before), "killed");

        // The next one replaces what it finds.
        nft("add chain inet palisade left-over");
        fs::write(folder.file("policy.yaml"), policy("9090")).expect("write");
        let agent = Agent::start(&folder);
        agent.until_ready();
        let after = table().expect("a table");
        assert!(
            after.contains("9090") && !after.contains("8080") && !after.contains("left-over"),
            "{after}"
        );
        assert!(agent.stop().success());

        for there in [true, false] {
            assert_eq!(table().is_some(), there);
            let cleanup = palisade(&["cleanup"]);
            assert!(cleanup.status.success(), "{cleanup:?}");
            let said = String::from_utf8_lossy(&cleanup.stdout).into_owned();
            assert_eq!(said.contains("removed"), there, "{said}");
            assert_eq!(table(), None);
        }
    });
}

#[test]
fn a_start_that_cannot_work_says_why_and_leaves_the_kernel_alone() {
    in_a_namespace("a_start_that_cannot_work_says_why_and_leaves_the_kernel_alone", || {
        nft("add table inet palisade");
        nft("add chain inet palisade theirs");
        let before = table();
        let refused = |command: &mut Command, message: &str| {
            let output = command.stdin(Stdio::null()).output().expect("started");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
            assert!(said.contains(message), "{command:?}: {said}");
            assert_eq!(table(), before, "{command:?}");
        };
        let agent = |prefix: &[&str], folder: &Folder| {
            let mut words = prefix.iter().copied().chain([PROGRAM]);
            let mut command = Command::new(words.next().expect("the program at least"));
            command.args(words).args(folder.arguments("127.0.0.1:0"));
            command
        };
        let good = Folder::new();
        refused(&mut agent(&["env", "PATH=/nonexistent"], &good), "nft");
        refused(
            &mut agent(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"], &good),
            "root",
        );

        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = taken.local_addr().expect("address").to_string();
        refused(Command::new(PROGRAM).args(good.arguments(&address)), &address);
        refused(Command::new(PROGRAM).args(good.arguments(&address)), "--http-addr");

        let bad = Folder::new();
        fs::write(bad.file("policy.yaml"), policy("90900")).expect("write");
        refused(&mut agent(&[], &bad), "policy.yaml:8:");
        fs::remove_dir_all(bad.path()).expect("remove");
        refused(&mut agent(&[], &bad), "there is no such file or folder");
        fs::create_dir(bad.path()).expect("folder");
        refused(&mut agent(&[], &bad), "no manifest");
    });
}

/// Runs the body in a network namespace of its own: the test starts itself again, by itself, inside. Without root it
/// does so in a user namespace, where it is root over that network namespace and nothing else.
fn in_a_namespace(test: &str, body: fn()) {
    in_namespaces(test, &[], body);
}

/// The same with more namespaces of its own than that of the network.
fn in_namespaces(test: &str, more: &[&str], body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("ip, of Debian's iproute2").success());
        return body();
    }
    let mut namespaces = [&["--net"], more].concat();
    if !geteuid().is_root() {
        namespaces.extend(["--user", "--map-root-user"]);
        let trial = Command::new("unshare").args(&namespaces).arg("true").output();
        if !trial.is_ok_and(|output| output.status.success()) {
            // Past the test harness, which would swallow it.
            let _ = writeln!(std::io::stderr(), "NOT RUN: {test}: it needs root, or user namespaces");
            return;
        }
    }
    let output = without_settings(&mut Command::new("unshare"))
        .args(&namespaces)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "yes")
        .output()
        .expect("unshare, of Debian's util-linux");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "inside its namespace:\n{said}");
    assert!(said.contains("1 passed"), "{test} is not the name of a test:\n{said}");
}

/// A folder of manifests, removed at the end.
struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = Folder {
            root: tempfile::tempdir().expect("directory"),
        };
        fs::create_dir(folder.path()).expect("folder");
        fs::write(folder.file("cluster.yaml"), CLUSTER).expect("write");
        fs::write(folder.file("policy.yaml"), policy("8080")).expect("write");
        folder
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn arguments(&self, http: &str) -> Vec<String> {
        let path = self.path().display().to_string();
        [
            "agent",
            "--node-name",
            "worker-1",
            "--http-addr",
            http,
            "--manifests",
            &path,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// A running agent, ended with the test.
struct Agent {
    child: Child,
    log: PathBuf,
    http: String,
}

impl Agent {
    #[track_caller]
    fn start(folder: &Folder) -> Self {
        Agent::with(&folder.arguments("127.0.0.1:0"), folder.root.path().join("log"))
    }

    #[track_caller]
    fn with(arguments: &[String], log: PathBuf) -> Self {
        Agent::within(arguments, &[], log)
    }

    /// One with these variables in its environment.
    #[track_caller]
    fn within(arguments: &[String], variables: &[(&str, &str)], log: PathBuf) -> Self {
        let variables = variables.iter().copied();
        Agent::run(Command::new(PROGRAM).args(arguments).envs(variables), log)
    }

    #[track_caller]
    fn run(command: &mut Command, log: PathBuf) -> Self {
        let mut child = command
            .stderr(fs::File::create(&log).expect("log"))
            .spawn()
            .expect("started");
        let mut http = None;
        until("the log tells the HTTP address", || {
            assert_eq!(child.try_wait().expect("status"), None, "ended: {}", read(&log));
            let field = |line: &str| {
                Some(
                    serde_json::from_str::<Value>(line)
                        .ok()?
                        .get("http")?
                        .as_str()?
                        .to_owned(),
                )
            };
            http = read(&log).lines().find_map(field);
            http.is_some()
        });
        Agent {
            child,
            log,
            http: http.expect("until has seen it"),
        }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.http).expect("connect");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        )
        .expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("receive");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        (status, body.to_owned())
    }

    /// What `palisade status` says. It waits for five seconds, and a machine can hold the agent up for longer.
    #[track_caller]
    fn status(&self) -> (i32, Value) {
        let mut told = None;
        until("the agent tells its status", || {
            let output = palisade(&["status", "--http-addr", &self.http, "-o", "json"]);
            let code = output.status.code().expect("ended by itself");
            told = serde_json::from_slice(&output.stdout).ok().map(|status| (code, status));
            told.is_some()
        });
        told.expect("until has seen it")
    }

    fn metric(&self, line: &str) -> bool {
        self.get("/metrics").1.lines().any(|l| l == line)
    }

    #[track_caller]
    fn until_ready(&self) {
        until("ready", || self.get("/readyz").0 == 200);
    }

    fn stop(mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("signalled");
        let mut status = None;
        until("the agent ends", || {
            status = self.child.try_wait().expect("status");
            status.is_some()
        });
        status.expect("until has seen it")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- the agent's log\n{}", read(&self.log));
        }
    }
}

#[track_caller]
fn until(what: &str, done: impl FnMut() -> bool) {
    until_within(PATIENCE, what, done);
}

#[track_caller]
fn until_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn palisade(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("started")
}

/// The table as text, without what packets change.
fn table() -> Option<String> {
    let output = Command::new("nft")
        .args(["-s", "list", "table", "inet", "palisade"])
        .output();
    let output = output.expect("nft, of Debian's nftables");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[track_caller]
fn nft(command: &str) {
    let output = Command::new("nft").arg(command).output().expect("nft");
    assert!(
        output.status.success(),
        "nft {command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The objects of one kind in the table.
fn objects(kind: &str) -> Vec<Value> {
    let output = Command::new("nft")
        .args(["-j", "list", "table", "inet", "palisade"])
        .output()
        .expect("nft");
    let listing: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let all = listing["nftables"].as_array().expect("a list");
    all.iter().filter_map(|object| object.get(kind)).cloned().collect()
}

fn chain_with_rules() -> String {
    objects("rule").first().expect("a rule")["chain"]
        .as_str()
        .expect("its chain")
        .to_owned()
}

fn set_with_elements() -> String {
    let sets = objects("set");
    let filled = sets
        .iter()
        .find(|set| set.get("elem").is_some())
        .expect("a set with elements");
    filled["name"].as_str().expect("its name").to_owned()
}
