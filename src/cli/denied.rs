//! `palisade denied`: the record in this node's kernel, joined with a cluster: who tried to reach whom, on which port, how
//! often, and why it was denied, from the reference evaluator. The record and a cluster come in; text or JSON goes out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::evaluate::Evaluator;
use serde::Serialize;

use super::describe::title;
use super::output::{self, API_VERSION, Style, columns};
use super::verdict::Verdict;
use crate::nft::denials::unknown_words;
use crate::nft::{Denial, Kernel};

/// How often `--watch` looks.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// What to leave out of the record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only what has an end in this namespace.
    pub(crate) namespace: Option<String>,
    /// Only what has this pod, `namespace/name`, at an end.
    pub(crate) pod: Option<String>,
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
    /// Joins entries with a cluster, if there is one. Whether the kernel drops unknown pods tells why some were denied.
    pub(crate) fn new(
        denials: &[Denial],
        cluster: Option<&Cluster>,
        drops_unknown: bool,
        filter: &Filter,
        now: SystemTime,
    ) -> Self {
        let known = cluster.map(|cluster| Known {
            cluster,
            evaluator: Evaluator::new(cluster),
            drops_unknown,
        });
        let rows = denials.iter().map(|denial| Row::new(denial, known.as_ref(), now));
        Report {
            rows: rows.filter(|row| filter.admits(row)).collect(),
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
        table.extend(self.rows.iter().map(Row::cells));
        columns(0, &table)
    }

    /// For programs, all in one document.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Json<'a> {
            api_version: &'static str,
            kind: &'static str,
            denials: &'a [Row],
        }
        output::json(&Json {
            api_version: API_VERSION,
            kind: "Denials",
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
            #[serde(flatten)]
            row: &'a Row,
        }
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(&serde_json::to_string(&Json {
                api_version: API_VERSION,
                kind: "Denial",
                row,
            })?);
            out.push('\n');
        }
        Ok(out)
    }
}

impl Filter {
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

