//! YAML of one object in; its errors, or what it became, out.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;

use super::*;
use crate::cluster::{Service, TargetPort};
use crate::policy::Policy;

fn read<K: DeserializeOwned>(yaml: &str) -> K {
    serde_saphyr::from_str(yaml).expect("the test's YAML is of its kind")
}

/// A NetworkPolicy `shop/p` with this spec, in flow style.
fn policy_of(spec: &str) -> Result<(Policy, Vec<FieldError>), Vec<FieldError>> {
    network_policy(&read::<NetworkPolicy>(&format!(
        "metadata: {{name: p, namespace: shop}}\nspec: {spec}"
    )))
}

fn lines(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// The errors of a policy with this spec: each the beginning of its line.
#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    let found = lines(&policy_of(spec).err().unwrap_or_default());
    let agrees = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.starts_with(e));
    assert!(agrees, "{spec}\nfound    {found:#?}\nexpected {expected:#?}");
}

/// Both directions of a policy with this spec, in words, and its warnings.
#[track_caller]
fn check_rules(spec: &str, expected: &str, warnings: &[&str]) {
    let (policy, found) = policy_of(spec).unwrap_or_else(|e| panic!("{:#?}", lines(&e)));
    let words = |rules: &Option<Vec<crate::policy::Rule>>| match rules {
        None => "-".to_owned(),
        Some(rules) => {
            let rules: Vec<String> = rules
                .iter()
                .map(|rule| match &rule.peers {
                    crate::policy::Peers::All => format!("any: {}", rule.ports),
                    crate::policy::Peers::Listed(peers) => {
                        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
                        format!("{}: {}", peers.join(" + "), rule.ports)
                    }
                })
                .collect();
            format!("[{}]", rules.join("; "))
        }
    };
    let found_rules = format!(
        "{} | {} | {}",
        policy.subject,
        words(&policy.ingress),
        words(&policy.egress)
    );
    assert_eq!(found_rules, expected, "{spec}");
    assert_eq!(lines(&found), warnings, "{spec}");
}

#[test]
fn policies_get_the_defaults_of_the_api() {
    let all = "all pods in namespace shop";
    check_rules("null", &format!("{all} | [] | -"), &[]);
    check_rules("{}", &format!("{all} | [] | -"), &[]);
    check_rules("{podSelector: {}, ingress: null}", &format!("{all} | [] | -"), &[]);
    check_rules(
        "{policyTypes: [], ingress: [{}]}",
        &format!("{all} | [any: all] | -"),
        &[],
    );
    check_rules("{egress: [{}]}", &format!("{all} | [] | [any: all]"), &[]);
    check_rules("{egress: []}", &format!("{all} | [] | -"), &[]);
    check_rules("{policyTypes: [Egress]}", &format!("{all} | - | []"), &[]);
    check_rules("{policyTypes: [Ingress, Egress]}", &format!("{all} | [] | []"), &[]);
    check_rules(
        "{ingress: [{from: null, ports: null}]}",
        &format!("{all} | [any: all] | -"),
        &[],
    );
    check_rules(
        "{ingress: [{from: [], ports: []}]}",
        &format!("{all} | [any: all] | -"),
        &[],
    );
    check_rules(
        "{ingress: [{ports: [{}, {protocol: UDP}, {port: 80}, {port: http}, {port: 1, endPort: 2, protocol: SCTP}]}]}",
        &format!("{all} | [any: TCP, UDP, 80/TCP, http/TCP, 1-2/SCTP] | -"),
        &[],
    );
}

#[test]
fn rules_of_a_direction_that_is_not_listed_are_ignored_with_a_warning() {
    check_rules(
        "{policyTypes: [Ingress], egress: [{}]}",
        "all pods in namespace shop | [] | -",
        &["spec.egress: these rules have no effect: add Egress to spec.policyTypes, or remove them"],
    );
    check_rules(
        "{policyTypes: [Egress], ingress: [{}]}",
        "all pods in namespace shop | - | []",
        &["spec.ingress: these rules have no effect: add Ingress to spec.policyTypes, or remove them"],
    );
}

#[test]
fn peers_look_where_the_api_says() {
    check_rules(
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}, \
         {namespaceSelector: {}}, {namespaceSelector: {matchLabels: {team: a}}, podSelector: {}}, \
         {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchExpressions: \
         [{key: x, operator: NotIn, values: [b, a]}, {key: y, operator: Exists}, \
         {key: z, operator: DoesNotExist, values: []}]}}]}]}",
        "pods app=db in namespace shop | [pods app=api in namespace shop + all pods in all namespaces + \
         all pods in namespaces team=a + pods x notin (a,b),y,!z in namespaces team=b: all] | -",
        &[],
    );
}

