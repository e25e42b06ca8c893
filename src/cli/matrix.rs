//! `palisade matrix`: who reaches whom on one port, or on which ports, by workload, split where replicas differ. Works on groups and classes,
//! never on pods times pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policy_compiler::cluster::{Endpoint, Pod};
use policy_compiler::ports::PortSet;
use serde::Serialize;

use super::describe::{Describer, join, title};
use super::ends::{Compiled, End, Region};
use super::markdown::{self, heading, prose};
use super::output::{self, API_VERSION, Style, columns, count};
use super::pairs::Signature;
use super::ports::PortSpec;
use super::verdict::{Answer, Verdict};

/// A table wider than this is shown with numbers as headings.
const WIDTH: usize = 110;
/// A table of more destinations than this is shown as a list.
const NUMBERED: usize = 30;

/// The matrix of a cluster for one port.
pub(crate) struct Matrix {
    port: String,
    /// The port in a sentence.
    words: String,
    /// The sources.
    rows: Vec<Party>,
    /// The destinations.
    columns: Vec<Party>,
    /// By source, then by destination; none for a pod and itself, and where no pod is on either side.
    grid: Vec<Vec<Option<Answer>>>,
    /// Host-network pods; they are their node, and stand in no row.
    host_network: usize,
}

/// Pods of one workload, or addresses outside, that all reach and are reached alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Party {
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidrs: Vec<String>,
    #[serde(skip)]
    kinds: Vec<usize>,
}

/// What the table can tell of a party: the signatures of its ends, each with the ports that are asked for there.
type Kind = Vec<(Signature, PortSet)>;

impl Matrix {
    /// The matrix of a port; `by_port` tells which of the ports asked for pass. An error says that no pod has a port of that name.
    pub(crate) fn new(compiled: &Compiled, port: &PortSpec, by_port: bool) -> anyhow::Result<Self> {
        let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
        let mut kind_of = |ends: &[End]| {
            let mut kind: Kind = ends
                .iter()
                .map(|end| (Signature::new(compiled, end), port.on(&end.endpoint())))
                .collect();
            kind.sort();
            kind.dedup();
            let next = kinds.len();
            *kinds.entry(kind).or_insert(next)
        };
        // Parties by workload (or "outside"), then by kind.
        let mut members: BTreeMap<(bool, String), BTreeMap<usize, Vec<End>>> = BTreeMap::new();
        for pod in compiled.selectable_pods() {
            let ends: Vec<End> = compiled.pod_ends(pod).collect();
            let kind = kind_of(&ends);
            let of_title = members.entry((false, title(pod))).or_default();
            of_title.entry(kind).or_default().extend(ends);
        }
        for end in outside(compiled) {
            let kind = kind_of(std::slice::from_ref(&end));
            let of_title = members.entry((true, String::new())).or_default();
            of_title.entry(kind).or_default().push(end);
        }
        let mut by_id: Vec<(usize, Kind)> = kinds.into_iter().map(|(kind, id)| (id, kind)).collect();
        by_id.sort_unstable_by_key(|(id, _)| *id);
        let kinds: Vec<Kind> = by_id.into_iter().map(|(_, kind)| kind).collect();
        let answers: Vec<Vec<Option<Answer>>> = kinds
            .iter()
            .map(|from| kinds.iter().map(|to| answer(compiled, from, to, by_port)).collect())
            .collect();

        let describer = Describer::new(compiled);
        let mut parties = Vec::new();
        for by_kind in members.into_values() {
            parties.extend(
                merge(by_kind, &answers)
                    .into_iter()
                    .map(|(kinds, ends)| party(&describer, kinds, &ends)),
            );
        }
        let has_port = |kind: &usize| kinds[*kind].iter().any(|(_, asked)| !asked.is_empty());
        let is_destination = |party: &&Party| party.kinds.iter().any(has_port);
        let columns: Vec<Party> = parties.iter().filter(is_destination).cloned().collect();
        if columns.is_empty() && !matches!(port, PortSpec::All) && !parties.iter().all(|p| p.pods.is_empty()) {
            anyhow::bail!("no pod declares a port {port}: write a number, or a name that a container's ports list");
        }
        let cell = |from: &Party, to: &Party| {
            let one_pod = from == to && from.pods.len() == 1;
            if one_pod || (from.pods.is_empty() && to.pods.is_empty()) {
                return None;
            }
            let pairs = from.kinds.iter().flat_map(|f| to.kinds.iter().map(move |t| (*f, *t)));
            let answers = pairs.filter_map(|(f, t)| answers[f][t].as_ref());
            answers.cloned().reduce(|a, b| a.and(&b))
        };
        let grid = parties
            .iter()
            .map(|from| columns.iter().map(|to| cell(from, to)).collect())
            .collect();
        Ok(Matrix {
            port: port.to_string(),
            words: port.words(),
            rows: parties,
            columns,
            grid,
            host_network: compiled.pods().filter(|p| p.host_network).count(),
        })
    }

