//! `palisade explain`: whether one end may reach another, and why. Every pair and every port is covered; those with one
//! outcome stand together.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use policy_compiler::cluster::{ContainerPort, Endpoint, Exemption};
use policy_compiler::evaluate::{Decision, Evaluator, MissReason, Side};
use policy_compiler::labels::{Labels, Name};
use policy_compiler::policy::{Direction, PolicyName, PortMatch, Ports};
use policy_compiler::ports::{PortSet, Traffic};
use serde::Serialize;

use super::describe::{Describer, join};
use super::endpoint::EndpointSpec;
use super::ends::{Compiled, End};
use super::matrix::Verdict;
use super::output::{self, API_VERSION, Style, columns};
use super::pairs::{first_pair, itself};
use super::ports::PortSpec;
use super::service::{self, Backends};
use crate::manifests::Loaded;

/// The answer to one question.
pub(crate) struct Explanation<'a> {
    question: Question<'a>,
    /// When the destination is a Service: what was asked instead.
    service: Option<Backends>,
    outcomes: Vec<Outcome>,
}

/// What is asked.
pub(crate) struct Question<'a> {
    pub(crate) from: &'a EndpointSpec,
    pub(crate) to: &'a EndpointSpec,
    pub(crate) port: &'a PortSpec,
}

/// Pairs and ports that end alike, for the same reason.
struct Outcome {
    from: Vec<End>,
    to: Vec<End>,
    ports: PortSet,
    decision: Decision,
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

/// Explains every pair and port of a question.
pub(crate) fn explain<'a>(compiled: &Compiled, question: Question<'a>) -> anyhow::Result<Explanation<'a>> {
    if let EndpointSpec::Address(address) = question.from
        && let Some(service) = service::of_address(&compiled.cluster, *address)
    {
        anyhow::bail!(
            "{address} is the cluster address of Service {}: no connection comes from it; name the pods that connect",
            service.name
        );
    }
    let from = compiled.ends(question.from)?;
    let service = match question.to {
        EndpointSpec::Address(address) => service::of_address(&compiled.cluster, *address),
        _ => None,
    };
    let backends = service.map(|s| Backends::new(compiled, s, question.port)).transpose()?;
    let to = match &backends {
        Some(backends) => backends.ends.clone(),
        None => compiled.ends(question.to)?,
    };
    let asked = |end: &End| match &backends {
        Some(backends) => backends.ports(&end.endpoint()),
        None => question.port.on(&end.endpoint()),
    };
    if to.iter().all(|end| asked(end).is_empty()) {
        anyhow::bail!(
            "nothing at {} has a port {}: write a number, or a name that a container's ports list",
            question.to,
            question.port
        );
    }
    let outcomes = outcomes(compiled, &from, &to, asked);
    if outcomes.is_empty() {
        anyhow::bail!(
            "{} and {} have no address family in common, so there is no connection to explain",
            question.from,
            question.to
        );
    }
    Ok(Explanation {
        question,
        service: backends,
        outcomes,
    })
}

