//! Namespaces, nodes, pods, Services and workloads in; their errors, or what they became, out.

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{lines, read};
use crate::cluster::{Cluster, Service, TargetPort};
use crate::convert::*;

/// The errors of a conversion: each the beginning of its line.
#[track_caller]
fn check<T>(outcome: Result<T, Vec<FieldError>>, expected: &[&str]) {
    let found = lines(&outcome.err().unwrap_or_default());
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn names_follow_the_rules_of_their_kind() {
    check(network_policy(&read("metadata: {name: a.b}")), &[]);
    check(
        network_policy(&read("metadata: {name: a..b}")),
        &["metadata.name: \"a..b\" is not"],
    );
    check(
        network_policy(&read("metadata: {}")),
        &["metadata.name: the object has no name"],
    );
    check(
        network_policy(&read("metadata: {generateName: a-}")),
        &["metadata.name: the object has no name yet"],
    );
    check(
        network_policy(&read("metadata: {name: a, namespace: a.b}")),
        &["metadata.namespace: \"a.b\" is not"],
    );
    check(
        namespace(&read("metadata: {name: a.b, namespace: a}")),
        &["metadata.namespace: this kind", "metadata.name: "],
    );
    check(
        node(&read("metadata: {name: node.example.com, labels: {a: ' '}}")),
        &["metadata.labels[a]: \" \" is not"],
    );
    check(service(&read("metadata: {name: a.b}")), &["metadata.name: "]);
    check(
        pod(&read(&format!("metadata: {{name: {}}}", "a".repeat(254)))),
        &["metadata.name: "],
    );
}

#[test]
fn an_object_without_namespace_is_in_default() {
    let (policy, _) = network_policy(&read("metadata: {name: p}")).expect("valid");
    assert_eq!(policy.name.to_string(), "default/p");
    assert_eq!(policy.subject.to_string(), "all pods in namespace default");
}

#[test]
fn pods_keep_what_policy_needs() {
    let yaml = "
metadata:
  name: web-6d5f-x
  namespace: shop
  labels: {app: web, pod-template-hash: 6d5f}
  ownerReferences:
  - {apiVersion: v1, kind: Other, name: other, uid: u}
  - {apiVersion: apps/v1, kind: ReplicaSet, name: web-6d5f, uid: u, controller: true}
spec:
  nodeName: worker-1
  hostNetwork: true
  initContainers:
  - {name: setup, ports: [{containerPort: 1}]}
  - {name: proxy, restartPolicy: Always, ports: [{containerPort: 15001, name: mesh}]}
  containers:
  - {name: web, ports: [{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP}]}
status:
  phase: Running
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]
  startTime: '1970-01-01T00:01:00Z'
";
    insta::assert_debug_snapshot!(pod(&read(yaml)).expect("valid"));
}

#[test]
fn pods_end_and_fall_back_to_one_address() {
    let of = |status: &str| pod(&read(&format!("metadata: {{name: p}}\nstatus: {status}"))).expect("valid");
    for (phase, ended) in [
        ("Pending", false),
        ("Running", false),
        ("Unknown", false),
        ("Succeeded", true),
        ("Failed", true),
    ] {
        assert_eq!(of(&format!("{{phase: {phase}}}")).ended, ended, "{phase}");
    }
    let addresses = |status: &str| of(status).addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses("{podIP: 10.0.0.7}"), ["10.0.0.7"]);
    assert_eq!(addresses("{podIP: 10.0.0.7, podIPs: []}"), ["10.0.0.7"]);
    assert_eq!(addresses("{podIP: '', podIPs: null}"), [""; 0]);
}

