//! Every pair of two sets of ends on every port, together where the reference evaluator gives one answer for one reason:
//! ends in, outcomes out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use policy_compiler::cluster::{ContainerPort, Endpoint};
use policy_compiler::evaluate::{Decision, Evaluator, MissReason};
use policy_compiler::labels::{Labels, Name};
use policy_compiler::policy::{Direction, PortMatch, Ports};
use policy_compiler::ports::{PortSet, Traffic};

use super::ends::{Compiled, End};
use super::pairs::{first_pair, itself};

/// Pairs and ports that end alike, for the same reason.
pub(crate) struct Outcome {
    /// The sources, sorted.
    pub(crate) from: Vec<End>,
    /// The destinations, sorted.
    pub(crate) to: Vec<End>,
    /// The ports of the destinations.
    pub(crate) ports: PortSet,
    /// The answer, with the reason; about one of the pairs, on one of the ports.
    pub(crate) decision: Decision,
}

/// What the reference evaluator can tell of an end: two ends of one kind get the same answers for the same reasons.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    pod: Option<(Name, Labels)>,
    ports: Vec<ContainerPort>,
    block: Option<IpNet>,
    v4: Option<bool>,
    node: Option<Name>,
}

/// An answer with its reason, up to what makes no difference; and the ports that it is about.
type Answer = (String, PortSet);

/// The outcomes of all pairs that have an address family in common. A pod and itself are left out, unless there is nothing else.
pub(crate) fn outcomes(compiled: &Compiled, from: &[End], to: &[End], asked: impl Fn(&End) -> PortSet) -> Vec<Outcome> {
    let is_node = |end: &End| {
        let endpoint = end.endpoint();
        endpoint.pod().is_none() && compiled.table.addresses().node(&endpoint).is_some()
    };
    let nodes_matter = from.iter().chain(to).any(is_node);
    let by_kind = |ends: &[End]| {
        let mut kinds: BTreeMap<(Kind, PortSet), Vec<End>> = BTreeMap::new();
        for end in ends {
            let kind = (Kind::of(compiled, end, nodes_matter), asked(end));
            kinds.entry(kind).or_default().push(end.clone());
        }
        let kinds = kinds.into_iter().map(|((_, asked), ends)| (asked, ends));
        kinds.collect::<Vec<(PortSet, Vec<End>)>>()
    };
    let (sources, destinations) = (by_kind(from), by_kind(to));
    let alone = from.iter().all(|f| to.iter().all(|t| itself(f, t)));
    let evaluator = Evaluator::new(&compiled.cluster);

    let mut decisions: BTreeMap<Answer, Decision> = BTreeMap::new();
    // By destination and answer: which sources. Then by sources and answer: which destinations.
    let mut by_destination: BTreeMap<(usize, Answer), Vec<usize>> = BTreeMap::new();
    for (at_from, (_, sources)) in sources.iter().enumerate() {
        let sources: Vec<&End> = sources.iter().collect();
        for (at_to, (asked, destinations)) in destinations.iter().enumerate() {
            let destinations: Vec<&End> = destinations.iter().collect();
            let pair = match alone {
                true => sources.first().copied().zip(destinations.first().copied()),
                false => first_pair(&sources, &destinations),
            };
            let ends = pair.map(|(from, to)| (from.endpoint(), to.endpoint()));
            let Some((source, destination)) = ends.filter(|(from, to)| from.same_family(to)) else {
                continue;
            };
            for (answer, decision) in answers(compiled, &evaluator, &source, &destination, asked) {
                decisions.entry(answer.clone()).or_insert(decision);
                by_destination.entry((at_to, answer)).or_default().push(at_from);
            }
        }
    }
    let mut by_sources: BTreeMap<(Vec<usize>, Answer), Vec<usize>> = BTreeMap::new();
    for ((at_to, answer), from) in by_destination {
        by_sources.entry((from, answer)).or_default().push(at_to);
    }

    let ends = |of: &[(PortSet, Vec<End>)], at: &[usize]| {
        let ends = at.iter().flat_map(|at| of[*at].1.iter().cloned());
        ends.collect::<Vec<End>>()
    };
    let mut found: Vec<(Answer, Outcome)> = Vec::new();
    for ((from, answer), to) in by_sources {
        let (from, to) = (ends(&sources, &from), ends(&destinations, &to));
        // The two families of the same pods stand together: no pair crosses from one to the other.
        let family = families(&from, &to);
        let other_family = |known: &Outcome| families(&known.from, &known.to) * family == -1;
        if let Some((_, known)) = found.iter_mut().find(|(a, known)| *a == answer && other_family(known)) {
            known.from.extend(from);
            known.to.extend(to);
        } else if let Some(decision) = decisions.get(&answer).cloned() {
            let ports = answer.1.clone();
            let outcome = Outcome {
                from,
                to,
                ports,
                decision,
            };
            found.push((answer, outcome));
        }
    }
    let mut outcomes: Vec<Outcome> = found.into_iter().map(|(_, outcome)| outcome).collect();
    for outcome in &mut outcomes {
        if !alone {
            // An end of which the only pair here would be with itself was not asked about.
            let (from, to) = (outcome.from.clone(), outcome.to.clone());
            outcome.from.retain(|f| to.iter().any(|t| !itself(f, t)));
            outcome.to.retain(|t| from.iter().any(|f| !itself(f, t)));
        }
        outcome.from.sort();
        outcome.to.sort();
    }
    outcomes.sort_by(|a, b| (&a.from, &a.to, &a.ports).cmp(&(&b.from, &b.to, &b.ports)));
    outcomes
}

