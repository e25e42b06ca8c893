//! Manifests in; the pods with their workloads out.

use policy_compiler::cluster::Pod;

use super::loaded;

/// The pods as `name workload node labels`, derived ones with a star.
#[track_caller]
fn check_pods(text: &str, expected: &[&str]) {
    let loaded = loaded(text);
    let line = |pod: &Pod| {
        let star = if loaded.derived.contains(&pod.name) { "*" } else { "" };
        let workload = pod
            .workload
            .as_ref()
            .map_or("-".to_owned(), |w| format!("{}/{}", w.kind, w.name));
        let node = pod.node.as_deref().unwrap_or("-");
        format!("{}{star} {workload} {node} {}", pod.name, pod.labels)
    };
    let pods: Vec<String> = loaded.cluster.pods.values().map(|p| line(p)).collect();
    assert_eq!(pods, expected);
}

fn workload(kind: &str, rest: &str) -> String {
    let version = if kind.ends_with("Job") { "batch/v1" } else { "apps/v1" };
    let selector = if kind.ends_with("Job") {
        ""
    } else {
        "selector: {matchLabels: {app: w}}, "
    };
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: w}}\nspec: {{{selector}{rest}template: {{metadata: {{labels: {{app: w}}}}}}}}\n"
    )
}

#[test]
fn workloads_without_pods_get_two_or_the_one_that_they_ask_for() {
    for rest in ["", "replicas: 0, ", "replicas: 2, ", "replicas: 9, "] {
        check_pods(
            &workload("Deployment", rest),
            &["default/w-0* deployment/w - app=w", "default/w-1* deployment/w - app=w"],
        );
    }
    check_pods(
        &workload("StatefulSet", "replicas: 1, "),
        &["default/w-0* statefulset/w - app=w"],
    );
    check_pods(
        &workload("Job", ""),
        &["default/w-0* job/w - app=w", "default/w-1* job/w - app=w"],
    );
    check_pods(&workload("Job", "parallelism: 1, "), &["default/w-0* job/w - app=w"]);
    check_pods(
        &workload("DaemonSet", ""),
        &["default/w-0* daemonset/w - app=w", "default/w-1* daemonset/w - app=w"],
    );
    check_pods(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: w}\nspec: {schedule: '* * * * *', jobTemplate: {spec: {parallelism: 1, template: {}}}}",
        &["default/w-0* cronjob/w - "],
    );
    check_pods(
        "apiVersion: v1\nkind: ReplicationController\nmetadata: {name: w}\nspec: {replicas: 1, template: {metadata: {labels: {app: w}}}}",
        &["default/w-0* replicationcontroller/w - app=w"],
    );
}

#[test]
fn workloads_of_one_name_get_pods_of_different_names() {
    check_pods(
        &(workload("Deployment", "") + &workload("StatefulSet", "replicas: 1, ")),
        &[
            "default/w-0* statefulset/w - app=w",
            "default/w-1* deployment/w - app=w",
            "default/w-2* deployment/w - app=w",
        ],
    );
}

#[test]
fn a_daemon_set_gets_a_pod_on_each_node_that_it_selects() {
    let node = |name: &str, labels: &str| {
        format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {labels}}}\n")
    };
    let nodes = node("a", "{os: linux}") + &node("b", "{os: other}") + &node("c", "{os: linux}");
    let daemon_set = workload("DaemonSet", "").replace(
        "labels: {app: w}}}",
        "labels: {app: w}}, spec: {containers: [], hostNetwork: true, nodeSelector: {os: linux}}}",
    );
    let text = nodes + &daemon_set;
    check_pods(
        &text,
        &["default/w-0* daemonset/w a app=w", "default/w-1* daemonset/w c app=w"],
    );
    assert!(loaded(&text).cluster.pods.values().all(|p| p.host_network));
}

fn pod(name: &str, labels: &str, more: &str) -> String {
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {labels}{more}}}\n")
}

fn owned(kind: &str, name: &str) -> String {
    format!(", ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}]")
}

#[test]
fn pods_that_stand_for_a_workload_are_not_derived_again() {
    let deployment = workload("Deployment", "");
    check_pods(
        &(deployment.clone() + &pod("x", "{app: w}", "")),
        &["default/x deployment/w - app=w"],
    );
    check_pods(
        &(deployment.clone() + &pod("x", "{app: w, pod-template-hash: h}", &owned("ReplicaSet", "w-h"))),
        &["default/x deployment/w - app=w,pod-template-hash=h"],
    );
    // Somebody else's pod, though the selector matches it.
    check_pods(
        &(deployment.clone() + &pod("x", "{app: w}", &owned("StatefulSet", "other"))),
        &[
            "default/w-0* deployment/w - app=w",
            "default/w-1* deployment/w - app=w",
            "default/x statefulset/other - app=w",
        ],
    );
    // An evicted pod says nothing about those to come.
    let evicted = pod("x", "{app: w}", "") + "status: {phase: Failed}\n";
    check_pods(
        &(deployment + &evicted),
        &[
            "default/w-0* deployment/w - app=w",
            "default/w-1* deployment/w - app=w",
            "default/x deployment/w - app=w",
        ],
    );
    let completed = pod("x", "{}", &owned("Job", "w")) + "status: {phase: Succeeded}\n";
    check_pods(&(workload("Job", "") + &completed), &["default/x job/w - "]);
}

#[test]
fn what_a_workload_owns_is_derived_from_the_workload() {
    let replica_set =
        workload("ReplicaSet", "").replace("{name: w}", &format!("{{name: w-h{}}}", owned("Deployment", "w")));
    let derived = ["default/w-0* deployment/w - app=w", "default/w-1* deployment/w - app=w"];
    check_pods(&(workload("Deployment", "") + &replica_set), &derived);
    check_pods(&replica_set, &derived);
    // The ReplicaSet tells whose the pod is, without any label that would.
    check_pods(
        &(replica_set + &pod("x", "{}", &owned("ReplicaSet", "w-h"))),
        &["default/x deployment/w - "],
    );
}

#[test]
fn a_job_is_a_cron_jobs_only_when_that_is_certain() {
    let cron_job = "---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {name: w}\nspec: {schedule: '* * * * *', jobTemplate: {spec: {template: {}}}}\n";
    let pod = pod("x", "{}", &owned("Job", "w-28000000"));
    check_pods(&pod, &["default/x job/w-28000000 - "]);
    check_pods(&(pod.clone() + cron_job), &["default/x cronjob/w - "]);
    let job = workload("Job", "").replace("{name: w}", &format!("{{name: w-28000000{}}}", owned("CronJob", "w")));
    check_pods(&(pod + &job), &["default/x cronjob/w - "]);
}
