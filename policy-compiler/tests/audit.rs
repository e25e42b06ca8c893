//! Policies on trial, one scenario each: what is in force, what is told, and what an event changes.

use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Namespace, Pod, PodName};
use policy_compiler::compile::{Compiler, Event, Subjects, compile};
use policy_compiler::diagnostics::diagnose;
use policy_compiler::evaluate::{Decision, Evaluator};
use policy_compiler::labels::{Labels, Selector};
use policy_compiler::policy::{
    Action, Direction, Enforcement, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, Ports, Rule, Tier,
};
use policy_compiler::ports::{PortSet, Protocol, Traffic};
use policy_compiler::table::{Group, Table};

const TCP_80: Traffic = Traffic::Port(Protocol::Tcp, 80);

fn name(pod: &str) -> PodName {
    PodName {
        namespace: "shop".into(),
        name: pod.into(),
    }
}

/// Pods of the shop, by their label `app`.
fn selection(app: Option<&str>) -> PodSelection {
    PodSelection {
        namespaces: NamespaceScope::Named("shop".into()),
        pods: app.map_or_else(Selector::everything, |app| Selector::labels([("app", app)])),
    }
}

/// A policy of the shop that admits pods of this app.
fn policy(policy: &str, subject: Option<&str>, from: Option<&str>, enforcement: Option<Enforcement>) -> Policy {
    let rule = |app| Rule {
        action: Action::Accept,
        peers: Peers::Listed(vec![Peer::Pods(selection(Some(app)))]),
        ports: Ports::All,
    };
    Policy {
        name: PolicyName {
            namespace: Some("shop".into()),
            name: policy.into(),
        },
        tier: Tier::NetworkPolicy,
        enforcement,
        subject: selection(subject),
        ingress: Some(from.map(rule).into_iter().collect()),
        egress: None,
    }
}

/// The pods api, db and web of the namespace shop, without an annotation there, and these policies.
fn shop(policies: impl IntoIterator<Item = Policy>) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.add_namespace(Namespace::new("shop", Labels::default()));
    for (app, address) in [("api", "10.0.0.1"), ("db", "10.0.0.2"), ("web", "10.0.0.3")] {
        cluster.add_pod(Pod {
            name: name(app),
            labels: [("app", app)].into_iter().collect(),
            addresses: vec![address.parse().expect("an address")],
            ..Pod::default()
        });
    }
    policies.into_iter().for_each(|p| cluster.add_policy(p));
    cluster
}

/// The namespace shop, annotated.
fn annotated(enforcement: Option<Enforcement>) -> Namespace {
    Namespace {
        enforcement,
        ..Namespace::new("shop", Labels::default())
    }
}

fn decide(cluster: &Cluster, from: &str, to: &str) -> Decision {
    let evaluator = Evaluator::new(cluster);
    let end = |pod: &str| evaluator.addresses().endpoints(&cluster.pods[&name(pod)])[0].clone();
    evaluator.decide(&end(from), &end(to), TCP_80)
}

fn group<'t>(table: &'t Table, pod: &str) -> Option<&'t Group> {
    let half = table.half(Direction::Ingress);
    half.group_of(table.pod_index(&name(pod))?).map(|id| half.group(id))
}

/// What a connection to a pod comes to, in a sentence, and the table says so too.
#[track_caller]
fn check(cluster: &Cluster, from: &str, to: &str, allowed: bool, sentence: &str) {
    let decision = decide(cluster, from, to);
    assert_eq!((decision.allowed, &*decision.to_string()), (allowed, sentence));
    let table = compile(cluster, &Subjects::All);
    let [from, to] = [from, to].map(|pod| table.addresses().endpoints(&cluster.pods[&name(pod)])[0].clone());
    assert_eq!(table.allowed(&from, &to).contains(TCP_80), allowed);
    assert_eq!(
        table.would_allow(&from, &to).contains(TCP_80),
        decision.would_be_allowed()
    );
}

#[track_caller]
fn check_findings(cluster: &Cluster, expected: &[&str]) {
    let found = diagnose(cluster, &compile(cluster, &Subjects::All));
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
}

const AUDIT: Option<Enforcement> = Some(Enforcement::Audit);
const NOTED: &str = "note: NetworkPolicy shop/trial: is audited, as its annotation asks: it denies nothing, and what it would deny is \
                     recorded [audited-policy]";

