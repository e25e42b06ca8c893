//! A generated cluster as an API server tells it: types of the compiler go in, objects come out, with all that a cluster's own
//! programs put into them and policy does not care about. A pod has about 7 KB.

use policy_compiler::cluster::{ContainerPort, Namespace, Node, Pod};
use policy_compiler::labels::{Labels, Name, Operator, Selector};
use policy_compiler::policy::{NamespaceScope, Peer, Peers, Policy, PortMatch, Ports, Rule};
use serde_json::{Map, Value, json};

const TIME: &str = "2026-01-02T03:04:05Z";

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No node yet.
    Pending,
    /// A node, and no address.
    Placed,
    /// An address.
    Running,
    /// And its probes succeed.
    Ready,
    /// To be deleted, its containers asked to end.
    Ending,
    /// Its containers have ended.
    Ended,
}

pub(crate) fn namespace(namespace: &Namespace) -> Value {
    let labels = labels(&namespace.labels);
    json!({"metadata": {"name": &*namespace.name, "labels": labels, "creationTimestamp": TIME}, "spec": {"finalizers": ["kubernetes"]},
           "status": {"phase": "Active"}})
}

/// A node, as its kubelet tells it for the so-manieth time.
pub(crate) fn node(node: &Node, beat: usize) -> Value {
    let image = |i| json!({"names": [format!("registry.example.com/team/image-{i}@sha256:{i:064x}")], "sizeBytes": i});
    let images: Vec<Value> = (0..50).map(image).collect();
    let addresses = node
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}));
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(|condition| {
        json!({"type": condition, "status": if condition == "Ready" { "True" } else { "False" }, "lastTransitionTime": TIME,
               "lastHeartbeatTime": format!("2026-01-02T03:{:02}:{:02}Z", beat / 60 % 60, beat % 60)})
    });
    let cidrs = texts(&node.pod_cidrs);
    json!({
        "metadata": {"name": &*node.name, "labels": labels(&node.labels), "creationTimestamp": TIME},
        "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        "status": {"addresses": addresses.collect::<Vec<_>>(), "images": images, "conditions": conditions},
    })
}

/// A pod, as a kubelet leaves it.
pub(crate) fn pod(pod: &Pod, stage: Stage) -> Value {
    let has = |least: Stage| stage as u8 >= least as u8;
    let environment: Vec<Value> = (0..15)
        .map(|e| json!({"name": format!("SETTING_NUMBER_{e}"), "value": format!("value-of-the-setting-{e}")}))
        .collect();
    let condition = |(condition, is): (&str, bool)| json!({"type": condition, "status": if is { "True" } else { "False" }, "lastProbeTime": null, "lastTransitionTime": TIME});
    let up = stage == Stage::Ready;
    let conditions = [
        ("PodScheduled", has(Stage::Placed)),
        ("Initialized", has(Stage::Running)),
        ("ContainersReady", up),
        ("Ready", up),
    ]
    .map(condition);
    let managers = ["kube-controller-manager", "kube-scheduler", "kubelet"].map(|manager| {
        let field = |f| (format!("f:field-{f}"), json!({"f:name": {}, "f:value": {}, ".": {}}));
        let fields: Map<String, Value> = (0..25).map(field).collect();
        json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": TIME, "fieldsType": "FieldsV1", "fieldsV1": fields})
    });
    let workload = pod.workload.as_ref();
    let owner = workload.map_or_else(|| json!([]), |workload| {
        json!([{"apiVersion": "apps/v1", "kind": &*workload.kind, "name": &*workload.name, "uid": "0d4f4ea4-0000-4000-8000-0000000000aa",
                "controller": true, "blockOwnerDeletion": true}])
    });
    let app = workload.map_or("none", |workload| &*workload.name);
    let mut object = json!({
        "metadata": {
            "name": &*pod.name.name, "namespace": &*pod.name.namespace, "generateName": format!("{app}-7c9d8b6f5-"),
            "uid": "0d4f4ea4-0000-4000-8000-000000000000", "creationTimestamp": TIME, "labels": labels(&pod.labels),
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": format!("{:064x}", pod.name.name.len())},
            "ownerReferences": owner, "managedFields": managers,
        },
        "spec": {
            "serviceAccountName": "default", "restartPolicy": "Always", "schedulerName": "default-scheduler", "dnsPolicy": "ClusterFirst",
            "containers": [{
                "name": "main", "image": "registry.example.com/team/image:v1.2.3", "env": environment,
                "ports": pod.ports.iter().map(container_port).collect::<Vec<_>>(),
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}, {"name": "token", "mountPath": "/var/run/secrets"}],
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
            }],
            "volumes": [{"name": "config", "configMap": {"name": "config"}}, {"name": "token", "projected": {"sources": []}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {"phase": phase(pod, stage), "qosClass": "Burstable", "conditions": conditions},
    });
    if pod.host_network {
        object["spec"]["hostNetwork"] = json!(true);
    }
    if has(Stage::Placed) {
        object["spec"]["nodeName"] = json!(pod.node.as_deref());
    }
    if has(Stage::Running) {
        let addresses: Vec<Value> = pod.addresses.iter().map(|address| json!({"ip": address})).collect();
        let status = &mut object["status"];
        status["hostIP"] = json!("172.16.0.1");
        status["podIP"] = json!(pod.addresses.first());
        status["podIPs"] = json!(addresses);
        status["startTime"] = json!(TIME);
        let state = if stage == Stage::Ended { "terminated" } else { "running" };
        status["containerStatuses"] = json!([{"name": "main", "ready": up, "restartCount": 0, "started": true,
            "image": "registry.example.com/team/image:v1.2.3", "imageID": format!("registry.example.com/team/image@sha256:{:064x}", 7),
            "containerID": format!("containerd://{:064x}", 11), "state": {state: {"startedAt": TIME}}}]);
    }
    if has(Stage::Ending) {
        object["metadata"]["deletionTimestamp"] = json!(TIME);
        object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    }
    object
}

fn phase(pod: &Pod, stage: Stage) -> &'static str {
    match stage {
        Stage::Pending | Stage::Placed => "Pending",
        _ if pod.ended => "Succeeded",
        _ => "Running",
    }
}

