//! What the source costs in a large cluster: time and memory to read 50,000 pods and 5,000 policies, then the time from a
//! change in the API server to the event, idle and while a hundred pods change a second.
//!
//! The API server of the tests runs in a process of its own, so that the memory measured is that of the source alone:
//!
//! ```text
//! cargo bench --bench source [-- PODS]
//! ```

#![allow(clippy::unwrap_used, reason = "a benchmark may panic on what it did not expect")]

#[path = "../tests/support/api/mod.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod api;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::agent::source::{Access, Target, Timing, Update, Watches};
use policy_compiler::compile::Event;
use serde_json::{Value, json};

use api::{Api, Kind};

const PODS: usize = 50_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(arguments[1].parse().unwrap(), arguments[2] == "streaming"),
        other => {
            let pods = other.map_or(PODS, |n| n.parse().unwrap());
            for how in ["streaming", "pages"] {
                measure(pods, how);
            }
        }
    }
}

/// The API server: obeys a line on standard input, answers with one on standard output.
fn serve(pods: usize, streaming: bool) {
    runtime().block_on(async {
        let api = Api::start().await;
        api.set_streaming(streaming);
        api.set_bookmarks(Duration::from_secs(60));
        for at in 0..pods / 100 {
            api.put(
                Kind::Namespace,
                json!({"metadata": {"name": format!("team-{at}"), "labels": {"team": format!("t{}", at % 50)}}}),
            );
        }
        for at in 0..pods / 30 {
            api.put(Kind::Node, node(at));
        }
        for at in 0..pods / 10 {
            api.put(Kind::NetworkPolicy, policy(at, pods));
        }
        let mut bytes = 0;
        for at in 0..pods {
            let pod = pod(at, pods, 0);
            bytes += pod.to_string().len();
            api.put(Kind::Pod, pod);
        }
        println!("{} {}", api.url(), bytes / pods);
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let (at, generation) = line.split_once(' ').unwrap();
            api.put(Kind::Pod, pod(at.parse().unwrap(), pods, generation.parse().unwrap()));
        }
    });
}

struct Server {
    child: Child,
    url: String,
    pod_size: String,
}

impl Server {
    fn start(pods: usize, how: &str) -> Server {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", &pods.to_string(), how])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (url, pod_size) = line.trim().split_once(' ').unwrap();
        Server {
            child,
            url: url.to_owned(),
            pod_size: pod_size.to_owned(),
        }
    }

    fn change(&mut self, pod: usize, generation: usize) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{pod} {generation}").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn measure(pods: usize, how: &str) {
    let mut server = Server::start(pods, how);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    println!("{pods} pods of {} bytes, {how}", server.pod_size);
    println!("  before                {}", memory());
    runtime().block_on(async {
        let target = Target::Kubeconfig {
            file: Some(file),
            context: None,
        };
        let (start, cpu) = (Instant::now(), cpu());
        let mut watches = Watches::start(Arc::new(Access::new(target).unwrap()), Timing::default());
        let Update::Ready(cluster) = watches.next().await else {
            panic!("a snapshot comes first");
        };
        let took = start.elapsed();
        println!(
            "  to the first snapshot {:.2} s, {:.2} s of CPU",
            took.as_secs_f64(),
            (self::cpu() - cpu).as_secs_f64()
        );
        println!("  with the snapshot     {}", memory());
        assert_eq!(cluster.pods.len(), pods);

        let mut latencies = Vec::new();
        for at in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let start = Instant::now();
            server.change(at, 1);
            events(&mut watches).await;
            latencies.push(start.elapsed());
        }
        println!("  change to event, idle {}", percentiles(latencies));

        let cpu = self::cpu();
        let start = Instant::now();
        let (mut sent, mut seen) = (0, 0);
        while seen < 1000 {
            tokio::select! {
                () = tokio::time::sleep_until((start + Duration::from_millis(10) * sent).into()), if sent < 1000 => {
                    server.change(1000 + sent as usize, 1);
                    sent += 1;
                }
                count = events(&mut watches) => seen += count,
            }
        }
        let share = (self::cpu() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
        println!("  100 pods a second     {:.1} percent of a core", 100.0 * share);
        let cpu = self::cpu();
        tokio::time::sleep(Duration::from_secs(5)).await;
        println!(
            "  idle                  {:.2} percent of a core",
            100.0 * (self::cpu() - cpu).as_secs_f64() / 5.0
        );
        println!("  at the end            {}", memory());
        drop(cluster);
    });
}

