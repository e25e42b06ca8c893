//! What stands in `deploy/`, as a cluster would take it: rendered by kubectl, decoded strictly, and held against what the
//! agent really asks the API server for, and against its flags.

#![allow(clippy::unwrap_used, reason = "a test may panic on what it did not expect")]

#[path = "support/api/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod api;
#[path = "support/environment.rs"]
mod environment;
#[path = "support/rendered.rs"]
mod rendered;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Namespace, PodSpec, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use palisade::agent::announce::{Announcer, Finding};
use palisade::agent::metrics::Metrics;
use palisade::agent::source::{Access, Target, Timing, Update, Watches};
use palisade::manifests::{Node, decode, documents};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use api::{Api, Kind, Verb};
use rendered::rendered;

const SOON: Duration = Duration::from_secs(20);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

const BASE: &str = "deploy/base";
const CLEANUP: &str = "deploy/cleanup";

fn text<'n>(object: &'n Node, field: &str) -> &'n str {
    object.get(field).and_then(Node::as_str).unwrap_or_default()
}

/// The only object of a kind in the base, all of whose fields the type knows.
fn only<T: DeserializeOwned>(kind: &str) -> T {
    only_of(BASE, kind)
}

fn only_of<T: DeserializeOwned>(folder: &str, kind: &str) -> T {
    let objects = rendered(folder);
    let mut found = objects.iter().filter(|object| text(object, "kind") == kind);
    let (Some(object), None) = (found.next(), found.next()) else {
        panic!("there is not one {kind}");
    };
    decode(object).unwrap_or_else(|errors| panic!("{kind}: {errors:#?}"))
}

fn pod() -> PodSpec {
    only::<DaemonSet>("DaemonSet").spec.template.spec.unwrap()
}

fn container() -> Container {
    let mut containers = pod().containers;
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

fn palisade(arguments: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    environment::without_settings(&mut command)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn every_object_is_known_to_the_last_field() {
    fn check<T: DeserializeOwned>(object: &Node) {
        if let Err(errors) = decode::<T>(object) {
            panic!("{}: {errors:#?}", text(object, "kind"));
        }
    }
    for (folder, expected) in [(BASE, 6), (CLEANUP, 2)] {
        let mut kinds = BTreeSet::new();
        for object in rendered(folder) {
            let kind = (text(&object, "apiVersion").to_owned(), text(&object, "kind").to_owned());
            match (kind.0.as_str(), kind.1.as_str()) {
                ("v1", "Namespace") => check::<Namespace>(&object),
                ("v1", "ResourceQuota") => check::<ResourceQuota>(&object),
                ("v1", "ServiceAccount") => check::<ServiceAccount>(&object),
                ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<ClusterRole>(&object),
                ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check::<ClusterRoleBinding>(&object),
                ("apps/v1", "DaemonSet") => check::<DaemonSet>(&object),
                other => panic!("who checks {other:?}?"),
            }
            kinds.insert(kind);
        }
        assert_eq!(kinds.len(), expected, "{folder}: {kinds:?}");
    }
}

#[test]
fn a_field_that_no_type_knows_is_an_error() {
    let documents = documents("spec: {template: {spec: {hostNetwrok: true, containers: []}}, selector: {}}");
    let errors = decode::<DaemonSet>(&documents.documents[0]).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].message.contains("hostNetwork"), "{errors:?}");
}