#[test]
fn cidrs_are_read_as_the_api_server_reads_them() {
    let check = |cidr: &str, expected: &str, warning: Option<&str>| {
        let path = "spec.ingress[0].from[0].ipBlock.cidr";
        let warning = warning.map(|w| format!("{path}: \"{cidr}\" {w}"));
        check_rules(
            &format!("{{ingress: [{{from: [{{ipBlock: {{cidr: '{cidr}'}}}}]}}]}}"),
            &format!("all pods in namespace shop | [{expected}: all] | -"),
            &warning.as_deref().into_iter().collect::<Vec<_>>(),
        );
    };
    check("10.0.0.0/8", "10.0.0.0/8", None);
    check("0.0.0.0/0", "0.0.0.0/0", None);
    check("::/0", "::/0", None);
    check("2001:DB8:0::/48", "2001:db8::/48", None);
    let host_bits = "has bits set after its prefix length, which are ignored: write";
    check(
        "10.1.2.3/8",
        "10.0.0.0/8",
        Some(&format!("{host_bits} 10.0.0.0/8, or 10.1.2.3/32 for that one address")),
    );
    let legacy = "is a form that newer Kubernetes refuses: write";
    check("010.000.000.000/8", "10.0.0.0/8", Some(&format!("{legacy} 10.0.0.0/8")));
    check("10.0.0.0/08", "10.0.0.0/8", Some(&format!("{legacy} 10.0.0.0/8")));
    check(
        "::ffff:10.0.0.0/104",
        "10.0.0.0/8",
        Some(&format!("{legacy} 10.0.0.0/8")),
    );
}

#[test]
fn malformed_cidrs_are_refused() {
    for cidr in [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "::/129",
        "fe80::%eth0/64",
        "x/8",
        "256.0.0.0/8",
        "1.2.3.4.5/8",
        "/8",
        "10.0.0.0/8/8",
        " 10.0.0.0/8",
    ] {
        let spec = format!("{{egress: [{{to: [{{ipBlock: {{cidr: '{cidr}'}}}}]}}]}}");
        check(
            &spec,
            &[&format!(
                "spec.egress[0].to[0].ipBlock.cidr: \"{cidr}\" is not a CIDR: write "
            )],
        );
    }
}

#[test]
fn exceptions_lie_strictly_within_their_block() {
    let except = |cidr: &str, except: &str| {
        format!("{{ingress: [{{from: [{{ipBlock: {{cidr: '{cidr}', except: ['{except}']}}}}]}}]}}")
    };
    let path = "spec.ingress[0].from[0].ipBlock.except[0]: ";
    check(&except("10.0.0.0/8", "10.1.0.0/16"), &[]);
    check(&except("10.0.0.1/8", "10.1.0.0/16"), &[]);
    check(&except("2001:db8::/32", "2001:db8:1::/48"), &[]);
    check(
        &except("10.0.0.0/8", "10.0.0.0/8"),
        &[&format!("{path}10.0.0.0/8 is the whole block")],
    );
    check(
        &except("10.0.0.0/16", "10.0.0.0/8"),
        &[&format!("{path}10.0.0.0/8 does not lie within 10.0.0.0/16")],
    );
    check(
        &except("10.0.0.0/8", "11.0.0.0/16"),
        &[&format!("{path}11.0.0.0/16 does not")],
    );
    check(
        &except("10.0.0.0/8", "2001:db8::/64"),
        &[&format!("{path}2001:db8::/64 does not")],
    );
    check(
        &except("10.0.0.0/8", "nonsense"),
        &[&format!("{path}\"nonsense\" is not a CIDR")],
    );
    check(
        &except("nonsense", "nonsense"),
        &["spec.ingress[0].from[0].ipBlock.cidr: "],
    );
}

