//! What was measured, as markdown for people and as JSON for programs, and whether the budgets are met.

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde_json::{Value, json};

use crate::cluster::{Isolated, Point};
use crate::measure::{LARGE, Metric, Metrics, Series};
use crate::memory::{ELEMENTS, Memory};
use crate::variants::{BASELINE, CHAINS, PALISADE, VERIFIED};

/// One variant at one point.
pub(crate) struct Row {
    /// None where no policy is there at all.
    pub(crate) point: Option<Point>,
    pub(crate) variant: String,
    pub(crate) metrics: Metrics,
    /// Connection tracking alone, in the same rounds.
    pub(crate) baseline: Metrics,
    /// How long nft took to load the table, in seconds.
    pub(crate) load: f64,
}

impl Row {
    /// How many times as much as connection tracking alone.
    pub(crate) fn ratio(&self, metric: Metric) -> Option<Series> {
        Some(self.metrics.get(&metric)?.against(self.baseline.get(&metric)?))
    }
}

/// A run.
pub(crate) struct Report {
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<Row>,
    pub(crate) memory: Vec<Memory>,
}

/// A promise of the design.
pub(crate) struct Budget {
    name: String,
    value: f64,
    limit: f64,
    /// Whether more is better.
    at_least: bool,
    note: String,
}

impl Budget {
    pub(crate) fn met(&self) -> bool {
        match self.at_least {
            true => self.value >= self.limit,
            false => self.value <= self.limit,
        }
    }
}

