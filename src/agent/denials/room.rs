//! Room in the record. A set of the kernel that is full takes nothing new, and one scanner of ports fills it in seven minutes, ten
//! of them in 40 seconds: then nobody's denials would be told until the entries age, an hour later. What the record holds comes
//! in; the entries that must go come out.
//!
//! The rules record at most 100 packets a second that begin a connection and as many of running ones, so half a set lasts for ten
//! seconds, and three quarters of one for fifteen. The agent looks every five (`LOOK_EVERY`; reading a record that is half full takes
//! some 50 ms). Looks that take long come less often, but every eight seconds (`LOOK_WITHIN`) while a set is more than a quarter full.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::nft::names::SetName;
use crate::nft::{Denial, RECORD_SECONDS, RECORD_SIZE};

/// A set with more entries than this is thinned out, ...
const FULL: usize = RECORD_SIZE as usize / 2;

/// ... to so many: not a few entries at each look.
const KEPT: usize = RECORD_SIZE as usize * 3 / 8;

/// What will age in so short a time goes by itself. To remove an entry that is no longer there would be refused, and with it
/// everything in the same step.
const SOON: Duration = Duration::from_secs(60);

/// A set with more entries than this is soon full.
const AMPLE: usize = RECORD_SIZE as usize / 4;

/// Whether a set has so many that the next look must not be late.
pub(super) fn is_crowded(record: &[Denial]) -> bool {
    sets(record).values().any(|entries| entries.len() > AMPLE)
}

/// The entries of each set that must go, so that it has room.
///
/// Every source keeps its newest entry before any keeps its second newest, and so on: who scans loses its own entries, and
/// where there are more sources than there is room, the longest ago goes.
pub(super) fn surplus(record: &[Denial]) -> Vec<Vec<Denial>> {
    let full = sets(record).into_values().filter(|entries| entries.len() > FULL);
    let surplus = full.map(|entries| thinned(entries).cloned().collect::<Vec<_>>());
    surplus.filter(|entries| !entries.is_empty()).collect()
}

fn sets(record: &[Denial]) -> BTreeMap<SetName, Vec<&Denial>> {
    let mut sets: BTreeMap<SetName, Vec<&Denial>> = BTreeMap::new();
    for denial in record {
        sets.entry(denial.set()).or_default().push(denial);
    }
    sets
}