#[test]
fn a_pod_belongs_to_the_workload_of_its_controller() {
    #[track_caller]
    fn check(labels: &str, owner: &str, expected: Option<&str>) {
        let yaml =
            format!("metadata: {{name: p, labels: {labels}, ownerReferences: [{{apiVersion: v1, uid: u, {owner}}}]}}");
        let workload = pod(&read(&yaml)).expect("valid").workload;
        assert_eq!(workload.map(|w| format!("{}/{}", w.kind, w.name)).as_deref(), expected);
    }
    let hash = "{pod-template-hash: 6d5f}";
    check(
        hash,
        "kind: ReplicaSet, name: web-6d5f, controller: true",
        Some("deployment/web"),
    );
    check(
        hash,
        "kind: ReplicaSet, name: web-0000, controller: true",
        Some("replicaset/web-0000"),
    );
    check(
        "{}",
        "kind: ReplicaSet, name: web, controller: true",
        Some("replicaset/web"),
    );
    check(
        "{}",
        "kind: StatefulSet, name: db, controller: true",
        Some("statefulset/db"),
    );
    check(
        "{}",
        "kind: Job, name: report-28000000, controller: true",
        Some("job/report-28000000"),
    );
    check("{}", "kind: StatefulSet, name: db", None);
    check("{}", "kind: Node, name: worker-1, controller: true", None);
    // Whoever may make pods may write anything there; nobody's terminal shall obey it.
    check("{}", r#"kind: Job, name: "a\nshop/db", controller: true"#, None);
    check("{}", r#"kind: "Job\e[31m", name: a, controller: true"#, None);
    check("{}", "kind: Job, name: '', controller: true", None);
}

#[test]
fn nodes_keep_their_addresses_and_pod_cidrs() {
    let yaml = "
metadata: {name: worker-1, labels: {zone: a}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}
status:
  addresses:
  - {type: InternalIP, address: 192.168.0.1}
  - {type: Hostname, address: worker-1}
  - {type: ExternalIP, address: 203.0.113.1}
";
    insta::assert_debug_snapshot!(node(&read(yaml)).expect("valid"));
}

#[test]
fn namespaces_carry_their_name_label() {
    let namespace = namespace(&read("metadata: {name: shop, labels: {team: a}}")).expect("valid");
    assert_eq!(namespace.labels.to_string(), "kubernetes.io/metadata.name=shop,team=a");
}

#[test]
fn annotations_are_what_the_api_server_takes() {
    #[track_caller]
    fn check(given: &str, expected: Option<&str>) {
        let yaml = format!("metadata: {{name: shop, annotations: {given}}}");
        let object: v1::Namespace = read(&yaml);
        let found = lines(&annotations(&object.metadata));
        // A live object is not left out for them.
        assert!(namespace(&object).is_ok());
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(found, expected);
    }
    check("{}", None);
    check("{Example.COM/A_b.c: 'any text, {at} all', a: ''}", None);
    check(
        "{/a: x}",
        Some(
            "metadata.annotations[/a]: \"/a\" is not an annotation key: write a DNS subdomain before the '/', such as \
             example.com/name",
        ),
    );
    check(
        "{a b: x}",
        Some(
            "metadata.annotations[a b]: \"a b\" is not an annotation key: write letters, digits, '-', '_' and '.', beginning \
             and ending with a letter or digit",
        ),
    );
    let most = (256 << 10) - 1;
    check(&format!("{{a: {}}}", "x".repeat(most)), None);
    check(
        &format!("{{a: {}}}", "x".repeat(most + 1)),
        Some("metadata.annotations: 262145 bytes of keys and values: write at most 262144"),
    );
}

#[test]
fn services_keep_their_addresses_ports_and_selector() {
    let of =
        |spec: &str| -> Service { service(&read(&format!("metadata: {{name: s}}\nspec: {spec}"))).expect("valid") };
    insta::assert_debug_snapshot!(of(
        "{type: NodePort, clusterIPs: [10.96.0.5, 'fd00::5'], selector: {app: web}, ports: [{name: http, port: 80, \
         targetPort: web, nodePort: 30080}, {port: 53, protocol: UDP, targetPort: 5353}]}"
    ));
    let plain = of("{clusterIP: None, selector: {}, ports: [{port: 80}]}");
    assert_eq!((plain.selector, plain.cluster_ips), (None, vec![]));
    assert_eq!(plain.ports[0].target, TargetPort::Number(80));
}

#[test]
fn workloads_need_a_selector_that_matches_their_template() {
    let spec = |selector: &str| {
        format!("metadata: {{name: w}}\nspec: {{{selector}template: {{metadata: {{labels: {{app: w}}}}}}}}")
    };
    let good = spec("selector: {matchLabels: {app: w}}, ");
    let other = spec("selector: {matchLabels: {app: v}}, ");
    let none = spec("");
    let mismatch: &[&str] = &["spec.template.metadata.labels: the labels of the template do not match spec.selector"];
    let missing: &[&str] = &["spec.selector: the selector is missing or empty"];
    for (yaml, expected) in [(&good, &[] as &[&str]), (&other, mismatch), (&none, missing)] {
        check(deployment(&read(yaml)), expected);
        check(stateful_set(&read(yaml)), expected);
        check(daemon_set(&read(yaml)), expected);
        check(replica_set(&read(yaml)), expected);
    }
    check(job(&read(&none)), &[]);
    check(replication_controller(&read(&none)), &[]);
    check(replication_controller(&read(&spec("selector: {app: v}, "))), mismatch);
    check(
        cron_job(&read(
            "metadata: {name: c}\nspec: {schedule: x, jobTemplate: {spec: {parallelism: -1, template: {spec: \
             {containers: [{name: c, ports: [{containerPort: 0}]}]}}}}}",
        )),
        &[
            "spec.jobTemplate.spec.parallelism: -1",
            "spec.jobTemplate.spec.template.spec.containers[0].ports[0].containerPort: 0",
        ],
    );
}

/// What a policy asks for, what its namespace does, and what then holds for it. What is no mode is reported, and the policy enforced.
#[test]
fn the_mode_is_an_annotation() {
    use crate::policy::Enforcement::{self, Audit, Enforce};
    let annotated = |value: Option<&str>| match value {
        None => "{other: audit}".to_owned(),
        Some(value) => format!("{{palisade.dev/mode: \"{value}\"}}"),
    };
    #[track_caller]
    fn said(found: Result<Option<Enforcement>, FieldError>, value: Option<&str>) {
        let known = match value {
            None => Ok(None),
            Some("audit") => Ok(Some(Audit)),
            Some("enforce") => Ok(Some(Enforce)),
            Some(other) => Err(format!(
                "metadata.annotations[palisade.dev/mode]: \"{other}\" is not a mode: write enforce or audit"
            )),
        };
        assert_eq!(found.map_err(|e| e.to_string()), known);
    }
    for (of_policy, of_namespace, expected) in [
        (None, None, Enforce),
        (None, Some("audit"), Audit),
        (None, Some("enforce"), Enforce),
        (Some("audit"), None, Audit),
        (Some("audit"), Some("enforce"), Audit),
        (Some("enforce"), Some("audit"), Enforce),
        (Some("Audit"), Some("audit"), Enforce),
        (Some(""), Some("audit"), Enforce),
        (None, Some("on"), Enforce),
    ] {
        let policy: NetworkPolicy = read(&format!(
            "metadata: {{name: p, namespace: n, annotations: {}}}",
            annotated(of_policy)
        ));
        let namespace: v1::Namespace = read(&format!(
            "metadata: {{name: n, annotations: {}}}",
            annotated(of_namespace)
        ));
        said(enforcement(&policy.metadata), of_policy);
        said(enforcement(&namespace.metadata), of_namespace);
        let (policy, warnings) = network_policy(&policy).expect("a policy");
        assert!(warnings.is_empty());
        let mut cluster = Cluster::default();
        cluster.add_namespace(super::super::namespace(&namespace).expect("a namespace"));
        assert_eq!(
            cluster.enforcement(&policy),
            expected,
            "{of_policy:?} in {of_namespace:?}"
        );
    }
}