#[test]
fn ports_are_checked_like_the_api_server_checks_them() {
    let port = |port: &str| format!("{{ingress: [{{ports: [{{{port}}}]}}]}}");
    let path = "spec.ingress[0].ports[0]";
    for good in [
        "port: 1",
        "port: 65535",
        "port: 80, endPort: 80",
        "port: 80, endPort: 65535",
        "port: a-1",
        "port: x15-characters4",
    ] {
        check(&port(good), &[]);
    }
    for bad in [
        "port: 0",
        "port: 65536",
        "port: -1",
        "port: ''",
        "port: UPPER",
        "port: a--b",
        "port: -a",
        "port: a-",
        "port: a_b",
        "port: sixteen-letters1",
        "port: '8080'",
    ] {
        check(&port(bad), &[&format!("{path}.port: ")]);
    }
    for bad in [
        "port: 80, endPort: 79",
        "port: 80, endPort: 65536",
        "port: http, endPort: 80",
        "endPort: 80",
    ] {
        check(&port(bad), &[&format!("{path}.endPort: ")]);
    }
    check(
        &port("port: 0, endPort: -1"),
        &[
            &format!("{path}.endPort: -1"),
            &format!("{path}.port: 0"),
            &format!("{path}.endPort: endPort -1"),
        ],
    );
    check(
        &port("protocol: tcp, port: 80"),
        &[&format!("{path}.protocol: \"tcp\" is not a protocol: write TCP")],
    );
    check(&port("protocol: ''"), &[&format!("{path}.protocol: \"\" is not")]);
    check(&port("protocol: ICMP"), &[&format!("{path}.protocol: \"ICMP\" is not")]);
}

#[test]
fn selectors_are_checked_like_the_api_server_checks_them() {
    let long = "a".repeat(64);
    let selector = |s: &str| format!("{{podSelector: {{{s}}}}}");
    for good in [
        "matchLabels: {a: ''}",
        "matchLabels: {example.com/a_b.c: X-1}",
        "matchExpressions: [{key: a, operator: In, values: ['']}]",
    ] {
        check(&selector(good), &[]);
    }
    let labels = "spec.podSelector.matchLabels";
    check(
        &selector("matchLabels: {'': a}"),
        &[&format!("{labels}[]: \"\" is not a label key")],
    );
    check(&selector("matchLabels: {-a: a}"), &[&format!("{labels}[-a]: ")]);
    check(&selector("matchLabels: {a/b/c: a}"), &[&format!("{labels}[a/b/c]: ")]);
    check(&selector("matchLabels: {UP/a: a}"), &[&format!("{labels}[UP/a]: ")]);
    check(&selector("matchLabels: {a: b c}"), &[&format!("{labels}[a]: ")]);
    check(
        &selector(&format!("matchLabels: {{{long}: {long}}}")),
        &[&format!("{labels}[{long}]: "), &format!("{labels}[{long}]: ")],
    );
    let item = "spec.podSelector.matchExpressions[0]";
    check(
        &selector("matchExpressions: [{key: a, operator: in, values: [b]}]"),
        &[&format!("{item}.operator: ")],
    );
    check(
        &selector("matchExpressions: [{key: a, operator: In}]"),
        &[&format!("{item}.values: ")],
    );
    check(
        &selector("matchExpressions: [{key: a, operator: NotIn, values: []}]"),
        &[&format!("{item}.values: ")],
    );
    check(
        &selector("matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]"),
        &[&format!("{item}.values: ")],
    );
    check(
        &selector("matchExpressions: [{operator: In, values: [b, '*']}]"),
        &[&format!("{item}.key: "), &format!("{item}.values[1]: ")],
    );
}

#[test]
fn peers_are_of_one_kind() {
    let peer = |p: &str| format!("{{egress: [{{to: [{{podSelector: {{}}}}, {{{p}}}]}}]}}");
    check(&peer(""), &["spec.egress[0].to[1]: the peer is empty"]);
    check(
        &peer("ipBlock: {cidr: ::/0}, namespaceSelector: {}"),
        &["spec.egress[0].to[1]: ipBlock stands beside"],
    );
    check(
        &peer("ipBlock: {cidr: ''}"),
        &["spec.egress[0].to[1].ipBlock.cidr: the block has no CIDR"],
    );
}

#[test]
fn policy_types_are_two_at_most() {
    check(
        "{policyTypes: [Ingress, Egress, Egress]}",
        &["spec.policyTypes: more than two"],
    );
    check(
        "{policyTypes: [Ingress, '']}",
        &["spec.policyTypes[1]: \"\" is not a policy type"],
    );
    check("{policyTypes: [Ingress, Ingress]}", &[]);
}

#[test]
fn names_follow_the_rules_of_their_kind() {
    #[track_caller]
    fn check<T>(outcome: Result<T, Vec<FieldError>>, expected: &[&str]) {
        let found = lines(&outcome.err().unwrap_or_default());
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
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
    #[track_caller]
    fn check(outcome: Result<WorkloadObject, Vec<FieldError>>, expected: &[&str]) {
        let found = lines(&outcome.err().unwrap_or_default());
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
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
