//! `palisade denied`: the record in this node's kernel, joined with a cluster: who tried to reach whom, on which port, how
//! often, and why it was denied, from the reference evaluator. The record and a cluster come in; text or JSON goes out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::evaluate::Evaluator;
use serde::Serialize;

use super::args::{DeniedArgs, TextOrJson};
use super::describe::title;
use super::output::{self, API_VERSION, Style, caution, columns, note, print, warn};
use super::verdict::Verdict;
use super::{Outcome, cluster};
use crate::manifests::nearest;
use crate::nft::denials::unknown_words;
use crate::nft::{Denial, Kernel, Mode, Nft};

/// How often `--watch` looks.
const POLL: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) fn run(args: &DeniedArgs) -> anyhow::Result<Outcome> {
    let kernel = Nft::default();
    // Before the cluster, which may take longer to read.
    let mut record = read(&kernel)?;
    let mut known = cluster::Known::new(&args.manifests, args.live.target())?;
    warn(known.warnings());
    if known.cluster().is_none() {
        note("these are addresses; for names, and why each was denied, give the cluster: --live, or --manifests PATH");
    }
    let filter = Filter {
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
    };
    let rules = Rules::read(&kernel)?;
    if rules.audit {
        note("this node is in audit mode (--mode audit): what stands here would have been denied, and passed");
    }
    if let Some(doubt) = known.cluster().and_then(|cluster| filter.doubt(cluster)) {
        caution(&doubt);
    }
    let report = |record: &[Denial], known: &cluster::Known, rules| {
        Report::new(record, known.cluster(), rules, &filter, SystemTime::now())
    };
    if !args.watch {
        let report = report(&record, &known, rules);
        print(&match args.output {
            TextOrJson::Json => report.json()?,
            TextOrJson::Text if report.is_empty() && rules.audit => {
                "nothing would have been denied in the last hour\n".to_owned()
            }
            TextOrJson::Text if report.is_empty() => "nothing was denied in the last hour\n".to_owned(),
            TextOrJson::Text => report.text(true),
        })?;
        return Ok(Outcome::Fine);
    }
    let mut watch = Watch::default();
    let mut heading = true;
    loop {
        let news = watch.news(record);
        if !news.is_empty() {
            if let Err(error) = known.refresh() {
                note(&format!("{error:#}; names and reasons are those of the last reading"));
            }
            // The agent may have been started anew, in another mode.
            let news = report(&news, &known, Rules::read(&kernel)?);
            let text = match args.output {
                _ if news.is_empty() => String::new(),
                TextOrJson::Json => news.json_lines()?,
                TextOrJson::Text => news.text(std::mem::take(&mut heading)),
            };
            if !print(&text)? {
                return Ok(Outcome::Fine);
            }
        }
        std::thread::sleep(POLL);
        record = read(&kernel)?;
    }
}

/// What to leave out of the record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only what has an end in this namespace.
    pub(crate) namespace: Option<String>,
    /// Only what has this pod, `namespace/name`, at an end.
    pub(crate) pod: Option<String>,
}

/// What of the node's rules says why something was denied, and what became of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// `--unknown-pods drop`.
    pub(crate) drops_unknown: bool,
    /// `--mode audit`: all of it passed.
    pub(crate) audit: bool,
}

impl Rules {
    /// Those of this node's kernel.
    pub(crate) fn read(kernel: &impl Kernel) -> anyhow::Result<Self> {
        Ok(Rules {
            drops_unknown: kernel.unknown()?.is_some(),
            audit: kernel.audits()?,
        })
    }

    fn mode(self) -> Mode {
        if self.audit { Mode::Audit } else { Mode::Enforce }
    }
}

/// Reads the record of this node's kernel, the longest ago first.
pub(crate) fn read(kernel: &impl Kernel) -> anyhow::Result<Vec<Denial>> {
    let Some(mut record) = kernel.denials()? else {
        anyhow::bail!(
            "there is no table inet palisade here: run this on a node that `palisade agent` enforces policy on, as root and \
             in the node's own network namespace"
        );
    };
    record.sort_by(|a, b| b.ago.cmp(&a.ago).then_with(|| a.cmp(b)));
    Ok(record)
}

/// What of the record is new, or has more packets than when it was last given.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: BTreeMap<(IpAddr, IpAddr, String), u64>,
}