#[test]
fn an_audited_policy_denies_nothing_and_says_what_it_would() {
    let cluster = shop([policy("trial", Some("db"), Some("api"), AUDIT)]);
    check(
        &cluster,
        "web",
        "db",
        true,
        "egress not isolated; ingress not isolated (audit: would be denied by shop/trial, no rule admits it; \
         nearest: shop/trial ingress[0] wants labels app=api, the peer has app=web)",
    );
    check(
        &cluster,
        "api",
        "db",
        true,
        "egress not isolated; ingress not isolated (audit: would be allowed by shop/trial ingress[0])",
    );
    let denied_by = |from| {
        decide(&cluster, from, "db")
            .would_be_denied_by()
            .into_iter()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!((denied_by("web").len(), denied_by("api").len()), (1, 0));
    let table = compile(&cluster, &Subjects::All);
    let db = group(&table, "db").expect("a group");
    assert!(db.audited && !db.isolated);
    // The cells of the group stay what its policies allow: whoever renders them needs both.
    let half = table.half(Direction::Ingress);
    let (id, _) = half.groups().next().expect("one group");
    let of = |address: &str| half.ports(id, half.class_of_address(address.parse().expect("an address")));
    assert_eq!((of("10.0.0.1"), of("10.0.0.3")), (&PortSet::all(), &PortSet::none()));
    check_findings(&cluster, &[NOTED]);
}

#[test]
fn beside_policies_in_force_there_is_nothing_to_observe() {
    let trial = policy("trial", Some("db"), Some("web"), AUDIT);
    let cluster = shop([trial.clone(), policy("deny-all", None, None, None)]);
    check(
        &cluster,
        "web",
        "db",
        false,
        "ingress isolated by shop/deny-all and no rule admits it",
    );
    let table = compile(&cluster, &Subjects::All);
    let db = group(&table, "db").expect("a group");
    assert!(db.isolated && !db.audited);
    let nothing = "warning: NetworkPolicy shop/trial: ingress: policies in force isolate every pod that it selects, so that it could only \
                   allow more: there is nothing to observe [nothing-to-audit]";
    check_findings(&cluster, &[nothing, NOTED]);

    // Of the pods that it selects, one is judged by nothing else.
    let wider = Policy {
        subject: selection(None),
        ..trial
    };
    let cluster = shop([wider, policy("db", Some("db"), None, None)]);
    check_findings(&cluster, &[NOTED]);
    assert!(decide(&cluster, "api", "web").allowed && !decide(&cluster, "api", "web").would_be_allowed());
    assert!(!decide(&cluster, "api", "db").allowed);
}

#[test]
fn beside_cluster_wide_policies_audit_is_left_out() {
    let cluster = shop([
        policy("trial", Some("db"), Some("api"), AUDIT),
        Policy {
            name: PolicyName {
                namespace: None,
                name: "baseline".into(),
            },
            tier: Tier::Baseline { priority: 0 },
            ingress: Some(vec![Rule {
                action: Action::Deny,
                peers: Peers::Listed(vec![Peer::Pods(selection(Some("api")))]),
                ports: Ports::All,
            }]),
            ..policy("baseline", None, None, None)
        },
    ]);
    check(&cluster, "api", "db", false, "ingress denied by baseline ingress[0]");
    check(&cluster, "web", "db", true, "egress not isolated; ingress not isolated");
    let left_out = "warning: NetworkPolicy shop/trial: ingress: cluster-wide policies judge pods that it selects, and there it is left \
                    out of the audit [audit-beside-other-tier]";
    check_findings(&cluster, &[left_out, NOTED]);
}

#[test]
fn a_policy_that_selects_nobody_is_not_taken_for_one_without_effect() {
    let cluster = shop([policy("trial", Some("nobody"), None, AUDIT)]);
    let nobody = "warning: NetworkPolicy shop/trial: spec.podSelector: selects no pod: there are no pods app=nobody in namespace shop [selects-no-pod]";
    check_findings(&cluster, &[nobody, NOTED]);
}

/// A namespace that takes its word back puts the pods of its policies under them, and no others.
#[test]
fn the_mode_of_a_namespace_regroups_the_pods_of_its_policies() {
    let own = policy("own-word", Some("web"), None, Some(Enforcement::Enforce));
    let start = shop([policy("db", Some("db"), Some("api"), None), own]);
    let mut compiler = Compiler::new(&start, Subjects::All);
    let db = compiler.table().pod_index(&name("db")).expect("a pod");
    for (step, audited, changes_something) in [
        (AUDIT, true, true),
        (AUDIT, true, false),
        (None, false, true),
        // The default, said aloud.
        (Some(Enforcement::Enforce), false, false),
        (AUDIT, true, true),
    ] {
        let changes = compiler.apply(Event::Namespace(Arc::new(annotated(step))));
        let ingress = changes.half(Direction::Ingress);
        assert_eq!(changes.is_empty(), !changes_something, "{step:?}");
        if changes_something {
            assert_eq!(ingress.subjects.iter().collect::<Vec<_>>(), [&db], "{step:?}");
            let now = compiler.table().half(Direction::Ingress).group_of(db).expect("a group");
            assert!(ingress.groups.contains(&now), "{step:?}");
        }
        assert_eq!(
            group(compiler.table(), "db").map(|g| g.audited),
            Some(audited),
            "{step:?}"
        );
        assert_eq!(
            group(compiler.table(), "web").map(|g| g.audited),
            Some(false),
            "{step:?}"
        );
    }
    compiler.apply(Event::NamespaceGone("shop".into()));
    assert_eq!(group(compiler.table(), "db").map(|g| g.audited), Some(false));
}

/// Also where only a snapshot tells of it, as a folder of manifests does.
#[test]
fn a_snapshot_in_which_only_the_mode_of_a_namespace_differs_is_followed() {
    let mut cluster = shop([policy("db", Some("db"), Some("api"), None)]);
    let mut compiler = Compiler::new(&cluster, Subjects::All);
    for (step, audited) in [
        (AUDIT, true),
        (Some(Enforcement::Enforce), false),
        (AUDIT, true),
        (None, false),
    ] {
        cluster.add_namespace(annotated(step));
        for event in compiler.events_to(&cluster) {
            compiler.apply(event);
        }
        let db = group(compiler.table(), "db").map(|g| g.audited);
        assert_eq!(db, Some(audited), "{step:?}");
        assert_eq!(compiler.events_to(&cluster), []);
    }
}

#[test]
fn a_policy_goes_on_trial_and_comes_into_force() {
    let mut cluster = shop([]);
    let mut compiler = Compiler::new(&cluster, Subjects::All);
    for (enforcement, audited) in [(AUDIT, true), (None, false), (AUDIT, true)] {
        let policy = policy("trial", Some("db"), Some("api"), enforcement);
        cluster.add_policy(policy.clone());
        let changes = compiler.apply(Event::Policy(Arc::new(policy)));
        assert!(!changes.half(Direction::Ingress).groups.is_empty());
        assert_eq!(group(compiler.table(), "db").map(|g| g.audited), Some(audited));
        assert_eq!(decide(&cluster, "web", "db").allowed, audited);
    }
}