/// A right: the API group, the resource, the verb.
type Right = (String, String, &'static str);

fn right(kind: Kind, verb: &'static str) -> Right {
    (kind.group().to_owned(), kind.plural().to_owned(), verb)
}

/// What the agent asks for on a server of that age, until it has heard of a change of every kind and told of a policy that it
/// does not understand.
async fn asked(streaming: bool) -> BTreeSet<Right> {
    let api = Api::start().await;
    api.set_streaming(streaming);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    std::fs::write(&file, api.kubeconfig(None)).unwrap();
    let target = Target::Kubeconfig {
        file: Some(file),
        context: None,
    };
    let access = Arc::new(Access::new(target).unwrap());
    let mut watches = Watches::start(access.clone(), Timing::default());
    let first = timeout(SOON, watches.next()).await.unwrap();
    assert!(matches!(first, Update::Ready(_)), "{first:?}");

    api.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
    api.put(Kind::Node, json!({"metadata": {"name": "worker-1"}}));
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 70000}]}]});
    let policy = json!({"metadata": {"namespace": "shop", "name": "none"}, "spec": spec});
    api.put(Kind::NetworkPolicy, policy);
    let spec = json!({"nodeName": "worker-1", "containers": [{"name": "c", "image": "i"}]});
    let status = json!({"phase": "Running", "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}]});
    let metadata = json!({"namespace": "shop", "name": "web"});
    api.put(Kind::Pod, json!({"metadata": metadata, "spec": spec, "status": status}));
    let mut told = 0;
    while told < Kind::ALL.len() {
        match timeout(SOON, watches.next()).await.unwrap() {
            Update::Events { events, .. } => told += events.len(),
            Update::Ready(_) => panic!("a second snapshot"),
        }
    }
    let findings: Vec<Finding> = watches.unreadable().into_iter().map(Finding::from).collect();
    let mut announcer = Announcer::new(access, "worker-1".into(), Metrics::default());
    announcer.turn(&findings, 1, SystemTime::now()).await;
    assert_eq!(api.objects(Kind::Event).len(), 1);

    let verb = |verb| match verb {
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Watch | Verb::StreamingList => "watch",
        Verb::Create => "create",
        Verb::Update => "update",
        Verb::Patch => "patch",
        Verb::Delete => "delete",
    };
    api.calls().into_iter().map(|c| right(c.kind, verb(c.verb))).collect()
}

#[tokio::test]
async fn the_role_permits_what_the_agent_asks_for_and_no_more() {
    let mut used = asked(true).await;
    used.extend(asked(false).await);
    let mut granted = BTreeSet::new();
    for rule in only::<ClusterRole>("ClusterRole").rules.unwrap() {
        assert!(rule.non_resource_urls.is_none() && rule.resource_names.is_none());
        let (groups, resources) = (rule.api_groups.unwrap(), rule.resources.unwrap());
        for (group, resource) in groups.iter().flat_map(|g| resources.iter().map(move |r| (g, r))) {
            for verb in &rule.verbs {
                let right = (group.clone(), resource.clone(), verb.clone());
                assert!(granted.insert(right.clone()), "twice: {right:?}");
            }
        }
    }
    let used: BTreeSet<_> = used.into_iter().map(|(g, r, v)| (g, r, v.to_owned())).collect();
    assert_eq!(granted, used);
}

#[test]
fn the_role_is_bound_to_the_account_that_the_pods_run_as() {
    let (role, account) = (
        only::<ClusterRole>("ClusterRole"),
        only::<ServiceAccount>("ServiceAccount"),
    );
    let binding = only::<ClusterRoleBinding>("ClusterRoleBinding");
    let set = only::<DaemonSet>("DaemonSet");
    let namespace = only::<Namespace>("Namespace").metadata.name;
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    assert_eq!(binding.role_ref.kind, "ClusterRole");
    let subjects = binding.subjects.unwrap();
    assert_eq!(subjects.len(), 1);
    assert_eq!(Some(&subjects[0].name), account.metadata.name.as_ref());
    assert_eq!(subjects[0].kind, "ServiceAccount");
    assert_eq!(pod().service_account_name, account.metadata.name);
    for of in [
        &subjects[0].namespace,
        &account.metadata.namespace,
        &set.metadata.namespace,
    ] {
        assert_eq!(of, &namespace);
    }
}

#[test]
fn the_pod_gets_the_nodes_network_and_one_capability() {
    let pod = pod();
    assert_eq!(pod.host_network, Some(true));
    assert_eq!((pod.host_pid, pod.host_ipc, pod.volumes), (None, None, None));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let everything = |t: &k8s_openapi::api::core::v1::Toleration| {
        t.operator.as_deref() == Some("Exists") && t.key.is_none() && t.effect.is_none()
    };
    assert!(pod.tolerations.unwrap().iter().any(everything));

    one_capability(&container());
}

/// What `tests/agent/privileges.rs` shows to be enough.
#[track_caller]
fn one_capability(container: &Container) {
    let security = container.security_context.as_ref().unwrap();
    assert_eq!(security.privileged, None);
    assert_eq!(security.run_as_user, Some(0));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    let capabilities = security.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.add.as_deref(), Some(&["NET_ADMIN".to_owned()][..]));
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
}

#[test]
fn both_namespaces_admit_what_stands_in_them() {
    for folder in [BASE, CLEANUP] {
        let namespace = only_of::<Namespace>(folder, "Namespace").metadata;
        let labels = namespace.labels.unwrap();
        for mode in ["enforce", "audit", "warn"] {
            let label = format!("pod-security.kubernetes.io/{mode}");
            assert_eq!(labels.get(&label).map(String::as_str), Some("privileged"), "{folder}");
        }
        assert_eq!(
            only_of::<DaemonSet>(folder, "DaemonSet").metadata.namespace,
            namespace.name
        );
    }
}