fn container_port(port: &ContainerPort) -> Value {
    json!({"name": port.name.as_deref(), "containerPort": port.number, "protocol": port.protocol.to_string()})
}

/// A NetworkPolicy; of other sorts there are none in a generated cluster.
pub(crate) fn policy(policy: &Policy) -> Value {
    let rules = |rules: &Option<Vec<Rule>>, peers: &str| {
        let rule = |rule: &Rule| {
            let mut object = Map::new();
            if let Peers::Listed(listed) = &rule.peers {
                object.insert(peers.to_owned(), listed.iter().map(|p| peer(policy, p)).collect());
            }
            if let Ports::Listed(listed) = &rule.ports {
                object.insert("ports".to_owned(), listed.iter().map(port).collect());
            }
            Value::Object(object)
        };
        rules.as_ref().map(|rules| rules.iter().map(rule).collect::<Vec<_>>())
    };
    let mut spec = json!({"podSelector": selector(&policy.subject.pods)});
    let mut types = Vec::new();
    if let Some(rules) = rules(&policy.ingress, "from") {
        spec["ingress"] = json!(rules);
        types.push("Ingress");
    }
    if let Some(rules) = rules(&policy.egress, "to") {
        spec["egress"] = json!(rules);
        types.push("Egress");
    }
    spec["policyTypes"] = json!(types);
    let metadata =
        json!({"name": &*policy.name.name, "namespace": policy.name.namespace.as_deref(), "creationTimestamp": TIME});
    json!({"metadata": metadata, "spec": spec})
}

fn peer(policy: &Policy, peer: &Peer) -> Value {
    let selection = match peer {
        Peer::Block(block) => {
            return json!({"ipBlock": {"cidr": block.cidr.to_string(), "except": texts(&block.except)}});
        }
        Peer::Pods(selection) => selection,
    };
    let mut object = json!({"podSelector": selector(&selection.pods)});
    match &selection.namespaces {
        NamespaceScope::Matching(namespaces) => object["namespaceSelector"] = selector(namespaces),
        NamespaceScope::Named(name) => assert_eq!(Some(name), policy.name.namespace.as_ref(), "only its own by name"),
    }
    object
}

fn port(port: &PortMatch) -> Value {
    match port {
        PortMatch::Range(protocol, range) => {
            let mut object = json!({"protocol": protocol.to_string(), "port": range.first});
            if range.last != range.first {
                object["endPort"] = json!(range.last);
            }
            object
        }
        PortMatch::Named(protocol, name) => json!({"protocol": protocol.to_string(), "port": &**name}),
    }
}

fn selector(selector: &Selector) -> Value {
    let expression = |key: &Name, operator: &Operator| match operator {
        Operator::In(values) => json!({"key": &**key, "operator": "In", "values": texts(values)}),
        Operator::NotIn(values) => json!({"key": &**key, "operator": "NotIn", "values": texts(values)}),
        Operator::Exists => json!({"key": &**key, "operator": "Exists"}),
        Operator::DoesNotExist => json!({"key": &**key, "operator": "DoesNotExist"}),
    };
    let requirements = selector.requirements().iter();
    let expressions: Vec<Value> = requirements.map(|r| expression(&r.key, &r.operator)).collect();
    match expressions.is_empty() {
        true => json!({}),
        false => json!({"matchExpressions": expressions}),
    }
}

fn texts(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn labels(labels: &Labels) -> Value {
    labels
        .iter()
        .map(|(key, value)| (key.to_string(), json!(&**value)))
        .collect::<Map<_, _>>()
        .into()
}