/// Every answer about one pair, each with the ports that it is about and the decision on the most usual of them.
fn answers(
    compiled: &Compiled,
    evaluator: &Evaluator<'_>,
    from: &Endpoint,
    to: &Endpoint,
    asked: &PortSet,
) -> Vec<(Answer, Decision)> {
    let decide = |ports: &PortSet| Some(evaluator.decide(from, to, usual(to, ports)?));
    let mut by_key: BTreeMap<String, PortSet> = BTreeMap::new();
    for ports in alike(compiled, from, to, asked) {
        if let Some(decision) = decide(&ports) {
            let known = by_key.entry(outcome_key(&decision)).or_default();
            *known = known.union(&ports);
        }
    }
    let answers = by_key.into_iter().filter_map(|(key, ports)| {
        let decision = decide(&ports)?;
        Some(((key, ports), decision))
    });
    answers.collect()
}

/// 1 when all ends are of IPv4, -1 when all are of IPv6, 0 otherwise.
fn families(from: &[End], to: &[End]) -> i8 {
    let all = |v4: bool| {
        let mut ends = from.iter().chain(to);
        ends.all(|end| end.endpoint().address().is_some_and(|a| a.is_ipv4() == v4))
    };
    i8::from(all(true)) - i8::from(all(false))
}

impl Kind {
    fn of(compiled: &Compiled, end: &End, with_node: bool) -> Self {
        let endpoint = end.endpoint();
        let node = || compiled.table.addresses().node(&endpoint).cloned();
        Kind {
            pod: endpoint
                .pod()
                .map(|pod| (pod.name.namespace.clone(), pod.labels.clone())),
            ports: match end {
                End::Pod(pod, _) => pod.ports.clone(),
                End::Region(_) => Vec::new(),
            },
            block: endpoint.address().and_then(|a| compiled.innermost(a)),
            v4: endpoint.address().map(|a| a.is_ipv4()),
            node: with_node.then(node).flatten(),
        }
    }
}

/// Cuts ports where any rule that may matter to the pair changes its mind: within each part the answer and its reason are
/// the same.
fn alike(compiled: &Compiled, from: &Endpoint, to: &Endpoint, asked: &PortSet) -> Vec<PortSet> {
    let table = &compiled.table;
    let mut parts = vec![asked.clone()];
    for (direction, subject) in [(Direction::Egress, from), (Direction::Ingress, to)] {
        let half = table.half(direction);
        let group = subject.pod().and_then(|pod| half.group_of(table.pod_index(&pod.name)?));
        let policies = group.map(|id| half.group(id).policies.as_slice()).unwrap_or_default();
        let rules = policies.iter().filter_map(|at| table.policy(*at).rules(direction));
        for rule in rules.flatten() {
            let Ports::Listed(list) = &rule.ports else { continue };
            let ports = list.iter().fold(PortSet::none(), |set, port| match port {
                PortMatch::Range(protocol, range) => set.union(&PortSet::of(*protocol, *range)),
                PortMatch::Named(protocol, name) => match to.pod() {
                    Some(pod) => set.union(&pod.named_port(*protocol, name)),
                    None => set,
                },
            });
            let cut = parts
                .iter()
                .flat_map(|part| [part.intersection(&ports), part.minus(&ports)]);
            parts = cut.filter(|part| !part.is_empty()).collect();
        }
    }
    parts
}

