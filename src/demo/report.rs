//! What the demo shows: the sandbox, the matrix of expected against observed, the summary. Data in, text or JSON out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use comfy_table::{Table, presets};
use policy_compiler::cluster::Cluster;
use policy_compiler::labels::Name;
use policy_compiler::ports::Traffic;
use serde_json::json;

use super::change::Check;
use super::plan::{Destination, Expected, Judgement, Planned};
use crate::sandbox::{Outcome, Place, Sandbox};

/// A wider matrix is shown as a list.
const WIDEST: usize = 7;

/// A probe, and what came of it.
pub(super) struct Made {
    pub(super) planned: Planned,
    /// Without policy.
    pub(super) baseline: Outcome,
    /// With the policies; none when it was not even answered without.
    pub(super) observed: Option<Outcome>,
    pub(super) judgement: Judgement,
}

/// What all of it came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Probes with the policies in force, and looks at the open connection.
    pub probes: usize,
    /// Those that came out as policy says.
    pub as_expected: usize,
    /// Those that came through and must not.
    pub leaks: usize,
}

impl Summary {
    pub(super) fn of(made: &[Made], checks: &[Check]) -> Summary {
        let leaks = made.iter().filter(|m| m.judgement == Judgement::Leak).count();
        let fine = made.iter().filter(|m| m.judgement == Judgement::AsExpected).count();
        Summary {
            probes: made.len() + checks.len(),
            as_expected: fine + checks.iter().filter(|c| c.instead.is_none()).count(),
            leaks: leaks + checks.iter().filter(|c| c.leak).count(),
        }
    }

    /// Whether everything was as expected: exit code 0, else 1.
    pub fn is_fine(self) -> bool {
        self.as_expected == self.probes
    }
}

/// The nodes with their pods and addresses, the client, the Services.
pub(super) fn drawing(cluster: &Cluster, sandbox: &Sandbox) -> String {
    let addresses = |place: &Place| {
        let list = sandbox.addresses(place).unwrap_or_default().iter();
        list.map(ToString::to_string).collect::<Vec<_>>().join("  ")
    };
    let mut text = format!("  client  {}  (outside)\n  │\n", addresses(&Place::Client));
    for (at, node) in cluster.nodes.values().enumerate() {
        let last = at + 1 == cluster.nodes.len();
        let (branch, trunk) = if last { ("└", " ") } else { ("├", "│") };
        let place = Place::Node(node.name.clone());
        let _ = writeln!(text, "  {branch}─ {}  {}", node.name, addresses(&place));
        let here = |p: &&Place| match p {
            Place::Pod(name) => cluster
                .pods
                .get(name)
                .is_some_and(|p| p.node.as_ref() == Some(&node.name)),
            _ => false,
        };
        for pod in sandbox.places().filter(here) {
            let _ = writeln!(text, "  {trunk}    ─ {pod}  {}", addresses(pod));
        }
    }
    for frontend in sandbox.frontends() {
        let backends: Vec<String> = frontend.backends.iter().map(|b| b.address.to_string()).collect();
        let _ = writeln!(
            text,
            "  service {} {} port {}/{} → {}",
            frontend.service,
            frontend.address,
            frontend.port,
            frontend.protocol,
            if backends.is_empty() {
                "nobody".to_owned()
            } else {
                backends.join(", ")
            }
        );
    }
    text
}

/// The two matrices: to pods and the client, and to Services. Pods of one workload stand in one row and one column.
pub(super) fn matrices(cluster: &Cluster, made: &[Made]) -> String {
    let mut text = matrix(
        cluster,
        made.iter().filter(|m| matches!(m.planned.to, Destination::Place(_))),
    );
    let services = matrix(
        cluster,
        made.iter().filter(|m| matches!(m.planned.to, Destination::Service(_))),
    );
    if !services.is_empty() {
        let _ = write!(
            text,
            "\nThrough Services (DNAT in every node; policy sees the chosen back end):\n{services}"
        );
    }
    text
}