    fn cells(&self) -> impl Iterator<Item = (&Party, &Party, &Answer)> {
        self.rows.iter().zip(&self.grid).flat_map(|(from, row)| {
            let cells = self.columns.iter().zip(row);
            cells.filter_map(move |(to, answer)| Some((from, to, answer.as_ref()?)))
        })
    }

    /// For people: a table, or a list when there are too many destinations for one.
    pub(crate) fn text(&self) -> String {
        let mut out = format!(
            "Who reaches whom on {}: rows are sources, columns destinations.\n\n",
            self.words
        );
        let widest = self
            .rows
            .iter()
            .map(|p| p.name.chars().count())
            .max()
            .unwrap_or_default();
        let named: usize = self.columns.iter().map(|p| p.name.chars().count() + 2).sum();
        if widest + named <= WIDTH {
            let headings = self.columns.iter().map(|p| p.name.clone()).collect();
            out.push_str(&self.table(headings, |party, _| party.name.clone()));
        } else if self.columns.len() <= NUMBERED {
            let number = |party: &Party| self.columns.iter().position(|to| to == party).map(|at| at + 1);
            let headings = self
                .columns
                .iter()
                .filter_map(|to| Some(number(to)?.to_string()))
                .collect();
            let digits = self.columns.len().to_string().len();
            out.push_str(&self.table(headings, |party, _| match number(party) {
                Some(number) => format!("{number:digits$} {}", party.name),
                None => format!("{:digits$} {}", "", party.name),
            }));
        } else {
            out.push_str(&self.list());
        }
        if self
            .cells()
            .any(|(.., a)| a.verdict == Verdict::Partial && a.ports.is_none())
        {
            out.push_str("\npartial: some ports pass, or some pairs; `palisade explain` tells which.\n");
        }
        if self.host_network > 0 {
            let pods = count(self.host_network, "pod");
            let _ = writeln!(
                out,
                "\nLeft out: {pods} on the host network, which policy takes for nodes and never isolates."
            );
        }
        out
    }

    fn table(&self, headings: Vec<String>, row_name: impl Fn(&Party, usize) -> String) -> String {
        let blank = (String::new(), Style::Plain);
        let heading = headings.into_iter().map(|h| (h, Style::Bold));
        let mut rows = vec![[blank].into_iter().chain(heading).collect::<Vec<_>>()];
        for (at, (party, row)) in self.rows.iter().zip(&self.grid).enumerate() {
            let name = (row_name(party, at), Style::Bold);
            let cells = row.iter().map(|cell| match cell {
                Some(answer) => answer.mark(),
                None => ("·".to_owned(), Style::Dim),
            });
            rows.push([name].into_iter().chain(cells).collect());
        }
        columns(0, &rows)
    }

    fn list(&self) -> String {
        let mut out = String::new();
        for (at, to) in self.columns.iter().enumerate() {
            let _ = writeln!(out, "{}", Style::Bold.paint(&to.name));
            let mut by_mark: BTreeMap<(Verdict, String), (Style, Vec<String>)> = BTreeMap::new();
            for (party, row) in self.rows.iter().zip(&self.grid) {
                if let Some(answer) = &row[at] {
                    let (mark, style) = answer.mark();
                    let (_, from) = by_mark.entry((answer.verdict, mark)).or_insert((style, Vec::new()));
                    from.push(party.name.clone());
                }
            }
            for ((_, mark), (style, from)) in by_mark {
                let _ = writeln!(out, "  {} {}", style.paint(&mark), join(&from));
            }
        }
        out
    }