async fn events(watches: &mut Watches) -> usize {
    match watches.next().await {
        Update::Events { events, .. } => {
            assert!(events.iter().all(|event| matches!(event, Event::Pod(_))));
            events.len()
        }
        Update::Ready(_) => panic!("a second snapshot"),
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms", at(50), at(99))
}

/// As the agent's: one thread for the loop, one worker for the watches.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    format!("{} MB resident, {} MB at most", field("VmRSS:"), field("VmHWM:"))
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

fn node(at: usize) -> Value {
    let images: Vec<Value> = (0..50)
        .map(|i| json!({"names": [format!("registry.example.com/team/image-{i}@sha256:{:064x}", i)], "sizeBytes": i}))
        .collect();
    json!({
        "metadata": {"name": format!("node-{at}"), "labels": {"kubernetes.io/hostname": format!("node-{at}"), "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": format!("10.{}.{}.0/24", at / 250, at % 250), "podCIDRs": [format!("10.{}.{}.0/24", at / 250, at % 250)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.16.{}.{}", at / 250, at % 250)}], "images": images},
    })
}

fn policy(at: usize, pods: usize) -> Value {
    json!({
        "metadata": {"name": format!("policy-{at}"), "namespace": format!("team-{}", at % (pods / 100))},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app-{}", at % 40)}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": format!("app-{}", (at + 1) % 40)}}}], "ports": [{"port": 8080}]}],
            "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"team": format!("t{}", at % 50)}}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}]}],
        },
    })
}

/// As a kubelet leaves it, with all that policy does not care about.
fn pod(at: usize, pods: usize, generation: usize) -> Value {
    let (app, name) = (at % 40, format!("app-{}-7c9d8b6f5-{at:05}", at % 40));
    let node = at / 30;
    let environment: Vec<Value> = (0..15)
        .map(|e| json!({"name": format!("SETTING_NUMBER_{e}"), "value": format!("value-of-the-setting-{e}")}))
        .collect();
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(|condition| {
        let time = "2026-01-02T03:04:05Z";
        json!({"type": condition, "status": "True", "lastProbeTime": null, "lastTransitionTime": time})
    });
    let managed: Vec<Value> = (0..3)
        .map(|m| {
            let fields: serde_json::Map<String, Value> = (0..25)
                .map(|f| (format!("f:field-{f}"), json!({"f:name": {}, "f:value": {}, ".": {}})))
                .collect();
            json!({"manager": format!("manager-{m}"), "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields})
        })
        .collect();
    json!({
        "metadata": {
            "name": name, "generateName": format!("app-{app}-7c9d8b6f5-"), "namespace": format!("team-{}", at % (pods / 100)),
            "uid": format!("{at:08x}-0000-4000-8000-000000000000"), "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {
                "app": format!("app-{app}"), "pod-template-hash": "7c9d8b6f5", "app.kubernetes.io/name": format!("app-{app}"),
                "app.kubernetes.io/part-of": format!("system-{}", app % 7), "version": format!("v{generation}"), "tier": "backend",
            },
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": format!("{:064x}", at)},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{app}-7c9d8b6f5"), "uid": "u",
                                 "controller": true, "blockOwnerDeletion": true}],
            "managedFields": managed,
        },
        "spec": {
            "nodeName": format!("node-{node}"), "serviceAccountName": "default", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "containers": [{
                "name": "main", "image": "registry.example.com/team/image:v1.2.3", "env": environment,
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}, {"name": "token", "mountPath": "/var/run/secrets"}],
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
            }],
            "volumes": [{"name": "config", "configMap": {"name": "config"}}, {"name": "token", "projected": {"sources": []}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "hostIP": "172.16.0.1", "podIP": address(at), "podIPs": [{"ip": address(at)}],
            "startTime": "2026-01-02T03:04:05Z", "qosClass": "Burstable",
            "conditions": conditions,
            "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "started": true,
                "image": "registry.example.com/team/image:v1.2.3", "imageID": format!("registry.example.com/team/image@sha256:{:064x}", 7),
                "containerID": format!("containerd://{:064x}", at), "state": {"running": {"startedAt": "2026-01-02T03:04:06Z"}}}],
        },
    })
}

fn address(at: usize) -> String {
    format!("10.{}.{}.{}", at / 60_000, at / 250 % 240, at % 250 + 1)
}
