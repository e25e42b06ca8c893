//! The search with a kernel that refuses what the tests say.

use policy_compiler::labels::Selector;
use policy_compiler::policy::{Direction, NamespaceScope, PodSelection};

use super::*;

fn policy(number: usize) -> Policy {
    let rule = Rule {
        action: Action::Accept,
        peers: Peers::All,
        ports: Ports::All,
    };
    Policy {
        enforcement: None,
        name: PolicyName {
            namespace: Some("shop".into()),
            name: format!("p{number:04}").into(),
        },
        tier: Tier::NetworkPolicy,
        subject: PodSelection {
            namespaces: NamespaceScope::Named("shop".into()),
            pods: Selector::default(),
        },
        ingress: Some(vec![rule]),
        egress: None,
    }
}

fn cluster(policies: usize) -> Cluster {
    let mut cluster = Cluster::default();
    (0..policies).for_each(|number| cluster.add_policy(policy(number)));
    cluster
}

fn open(policy: &Policy) -> bool {
    policy.rules(Direction::Ingress).is_some_and(|rules| !rules.is_empty())
}

/// Seeks the policies of these numbers; says which are closed in the end, and how many dry runs it took.
fn seek(cluster: &Cluster, before: &Policies, guilty: &[usize], isolation: &mut Isolation) -> (Vec<String>, usize) {
    let names: BTreeSet<PolicyName> = guilty.iter().map(|number| policy(*number).name).collect();
    let mut runs = 0;
    let found = isolation.seek(cluster, before, |candidate| {
        runs += 1;
        let refused = candidate.policies.values().any(|p| names.contains(&p.name) && open(p));
        match refused {
            true => Err(KernelError::Refused("as the test says".to_owned()).into()),
            false => Ok(()),
        }
    });
    let closed = isolation.close(cluster).map(|closed| {
        let closed = closed.policies.values().filter(|p| !open(p));
        closed.map(|p| p.name.name.to_string()).collect()
    });
    assert_eq!(found.expect("only refusals"), closed.is_some());
    (closed.unwrap_or_default(), runs)
}

#[track_caller]
fn check(policies: usize, before: &Policies, guilty: &[usize], expected: &[usize], most_runs: usize) {
    let cluster = cluster(policies);
    let (closed, runs) = seek(&cluster, before, guilty, &mut Isolation::default());
    let expected: Vec<String> = expected.iter().map(|n| policy(*n).name.name.to_string()).collect();
    assert_eq!(closed, expected);
    assert!(runs <= most_runs, "{runs} dry runs");
}

#[test]
fn the_refused_policies_are_found_and_no_others() {
    let none = Policies::new();
    check(1, &none, &[0], &[0], 2);
    check(2, &none, &[1], &[1], 3);
    check(7, &none, &[0, 6], &[0, 6], 10);
    check(1000, &none, &[513], &[513], 13);
    check(1000, &none, &[0], &[0], 13);
    check(1000, &none, &[999], &[999], 13);
    check(1000, &none, &[3, 4, 998], &[3, 4, 998], 36);
    for guilty in 0..20 {
        check(20, &none, &[guilty], &[guilty], 8);
    }
}

#[test]
fn what_has_changed_is_suspected_first() {
    let mut before = cluster(1000).policies;
    before.retain(|(_, name), _| *name != policy(700).name);
    check(1000, &before, &[700], &[700], 3);
    // The others are looked at when that does not help.
    check(1000, &before, &[3], &[3], 14);
}

#[test]
fn too_many_are_closed_together() {
    let none = Policies::new();
    let guilty: Vec<usize> = (10..100).collect();
    check(100, &none, &guilty, &guilty, 3 + 8 * MOST);
}

#[test]
fn too_many_of_one_namespace_close_nothing_elsewhere() {
    let mut cluster = cluster(20);
    let of = |number: usize, namespace: &str| Policy {
        name: PolicyName {
            namespace: Some(namespace.into()),
            ..policy(number).name
        },
        ..policy(number)
    };
    (0..20).for_each(|number| cluster.add_policy(of(number, "a-tenant")));
    let refused =
        |p: &Policy| p.name.namespace == of(0, "a-tenant").name.namespace && p.name.name != policy(3).name.name;
    let mut isolation = Isolation::default();
    let found = isolation.seek(&cluster, &Policies::new(), |candidate| {
        match candidate.policies.values().any(|p| refused(p) && open(p)) {
            true => Err(KernelError::Refused("as the test says".to_owned()).into()),
            false => Ok(()),
        }
    });
    assert!(found.expect("only refusals"));
    let closed = isolation.close(&cluster).expect("some are closed");
    let open_here = |namespace: &str| {
        let of = |p: &&Arc<Policy>| p.name.namespace == of(0, namespace).name.namespace && open(p);
        closed.policies.values().filter(of).count()
    };
    assert_eq!((open_here("shop"), open_here("a-tenant")), (20, 1));
}

#[test]
fn nobody_is_blamed_for_what_is_not_a_policys_fault() {
    let cluster = cluster(10);
    let mut isolation = Isolation::default();
    // Refused whatever is closed, and taken at the second look.
    for refuses in [true, false] {
        let found = isolation.seek(&cluster, &Policies::new(), |_| match refuses {
            true => Err(KernelError::Refused("always".to_owned()).into()),
            false => Ok(()),
        });
        assert!(!found.expect("only refusals"));
        assert_eq!((isolation.count(), isolation.close(&cluster)), (0, None));
    }
    // What is not a refusal ends the search.
    let found = isolation.seek(&cluster, &Policies::new(), |_| Err(KernelError::NotPermitted.into()));
    assert!(found.is_err());
    assert_eq!(isolation.count(), 0);
}

#[test]
fn a_policy_that_changes_or_goes_gets_its_chance() {
    let mut cluster = cluster(3);
    let mut isolation = Isolation::default();
    seek(&cluster, &Policies::new(), &[1], &mut isolation);
    assert_eq!(
        isolation.lines(),
        ["the kernel refuses the rules of NetworkPolicy shop/p0001: what only it allows is denied until it changes"]
    );
    // Another one beside it: the first stays closed.
    let (closed, _) = seek(&cluster, &Policies::new(), &[1, 2], &mut isolation);
    assert_eq!(closed, ["p0001", "p0002"]);
    cluster.add_policy(Policy {
        egress: Some(Vec::new()),
        ..policy(1)
    });
    let closed = isolation.close(&cluster).expect("one is left");
    assert!(closed.policies.values().all(|p| open(p) != (p.name == policy(2).name)));
    cluster.policies.remove(&(Tier::NetworkPolicy, policy(2).name));
    assert_eq!(isolation.close(&cluster), None);
}

#[test]
fn a_closed_policy_allows_nothing_and_denies_no_less() {
    let deny = Rule {
        action: Action::Deny,
        peers: Peers::Listed(Vec::new()),
        ports: Ports::All,
    };
    let everything = Rule {
        peers: Peers::All,
        ..deny.clone()
    };
    let accept = policy(0).ingress.expect("a rule");
    let admin = Tier::Admin { priority: 1 };
    for (tier, ingress, expected) in [
        (Tier::NetworkPolicy, accept.clone(), Vec::new()),
        (admin, accept.clone(), Vec::new()),
        (admin, [accept, vec![deny]].concat(), vec![everything]),
    ] {
        let before = Policy {
            tier,
            ingress: Some(ingress),
            ..policy(0)
        };
        let after = closed(&before);
        assert_eq!((after.ingress, after.egress), (Some(expected), None));
        assert_eq!((after.subject, after.tier), (before.subject, before.tier));
    }
}
