//! Times, memory, and how they are told: a table for people, JSON for programs.
//!
//! Times are those that the measuring thread spends on a core: the compiler works on one thread, so that on an idle machine
//! this is the time that passes, and on a busy one the neighbours are left out. The fastest round by the clock on the wall
//! stands beside it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Runs stop after this many rounds, or once they have taken this long and are at least `LEAST`.
const MOST: usize = 101;
const LEAST: usize = 5;
const LONG_ENOUGH: Duration = Duration::from_secs(3);

/// Times of one thing.
pub(crate) struct Times {
    /// On a core; sorted.
    cpu: Vec<Duration>,
    /// The fastest round by the clock on the wall.
    wall: Duration,
}

impl Times {
    fn of(rounds: Vec<(Duration, Duration)>) -> Self {
        let wall = rounds.iter().map(|(_, wall)| *wall).min().unwrap_or_default();
        let mut cpu: Vec<Duration> = rounds.into_iter().map(|(cpu, _)| cpu).collect();
        cpu.sort_unstable();
        Times { cpu, wall }
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }

    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        self.cpu[self.cpu.len() * percent / 100]
    }

    pub(crate) fn rounds(&self) -> usize {
        self.cpu.len()
    }
}

/// Times some work, without the disposal of its result; one round before the first does not count.
pub(crate) fn time<T>(mut work: impl FnMut() -> T) -> Times {
    let mut unused = || ();
    let [times, _] = alternate(&mut work, &mut unused);
    times
}

/// Times two rivals in turn, so that whatever else the machine does meets both.
pub(crate) fn alternate<A, B>(mut one: impl FnMut() -> A, mut other: impl FnMut() -> B) -> [Times; 2] {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    black_box((one(), other()));
    let begin = Instant::now();
    while ones.len() < MOST && (ones.len() < LEAST || begin.elapsed() < LONG_ENOUGH) {
        ones.push(once(&mut one));
        others.push(once(&mut other));
    }
    [ones, others].map(Times::of)
}

/// Times work on each of many things, every one of them once.
pub(crate) fn each<I, T>(things: impl Iterator<Item = I>, mut work: impl FnMut(I) -> T) -> Times {
    Times::of(things.map(|thing| once(|| work(thing))).collect())
}

/// The time on a core, and the time by the clock on the wall.
fn once<T>(work: impl FnOnce() -> T) -> (Duration, Duration) {
    let (begin, begin_on_core) = (Instant::now(), on_core());
    let result = black_box(work());
    let taken = (on_core() - begin_on_core, begin.elapsed());
    drop(result);
    taken
}

fn on_core() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("Linux keeps the time of each thread")
        .into()
}

/// Memory of this process in bytes: resident now, and the most since `forget_peak`. Linux tells both; of the whole process,
/// so that nothing is left out and no counting allocator slows what is timed elsewhere.
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

impl Memory {
    pub(crate) fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
        };
        Memory {
            now: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }

    /// Lets the peak begin anew at what is resident now.
    pub(crate) fn forget_peak() {
        std::fs::write("/proc/self/clear_refs", "5").expect("Linux resets the peak through clear_refs");
    }
}

/// One line of the report.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What was measured, at what size.
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// What it must not exceed, or (of a ratio to the rival) not fall below.
    pub(crate) budget: Option<f64>,
    /// Anything else worth a column.
    pub(crate) note: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    /// How many times as fast as the rival.
    TimesFaster,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds if value >= 1.0 => format!("{value:.2} s"),
            Unit::Seconds if value >= 0.001 => format!("{:.1} ms", value * 1e3),
            Unit::Seconds => format!("{:.1} µs", value * 1e6),
            Unit::Bytes => format!("{:.0} MB", value / 1e6),
            Unit::TimesFaster => format!("{value:.0}x"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Bytes => "bytes",
            Unit::TimesFaster => "times faster than the rival",
        }
    }
}

impl Row {
    pub(crate) fn seconds(name: &'static str, what: String, times: &Times, budget: Option<f64>) -> Self {
        let fastest = Unit::Seconds.show(times.wall.as_secs_f64());
        Row {
            name,
            what,
            value: times.median().as_secs_f64(),
            unit: Unit::Seconds,
            budget,
            note: format!("median of {}; fastest by the clock {fastest}", times.rounds()),
        }
    }

    fn met(&self) -> Option<bool> {
        let budget = self.budget?;
        Some(match self.unit {
            Unit::TimesFaster => self.value >= budget,
            _ => self.value <= budget,
        })
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "what": self.what,
            "value": self.value,
            "unit": self.unit.name(),
            "budget": self.budget,
            "met": self.met(),
            "note": self.note,
        })
    }
}

/// The report as markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = vec![[
        "what".to_owned(),
        "measured".to_owned(),
        "budget".to_owned(),
        String::new(),
        "of it".to_owned(),
    ]];
    for row in rows {
        let met = match row.met() {
            None => "",
            Some(true) => "met",
            Some(false) => "missed",
        };
        let budget = row.budget.map_or_else(String::new, |b| row.unit.show(b));
        lines.push([
            row.what.clone(),
            row.unit.show(row.value),
            budget,
            met.to_owned(),
            row.note.clone(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let show = |cells: &[String; 5]| {
        let cells: Vec<String> = cells.iter().zip(widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = widths.map(|w| "-".repeat(w));
    lines[..1].iter().chain([&rule]).chain(&lines[1..]).map(show).collect()
}

/// The report as JSON.
pub(crate) fn json(rows: &[Row]) -> Value {
    json!({
        "apiVersion": "palisade.dev/v1alpha1",
        "kind": "Benchmark",
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    })
}
