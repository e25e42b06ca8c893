//! The figures, as tables for people and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Memory, Usage};

/// The agent's own measure of the time from an event to the kernel.
const OWN: &str = "palisade_event_to_kernel_seconds";

/// All that was measured.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    pub(crate) namespaces: usize,
    pub(crate) nodes: usize,
    pub(crate) local_pods: usize,
    pub(crate) peers: usize,
    /// Objects and their bytes: namespaces, nodes, pods, policies.
    pub(crate) sizes: Vec<(usize, usize)>,
    pub(crate) starts: Vec<Start>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) end: Memory,
    pub(crate) nft_peak: u64,
}

/// A start of the agent.
pub(crate) struct Start {
    pub(crate) what: &'static str,
    pub(crate) ready: Duration,
    /// Until it was ready.
    pub(crate) usage: Usage,
    pub(crate) at_ready: Memory,
    pub(crate) settled: Memory,
    pub(crate) nft_peak: u64,
}

/// Something that went on for some time.
pub(crate) struct Phase {
    pub(crate) what: &'static str,
    pub(crate) took: Duration,
    pub(crate) usage: Usage,
    /// Changes in the API server, and those that the kernel had to know.
    pub(crate) sent: usize,
    pub(crate) told: usize,
    /// Those that the kernel never knew, because the next one came first.
    pub(crate) superseded: usize,
    pub(crate) all: Delays,
    pub(crate) here: Delays,
    pub(crate) transactions: usize,
    /// From the last change to the last that the kernel heard of.
    pub(crate) converged: Duration,
    /// What the agent's metrics rose by.
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) memory: Memory,
}

/// From a change in the API server to the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delays {
    pub(crate) count: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) worst: Duration,
}

impl Delays {
    /// Of all, or only of pods of the agent's node.
    pub(crate) fn of(delays: &[(Duration, bool)], here: bool) -> Delays {
        let chosen = delays.iter().filter(|(_, is_here)| *is_here || !here);
        let mut chosen: Vec<Duration> = chosen.map(|(delay, _)| *delay).collect();
        chosen.sort_unstable();
        let at = |part: usize| chosen.get((chosen.len() * part / 100).min(chosen.len().saturating_sub(1)));
        Delays {
            count: chosen.len(),
            p50: at(50).copied().unwrap_or_default(),
            p99: at(99).copied().unwrap_or_default(),
            worst: chosen.last().copied().unwrap_or_default(),
        }
    }
}

/// What metrics rose by.
pub(crate) fn difference(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let rise = |(name, value): (&String, &f64)| (name.clone(), value - before.get(name).copied().unwrap_or_default());
    after.iter().map(rise).collect()
}