#[test]
fn cleanup_goes_to_the_nodes_of_the_base_does_its_work_once_and_has_no_more_rights_than_it_needs() {
    let set = only_of::<DaemonSet>(CLEANUP, "DaemonSet");
    let cleanup = set.spec.template.spec.unwrap();
    let base = pod();
    assert_eq!(cleanup.node_selector, base.node_selector);
    assert_eq!(cleanup.tolerations, base.tolerations);
    assert_eq!(cleanup.affinity, base.affinity);
    assert_eq!(cleanup.host_network, Some(true), "the rules are there");
    assert_eq!(
        (cleanup.host_pid, cleanup.host_ipc, cleanup.volumes),
        (None, None, None)
    );
    // It asks the API server nothing, and so may ask it nothing.
    assert_eq!(cleanup.automount_service_account_token, Some(false));
    assert_eq!(cleanup.service_account_name, None);
    let labels = set.spec.template.metadata.unwrap().labels.unwrap();
    for (key, value) in set.spec.selector.match_labels.unwrap() {
        assert_eq!(labels.get(&key), Some(&value));
    }

    let mut first = cleanup.init_containers.unwrap();
    assert_eq!(first.len(), 1);
    let first = first.remove(0);
    assert_eq!(first.image, container().image);
    assert_eq!(first.command, None, "the image's entry point");
    assert_eq!(first.restart_policy, None, "once");
    one_capability(&first);
    let mut arguments = first.args.unwrap();
    assert_eq!(arguments, ["cleanup"]);
    arguments.push("--help".to_owned());
    let output = palisade(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // What comes after it only sleeps, as nobody.
    assert_eq!(cleanup.containers.len(), 1);
    let then = &cleanup.containers[0];
    assert_eq!(then.image, first.image);
    assert_eq!(
        then.command.as_deref(),
        Some(&["sleep", "infinity"].map(str::to_owned)[..])
    );
    let security = then.security_context.as_ref().unwrap();
    assert_eq!((security.run_as_non_root, security.privileged), (Some(true), None));
    assert_eq!(security.capabilities.as_ref().unwrap().add, None);
}

#[test]
fn a_node_is_replaced_in_place_and_only_some_at_a_time() {
    let set = only::<DaemonSet>("DaemonSet").spec;
    let strategy = set.update_strategy.unwrap();
    assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
    let rolling = strategy.rolling_update.unwrap();
    // Two agents on one node would undo each other's work, and want the same port.
    assert_eq!(rolling.max_surge, None);
    assert!(matches!(rolling.max_unavailable, Some(IntOrString::String(_))));
    // No hook removes the rules when a pod ends.
    assert_eq!(container().lifecycle, None);
    let labels = set.template.metadata.unwrap().labels.unwrap();
    for (key, value) in set.selector.match_labels.unwrap() {
        assert_eq!(labels.get(&key), Some(&value));
    }
}

#[test]
fn the_flags_are_the_programs() {
    let container = container();
    assert_eq!(container.command, None, "the image's entry point");
    let mut arguments = container.args.unwrap();
    let node = container.env.unwrap();
    let of_the_node = |e: &k8s_openapi::api::core::v1::EnvVar| {
        let source = e.value_from.as_ref().and_then(|v| v.field_ref.as_ref());
        e.name == "NODE_NAME" && source.is_some_and(|f| f.field_path == "spec.nodeName")
    };
    assert!(node.iter().any(of_the_node));
    assert!(
        arguments.contains(&"--node-name=$(NODE_NAME)".to_owned()),
        "{arguments:?}"
    );

    // Flags are read in order: one that does not exist ends it before the help is printed.
    arguments.push("--help".to_owned());
    let output = palisade(&arguments);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    arguments.insert(1, "--no-such-flag".to_owned());
    assert_eq!(palisade(&arguments).status.code(), Some(2));

    // The probes ask where the agent listens unless it is told otherwise.
    let probe = |probe: Option<k8s_openapi::api::core::v1::Probe>, path: &str| {
        let HTTPGetAction {
            host,
            port,
            path: asked,
            ..
        } = probe.unwrap().http_get.unwrap();
        assert_eq!(asked.as_deref(), Some(path));
        let IntOrString::Int(port) = port else {
            panic!("{port:?}")
        };
        let default = format!("[default: {}:{port}]", host.unwrap());
        assert!(help.contains(&default), "{help}");
    };
    probe(container.liveness_probe, "/healthz");
    probe(container.readiness_probe, "/readyz");
}

#[test]
fn the_image_is_of_this_version() {
    let tag = format!("palisade:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(container().image.as_deref(), Some(tag.as_str()));
    let read = |path: &str| std::fs::read_to_string(root().join(Path::new(path))).unwrap();
    assert!(read("deploy/Dockerfile").contains(&format!("-t {tag} ")));
    assert!(read("deploy/README.md").contains(&tag));
}

#[test]
fn the_image_is_built_with_the_rust_that_the_crate_needs_and_has_nft() {
    let dockerfile = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    let rust = format!("FROM rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(dockerfile.contains(&rust), "{dockerfile}");
    let (_, last) = dockerfile.rsplit_once("\nFROM ").unwrap();
    assert!(last.contains(" nftables"), "{last}");
    assert!(last.contains("ENTRYPOINT [\"/usr/local/bin/palisade\"]"), "{last}");
}