impl Watch {
    pub(crate) fn news(&mut self, record: Vec<Denial>) -> Vec<Denial> {
        let before = std::mem::take(&mut self.seen);
        let mut news = Vec::new();
        for denial in record {
            let key = (denial.from, denial.to, denial.words());
            // An entry that aged, or went with a replaced table, begins anew.
            if before.get(&key) != Some(&denial.packets) {
                news.push(denial.clone());
            }
            self.seen.insert(key, denial.packets);
        }
        news
    }
}

/// The record in words.
pub(crate) struct Report {
    rows: Vec<Row>,
    rules: Rules,
}

/// One end of a denied connection; what is null is not known, or it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Who {
    address: IpAddr,
    namespace: Option<String>,
    pod: Option<String>,
    workload: Option<String>,
    /// The node whose address it is.
    node: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    from: Who,
    to: Who,
    port: String,
    packets: u64,
    bytes: u64,
    #[serde(rename = "secondsAgo")]
    seconds_ago: u64,
    /// In seconds since 1970.
    #[serde(rename = "lastSeen")]
    last_seen: u64,
    /// What policy says now; null without a cluster.
    verdict: Option<Verdict>,
    /// What it would say if audited policies were in force, where that is something else.
    #[serde(rename = "auditVerdict", skip_serializing_if = "Option::is_none")]
    audit_verdict: Option<Verdict>,
    reason: Option<String>,
}

/// What entries are joined with.
struct Known<'a> {
    cluster: &'a Cluster,
    evaluator: Evaluator<'a>,
    /// Whether the kernel has rules for pods that nobody knows.
    drops_unknown: bool,
}

impl Known<'_> {
    /// What policy says of a denied connection: now, if audited policies were in force, and why.
    fn decide(&self, denial: &Denial) -> Decided {
        let ends = [denial.from, denial.to].map(|address| self.evaluator.addresses().endpoint(address));
        let decision = self.evaluator.decide(&ends[0], &ends[1], denial.traffic());
        let unknown = denial.unknown_end(self.cluster, self.evaluator.addresses(), None);
        let passes = decision.allowed && decision.would_be_allowed();
        let by_link = denial.by_shared_link().filter(|_| passes);
        let reason = match (unknown.filter(|_| self.drops_unknown), decision.allowed) {
            (None, _) => by_link.map_or_else(|| decision.to_string(), str::to_owned),
            (Some(address), true) => unknown_words(address),
            // Of another node's ranges, perhaps: nobody here can tell which node this is.
            (Some(address), false) => format!("{}; {decision}", unknown_words(address)),
        };
        let dropped = self.drops_unknown && unknown.is_some();
        Decided {
            allowed: decision.allowed && !dropped && by_link.is_none(),
            audited: decision.allowed && !decision.would_be_allowed() && !dropped,
            reason,
        }
    }
}

struct Decided {
    allowed: bool,
    /// Whether only audited policies deny it.
    audited: bool,
    reason: String,
}

impl Report {
    /// Joins entries with a cluster, if there is one.
    pub(crate) fn new(
        denials: &[Denial],
        cluster: Option<&Cluster>,
        rules: Rules,
        filter: &Filter,
        now: SystemTime,
    ) -> Self {
        let known = cluster.map(|cluster| Known {
            cluster,
            evaluator: Evaluator::new(cluster),
            drops_unknown: rules.drops_unknown,
        });
        let rows = denials.iter().map(|denial| Row::new(denial, known.as_ref(), now));
        Report {
            rows: rows.filter(|row| filter.admits(row)).collect(),
            rules,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For people; the heading may be left out where lines follow others.
    pub(crate) fn text(&self, heading: bool) -> String {
        let mut table = Vec::new();
        if heading {
            let words = ["LAST SEEN", "PACKETS", "FROM", "TO", "PORT", "WHY"];
            // Without a cluster nobody can say why.
            let shown = if self.rows.iter().any(|row| row.reason.is_some()) {
                6
            } else {
                5
            };
            let words = words.into_iter().take(shown);
            table.push(words.map(|word| (word.to_owned(), Style::Bold)).collect());
        }
        table.extend(self.rows.iter().map(|row| row.cells(self.rules)));
        columns(0, &table)
    }

    /// For programs, all in one document.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            api_version: &'static str,
            kind: &'static str,
            mode: String,
            denials: &'a [Row],
        }
        output::json(&Json {
            api_version: API_VERSION,
            kind: "Denials",
            mode: self.rules.mode().to_string(),
            denials: &self.rows,
        })
    }

    /// For programs that follow: a document a line.
    pub(crate) fn json_lines(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            api_version: &'static str,
            kind: &'static str,
            mode: String,
            #[serde(flatten)]
            row: &'a Row,
        }
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(&serde_json::to_string(&Json {
                api_version: API_VERSION,
                kind: "Denial",
                mode: self.rules.mode().to_string(),
                row,
            })?);
            out.push('\n');
        }
        Ok(out)
    }
}

