//! What the linter proves redundant, on random clusters: without all of it nothing is different, and of what stays no policy could go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use policy_compiler::cells::{AddressRange, predecessor, successor};
use policy_compiler::cluster::{Cluster, Endpoint, Pod, PodName};
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::convert::Segment;
use policy_compiler::diagnostics::{Code, Diagnostic, ObjectName, Severity};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::labels::{Labels, Selector};
use policy_compiler::lint::lint;
use policy_compiler::policy::{
    Action, Direction, Enforcement, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, Ports, Rule, Tier,
};
use policy_compiler::ports::PortSet;
use policy_compiler::table::Table;
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;

/// Every end that matters, and addresses near each boundary: those at it may all be pods'.
fn ends(cluster: &Cluster, table: &Table) -> Vec<Endpoint> {
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    let rules = cluster
        .policies
        .values()
        .flat_map(|p| p.ingress.iter().chain(&p.egress).flatten());
    for rule in rules {
        let Peers::Listed(peers) = &rule.peers else { continue };
        let blocks = peers.iter().filter_map(|peer| match peer {
            Peer::Block(block) => Some(block),
            Peer::Pods(_) => None,
        });
        for net in blocks.flat_map(|block| [block.cidr].into_iter().chain(block.except.iter().copied())) {
            let AddressRange { first, last } = AddressRange::of(&net);
            let (mut up, mut down) = (predecessor(first).or(Some(first)), successor(last).or(Some(last)));
            for _ in 0..6 {
                addresses.extend(up.into_iter().chain(down));
                (up, down) = (up.and_then(successor), down.and_then(predecessor));
            }
        }
    }
    let near = addresses.into_iter().map(|address| table.addresses().endpoint(address));
    let all: BTreeSet<Endpoint> = near.chain(testing::endpoints(cluster, table)).collect();
    all.into_iter().collect()
}

/// What every pod may do with every end, by the table.
fn sides(cluster: &Cluster, ends: &[Endpoint]) -> Vec<PortSet> {
    let table = compile(cluster, &Subjects::All);
    let pods = ends.iter().filter(|end| end.pod().is_some());
    let pairs = pods.flat_map(|pod| ends.iter().map(move |end| (pod, end)));
    pairs
        .flat_map(|(pod, end)| Direction::BOTH.map(|direction| table.side(direction, pod, end)))
        .collect()
}

/// The same by the reference evaluator, one connection at a time.
fn verdicts(cluster: &Cluster, ends: &[Endpoint]) -> Vec<[bool; 2]> {
    let evaluator = Evaluator::new(cluster);
    let pods = ends.iter().filter(|end| end.pod().is_some());
    let pairs = pods.flat_map(|pod| ends.iter().map(move |end| (pod, end)));
    let traffics = testing::traffics();
    let all = pairs.flat_map(|(pod, end)| traffics.iter().map(move |traffic| (pod, end, *traffic)));
    all.map(|(pod, end, traffic)| {
        let sent = evaluator.decide(pod, end, traffic);
        let received = evaluator.decide(end, pod, traffic);
        [sent.egress.allowed, received.ingress.allowed]
    })
    .collect()
}

fn of<'d>(found: &'d [Diagnostic], policy: &Policy, code: Code) -> impl Iterator<Item = &'d Diagnostic> {
    let name = ObjectName::of_policy(policy);
    found.iter().filter(move |d| d.code == code && d.object == name)
}

