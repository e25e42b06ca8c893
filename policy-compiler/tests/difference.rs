//! What the comparison of two tables says is what two reference evaluators say, pair by pair and port by port, and nothing else.

use std::collections::BTreeSet;

use policy_compiler::cluster::{Cluster, Endpoint, Exemption, Pod, PodName, Workload};
use policy_compiler::compile::{Event, Subjects, compile};
use policy_compiler::difference::{
    Block, Differences, End, Pods, Revert, differences, ends, example, isolation, namespaces, policies,
};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::policy::Direction;
use policy_compiler::ports::Traffic;
use policy_compiler::table::Table;
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;

/// All that both clusters have: their pods, and addresses that are no pod's in either.
fn all_ends(before: (&Cluster, &Table), after: (&Cluster, &Table), pods: &Pods) -> Vec<End> {
    let mut all: BTreeSet<End> = pods
        .both
        .iter()
        .flat_map(|pair| ends(before.1, after.1, pair))
        .collect();
    for end in testing::endpoints(before.0, before.1)
        .into_iter()
        .chain(testing::endpoints(after.0, after.1))
    {
        let Endpoint::Address(address) = end else { continue };
        let no_pod = [before.1, after.1]
            .iter()
            .all(|table| table.addresses().pod(address).is_none());
        if no_pod {
            all.insert(End {
                before: Endpoint::Address(address),
                after: Endpoint::Address(address),
            });
        }
    }
    all.into_iter().collect()
}

/// Gives pods a workload by their label, and other names in the second cluster.
fn roll_out(cluster: &mut Cluster, suffix: &str) {
    let pods: Vec<Pod> = cluster.pods.values().map(|pod| (**pod).clone()).collect();
    cluster.pods.clear();
    for pod in pods {
        let workload = pod.labels.get("app").map(|app| Workload {
            kind: "deployment".into(),
            name: format!("app-{app}").into(),
        });
        let name = match workload {
            Some(_) => format!("{}{suffix}", pod.name.name),
            None => pod.name.name.to_string(),
        };
        cluster.add_pod(Pod {
            name: PodName {
                namespace: pod.name.namespace.clone(),
                name: name.into(),
            },
            workload,
            ..pod
        });
    }
}