fn outcomes(compiled: &Compiled, from: &[End], to: &[End], asked: impl Fn(&End) -> PortSet) -> Vec<Outcome> {
    let book = compiled.table.addresses();
    let is_node = |end: &End| end.endpoint().pod().is_none() && book.node(&end.endpoint()).is_some();
    let nodes_matter = from.iter().chain(to).any(is_node);
    let by_kind = |ends: &'_ [End]| {
        let mut kinds: BTreeMap<(Kind, PortSet), Vec<End>> = BTreeMap::new();
        for end in ends {
            kinds
                .entry((Kind::of(compiled, end, nodes_matter), asked(end)))
                .or_default()
                .push(end.clone());
        }
        kinds
            .into_iter()
            .map(|((_, asked), ends)| (asked, ends))
            .collect::<Vec<_>>()
    };
    let (sources, destinations) = (by_kind(from), by_kind(to));
    let evaluator = Evaluator::new(&compiled.cluster);
    let alone = from.iter().all(|f| to.iter().all(|t| itself(f, t)));
    // By destination, outcome and ports: which sources. Then by sources, outcome and ports: which destinations.
    let mut by_source: BTreeMap<(usize, String, PortSet), (Vec<usize>, Decision)> = BTreeMap::new();
    for (at_from, (_, sources)) in sources.iter().enumerate() {
        for (at_to, (asked, destinations)) in destinations.iter().enumerate() {
            let (sources, destinations): (Vec<&End>, Vec<&End>) =
                (sources.iter().collect(), destinations.iter().collect());
            let pair = if alone {
                Some((sources[0], destinations[0]))
            } else {
                first_pair(&sources, &destinations)
            };
            let Some((source, destination)) = pair.map(|(f, t)| (f.endpoint(), t.endpoint())) else {
                continue;
            };
            if !source.same_family(&destination) {
                continue;
            }
            let mut here: BTreeMap<String, PortSet> = BTreeMap::new();
            for ports in alike(compiled, &source, &destination, asked) {
                let Some(traffic) = usual(&destination, &ports) else {
                    continue;
                };
                let decision = evaluator.decide(&source, &destination, traffic);
                let known = here.entry(outcome_key(&decision)).or_default();
                *known = known.union(&ports);
            }
            for (key, ports) in here {
                let Some(traffic) = usual(&destination, &ports) else {
                    continue;
                };
                let decision = evaluator.decide(&source, &destination, traffic);
                let (sources, _) = by_source.entry((at_to, key, ports)).or_insert((Vec::new(), decision));
                sources.push(at_from);
            }
        }
    }
    let mut by_both: BTreeMap<(Vec<usize>, String, PortSet), (Vec<usize>, Decision)> = BTreeMap::new();
    for ((at_to, key, ports), (from, decision)) in by_source {
        let (to, _) = by_both.entry((from, key, ports)).or_insert((Vec::new(), decision));
        to.push(at_to);
    }
    let ends = |of: &[(PortSet, Vec<End>)], at: &[usize]| {
        let mut ends: Vec<End> = at.iter().flat_map(|at| of[*at].1.iter().cloned()).collect();
        ends.sort();
        ends
    };
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut keys: Vec<String> = Vec::new();
    for ((from, key, ports), (to, decision)) in by_both {
        let (from, to) = (ends(&sources, &from), ends(&destinations, &to));
        // The two families of the same pods stand together: no pair crosses from one to the other.
        let other_family =
            |known: &Outcome| known.ports == ports && families(&known.from, &known.to) * families(&from, &to) == -1;
        match outcomes
            .iter_mut()
            .zip(&keys)
            .find(|(known, k)| **k == key && other_family(known))
        {
            Some((known, _)) => {
                known.from.extend(from);
                known.to.extend(to);
                known.from.sort();
                known.to.sort();
            }
            None => {
                outcomes.push(Outcome {
                    from,
                    to,
                    ports,
                    decision,
                });
                keys.push(key);
            }
        }
    }
    outcomes.sort_by(|a, b| (&a.from, &a.to, &a.ports).cmp(&(&b.from, &b.to, &b.ports)));
    outcomes
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
        for miss in &mut side.misses {
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

impl Explanation<'_> {
    fn verdict(&self) -> Verdict {
        let verdicts = self.outcomes.iter().map(|o| Verdict::one(o.decision.allowed));
        verdicts.reduce(Verdict::and).unwrap_or(Verdict::Deny)
    }

    fn reason(&self) -> String {
        let denied: Vec<&Outcome> = self.outcomes.iter().filter(|o| !o.decision.allowed).collect();
        match (self.outcomes.as_slice(), denied.as_slice()) {
            ([one], _) => one.decision.to_string(),
            ([first, ..], []) => format!(
                "all {} outcomes are allowed; the first: {}",
                self.outcomes.len(),
                first.decision
            ),
            (all, [first, ..]) if denied.len() == all.len() => {
                format!("all {} outcomes are denied; the first: {}", all.len(), first.decision)
            }
            (all, [first, ..]) => {
                format!(
                    "{} of {} outcomes are denied; the first: {}",
                    denied.len(),
                    all.len(),
                    first.decision
                )
            }
            ([], []) => String::new(),
        }
    }

    /// For people.
    pub(crate) fn text(&self, compiled: &Compiled, loaded: &Loaded) -> String {
        let describer = Describer::new(compiled);
        let (word, style) = self.verdict().word();
        let Question { from, to, port } = &self.question;
        let mut out = format!("{}: {from} → {to} on {}\n", style.paint(word), port.words());
        if let Some(backends) = &self.service {
            let _ = writeln!(out, "{}", Style::Warn.paint(&backends.note(&describer, to)));
        }
        for outcome in &self.outcomes {
            let (_, style) = Verdict::one(outcome.decision.allowed).word();
            let mark = if outcome.decision.allowed { "✓" } else { "✗" };
            let line = format!(
                "{} → {}",
                join(&describer.ends(&outcome.from.iter().collect::<Vec<_>>())),
                join(&describer.ends(&outcome.to.iter().collect::<Vec<_>>())),
            );
            let _ = writeln!(
                out,
                "\n{} {}  {}",
                style.paint(mark),
                Style::Bold.paint(&line),
                outcome.ports
            );
            if let Some(exemption) = outcome.decision.exemption {
                let _ = writeln!(out, "    {exemption}, whatever the policies");
                continue;
            }
            out.push_str(&side_text(&outcome.decision.egress));
            out.push_str(&side_text(&outcome.decision.ingress));
        }
        let rows: Vec<_> = self
            .sources(loaded)
            .into_iter()
            .map(|(policy, source)| vec![(policy, Style::Plain), (source, Style::Dim)])
            .collect();
        if !rows.is_empty() {
            let _ = write!(out, "\n{}\n{}", Style::Bold.paint("Policies"), columns(2, &rows));
        }
        out
    }

    /// The policies that the answer names, with their places.
    fn sources(&self, loaded: &Loaded) -> BTreeMap<String, String> {
        let sides = self
            .outcomes
            .iter()
            .flat_map(|o| [&o.decision.egress, &o.decision.ingress]);
        let policies = sides.flat_map(|s| s.isolated_by.iter().chain(s.decided_by.as_ref().map(|r| &r.policy)));
        policies
            .filter_map(|name| Some((name.to_string(), source(loaded, name)?)))
            .collect()
    }

    /// For programs.
    pub(crate) fn json(&self, compiled: &Compiled, loaded: &Loaded) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct Pair<'a> {
            from: Vec<String>,
            to: Vec<String>,
            ports: &'a PortSet,
            verdict: Verdict,
            reason: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            exemption: Option<Exemption>,
            egress: &'a Side,
            ingress: &'a Side,
        }
        #[derive(Serialize)]
        struct ServiceJson {
            name: String,
            backends: Vec<String>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            api_version: &'static str,
            kind: &'static str,
            from: String,
            to: String,
            port: String,
            verdict: Verdict,
            reason: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            service: Option<ServiceJson>,
            pairs: Vec<Pair<'a>>,
            sources: BTreeMap<String, String>,
        }
        let describer = Describer::new(compiled);
        let names = |ends: &[End]| describer.every_end(&ends.iter().collect::<Vec<_>>());
        let pairs = self.outcomes.iter().map(|outcome| Pair {
            from: names(&outcome.from),
            to: names(&outcome.to),
            ports: &outcome.ports,
            verdict: Verdict::one(outcome.decision.allowed),
            reason: outcome.decision.to_string(),
            exemption: outcome.decision.exemption,
            egress: &outcome.decision.egress,
            ingress: &outcome.decision.ingress,
        });
        output::json(&Json {
            api_version: API_VERSION,
            kind: "Explanation",
            from: self.question.from.to_string(),
            to: self.question.to.to_string(),
            port: self.question.port.to_string(),
            verdict: self.verdict(),
            reason: self.reason(),
            service: self.service.as_ref().map(|b| ServiceJson {
                name: b.name.to_string(),
                backends: names(&b.ends),
            }),
            pairs: pairs.collect(),
            sources: self.sources(loaded),
        })
    }
}