    /// For programs.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Cell<'a> {
            from: &'a str,
            to: &'a str,
            verdict: Verdict,
            #[serde(skip_serializing_if = "Option::is_none")]
            ports: Option<&'a PortSet>,
            #[serde(skip_serializing_if = "Option::is_none")]
            ports_of_some_pairs: Option<&'a PortSet>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            api_version: &'static str,
            kind: &'static str,
            port: &'a str,
            rows: &'a [Party],
            columns: &'a [Party],
            cells: Vec<Cell<'a>>,
        }
        let cells = self.cells().map(|(from, to, answer)| Cell {
            from: &from.name,
            to: &to.name,
            verdict: answer.verdict,
            ports: answer.ports.as_ref().map(|p| &p.every),
            ports_of_some_pairs: answer.ports.as_ref().filter(|p| p.every != p.some).map(|p| &p.some),
        });
        output::json(&Json {
            api_version: API_VERSION,
            kind: "Matrix",
            port: &self.port,
            rows: &self.rows,
            columns: &self.columns,
            cells: cells.collect(),
        })
    }

    /// For spreadsheets: a line for each cell.
    pub(crate) fn csv(&self) -> String {
        let field = |text: &str| match text.contains([',', '"']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.to_owned(),
        };
        let mut out = String::from("from,to,port,verdict\n");
        for (from, to, answer) in self.cells() {
            let (word, _) = answer.verdict.word();
            let port = match &answer.ports {
                Some(passing) => passing.every.to_string(),
                None => self.port.clone(),
            };
            let _ = writeln!(out, "{},{},{},{word}", field(&from.name), field(&to.name), field(&port));
        }
        out
    }

    /// For reviews: a table of GitHub's markdown.
    pub(crate) fn markdown(&self) -> String {
        let corner = [&self.port].into_iter();
        let names = corner.chain(self.columns.iter().map(|party| &party.name));
        let mut out = heading(&names.map(|name| prose(name)).collect::<Vec<_>>());
        for (party, row) in self.rows.iter().zip(&self.grid) {
            let mark = |cell: &Option<Answer>| cell.as_ref().map_or("·".to_owned(), |answer| prose(&answer.mark().0));
            let name = [prose(&party.name)].into_iter();
            out.push_str(&markdown::row(&name.chain(row.iter().map(mark)).collect::<Vec<_>>()));
        }
        out
    }
}

/// Regions of the addresses that are neither pods nor nodes; of IPv6 only where pods or policies know it.
fn outside(compiled: &Compiled) -> Vec<End> {
    let v4 = IpNet::V4(Ipv4Net::default());
    let v6 = IpNet::V6(Ipv6Net::default());
    let is_node = |address: IpAddr| compiled.table.addresses().node(&Endpoint::Address(address)).is_some();
    let of = |net: IpNet| compiled.regions(net).into_iter().filter(|r| !is_node(r.example));
    let mut regions: Vec<_> = of(v4).collect();
    let six: Vec<_> = of(v6).collect();
    let pods_know_v6 = compiled
        .table
        .addresses()
        .pod_addresses()
        .any(|(address, _)| address.is_ipv6());
    if pods_know_v6 || six.len() > 1 {
        regions.extend(six);
    }
    regions.into_iter().map(End::Region).collect()
}

/// The answer about all pairs of two kinds that have an address family in common; none when there is nothing to ask.
fn answer(compiled: &Compiled, from: &Kind, to: &Kind, by_port: bool) -> Option<Answer> {
    let mut answer: Option<Answer> = None;
    for (source, _) in from {
        for (destination, asked) in to {
            if asked.is_empty() || !source.common_family(destination) {
                continue;
            }
            let one = Answer::of(asked, &source.allowed(destination, compiled), by_port);
            answer = Some(match answer {
                Some(known) => known.and(&one),
                None => one,
            });
        }
    }
    answer
}