impl Report {
    /// A variant's rows of one kind of point, and its ratio for a packet there.
    pub(crate) fn packets<'a>(
        &'a self,
        variant: &'a str,
        isolated: Isolated,
    ) -> impl Iterator<Item = (Point, f64)> + 'a {
        let rows = self.rows.iter().filter(move |row| row.variant == variant);
        rows.filter_map(move |row| {
            let point = row.point.filter(|p| p.isolated == isolated)?;
            Some((point, row.ratio(Metric::Packet)?.median()))
        })
    }

    fn row(&self, variant: &str, point: Point) -> Option<&Row> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.variant == variant && row.point == Some(point))
    }

    /// The budgets of the design.
    pub(crate) fn budgets(&self) -> Vec<Budget> {
        let mut all = Vec::new();
        let worst = |ratios: &[(Point, f64)]| ratios.iter().map(|(_, r)| *r).fold(0.0, f64::max);
        let mut at_most = |name: String, value: f64, limit: f64, note: String| {
            all.push(Budget {
                name,
                value,
                limit,
                at_least: false,
                note,
            });
        };
        for (variant, isolated, limit) in [
            (PALISADE, Isolated::One, 1.2),
            (PALISADE, Isolated::Both, 1.35),
            (VERIFIED, Isolated::One, 1.05),
            (VERIFIED, Isolated::Both, 1.05),
        ] {
            let ratios: Vec<_> = self.packets(variant, isolated).collect();
            if ratios.is_empty() {
                continue;
            }
            let name = format!("{variant}: a packet, {} isolated", ends(isolated));
            at_most(
                name,
                worst(&ratios),
                limit,
                format!("the worst of {} points", ratios.len()),
            );
            let least = ratios.iter().map(|(_, r)| *r).fold(f64::MAX, f64::min);
            let name = format!("{variant}: flat over policies and peers, {} isolated", ends(isolated));
            at_most(
                name,
                worst(&ratios) / least,
                1.05,
                "the dearest point by the cheapest".to_owned(),
            );
        }
        let rivals = self.rows.iter().filter(|row| row.variant == CHAINS);
        let thousand = rivals.filter(|row| row.point.is_some_and(|p| p.policies == 1_000));
        let against: Vec<(f64, f64)> = thousand
            .filter_map(|rival| {
                let own = self.row(PALISADE, rival.point?)?;
                let of = |row: &'_ Row| row.metrics.get(&Metric::Packet).cloned();
                let (own_cost, rival_cost, base) = (of(own)?, of(rival)?, own.baseline.get(&Metric::Packet)?);
                let added = rival_cost.beyond(base).median() / own_cost.beyond(base).median();
                Some((rival_cost.against(&own_cost).median(), added))
            })
            .collect();
        if !against.is_empty() {
            let least = |pick: fn(&(f64, f64)) -> f64| against.iter().map(pick).fold(f64::MAX, f64::min);
            all.push(Budget {
                name: "a chain per policy by palisade: a packet at 1,000 policies".to_owned(),
                value: least(|a| a.0),
                limit: 20.0,
                at_least: true,
                note: format!("of the whole path; {:.0} times of what is added to it", least(|a| a.1)),
            });
        }
        all
    }

    /// All tables.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        let mut section = |title: &str, table: &Table| out += &format!("{title}\n\n{table}\n\n");
        section("Nothing, and connection tracking alone", &self.details(None));
        for isolated in [Isolated::One, Isolated::Both] {
            let title = format!("A packet of an established connection, {} isolated", ends(isolated));
            section(&title, &self.packet_table(isolated));
        }
        for point in self.detailed() {
            let title = format!(
                "{} policies, {} peers, {} isolated",
                thousands(point.policies),
                thousands(point.peers),
                ends(point.isolated)
            );
            section(&title, &self.details(Some(point)));
        }
        if !self.memory.is_empty() {
            section("Kernel memory", &self.memory_table());
        }
        section("Budgets", &budget_table(&self.budgets()));
        out.truncate(out.trim_end().len());
        out + "\n"
    }

    fn points(&self) -> Vec<Point> {
        let mut points: Vec<Point> = self.rows.iter().filter_map(|row| row.point).collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// The points where all was measured.
    fn detailed(&self) -> Vec<Point> {
        let all = |p: &Point| {
            self.row(BASELINE, *p)
                .is_some_and(|r| r.metrics.contains_key(&Metric::Bulk))
        };
        self.points().into_iter().filter(all).collect()
    }

    fn packet_table(&self, isolated: Isolated) -> Table {
        let points: Vec<Point> = self.points().into_iter().filter(|p| p.isolated == isolated).collect();
        let first = points.first().copied();
        let variants: Vec<&str> = self
            .rows
            .iter()
            .filter(|r| r.point == first)
            .map(|r| &*r.variant)
            .collect();
        let mut table = markdown_table(["policies", "peers"].into_iter().chain(variants.iter().copied()));
        for point in points {
            let mut cells = vec![thousands(point.policies), thousands(point.peers)];
            cells.extend(variants.iter().map(|variant| {
                let row = self.row(variant, point);
                row.and_then(|row| {
                    let ns = row.metrics.get(&Metric::Packet)?.median();
                    let ratio = row.ratio(Metric::Packet)?;
                    Some(match *variant == BASELINE {
                        true => format!("{} ns", thousands(ns as usize)),
                        false => format!("{} ({})", times(ratio.median()), spread(&ratio)),
                    })
                })
                .unwrap_or_default()
            }));
            table.add_row(cells);
        }
        table
    }

    fn details(&self, point: Option<Point>) -> Table {
        let mut table = markdown_table([
            "",
            "packet",
            "new UDP flow",
            "TCP connection",
            "of these in a second",
            "connect, median / 99 of 100",
            "UDP of 1,400 bytes",
            "TCP stream",
            "loaded in",
        ]);
        for row in self.rows.iter().filter(|row| row.point == point) {
            let of = |metric: Metric| row.metrics.get(&metric).map(Series::median);
            let cost = |metric: Metric| {
                let ratio = row.ratio(metric).map_or(1.0, |r| r.median());
                of(metric).map_or_else(String::new, |ns| format!("{} ({})", micro(ns), times(ratio)))
            };
            let cell = |value: Option<String>| value.unwrap_or_default();
            table.add_row([
                row.variant.clone(),
                cost(Metric::Packet),
                cost(Metric::NewFlow),
                cost(Metric::Connection),
                cell(of(Metric::Connection).map(|ns| thousands((1e9 / ns) as usize))),
                cell(
                    of(Metric::Latency)
                        .zip(of(Metric::Latency99))
                        .map(|(median, most)| format!("{} / {}", micro(median), micro(most))),
                ),
                cell(of(Metric::LargePacket).map(|ns| rate(LARGE as f64 / ns * 1e3))),
                cell(of(Metric::Bulk).map(rate)),
                format!("{:.2} s", row.load),
            ]);
        }
        table
    }

    fn memory_table(&self) -> Table {
        let mut table = markdown_table(["", "bytes each", "least to most", "50,000 of them"]);
        for memory in &self.memory {
            let median = memory.bytes.median();
            table.add_row([
                memory.what.to_owned(),
                format!("{median:.0}"),
                format!(
                    "{:.0} to {:.0}",
                    memory.bytes.percentile(0),
                    memory.bytes.percentile(100)
                ),
                format!("{:.1} MB", median * ELEMENTS as f64 / 1e6),
            ]);
        }
        table
    }

    /// For programs; docs/benchmarks.md tells the fields.
    pub(crate) fn json(&self) -> Value {
        let series = |s: &Series| json!({"median": s.median(), "min": s.percentile(0), "max": s.percentile(100)});
        let rows = self.rows.iter().map(|row| {
            let metrics: serde_json::Map<String, Value> = (Metric::ALL.iter())
                .filter_map(|metric| {
                    let mut value = series(row.metrics.get(metric)?);
                    value["ratio"] = series(&row.ratio(*metric)?);
                    Some((metric.name().to_owned(), value))
                })
                .collect();
            json!({
                "variant": row.variant,
                "isolated": row.point.map(|p| p.isolated.name()),
                "policies": row.point.map(|p| p.policies),
                "peers": row.point.map(|p| p.peers),
                "load_s": row.load,
                "metrics": metrics,
            })
        });
        let memory = self
            .memory
            .iter()
            .map(|m| json!({"what": m.what, "bytes": series(&m.bytes)}));
        let budgets = self.budgets();
        let budgets = budgets.iter().map(|b| {
            json!({"name": b.name, "value": b.value, "limit": b.limit, "at_least": b.at_least, "met": b.met(), "note": b.note})
        });
        json!({
            "apiVersion": "palisade.dev/v1alpha1",
            "kind": "DataPlaneBenchmark",
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "rounds": self.rounds,
            "rows": rows.collect::<Vec<_>>(),
            "memory": memory.collect::<Vec<_>>(),
            "budgets": budgets.collect::<Vec<_>>(),
        })
    }
}

