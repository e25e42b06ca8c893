//! `palisade explain`: whether one end may reach another, and why. Every pair and every port is covered; those with one
//! outcome stand together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use policy_compiler::cluster::{Endpoint, Exemption};
use policy_compiler::evaluate::{Audit, Side};
use policy_compiler::policy::PolicyName;
use policy_compiler::ports::PortSet;
use serde::Serialize;

use super::describe::{Describer, join};
use super::endpoint::EndpointSpec;
use super::ends::{Compiled, End};
use super::outcomes::{Outcome, outcomes};
use super::output::{self, API_VERSION, Style, columns};
use super::ports::PortSpec;
use super::service::{self, Backends};
use super::verdict::Verdict;
use crate::manifests::{Loaded, ObjectName, Source};
use crate::plain::line;

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
        let names: BTreeSet<String> = to.iter().flat_map(|end| named_ports(&end.endpoint())).collect();
        let known = match names.is_empty() {
            true => "a name that a container's ports list".to_owned(),
            false => Vec::from_iter(names).join(", "),
        };
        anyhow::bail!(
            "nothing at {} has a port {}: write a number, or {known}",
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

impl Explanation<'_> {
    fn verdict(&self) -> Verdict {
        let verdicts = self.outcomes.iter().map(|o| Verdict::one(o.decision.allowed));
        verdicts.reduce(Verdict::and).unwrap_or(Verdict::Deny)
    }

    /// The verdict if the audited policies were in force, and those of them that would deny; none when nothing changes with them.
    fn audit(&self) -> Option<(Verdict, BTreeSet<&PolicyName>)> {
        let denying: BTreeSet<&PolicyName> = self
            .outcomes
            .iter()
            .flat_map(|o| o.decision.would_be_denied_by())
            .collect();
        let verdicts = self
            .outcomes
            .iter()
            .map(|o| Verdict::one(o.decision.would_be_allowed()));
        let verdict = verdicts.reduce(Verdict::and)?;
        (!denying.is_empty()).then_some((verdict, denying))
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
        let audit = self.audit().map(|(verdict, policies)| {
            let policies: Vec<String> = policies.into_iter().map(ToString::to_string).collect();
            let some = match verdict {
                Verdict::Partial => "some ",
                _ => "",
            };
            Style::Warn.paint(&format!(" (audit: {some}would be denied by {})", policies.join(", ")))
        });
        let audit = audit.unwrap_or_default();
        let mut out = format!("{}{audit}: {from} → {to} on {}\n", style.paint(word), port.words());
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
            .map(|(policy, source)| vec![(policy, Style::Plain), (line(&source), Style::Dim)])
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
        let policies = sides.flat_map(|s| {
            let audited = s.audit.iter().flat_map(|audit| &audit.policies);
            let deciding = s.decided_by.as_ref().map(|r| &r.policy);
            s.isolated_by.iter().chain(deciding).chain(audited)
        });
        policies
            .filter_map(|name| Some((name.to_string(), source(loaded, name)?.to_string())))
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
            #[serde(rename = "auditVerdict", skip_serializing_if = "Option::is_none")]
            audit_verdict: Option<Verdict>,
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
            #[serde(skip_serializing_if = "Option::is_none")]
            audit_verdict: Option<Verdict>,
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
            audit_verdict: (outcome.decision.allowed && !outcome.decision.would_be_allowed()).then_some(Verdict::Deny),
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
            audit_verdict: self.audit().map(|(verdict, _)| verdict),
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
    let audited = side.audit.as_ref().map(audit_words).unwrap_or_default();
    let _ = writeln!(
        out,
        "    {direction}  {isolated}{}{}",
        style.paint(&verdict),
        Style::Warn.paint(&audited)
    );
    for miss in side
        .misses
        .iter()
        .chain(side.audit.iter().flat_map(|audit| &audit.misses))
    {
        let _ = writeln!(
            out,
            "               {} {}",
            Style::Dim.paint(&miss.rule.to_string()),
            miss.reason
        );
    }
    out
}

/// What audited policies would say; the misses follow.
fn audit_words(audit: &Audit) -> String {
    let names: Vec<String> = audit.policies.iter().map(ToString::to_string).collect();
    let by = format!("; audited by {}", names.join(", "));
    match &audit.decided_by {
        Some(rule) => format!("{by}: would be admitted by {rule}"),
        None if audit.misses.is_empty() => format!("{by}: would be denied, there are no rules that could admit it"),
        None => format!("{by}: would be denied, no rule admits it:"),
    }
}

/// Where a policy stands in the manifests.
pub(crate) fn source<'l>(loaded: &'l Loaded, policy: &PolicyName) -> Option<&'l Source> {
    let kind = match policy.namespace {
        Some(_) => "NetworkPolicy",
        None => "ClusterNetworkPolicy",
    };
    let object = ObjectName {
        kind: kind.into(),
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
    };
    loaded.sources.get(&object)
}

/// The ports that a destination has names for: `http/TCP`.
fn named_ports(destination: &Endpoint) -> Vec<String> {
    let Endpoint::Pod(pod, _) = destination else {
        return Vec::new();
    };
    let named = pod
        .ports
        .iter()
        .filter_map(|port| Some((port.name.as_ref()?, port.protocol)));
    named.map(|(name, protocol)| format!("{name}/{protocol}")).collect()
}