impl Phase {
    fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).copied().unwrap_or_default()
    }

    /// Below which of the agent's own measurements this part of them lies, in seconds: the upper end of a bucket of the histogram.
    fn own(&self, part: f64) -> Option<f64> {
        let prefix = format!("{OWN}_bucket{{le=\"");
        let buckets = self.metrics.iter().filter_map(|(name, count)| {
            let end = name.strip_prefix(&prefix)?.strip_suffix("\"}")?;
            Some((end.parse::<f64>().unwrap_or(f64::INFINITY), *count))
        });
        let mut buckets: Vec<(f64, f64)> = buckets.collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        buckets
            .iter()
            .find(|(_, count)| *count >= all * part)
            .map(|(end, _)| *end)
    }

    fn core(&self) -> f64 {
        (self.usage.own + self.usage.children) / self.took.as_secs_f64()
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn mb(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

impl Report {
    /// Two tables, and what they are of.
    pub(crate) fn text(&self) -> String {
        let Report {
            pods,
            policies,
            namespaces,
            nodes,
            local_pods,
            peers,
            ..
        } = self;
        let mut text = format!(
            "{pods} pods ({local_pods} of them on the agent's node), {policies} policies, {namespaces} namespaces, {nodes} nodes; {peers} peers in the kernel\n"
        );
        for (kind, (count, bytes)) in ["namespaces", "nodes", "pods", "policies"].iter().zip(&self.sizes) {
            text += &format!(
                "{count} {kind}: {:.1} MB, {} bytes each\n",
                *bytes as f64 / 1e6,
                bytes / (*count).max(1)
            );
        }
        text += &format!("\n{}\n\n{}\n\n{}", self.starts(), self.phases(), self.budgets());
        text
    }

    fn starts(&self) -> String {
        let heads = [
            "a start over",
            "ready after",
            "CPU of the agent, of nft",
            "received",
            "memory when ready",
            "5 s later",
            "at most",
            "nft at most",
        ];
        let mut table = table(&heads);
        for start in &self.starts {
            let usage = &start.usage;
            table.add_row([
                start.what.to_owned(),
                format!("{:.2} s", start.ready.as_secs_f64()),
                format!("{:.2} s, {:.2} s", usage.own, usage.children),
                format!("{:.1} MB", usage.wire as f64 / 1e6),
                mb(start.at_ready.resident),
                mb(start.settled.resident),
                mb(start.settled.peak),
                mb(start.nft_peak),
            ]);
        }
        table.to_string()
    }

    fn phases(&self) -> String {
        let heads = [
            "what happens",
            "changes",
            "for the kernel",
            "p50",
            "p99",
            "worst",
            "by the agent's metric p50, p99",
            "this node's pods p50, worst",
            "transactions",
            "a second",
            "done after the last",
            "agent",
            "nft",
            "of a core",
            "received",
            "a change",
            "memory",
        ];
        let mut table = table(&heads);
        for phase in &self.phases {
            let own = |part| {
                phase
                    .own(part)
                    .map_or_else(|| "-".to_owned(), |seconds| format!("{:.0} ms", seconds * 1e3))
            };
            let delay = |delays: &Delays, time: Duration| if delays.count == 0 { "-".to_owned() } else { ms(time) };
            let Phase {
                all, here, usage, took, ..
            } = phase;
            table.add_row([
                phase.what.to_owned(),
                phase.sent.to_string(),
                match phase.superseded {
                    0 => phase.told.to_string(),
                    superseded => format!("{} ({superseded} overtaken)", phase.told),
                },
                delay(all, all.p50),
                delay(all, all.p99),
                delay(all, all.worst),
                format!("{}, {}", own(0.5), own(0.99)),
                format!("{}, {}", delay(here, here.p50), delay(here, here.worst)),
                phase.transactions.to_string(),
                format!("{:.1}", phase.transactions as f64 / took.as_secs_f64()),
                if all.count == 0 {
                    "-".to_owned()
                } else {
                    ms(phase.converged)
                },
                format!("{:.2} s", usage.own),
                format!("{:.2} s", usage.children),
                format!("{:.2} %", 100.0 * phase.core()),
                format!("{:.2} MB", usage.wire as f64 / 1e6),
                format!("{} bytes", usage.wire / phase.sent.max(1) as u64),
                mb(phase.memory.resident),
            ]);
        }
        table.to_string()
    }

    fn budgets(&self) -> String {
        let mut table = table(&["budget", "measured", "at most", ""]);
        for (what, measured, limit, unit) in self.held() {
            let met = if measured < limit { "met" } else { "missed" };
            table.add_row([
                what,
                format!("{measured:.1} {unit}"),
                format!("{limit} {unit}"),
                met.to_owned(),
            ]);
        }
        format!("{table}\n")
    }

    /// What was promised: what it is of, what was measured, the limit, and the unit of both.
    fn held(&self) -> Vec<(String, f64, f64, &'static str)> {
        let mut held = Vec::new();
        for start in &self.starts {
            held.push((
                format!("ready, over {}", start.what),
                start.ready.as_secs_f64(),
                15.0,
                "s",
            ));
        }
        for phase in self
            .phases
            .iter()
            .filter(|phase| phase.all.count > 0 && !phase.what.starts_with("1,000"))
        {
            held.push((
                format!("p50, {}", phase.what),
                phase.all.p50.as_secs_f64() * 1e3,
                50.0,
                "ms",
            ));
            held.push((
                format!("p99, {}", phase.what),
                phase.all.p99.as_secs_f64() * 1e3,
                250.0,
                "ms",
            ));
        }
        for phase in self.phases.iter().filter(|phase| phase.what == "idle") {
            held.push((
                "CPU when idle, nft included".to_owned(),
                100.0 * phase.core(),
                1.0,
                "% of a core",
            ));
        }
        let peak = self
            .starts
            .iter()
            .map(|start| start.settled.peak)
            .chain([self.end.peak])
            .max()
            .unwrap_or_default();
        held.push((
            "the agent's memory at its peak".to_owned(),
            peak as f64 / 1e6,
            150.0,
            "MB",
        ));
        held
    }

    /// The same, and the rest.
    pub(crate) fn json(&self) -> Value {
        let memory = |memory: &Memory| json!({"resident": memory.resident, "peak": memory.peak});
        let usage = |usage: &Usage| json!({"agentCpu": usage.own, "nftCpu": usage.children, "received": usage.wire});
        let delays = |d: &Delays| json!({"count": d.count, "p50": d.p50.as_secs_f64(), "p99": d.p99.as_secs_f64(), "worst": d.worst.as_secs_f64()});
        let start = |s: &Start| {
            json!({"what": s.what, "ready": s.ready.as_secs_f64(), "usage": usage(&s.usage), "memoryWhenReady": memory(&s.at_ready),
                   "memorySettled": memory(&s.settled), "nftPeak": s.nft_peak})
        };
        let phase = |p: &Phase| {
            json!({"what": p.what, "seconds": p.took.as_secs_f64(), "usage": usage(&p.usage), "changes": p.sent, "forTheKernel": p.told,
                   "overtaken": p.superseded, "delays": delays(&p.all), "delaysOfThisNode": delays(&p.here), "transactions": p.transactions,
                   "converged": p.converged.as_secs_f64(), "ownP50AtMost": p.own(0.5), "ownP99AtMost": p.own(0.99),
                   "driftChecks": p.metric("palisade_drift_check_duration_seconds_count"),
                   "driftCheckSeconds": p.metric("palisade_drift_check_duration_seconds_sum"), "memory": memory(&p.memory)})
        };
        let budget = |(what, measured, limit, unit): (String, f64, f64, &str)| json!({"what": what, "measured": measured, "limit": limit, "unit": unit, "met": measured < limit});
        json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "Benchmark", "unit": "seconds and bytes",
            "pods": self.pods, "localPods": self.local_pods, "policies": self.policies, "namespaces": self.namespaces, "nodes": self.nodes,
            "peers": self.peers,
            "sizes": self.sizes.iter().map(|(count, bytes)| json!({"objects": count, "bytes": bytes})).collect::<Vec<_>>(),
            "starts": self.starts.iter().map(start).collect::<Vec<_>>(),
            "phases": self.phases.iter().map(phase).collect::<Vec<_>>(),
            "memoryAtTheEnd": memory(&self.end), "nftPeak": self.nft_peak,
            "budgets": self.held().into_iter().map(budget).collect::<Vec<_>>(),
        })
    }
}

fn table(heads: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(heads);
    table
}