fn budget_table(budgets: &[Budget]) -> Table {
    let mut table = markdown_table(["", "measured", "budget", "", "of it"]);
    for budget in budgets {
        let bound = if budget.at_least { "at least" } else { "at most" };
        let show = |ratio: f64| format!("{ratio:.*}x", if ratio >= 10.0 { 0 } else { 3 });
        table.add_row([
            budget.name.clone(),
            show(budget.value),
            format!("{bound} {}x", budget.limit),
            if budget.met() { "met" } else { "missed" }.to_owned(),
            budget.note.clone(),
        ]);
    }
    table
}

fn markdown_table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}

fn ends(isolated: Isolated) -> &'static str {
    match isolated {
        Isolated::One => "one end",
        Isolated::Both => "both ends",
    }
}

fn times(ratio: f64) -> String {
    format!("{ratio:.*}x", if ratio >= 10.0 { 1 } else { 2 })
}

/// The quarter below and the quarter above left out.
fn spread(ratio: &Series) -> String {
    let places = if ratio.median() >= 10.0 { 1 } else { 2 };
    format!("{:.places$} to {:.places$}", ratio.percentile(25), ratio.percentile(75))
}

fn micro(ns: f64) -> String {
    format!("{:.*} µs", if ns >= 1e5 { 0 } else { 2 }, ns / 1e3)
}

fn rate(megabytes: f64) -> String {
    format!("{} MB/s", thousands(megabytes as usize))
}

/// `50,000`
pub(crate) fn thousands(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1_000), number % 1_000),
    }
}