fn thinned(mut entries: Vec<&Denial>) -> impl Iterator<Item = &Denial> {
    entries.sort_by(|a, b| a.ago.cmp(&b.ago).then_with(|| a.cmp(b)));
    let mut of_source: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, &Denial)> = (entries.into_iter())
        .map(|denial| {
            let newer = of_source.entry(denial.from).or_default();
            *newer += 1;
            (*newer, denial)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let lasts = |denial: &&Denial| denial.ago + SOON < Duration::from_secs(RECORD_SECONDS.into());
    ranked.into_iter().skip(KEPT).map(|(_, denial)| denial).filter(lasts)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Who from, how many ports, of which the first was seen so many seconds ago, and each other one a second later.
    fn scan(source: &str, ports: u16, ago: u64) -> Vec<Denial> {
        let entry = |port: u16| Denial {
            from: source.parse().expect("an address"),
            to: Ipv4Addr::new(10, 0, 0, 1).into(),
            protocol: "tcp".to_owned(),
            port: Some(port),
            packets: 1,
            bytes: 60,
            ago: Duration::from_secs(ago.saturating_sub(port.into())),
        };
        (0..ports).map(entry).collect()
    }

    /// How many of each source stay, after those of the surplus are gone.
    #[track_caller]
    fn check(record: &[Vec<Denial>], expected: &[(&str, usize)]) -> Vec<Denial> {
        let mut stays = record.concat();
        for gone in surplus(&record.concat()).concat() {
            let at = stays
                .iter()
                .position(|d| *d == gone)
                .expect("an entry of the record, once");
            stays.swap_remove(at);
        }
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for denial in &stays {
            *found.entry(denial.from.to_string()).or_default() += 1;
        }
        let expected: BTreeMap<String, usize> = expected.iter().map(|(s, n)| ((*s).to_owned(), *n)).collect();
        assert_eq!(found, expected);
        stays
    }

    #[test]
    fn a_record_with_room_is_left_alone() {
        check(&[], &[]);
        check(&[scan("10.0.0.3", FULL as u16, 3000)], &[("10.0.0.3", FULL)]);
    }

    #[test]
    fn a_quarter_of_a_set_is_little() {
        let four = scan("10.0.0.3", AMPLE as u16, 3000);
        let six = |ports| scan("fd00::3", ports, 3000);
        assert!(!is_crowded(&[four.clone(), six(AMPLE as u16)].concat()));
        assert!(is_crowded(&[four, six(AMPLE as u16 + 1)].concat()));
    }

    #[test]
    fn a_scanner_makes_room_for_the_others() {
        // The others were seen long before.
        let others = [scan("10.0.0.4", 30, 3000), scan("10.0.0.5", 200, 3000)];
        let record = [scan("10.0.0.3", FULL as u16, 2500), others.concat()];
        let stays = check(
            &record,
            &[("10.0.0.3", KEPT - 230), ("10.0.0.4", 30), ("10.0.0.5", 200)],
        );
        // What it did last stays.
        let ports = stays
            .iter()
            .filter(|d| d.from.to_string() == "10.0.0.3")
            .map(|d| d.port);
        assert_eq!(ports.min(), Some(Some((FULL - (KEPT - 230)) as u16)));
    }

    #[test]
    fn two_scanners_share() {
        let record = [
            scan("10.0.0.3", 1900, 2500),
            scan("10.0.0.4", 1000, 3400),
            scan("10.0.0.5", 36, 3500),
        ];
        check(&record, &[("10.0.0.3", 750), ("10.0.0.4", 750), ("10.0.0.5", 36)]);
    }

    #[test]
    fn with_more_sources_than_room_the_longest_ago_goes() {
        let record: Vec<Vec<Denial>> = (0..FULL as u64 + 1)
            .map(|n| scan(&Ipv4Addr::from_bits(0x0a00_0000 + n as u32).to_string(), 1, 3500 - n))
            .collect();
        let gone = surplus(&record.concat()).concat();
        assert_eq!(gone.len(), FULL + 1 - KEPT);
        assert!(
            gone.iter()
                .all(|denial| denial.ago > Duration::from_secs(3500 - gone.len() as u64))
        );
    }

    #[test]
    fn what_ages_soon_is_not_touched() {
        let record = [scan("10.0.0.3", FULL as u16, 3600), scan("10.0.0.3", 1, 0)];
        let gone = surplus(&record.concat()).concat();
        assert_eq!(gone.len(), FULL + 1 - KEPT - 61);
        assert!(gone.iter().all(|d| d.ago < Duration::from_secs(3540)));
    }

    #[test]
    fn each_set_is_one_of_its_own() {
        let ping = |n: u16| Denial {
            protocol: "icmp".to_owned(),
            port: None,
            to: Ipv4Addr::from_bits(n.into()).into(),
            ..scan("10.0.0.3", 1, 100).remove(0)
        };
        let pings: Vec<Denial> = (0..FULL as u16 + 1).map(ping).collect();
        let ports = scan("10.0.0.3", FULL as u16, 3000);
        let ports6 = scan("fd00::3", FULL as u16 + 1, 3000);
        let gone = surplus(&[pings, ports, ports6].concat()).concat();
        let of = |set: SetName| gone.iter().filter(|d| d.set() == set).count();
        use crate::nft::names::Family::{V4, V6};
        let counts = [SetName::Denied(V4), SetName::DeniedOther(V4), SetName::Denied(V6)].map(of);
        assert_eq!(counts, [0, FULL + 1 - KEPT, FULL + 1 - KEPT]);
    }
}