/// What changed on one pair and port: opened, closed, told, untold; none when there is nothing to compare.
fn brute(evaluators: &[Evaluator<'_>; 2], from: &End, to: &End, traffic: Traffic) -> Option<([bool; 4], bool)> {
    let [was, is] = [
        evaluators[0].decide(&from.before, &to.before, traffic),
        evaluators[1].decide(&from.after, &to.after, traffic),
    ];
    let nothing = was.no_common_family || is.no_common_family || was.exemption == Some(Exemption::Itself);
    let told = [&was, &is].map(|d| d.allowed && !d.would_be_allowed());
    let own_node = was.exemption != is.exemption;
    (!nothing).then_some((
        [
            is.allowed && !was.allowed,
            was.allowed && !is.allowed,
            told[1] && !told[0],
            told[0] && !told[1],
        ],
        own_node,
    ))
}

fn check(before: &Cluster, after: &Cluster) -> Result<(), TestCaseError> {
    let tables = [before, after].map(|cluster| compile(cluster, &Subjects::All));
    let pods = Pods::new(before, after);
    let live = |cluster: &Cluster| cluster.pods.values().filter(|p| !p.ended).count();
    prop_assert_eq!(pods.both.len() + pods.removed.len(), live(before));
    prop_assert_eq!(pods.both.len() + pods.added.len(), live(after));

    let ends = all_ends((before, &tables[0]), (after, &tables[1]), &pods);
    let found = differences(&tables[0], &tables[1], &ends);
    let evaluators = [before, after].map(Evaluator::new);
    let lists: [&Vec<Block>; 4] = [&found.opened, &found.closed, &found.told, &found.untold];
    let mut differs = false;
    for (at_from, from) in ends.iter().enumerate() {
        for (at_to, to) in ends.iter().enumerate() {
            let holding = lists.map(|list| {
                let holds = |b: &&Block| b.from.binary_search(&at_from).is_ok() && b.to.binary_search(&at_to).is_ok();
                list.iter().filter(holds).collect::<Vec<_>>()
            });
            for traffic in testing::traffics() {
                let Some((expected, own_node)) = brute(&evaluators, from, to, traffic) else {
                    break;
                };
                differs |= expected.contains(&true);
                for (blocks, expected) in holding.iter().zip(expected) {
                    let speak = |b: &&&Block| b.ports.contains(traffic) && b.own_node == own_node;
                    // Of a pair that is exempt in both, a block that holds it does not speak.
                    let exempt = own_node
                        || evaluators[0]
                            .decide(&from.before, &to.before, traffic)
                            .exemption
                            .is_none();
                    let found = blocks.iter().filter(speak).filter(|_| exempt).count();
                    prop_assert_eq!(found, usize::from(expected), "{:?} -> {:?} on {}", from, to, traffic);
                }
            }
        }
    }
    prop_assert_eq!(found.is_empty(), !differs);
    for (at, list) in lists.into_iter().enumerate() {
        for block in list {
            let pair = example(&tables[0], &tables[1], &ends, block);
            let (from, to) = pair.expect("every block has a pair that it speaks of");
            let traffic = block.ports.example().expect("every block has a port");
            let (changed, own_node) = brute(&evaluators, from, to, traffic).expect("a pair to compare");
            prop_assert!(changed[at] && own_node == block.own_node);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// After a few changes.
    #[test]
    fn a_history_is_told_pair_by_pair((before, events) in testing::history(6), rolled in any::<bool>()) {
        let (mut before, mut after) = (before.clone(), before);
        events.into_iter().for_each(|event| event.apply_to(&mut after));
        if rolled {
            roll_out(&mut before, "-old");
            roll_out(&mut after, "-new");
        }
        check(&before, &after)?;
    }

    /// Of two clusters that have little in common.
    #[test]
    fn two_clusters_are_told_pair_by_pair(before in testing::cluster(Tiers::All), after in testing::cluster(Tiers::All)) {
        check(&before, &after)?;
    }

    /// Who is isolated in which cluster.
    #[test]
    fn isolation_is_the_evaluators(before in testing::cluster(Tiers::All), after in testing::cluster(Tiers::All)) {
        let tables = [&before, &after].map(|cluster| compile(cluster, &Subjects::All));
        let pods = Pods::new(&before, &after);
        let found = isolation(&tables[0], &tables[1], &pods);
        let evaluators = [&before, &after].map(Evaluator::new);
        let outside = Endpoint::Address("192.0.2.1".parse().expect("an address"));
        for (at, (old, new)) in pods.both.iter().enumerate() {
            let sides = |evaluator: &Evaluator<'_>, pod: &std::sync::Arc<Pod>| {
                let pod = Endpoint::Pod(pod.clone(), None);
                let isolating = |from, to| evaluator.decide(from, to, Traffic::Other);
                [isolating(&outside, &pod).ingress.isolated_by, isolating(&pod, &outside).egress.isolated_by]
            };
            let (was, is) = (sides(&evaluators[0], old), sides(&evaluators[1], new));
            for ((direction, was), is) in Direction::BOTH.into_iter().zip(was).zip(is) {
                let about: Vec<_> = found.iter().filter(|i| i.direction == direction && i.pods.contains(&at)).collect();
                if was.is_empty() == is.is_empty() {
                    prop_assert!(about.is_empty());
                } else {
                    prop_assert_eq!(about.len(), 1);
                    prop_assert_eq!(about[0].isolated, was.is_empty());
                    prop_assert_eq!(&about[0].policies, if was.is_empty() { &is } else { &was });
                }
            }
        }
    }

    /// A change is said to be without effect when, and only when, the cluster without it is the same to every connection.
    #[test]
    fn effects_are_those_of_the_cluster_without_the_change((before, events) in testing::history(8)) {
        let mut after = before.clone();
        events.into_iter().for_each(|event| event.apply_to(&mut after));
        let pods = Pods::new(&after, &after);
        let table = compile(&after, &Subjects::All);
        let ends = all_ends((&before, &table), (&after, &table), &pods);
        let (policies, namespaces) = (policies(&before, &after), namespaces(&before, &after));
        let reverts: Vec<Revert> = policies.iter().map(Revert::from).chain(namespaces.iter().map(Revert::from)).collect();
        // New pods are looked at without being asked for.
        let known = |end: &&End| end.after.pod().is_none_or(|pod| before.pods.contains_key(&pod.name));
        let given: Vec<End> = ends.iter().filter(known).cloned().collect();
        let found = Revert::effects(&reverts, &after, &table, &given);
        let mut without: Vec<Cluster> = Vec::new();
        for object in &policies {
            let mut cluster = after.clone();
            if let Some(policy) = &object.after {
                Event::PolicyGone(policy.tier, policy.name.clone()).apply_to(&mut cluster);
            }
            object.before.iter().for_each(|policy| cluster.add_policy((**policy).clone()));
            without.push(cluster);
        }
        for object in &namespaces {
            let mut cluster = after.clone();
            match (&object.before, &object.after) {
                (Some(namespace), _) => cluster.add_namespace((**namespace).clone()),
                (None, Some(namespace)) => drop(cluster.namespaces.remove(&namespace.name)),
                (None, None) => {}
            }
            without.push(cluster);
        }
        let expected: Vec<bool> = without
            .iter()
            .map(|cluster| {
                let other = compile(cluster, &Subjects::All);
                differences(&other, &table, &ends) != Differences::default() || !isolation(&other, &table, &pods).is_empty()
            })
            .collect();
        prop_assert_eq!(&found, &expected);
        // What is about no pod has no effect.
        let about = policies.iter().map(|p| p.selects_any(&table)).chain(namespaces.iter().map(|n| n.holds_any(&table)));
        for (about, effect) in about.zip(found) {
            prop_assert!(about || !effect);
        }
    }

    /// A cluster does not differ from itself.
    #[test]
    fn nothing_differs_from_itself(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        let pods = Pods::new(&cluster, &cluster);
        let ends = all_ends((&cluster, &table), (&cluster, &table), &pods);
        prop_assert!(differences(&table, &table, &ends).is_empty());
        prop_assert!(isolation(&table, &table, &pods).is_empty());
        prop_assert!(policies(&cluster, &cluster).is_empty() && namespaces(&cluster, &cluster).is_empty());
    }
}