impl Filter {
    /// What is odd about it: it asks for what the cluster does not have, and then nothing is found, whatever was denied.
    pub(crate) fn doubt(&self, cluster: &Cluster) -> Option<String> {
        let names = || cluster.pods.keys().map(ToString::to_string).collect::<Vec<_>>();
        if let Some(pod) = self.pod.as_ref().filter(|pod| !names().contains(pod)) {
            let names = names();
            let near = nearest(pod, names.iter().map(String::as_str));
            let hint = near.map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            return Some(format!(
                "there is no pod {pod}{hint}: what one that is gone has done goes by its address"
            ));
        }
        let wanted = self.namespace.as_ref()?;
        let is_there = cluster.pods.keys().any(|pod| *pod.namespace == **wanted);
        (!is_there).then(|| format!("there is no pod in namespace {wanted}"))
    }

    fn admits(&self, row: &Row) -> bool {
        let ends = [&row.from, &row.to];
        let namespace = |wanted: &String| ends.iter().any(|who| who.namespace.as_ref() == Some(wanted));
        let pod = |wanted: &String| ends.iter().any(|who| who.name().as_ref() == Some(wanted));
        self.namespace.as_ref().is_none_or(namespace) && self.pod.as_ref().is_none_or(pod)
    }
}

impl Row {
    fn new(denial: &Denial, known: Option<&Known<'_>>, now: SystemTime) -> Self {
        let seen = now.checked_sub(denial.ago).unwrap_or(SystemTime::UNIX_EPOCH);
        let since_1970 = seen.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let decided = known.map(|known| known.decide(denial));
        let evaluator = known.map(|known| &known.evaluator);
        Row {
            from: Who::new(denial.from, evaluator),
            to: Who::new(denial.to, evaluator),
            port: denial.words(),
            packets: denial.packets,
            bytes: denial.bytes,
            seconds_ago: denial.ago.as_secs(),
            last_seen: since_1970.as_secs(),
            verdict: decided.as_ref().map(|decided| Verdict::one(decided.allowed)),
            audit_verdict: decided.as_ref().filter(|d| d.audited).map(|_| Verdict::Deny),
            reason: decided.map(|decided| decided.reason),
        }
    }

    fn cells(&self, rules: Rules) -> Vec<(String, Style)> {
        let passes = self.audit_verdict.is_some() || rules.audit && self.verdict == Some(Verdict::Deny);
        let (why, style) = match (self.verdict, &self.reason) {
            (_, Some(reason)) if passes => (format!("passes: {reason}"), Style::Warn),
            (Some(Verdict::Allow), Some(reason)) => (format!("allowed now: {reason}"), Style::Good),
            (_, Some(reason)) => (reason.clone(), Style::Bad),
            (_, None) => (String::new(), Style::Plain),
        };
        vec![
            (ago(self.seconds_ago), Style::Dim),
            (self.packets.to_string(), Style::Plain),
            (self.from.words(), Style::Bold),
            (self.to.words(), Style::Bold),
            (self.port.clone(), Style::Plain),
            (why, style),
        ]
    }
}

impl Who {
    fn new(address: IpAddr, evaluator: Option<&Evaluator<'_>>) -> Self {
        let mut who = Who {
            address,
            namespace: None,
            pod: None,
            workload: None,
            node: None,
        };
        let Some(evaluator) = evaluator else { return who };
        let end = evaluator.addresses().endpoint(address);
        match &end {
            Endpoint::Pod(pod, _) => {
                who.namespace = Some(pod.name.namespace.to_string());
                who.pod = Some(pod.name.name.to_string());
                who.workload = pod.workload.is_some().then(|| title(pod));
            }
            Endpoint::Address(_) => who.node = evaluator.addresses().node(&end).map(ToString::to_string),
        }
        who
    }

    /// `namespace/name` of a pod.
    fn name(&self) -> Option<String> {
        let (namespace, pod) = (self.namespace.as_ref()?, self.pod.as_ref()?);
        Some(format!("{namespace}/{pod}"))
    }

    fn words(&self) -> String {
        match (self.name(), &self.node) {
            (Some(name), _) => name,
            (None, Some(node)) => format!("{} (node {node})", self.address),
            (None, None) => self.address.to_string(),
        }
    }
}

/// `3s ago`, `4m ago`.
fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s ago"),
        _ => format!("{}m ago", seconds / 60),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
