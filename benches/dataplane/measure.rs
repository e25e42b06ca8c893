//! Rounds in which every variant has its turn, and the numbers that come of them.

use std::collections::BTreeMap;

use crate::traffic::Traffic;

/// What is measured of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// A small packet of an established flow, in ns.
    Packet,
    /// One of 1,400 bytes, in ns.
    LargePacket,
    /// The first packet of a UDP flow, in ns.
    NewFlow,
    /// A TCP connection, opened, accepted and closed, in ns.
    Connection,
    /// Until connect returns, in ns by the clock on the wall: the median of a slice.
    Latency,
    /// The same: 99 of 100 within.
    Latency99,
    /// A TCP stream, in MB/s.
    Bulk,
}

impl Metric {
    /// All of them.
    pub(crate) const ALL: [Metric; 7] = [
        Metric::Packet,
        Metric::LargePacket,
        Metric::NewFlow,
        Metric::Connection,
        Metric::Latency,
        Metric::Latency99,
        Metric::Bulk,
    ];

    /// In JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Packet => "packet_ns",
            Metric::LargePacket => "large_packet_ns",
            Metric::NewFlow => "new_udp_flow_ns",
            Metric::Connection => "tcp_connection_ns",
            Metric::Latency => "tcp_connect_latency_median_ns",
            Metric::Latency99 => "tcp_connect_latency_p99_ns",
            Metric::Bulk => "tcp_bulk_mb_per_s",
        }
    }
}

/// The bytes of a large packet: the most that fits an Ethernet frame, headers and a little tunnelling left out.
pub(crate) const LARGE: usize = 1_400;
/// The bytes of a small one.
const SMALL: usize = 16;

/// The values of one metric, one for each round, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() - 1) * percent / 100]
    }

    /// The ratios to another's values of the same rounds: whatever slows the machine for a while is in both.
    pub(crate) fn against(&self, other: &Series) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// What it has more than another, round by round.
    pub(crate) fn beyond(&self, other: &Series) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Series(values.into_iter().collect())
    }
}

/// The series of one variant.
pub(crate) type Metrics = BTreeMap<Metric, Series>;

/// Lets every variant have its turn in each round, in another order each time: `wake` makes a variant the one that packets
/// meet.
pub(crate) fn rounds(
    count: usize,
    variants: usize,
    traffic: &mut Traffic<'_>,
    metrics: &[Metric],
    mut wake: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Metrics>> {
    let mut all = vec![Metrics::new(); variants];
    for round in 0..count {
        for turn in 0..variants {
            let variant = (turn + round) % variants;
            wake(variant)?;
            for (metric, value) in sample(traffic, metrics) {
                all[variant].entry(metric).or_default().0.push(value);
            }
        }
    }
    Ok(all)
}

fn sample(traffic: &mut Traffic<'_>, metrics: &[Metric]) -> Vec<(Metric, f64)> {
    let mut out = Vec::new();
    for metric in metrics {
        match metric {
            Metric::Packet => out.push((Metric::Packet, traffic.packet(SMALL))),
            Metric::LargePacket => out.push((Metric::LargePacket, traffic.packet(LARGE))),
            Metric::NewFlow => out.push((Metric::NewFlow, traffic.new_flow())),
            Metric::Connection => {
                let connections = traffic.connections();
                let ns = |time: std::time::Duration| time.as_nanos() as f64;
                let cost: f64 = connections.iter().map(|c| ns(c.cost)).sum();
                let latency: Series = connections.iter().map(|c| ns(c.latency)).collect();
                out.push((Metric::Connection, cost / connections.len() as f64));
                out.push((Metric::Latency, latency.median()));
                out.push((Metric::Latency99, latency.percentile(99)));
            }
            // These come with the connections.
            Metric::Latency | Metric::Latency99 => {}
            Metric::Bulk => out.push((Metric::Bulk, traffic.bulk().rate())),
        }
    }
    out
}
