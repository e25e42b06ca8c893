//! What a peer costs in kernel memory: the growth of what the kernel counts as its own, unreclaimable memory while fifty
//! thousand elements are loaded. Elements and hash tables are slab objects or, when large, pages of `vmalloc`; caches of files,
//! which other programs make grow, are reclaimable and not counted.

use std::fmt::Write;
use std::time::Duration;

use crate::cluster::peer_address;
use crate::measure::Series;
use crate::world::World;

/// Elements of one measurement.
pub(crate) const ELEMENTS: usize = 50_000;
/// So long the kernel has for what it frees later.
const SETTLE: Duration = Duration::from_millis(150);

/// Bytes for each element.
pub(crate) struct Memory {
    /// Of what.
    pub(crate) what: &'static str,
    pub(crate) bytes: Series,
}

/// Loads each kind of element several times, in turns.
pub(crate) fn measure(world: &World, rounds: usize) -> anyhow::Result<Vec<Memory>> {
    let kinds = [
        ("an address in a set", "type ipv4_addr;", "", false),
        (
            "an address in a verdict map",
            "type ipv4_addr : verdict;",
            " : goto target",
            true,
        ),
        (
            "an address, protocol and port in a set",
            "type ipv4_addr . inet_proto . inet_service;",
            " . 6 . 8080",
            false,
        ),
    ];
    let mut bytes = vec![Vec::new(); kinds.len()];
    world.node.nft("flush ruleset")?;
    for _ in 0..rounds {
        for (at, (_, kind, rest, map)) in kinds.iter().enumerate() {
            let word = if *map { "map" } else { "set" };
            let mut text = format!(
                "add table inet memory\nadd chain inet memory target\nadd {word} inet memory peers {{ {kind} }}\nadd element inet memory peers {{ "
            );
            for number in 0..ELEMENTS {
                let comma = if number == 0 { "" } else { ", " };
                let _ = write!(text, "{comma}{}{rest}", peer_address(number));
            }
            text += " }\n";
            std::thread::sleep(SETTLE);
            let before = own_memory()?;
            world.node.nft(&text)?;
            std::thread::sleep(SETTLE);
            let grown = own_memory()? - before;
            bytes[at].push(grown / ELEMENTS as f64);
            world.node.nft("delete table inet memory")?;
        }
    }
    let series = bytes.into_iter().map(Series::from_iter);
    Ok(kinds
        .iter()
        .zip(series)
        .map(|(kind, bytes)| Memory { what: kind.0, bytes })
        .collect())
}

/// In bytes.
fn own_memory() -> std::io::Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) * 1024.0
    };
    Ok(["SUnreclaim:", "VmallocUsed:", "Percpu:"].map(field).iter().sum())
}