type Cells<'a> = BTreeMap<(Label, Label), Vec<&'a Made>>;

/// A row or column; the order of the values is that of the rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Pods(Name, Name),
    Service(String),
    Node(Name),
    Client,
}

impl Label {
    fn of(cluster: &Cluster, place: &Place) -> Label {
        match place {
            Place::Pod(name) => {
                let workload = cluster.pods.get(name).and_then(|p| p.workload.as_ref());
                let own = workload.map_or_else(|| name.name.clone(), |w| w.name.clone());
                Label::Pods(name.namespace.clone(), own)
            }
            Place::Node(name) => Label::Node(name.clone()),
            Place::Client => Label::Client,
        }
    }

    fn text(&self) -> String {
        match self {
            Label::Pods(namespace, name) => format!("{namespace}/{name}"),
            Label::Service(name) => name.clone(),
            Label::Node(name) => format!("node {name}"),
            Label::Client => "outside client".to_owned(),
        }
    }
}

fn matrix<'a>(cluster: &Cluster, made: impl Iterator<Item = &'a Made>) -> String {
    let mut cells: Cells<'a> = BTreeMap::new();
    for one in made {
        let to = match &one.planned.to {
            Destination::Place(place) => Label::of(cluster, place),
            Destination::Service(name) => Label::Service(name.clone()),
        };
        cells
            .entry((Label::of(cluster, &one.planned.probe.from), to))
            .or_default()
            .push(one);
    }
    let rows: BTreeSet<&Label> = cells.keys().map(|(row, _)| row).collect();
    let columns: BTreeSet<&Label> = cells.keys().map(|(_, column)| column).collect();
    if columns.is_empty() {
        return String::new();
    }
    let content = |row: &Label, column: &Label| cells.get(&(row.clone(), column.clone())).map(|made| cell(made));
    if columns.len() > WIDEST {
        let mut text = String::new();
        for row in rows {
            let _ = writeln!(text, "  {} →", row.text());
            for column in &columns {
                if let Some(content) = content(row, column) {
                    let _ = writeln!(text, "      {}: {}", column.text(), content.replace('\n', ", "));
                }
            }
        }
        return text;
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let heading = columns.iter().map(|c| c.text().replace('/', "/\n"));
    table.set_header(["from ╲ to".to_owned()].into_iter().chain(heading));
    for row in rows {
        let contents = columns.iter().map(|column| content(row, column).unwrap_or_default());
        table.add_row([row.text()].into_iter().chain(contents));
    }
    format!("{table}\n")
}

/// What passes between two groups, a line for each port, and whatever is not as expected. `·` is a denial of all.
fn cell(made: &[&Made]) -> String {
    let mut ports: BTreeMap<Traffic, Vec<&Made>> = BTreeMap::new();
    for one in made {
        ports.entry(one.planned.probe.traffic).or_default().push(one);
    }
    let mut lines = Vec::new();
    let mut passing = 0;
    for (traffic, probes) in &ports {
        let all = probes.len();
        let name = traffic_name(*traffic);
        let count = |wanted: Judgement| probes.iter().filter(|m| m.judgement == wanted).count();
        let of = |n: usize| {
            if n == all {
                String::new()
            } else {
                format!(" ({n} of {all})")
            }
        };
        let passed =
            |m: &&&Made| m.judgement == Judgement::AsExpected && matches!(m.observed, Some(Outcome::Answered(_)));
        let depends = probes
            .iter()
            .any(|m| matches!(m.planned.expected, Expected::Depends(_)));
        match probes.iter().filter(passed).count() {
            _ if depends && count(Judgement::AsExpected) == all => lines.push(format!("{name} (some back ends)")),
            0 => {}
            n => {
                passing += usize::from(n == all);
                lines.push(format!("{name}{}", of(n)));
            }
        }
        for (judgement, word) in [
            (Judgement::Leak, LEAK),
            (Judgement::Blocked, BLOCKED),
            (Judgement::Broken, BROKEN),
        ] {
            match count(judgement) {
                0 => {}
                n => lines.push(format!("{word} {name}{}", of(n))),
            }
        }
    }
    match lines.len() {
        0 => "·".to_owned(),
        n if n == passing && n == ports.len() && ports.contains_key(&Traffic::Other) => "everything".to_owned(),
        // Two short ones fit in a line of the table.
        2 if lines.iter().map(String::len).sum::<usize>() < 16 => lines.join(", "),
        _ => lines.join("\n"),
    }
}

/// The words of the matrix that are coloured.
pub(super) const LEAK: &str = "LEAK";
pub(super) const BLOCKED: &str = "BLOCKED";
pub(super) const BROKEN: &str = "BROKEN";

fn traffic_name(traffic: Traffic) -> String {
    match traffic {
        Traffic::Port(..) => traffic.to_string(),
        Traffic::Other => "ICMP".to_owned(),
    }
}

/// A line for each probe that is not as expected, with what the evaluator says about it.
pub(super) fn complaints(made: &[Made], checks: &[Check]) -> Vec<String> {
    let off = made.iter().filter(|m| m.judgement != Judgement::AsExpected).map(|m| {
        let probe = &m.planned.probe;
        let word = match m.judgement {
            Judgement::Leak => LEAK,
            Judgement::Blocked => BLOCKED,
            _ => BROKEN,
        };
        let (when, observed) = match &m.observed {
            Some(observed) => ("", observed),
            None => (" without any policy", &m.baseline),
        };
        format!(
            "{word} {} to {} ({}) {}: expected {}{when}, observed {observed}; {}",
            probe.from,
            to_name(&m.planned.to),
            probe.to,
            traffic_name(probe.traffic),
            if m.observed.is_some() {
                expected_word(&m.planned.expected)
            } else {
                "an answer"
            },
            m.planned.reason
        )
    });
    let failed = checks.iter().filter_map(|c| {
        let instead = c.instead.as_ref()?;
        Some(format!("{} {}: {instead}", if c.leak { LEAK } else { BLOCKED }, c.what))
    });
    off.chain(failed).collect()
}

/// The stable form, for programs.
pub(super) fn to_json(made: &[Made], checks: &[Check], change: Option<&str>) -> serde_json::Value {
    let summary = Summary::of(made, checks);
    let probes: Vec<_> = made
        .iter()
        .map(|m| {
            json!({
                "from": m.planned.probe.from.to_string(),
                "to": to_name(&m.planned.to),
                "address": m.planned.probe.to,
                "port": match m.planned.probe.traffic {
                    Traffic::Other => "icmp".to_owned(),
                    port => port.to_string(),
                },
                "expected": expected_word(&m.planned.expected),
                "withoutPolicy": m.baseline.to_string(),
                "observed": m.observed.as_ref().map(ToString::to_string),
                "asExpected": m.judgement == Judgement::AsExpected,
                "leak": m.judgement == Judgement::Leak,
                "reason": m.planned.reason,
            })
        })
        .collect();
    let checks: Vec<_> = checks
        .iter()
        .map(|c| json!({"check": c.what, "asExpected": c.instead.is_none(), "leak": c.leak, "observed": c.instead}))
        .collect();
    json!({
        "apiVersion": "palisade.dev/v1alpha1",
        "kind": "Demo",
        "summary": {"probes": summary.probes, "asExpected": summary.as_expected, "leaks": summary.leaks},
        "probes": probes,
        "openConnection": {"change": change, "checks": checks},
    })
}

fn to_name(to: &Destination) -> String {
    match to {
        Destination::Place(place) => place.to_string(),
        Destination::Service(name) => format!("service {name}"),
    }
}

fn expected_word(expected: &Expected) -> &'static str {
    match expected {
        Expected::Allowed => "allow",
        Expected::Denied => "deny",
        Expected::Depends(_) => "allow or deny, by back end",
    }
}