/// Puts kinds together whose answers agree, as sources and as destinations.
fn merge(by_kind: BTreeMap<usize, Vec<End>>, answers: &[Vec<Option<Answer>>]) -> Vec<(Vec<usize>, Vec<End>)> {
    let mut merged: Vec<(Vec<usize>, Vec<End>)> = Vec::new();
    // Where one of the two has nothing to ask, as between address families, they do not disagree.
    let agree = |a: &Option<Answer>, b: &Option<Answer>| a.is_none() || b.is_none() || a == b;
    let alike = |a: usize, b: usize| {
        (0..answers.len()).all(|x| agree(&answers[a][x], &answers[b][x]) && agree(&answers[x][a], &answers[x][b]))
    };
    for (kind, ends) in by_kind {
        match merged
            .iter_mut()
            .find(|(known, _)| known.iter().all(|k| alike(*k, kind)))
        {
            Some((kinds, known)) => {
                kinds.push(kind);
                known.extend(ends);
            }
            None => merged.push((vec![kind], ends)),
        }
    }
    for (_, ends) in &mut merged {
        ends.sort();
    }
    merged.sort_by(|a, b| a.1.cmp(&b.1));
    merged
}

fn party(describer: &Describer<'_>, kinds: Vec<usize>, ends: &[End]) -> Party {
    let pods: BTreeSet<&Arc<Pod>> = ends.iter().filter_map(End::pod).collect();
    let regions: Vec<&Region> = ends.iter().filter_map(End::region).collect();
    let name = match pods.is_empty() {
        true => format!(
            "outside: {}",
            join(&regions.iter().map(ToString::to_string).collect::<Vec<_>>())
        ),
        false => join(&describer.endpoints(pods.iter().copied())),
    };
    Party {
        name,
        pods: pods.iter().map(|pod| pod.name.to_string()).collect(),
        cidrs: regions.iter().flat_map(|r| r.cidrs()).map(|c| c.to_string()).collect(),
        kinds,
    }
}

#[cfg(test)]
mod tests {
    use policy_compiler::testing::{self, Tiers};
    use proptest::prelude::*;

    use super::*;

    /// The ends of a party, found again by name and by address.
    fn ends(compiled: &Compiled, party: &Party) -> Vec<End> {
        let pods = compiled
            .selectable_pods()
            .filter(|p| party.pods.contains(&p.name.to_string()));
        let mut ends: Vec<End> = pods.flat_map(|p| compiled.pod_ends(p)).collect();
        for cidr in &party.cidrs {
            let regions = compiled.regions(cidr.parse().expect("a CIDR"));
            ends.extend(regions.into_iter().map(End::Region));
        }
        ends
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Every pod stands in one row, and every cell is what the table says of each of its pairs.
        #[test]
        fn cells_are_the_tables_answers(cluster in testing::cluster(Tiers::All), port in prop::sample::select(vec![
            "all", "80/TCP", "53-80/UDP", "http/TCP",
        ]), by_port in any::<bool>()) {
            let compiled = Compiled::new(cluster);
            let port: PortSpec = port.parse().expect("a port");
            let Ok(matrix) = Matrix::new(&compiled, &port, by_port) else { return Ok(()) };
            let mut pods: Vec<String> = matrix.rows.iter().flat_map(|p| p.pods.clone()).collect();
            pods.sort();
            let mut expected: Vec<String> = compiled.selectable_pods().map(|p| p.name.to_string()).collect();
            expected.sort();
            prop_assert_eq!(pods, expected);
            for (from, row) in matrix.rows.iter().zip(&matrix.grid) {
                for (to, cell) in matrix.columns.iter().zip(row) {
                    let mut answer: Option<Answer> = None;
                    for source in ends(&compiled, from) {
                        for destination in ends(&compiled, to) {
                            let no_pod = source.pod().is_none() && destination.pod().is_none();
                            let (source_end, end) = (source.endpoint(), destination.endpoint());
                            let asked = port.on(&end);
                            let counts = source_end.same_family(&end) && !asked.is_empty() && !no_pod;
                            if counts && !crate::cli::pairs::itself(&source, &destination) {
                                let one = Answer::of(&asked, &compiled.table.allowed(&source_end, &end), by_port);
                                answer = Some(answer.map_or(one.clone(), |a| a.and(&one)));
                            }
                        }
                    }
                    prop_assert_eq!(cell, &answer, "{} -> {}", &from.name, &to.name);
                }
            }
        }
    }
}
