//! Objects as an API server holds them.

use serde_json::{Value, json};

pub(crate) fn namespace(name: &str, team: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "team": team}}})
}

pub(crate) fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}], "images": [{"names": ["a", "b"]}]},
    })
}

pub(crate) fn pod(namespace: &str, name: &str, app: &str, address: &str) -> Value {
    json!({
        "metadata": {
            "namespace": namespace, "name": name, "labels": {"app": app, "pod-template-hash": "5d8c"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-5d8c"),
                                 "uid": "u", "controller": true}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
            "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always", "ports": [{"containerPort": 9090}]},
                               {"name": "i", "image": "i", "ports": [{"containerPort": 1}]}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": "2026-01-02T03:04:05Z",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

pub(crate) fn policy(namespace: &str, name: &str, app: &str, port: u16) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}, {"ipBlock": {"cidr": "10.9.0.0/16"}}],
                         "ports": [{"port": port, "protocol": "TCP"}]}],
        },
    })
}