fn side_text(side: &Side) -> String {
    let direction = format!("{:7}", side.direction.to_string());
    let isolated = match side.isolated_by.as_slice() {
        [] => "not isolated".to_owned(),
        policies => {
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            format!("isolated by {}", names.join(", "))
        }
    };
    let mut out = String::new();
    let (verdict, style) = match (&side.decided_by, side.allowed) {
        (Some(by), true) => (format!("; admitted by {by}"), Style::Good),
        (Some(by), false) => (format!("; denied by {by}"), Style::Bad),
        (None, true) => (String::new(), Style::Good),
        (None, false) if side.misses.is_empty() => ("; it has no rules that could admit it".to_owned(), Style::Bad),
        (None, false) => ("; no rule admits it:".to_owned(), Style::Bad),
    };
    let _ = writeln!(out, "    {direction}  {isolated}{}", style.paint(&verdict));
    for miss in &side.misses {
        let _ = writeln!(
            out,
            "               {} {}",
            Style::Dim.paint(&miss.rule.to_string()),
            miss.reason
        );
    }
    out
}

/// Where a policy stands in the manifests.
fn source(loaded: &Loaded, policy: &PolicyName) -> Option<String> {
    let kind = match policy.namespace {
        Some(_) => "NetworkPolicy",
        None => "ClusterNetworkPolicy",
    };
    let object = crate::manifests::ObjectName {
        kind: kind.into(),
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
    };
    loaded.sources.get(&object).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use policy_compiler::testing::{self, Tiers};
    use proptest::prelude::*;

    use super::*;
    use crate::cli::ends::tests::all_ends;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

        /// Every pair and port stands in one outcome, with the answer and the deciding rules of the reference evaluator.
        #[test]
        fn outcomes_cover_every_pair_and_port(cluster in testing::cluster(Tiers::All)) {
            let compiled = Compiled::new(cluster);
            let ends = all_ends(&compiled);
            let outcomes = outcomes(&compiled, &ends, &ends, |_| PortSet::all());
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
                        }
                    }
                }
            }
        }
    }
}
