//! The compiler against the reference evaluator, on random clusters.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Endpoint, PodName};
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::policy::{Direction, Enforcement};
use policy_compiler::ports::PortSet;
use policy_compiler::table::{ClassId, Kind, Table};
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;

/// Every pair of ends on every port that matters.
#[track_caller]
fn check_equal(cluster: &Cluster) -> Result<(), TestCaseError> {
    let table = compile(cluster, &Subjects::All);
    let evaluator = Evaluator::new(cluster);
    let ends = testing::endpoints(cluster, &table);
    let traffics = testing::traffics();
    for from in &ends {
        for to in &ends {
            let (allowed, would) = (table.allowed(from, to), table.would_allow(from, to));
            prop_assert!(allowed.contains_all(&would), "audit adds nothing: {} -> {}", from, to);
            for traffic in &traffics {
                let decision = evaluator.decide(from, to, *traffic);
                prop_assert_eq!(
                    allowed.contains(*traffic),
                    decision.allowed,
                    "{} -> {} on {}: {}",
                    from,
                    to,
                    traffic,
                    decision
                );
                prop_assert_eq!(
                    would.contains(*traffic),
                    decision.would_be_allowed(),
                    "audit of {} -> {} on {}: {}",
                    from,
                    to,
                    traffic,
                    decision
                );
                let told = !decision.would_be_denied_by().is_empty();
                prop_assert_eq!(told, decision.allowed && !decision.would_be_allowed());
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn compiled_answer_is_the_evaluators(cluster in testing::cluster(Tiers::NetworkPolicy)) {
        check_equal(&cluster)?;
    }

    #[test]
    fn compiled_answer_is_the_evaluators_in_all_tiers(cluster in testing::cluster(Tiers::All)) {
        check_equal(&cluster)?;
    }

    /// A node's table says of its own pods what the whole cluster's table says.
    #[test]
    fn one_node_is_a_part_of_the_whole(cluster in testing::cluster(Tiers::All)) {
        let whole = compile(&cluster, &Subjects::All);
        for node in cluster.nodes.keys() {
            let part = compile(&cluster, &Subjects::Node(node.clone()));
            for (index, pod) in whole.pods() {
                for direction in Direction::BOTH {
                    if pod.node.as_ref() == Some(node) {
                        prop_assert_eq!(part.allow_set(index, direction), whole.allow_set(index, direction));
                    } else {
                        prop_assert_eq!(part.half(direction).group_of(index), None);
                    }
                }
            }
        }
    }

    /// In force, an audited policy is as good as none.
    #[test]
    fn audited_policies_change_nothing_in_force(cluster in testing::cluster(Tiers::All)) {
        let mut without = cluster.clone();
        without.policies.retain(|_, p| cluster.enforcement(p) == Enforcement::Enforce);
        let (with, without) = (compile(&cluster, &Subjects::All), compile(&without, &Subjects::All));
        for direction in Direction::BOTH {
            for (index, pod) in with.pods() {
                prop_assert_eq!(with.allow_set(index, direction), without.allow_set(index, direction), "{} {}", &pod.name, direction);
            }
        }
    }

    /// What audit says would pass is what passes once all of its policies are in force, as far as these alone judge.
    #[test]
    fn an_audited_allow_set_is_that_of_the_policies_in_force(cluster in testing::cluster(Tiers::All)) {
        let mut enforced = cluster.clone();
        for namespace in enforced.namespaces.values_mut() {
            Arc::make_mut(namespace).enforcement = None;
        }
        for policy in enforced.policies.values_mut() {
            Arc::make_mut(policy).enforcement = None;
        }
        let (audited, enforced) = (compile(&cluster, &Subjects::All), compile(&enforced, &Subjects::All));
        for direction in Direction::BOTH {
            for (index, _) in audited.pods() {
                if let Some(set) = audited.audited_allow_set(index, direction) {
                    prop_assert_eq!(set, enforced.allow_set(index, direction));
                }
            }
        }
    }

    /// What a default promises, every cell keeps; a class is there once; the address space is covered.
    #[test]
    fn tables_are_canonical(cluster in testing::cluster(Tiers::All)) {
        let table = compile(&cluster, &Subjects::All);
        for direction in Direction::BOTH {
            let half = table.half(direction);
            let mut seen: BTreeMap<(Kind, Vec<PortSet>), ClassId> = BTreeMap::new();
            for (id, class) in half.classes() {
                let groups = half.groups().map(|(id, _)| id).collect::<Vec<_>>();
                let groups = groups.into_iter();
                let column: Vec<PortSet> = groups.clone().map(|g| half.ports(g, id).clone()).collect();
                prop_assert_eq!(seen.insert((class.kind, column), id), None, "two classes of one meaning");
                for group in groups {
                    prop_assert!(half.ports(group, id).contains_all(half.default_ports(group, class.kind)));
                }
            }
            let mut next: Option<IpAddr> = Some("0.0.0.0".parse().unwrap());
            for cell in half.cells() {
                prop_assert_eq!(Some(cell.range.first), next);
                next = match cell.range.last {
                    IpAddr::V4(a) if a.is_broadcast() => Some("::".parse().unwrap()),
                    IpAddr::V4(a) => Some(std::net::Ipv4Addr::from_bits(a.to_bits() + 1).into()),
                    IpAddr::V6(a) => a.to_bits().checked_add(1).map(|b| std::net::Ipv6Addr::from_bits(b).into()),
                };
            }
            prop_assert_eq!(next, None, "the cells end at the last address");
        }
    }

    /// An allow set says peer by peer what the table says, and equal meanings are equal values.
    #[test]
    fn allow_sets_are_views_of_the_table(cluster in testing::cluster(Tiers::NetworkPolicy)) {
        let table = compile(&cluster, &Subjects::All);
        let ends = testing::endpoints(&cluster, &table);
        for (index, pod) in table.pods() {
            if pod.host_network {
                continue;
            }
            let subject = Endpoint::Pod(pod.clone(), pod.addresses.first().copied());
            for direction in Direction::BOTH {
                let set = table.allow_set(index, direction);
                for peer in &ends {
                    let key = peer.pod().map(|p| (p.name.clone(), peer.address()));
                    let ports = match (key, peer.address()) {
                        (Some(key), _) => set.pods.get(&key).cloned().unwrap_or_default(),
                        (None, Some(address)) => {
                            let range = set.addresses.iter().find(|(range, _)| range.contains(address));
                            range.map(|(_, ports)| ports.clone()).unwrap_or_default()
                        }
                        (None, None) => continue,
                    };
                    prop_assert_eq!(ports, table.side(direction, &subject, peer), "{} {} {}", pod.name, direction, peer);
                }
            }
        }
    }

    /// The order in which objects come does not matter, nor does saying a rule twice.
    #[test]
    fn equal_meaning_is_equal_value(cluster in testing::cluster(Tiers::NetworkPolicy)) {
        let mut twice = cluster.clone();
        for policy in cluster.policies.values() {
            let mut policy = (**policy).clone();
            for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
                let again = rules.clone();
                rules.extend(again);
                rules.reverse();
            }
            twice.add_policy(policy);
        }
        let (one, two) = (compile(&cluster, &Subjects::All), compile(&twice, &Subjects::All));
        for direction in Direction::BOTH {
            for (index, _) in one.pods() {
                prop_assert_eq!(one.allow_set(index, direction), two.allow_set(index, direction));
            }
        }
    }
}

#[test]
fn the_generator_reaches_every_feature() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut allowed, mut denied, mut conflicts, mut named) = (0, 0, 0, 0);
    let (mut would_deny, mut would_allow) = (0, 0);
    let mut ended: Vec<PodName> = Vec::new();
    for _ in 0..400 {
        let cluster = testing::cluster(Tiers::NetworkPolicy)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let table: Table = compile(&cluster, &Subjects::All);
        conflicts += table.addresses().conflicts().len();
        ended.extend(cluster.pods.values().filter(|p| p.ended).map(|p| p.name.clone()));
        let evaluator = Evaluator::new(&cluster);
        let ends = testing::endpoints(&cluster, &table);
        for (from, to) in ends.iter().zip(ends.iter().skip(1)) {
            for traffic in testing::traffics() {
                let decision = evaluator.decide(from, to, traffic);
                let judged = decision.egress.decided_by.is_some() || decision.ingress.decided_by.is_some();
                allowed += usize::from(decision.allowed && judged && decision.exemption.is_none());
                denied += usize::from(!decision.allowed);
                let mut audits = decision.sides().into_iter().filter_map(|side| side.audit.as_ref());
                would_deny += usize::from(!decision.would_be_denied_by().is_empty());
                would_allow += usize::from(audits.any(|audit| audit.allowed));
                named += usize::from(decision.to_string().contains("a name that"));
            }
        }
    }
    assert!(
        allowed > 1000 && denied > 1000 && conflicts > 10 && named > 10 && ended.len() > 10,
        "allowed {allowed}, denied {denied}, conflicts {conflicts}, named {named}, ended {}",
        ended.len()
    );
    assert!(
        would_deny > 1000 && would_allow > 1000,
        "would deny {would_deny}, allow {would_allow}"
    );
}