    fn cells(&self) -> Vec<(String, Style)> {
        let (why, style) = match (self.verdict, &self.reason) {
            (_, Some(reason)) if self.audit_verdict.is_some() => (format!("passes: {reason}"), Style::Warn),
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
mod tests {
    use super::*;

    const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: worker-2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: worker-1, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {nodeName: worker-1, containers: [{name: db, image: db}]}
status: {phase: Running, podIP: 10.244.1.3, podIPs: [{ip: 10.244.1.3}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
";

    fn denial(from: &str, to: &str, protocol: &str, port: Option<u16>, packets: u64, ago: u64) -> Denial {
        Denial {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: protocol.to_owned(),
            port,
            packets,
            bytes: packets * 60,
            ago: Duration::from_secs(ago),
        }
    }

    fn record() -> Vec<Denial> {
        vec![
            denial("192.168.0.2", "10.244.1.3", "icmp", None, 3, 1800),
            denial("192.0.2.10", "10.244.1.3", "udp", Some(53), 1, 100),
            denial("10.244.1.2", "10.244.1.3", "tcp", Some(22), 12, 3),
            denial("10.244.1.2", "10.244.1.3", "tcp", Some(5432), 1, 0),
        ]
    }

    fn report(cluster: bool, filter: &Filter) -> Report {
        let loaded = crate::manifests::parse("cluster.yaml", CLUSTER).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Report::new(&record(), cluster.then_some(&loaded.cluster), false, filter, now)
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn each_line_says_who_whom_and_why() {
        insta::assert_snapshot!(plain(&report(true, &Filter::default()).text(true)));
        insta::assert_snapshot!(plain(&report(false, &Filter::default()).text(true)));
    }

    #[test]
    fn what_an_audited_policy_would_deny_passes() {
        let text = CLUSTER.replace(
            "metadata: {name: db, namespace: shop}",
            "metadata: {name: db, namespace: shop, annotations: {palisade.dev/mode: audit}}",
        );
        let loaded = crate::manifests::parse("cluster.yaml", &text).unwrap();
        let report = Report::new(
            &record()[2..3],
            Some(&loaded.cluster),
            false,
            &Filter::default(),
            SystemTime::UNIX_EPOCH,
        );
        let line = plain(&report.text(false));
        let why = "passes: egress not isolated; ingress not isolated (audit: would be denied by shop/db, no rule admits it; \
                   nearest: shop/db ingress[0] wants port 5432/TCP, asked for 22/TCP)";
        assert!(line.contains(why), "{line}");
        assert!(report.json().unwrap().contains("\"auditVerdict\": \"deny\""));
    }

    #[test]
    fn what_is_addressed_to_no_pod_is_not_called_allowed() {
        let loaded = crate::manifests::parse("cluster.yaml", CLUSTER).unwrap();
        let record = [
            denial("fe80::1", "fe80::2", "tcp", Some(5432), 1, 0),
            denial("10.244.1.2", "224.0.0.251", "udp", Some(5353), 1, 0),
            denial("10.244.1.2", "192.0.2.1", "udp", Some(5353), 1, 0),
        ];
        let filter = Filter::default();
        let report = Report::new(&record, Some(&loaded.cluster), false, &filter, SystemTime::UNIX_EPOCH);
        let text = plain(&report.text(false));
        let told: Vec<bool> = text.lines().map(|line| line.contains("addressed to no pod")).collect();
        assert_eq!(told, [true, true, false], "{text}");
        assert!(text.contains("allowed now"), "{text}");
        assert_eq!(report.json().unwrap().matches("\"verdict\": \"deny\"").count(), 2);
    }

    #[test]
    fn an_unknown_pod_is_told_where_the_kernel_drops_it() {
        let text = CLUSTER.replace(
            "metadata: {name: worker-2}",
            "metadata: {name: worker-2}\nspec: {podCIDR: 10.244.1.0/24}",
        );
        let loaded = crate::manifests::parse("cluster.yaml", &text).unwrap();
        let record = [
            denial("10.244.1.9", "10.244.1.2", "tcp", Some(80), 1, 0),
            denial("10.244.1.9", "10.244.1.3", "tcp", Some(80), 1, 0),
            denial("10.244.2.9", "10.244.1.2", "tcp", Some(80), 1, 0),
        ];
        let lines = |drops_unknown| {
            let now = SystemTime::UNIX_EPOCH;
            let report = Report::new(&record, Some(&loaded.cluster), drops_unknown, &Filter::default(), now);
            plain(&report.text(false))
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (told, off) = (lines(true), lines(false));
        assert!(
            told[0].ends_with("80/TCP  no pod of the cluster has 10.244.1.9 (--unknown-pods drop)"),
            "{told:?}"
        );
        assert!(
            told[1].contains("has 10.244.1.9 (--unknown-pods drop); ingress isolated by shop/db"),
            "{told:?}"
        );
        assert!(
            told[2].contains("allowed now") && off[0].contains("allowed now"),
            "{told:?} {off:?}"
        );
        assert!(off[1].contains("80/TCP  ingress isolated by shop/db"), "{off:?}");
    }

    #[test]
    fn json_is_stable() {
        let filter = Filter {
            namespace: None,
            pod: Some("shop/web-0".to_owned()),
        };
        insta::assert_snapshot!(report(true, &filter).json().unwrap());
        let lines = report(true, &filter).json_lines().unwrap();
        let kinds: Vec<String> = (lines.lines())
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].to_string())
            .collect();
        assert_eq!(kinds, ["\"Denial\"", "\"Denial\""]);
    }

    #[test]
    fn filters_look_at_both_ends() {
        let rows = |namespace: Option<&str>, pod: Option<&str>| {
            let filter = Filter {
                namespace: namespace.map(str::to_owned),
                pod: pod.map(str::to_owned),
            };
            report(true, &filter).rows.len()
        };
        assert_eq!(rows(None, None), 4);
        assert_eq!(rows(Some("shop"), None), 4);
        assert_eq!(rows(Some("other"), None), 0);
        assert_eq!(rows(None, Some("shop/db-0")), 4);
        assert_eq!(rows(None, Some("shop/web-0")), 2);
        assert_eq!(rows(Some("other"), Some("shop/web-0")), 0);
    }

    #[test]
    fn a_watch_tells_what_is_new() {
        let mut watch = Watch::default();
        assert_eq!(watch.news(record()), record());
        assert!(watch.news(record()).is_empty());
        let mut next = record();
        next[1].packets += 1;
        next.push(denial("10.244.1.2", "10.244.1.3", "tcp", Some(23), 1, 0));
        assert_eq!(watch.news(next.clone()), [next[1].clone(), next[4].clone()]);
        // One that aged and came again.
        next.remove(0);
        assert!(watch.news(next).is_empty());
        assert_eq!(watch.news(record())[0], record()[0]);
    }
}