/// The cluster without all that is reported to be redundant.
fn without(cluster: &Cluster, found: &[Diagnostic]) -> Cluster {
    let mut rest = cluster.clone();
    rest.policies
        .retain(|_, policy| of(found, policy, Code::RedundantPolicy).next().is_none());
    for policy in rest.policies.values_mut() {
        let rules: BTreeSet<(String, usize)> = of(found, policy, Code::RedundantRule)
            .map(|d| match d.field.segments() {
                [_, Segment::Field(direction), Segment::Index(at)] => (direction.clone(), *at),
                other => panic!("{other:?} is no rule"),
            })
            .collect();
        let policy = Arc::make_mut(policy);
        for (direction, at) in rules.iter().rev() {
            match direction.as_str() {
                "ingress" => policy.ingress.as_mut().map(|rules| rules.remove(*at)),
                _ => policy.egress.as_mut().map(|rules| rules.remove(*at)),
            };
        }
    }
    rest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn without_all_that_is_redundant_nothing_is_different(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        let ends = ends(&cluster, &table);
        let found = lint(&cluster, &table);
        let all = sides(&cluster, &ends);
        prop_assert!(sides(&without(&cluster, &found), &ends) == all);
        for one in found {
            let rest = without(&cluster, std::slice::from_ref(&one));
            prop_assert!(sides(&rest, &ends) == all, "{}", one);
        }
    }

    /// What is a warning follows from the policies' text: with other pods the same may go.
    #[test]
    fn what_is_a_warning_holds_for_other_pods_too(cluster in testing::cluster(Tiers::NetworkPolicy), other in testing::cluster(Tiers::NetworkPolicy)) {
        let mut found = lint(&cluster, &compile(&cluster, &Subjects::All));
        found.retain(|one| one.severity == Severity::Warning);
        let mut with_other_pods = other;
        with_other_pods.policies = cluster.policies;
        for (name, namespace) in cluster.namespaces {
            // Whether policies are audited is said of their namespace.
            with_other_pods.namespaces.insert(name, namespace);
        }
        let table = compile(&with_other_pods, &Subjects::All);
        let ends = ends(&with_other_pods, &table);
        let all = sides(&with_other_pods, &ends);
        prop_assert!(sides(&without(&with_other_pods, &found), &ends) == all);
    }

    /// Each could go now, or could once the others are gone; what could go in both cases is reported.
    #[test]
    fn of_what_stays_no_policy_could_go(cluster in testing::cluster(Tiers::NetworkPolicy)) {
        let table = compile(&cluster, &Subjects::All);
        let ends = ends(&cluster, &table);
        let found = lint(&cluster, &table);
        let rest = without(&cluster, &found);
        let (all, without_it) = (sides(&rest, &ends), |cluster: &Cluster, key| {
            let mut fewer = cluster.clone();
            fewer.policies.remove(key);
            sides(&fewer, &ends)
        });
        for (key, policy) in &rest.policies {
            let speaks = policy.ingress.is_some() || policy.egress.is_some();
            let selects = of(&found, policy, Code::SelectsNoPod).next().is_none();
            if speaks && selects && cluster.enforcement(policy) == Enforcement::Enforce && key.0 == Tier::NetworkPolicy {
                let could_go = without_it(&rest, key) == all && without_it(&cluster, key) == all;
                prop_assert!(!could_go, "{} could go", policy.name);
            }
        }
    }
}

proptest! {
    // The evaluator is slow, and held equal to the table elsewhere.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_evaluator_sees_no_difference_either(cluster in testing::cluster(Tiers::NetworkPolicy)) {
        let table = compile(&cluster, &Subjects::All);
        let ends = testing::endpoints(&cluster, &table);
        let rest = without(&cluster, &lint(&cluster, &table));
        prop_assert!(verdicts(&cluster, &ends) == verdicts(&rest, &ends));
    }
}

/// Of two policies that allow everything the later goes since the other does the same, and then the other since without it all is
/// allowed as well. Beside one that allows nothing it has to stay.
#[test]
fn of_two_that_allow_everything_neither_has_to_stay() {
    let everything = Rule {
        action: Action::Accept,
        peers: Peers::All,
        ports: Ports::All,
    };
    let redundant = |rules: [&[Rule]; 2]| {
        let mut cluster = Cluster::default();
        cluster.add_pod(Pod {
            name: PodName {
                namespace: "x".into(),
                name: "pod".into(),
            },
            labels: Labels::default(),
            addresses: Vec::new(),
            node: None,
            host_network: false,
            ended: false,
            started: None,
            ports: Vec::new(),
            workload: None,
        });
        for (name, egress) in ["a", "b"].into_iter().zip(rules) {
            cluster.add_policy(Policy {
                name: PolicyName {
                    namespace: Some("x".into()),
                    name: name.into(),
                },
                tier: Tier::NetworkPolicy,
                enforcement: None,
                subject: PodSelection {
                    namespaces: NamespaceScope::Named("x".into()),
                    pods: Selector::everything(),
                },
                ingress: None,
                egress: Some(egress.to_vec()),
            });
        }
        let found = lint(&cluster, &compile(&cluster, &Subjects::All));
        let found = found.iter().filter(|d| d.code == Code::RedundantPolicy);
        let found: BTreeSet<String> = found.map(|d| format!("{:?} {}", d.severity, d.object)).collect();
        found.into_iter().collect::<Vec<_>>()
    };
    let all = std::slice::from_ref(&everything);
    assert_eq!(
        redundant([all, all]),
        ["Note NetworkPolicy x/a", "Warning NetworkPolicy x/b"]
    );
    assert_eq!(redundant([all, &[]]), ["Note NetworkPolicy x/b"]);
    assert_eq!(redundant([&[], all]), ["Note NetworkPolicy x/a"]);
}