/// A port of the set as people expect it: one that the destination's containers declare, if there is one.
pub(crate) fn usual(to: &Endpoint, ports: &PortSet) -> Option<Traffic> {
    let declared = match to {
        Endpoint::Pod(pod, _) => pod.ports.as_slice(),
        Endpoint::Address(_) => &[],
    };
    let mut declared: Vec<Traffic> = declared.iter().map(|p| Traffic::Port(p.protocol, p.number)).collect();
    declared.sort_unstable();
    declared
        .into_iter()
        .find(|t| ports.contains(*t))
        .or_else(|| ports.example())
}

/// Equal for two decisions that differ at most in the port that was asked for and in the address that was looked at.
fn outcome_key(decision: &Decision) -> String {
    let mut decision = decision.clone();
    for side in [&mut decision.egress, &mut decision.ingress] {
        let audit = side.audit.iter_mut().flat_map(|audit| &mut audit.misses);
        for miss in side.misses.iter_mut().chain(audit) {
            match &mut miss.reason {
                MissReason::Port { found, .. } => found.clear(),
                MissReason::Cidr { found: Some(found), .. } | MissReason::Excepted { found, .. } => {
                    *found = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                }
                _ => {}
            }
        }
    }
    format!("{decision:?}")
}

#[cfg(test)]
mod tests {
    use policy_compiler::evaluate::Side;
    use policy_compiler::testing::{self, Tiers};
    use proptest::prelude::*;

    use super::*;
    use crate::cli::ends::tests::all_ends;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// Every pair and port stands in one outcome, with the answer and the deciding rules of the reference evaluator.
        #[test]
        fn outcomes_cover_every_pair_and_port(cluster in testing::cluster(Tiers::All)) {
            let compiled = Compiled::new(cluster);
            let ends = all_ends(&compiled);
            let outcomes = outcomes(&compiled, &ends, &ends, |_| PortSet::all());
            // A pod and itself were not asked about, so no outcome speaks of that pair alone.
            for outcome in &outcomes {
                let other = |end: &End, others: &[End]| others.iter().any(|other| !itself(end, other));
                prop_assert!(outcome.from.iter().all(|from| other(from, &outcome.to)));
                prop_assert!(outcome.to.iter().all(|to| other(to, &outcome.from)));
            }
            let evaluator = Evaluator::new(&compiled.cluster);
            for from in &ends {
                for to in ends.iter().filter(|to| !itself(from, to)) {
                    let (source, destination) = (from.endpoint(), to.endpoint());
                    let holds = |o: &&Outcome| o.from.binary_search(from).is_ok() && o.to.binary_search(to).is_ok();
                    let about: Vec<&Outcome> = outcomes.iter().filter(holds).collect();
                    if !source.same_family(&destination) {
                        continue;
                    }
                    for traffic in testing::traffics() {
                        let matching: Vec<&&Outcome> = about.iter().filter(|o| o.ports.contains(traffic)).collect();
                        prop_assert_eq!(matching.len(), 1, "{} -> {} on {}", source, destination, traffic);
                        let (found, expected) = (&matching[0].decision, evaluator.decide(&source, &destination, traffic));
                        prop_assert_eq!(found.allowed, expected.allowed);
                        prop_assert_eq!(found.exemption, expected.exemption);
                        for (found, expected) in [(&found.egress, &expected.egress), (&found.ingress, &expected.ingress)] {
                            prop_assert_eq!(&found.isolated_by, &expected.isolated_by);
                            prop_assert_eq!(&found.decided_by, &expected.decided_by);
                            let rule = |side: &Side| side.audit.as_ref().map(|a| (a.policies.clone(), a.decided_by.clone()));
                            prop_assert_eq!(rule(found), rule(expected));
                        }
                    }
                }
            }
        }
    }
}
