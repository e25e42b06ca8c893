//! What the kernel remembers of denied packets: the record (who tried to reach whom, a sample of at most a hundred packets a
//! second) and the exact counters of every judged pod. The answers to `nft -j list set` come in, plain values go out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use policy_compiler::addresses::AddressBook;
use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::labels::Name;
use policy_compiler::ports::{Protocol, Traffic};
use serde_json::Value;

use super::expressions::{name_of_number, protocol_name};
use super::names::{Family, SetName, Side};
use super::transaction::{Operation, OperationError, Transaction};
use super::{RECORD_SECONDS, ruleset};

/// One entry of the record: the packets of denied connections from one address to one port of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Denial {
    /// Who opened the connection.
    pub from: IpAddr,
    /// Whom it was to reach, after any translation of a Service's address.
    pub to: IpAddr,
    /// The protocol's name as nft writes it: `tcp`, `icmp`, `gre`; or its number.
    pub protocol: String,
    /// The destination's port, of TCP, UDP and SCTP.
    pub port: Option<u16>,
    /// Packets that were recorded: a sample.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long ago the last of them was seen, to the second.
    pub ago: Duration,
}

/// The packets that were denied to one address of a judged pod in one direction: every one, since the table was made or the pod was
/// first judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// The pod's address.
    pub address: IpAddr,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Denial {
    /// The traffic as policy sees it.
    pub fn traffic(&self) -> Traffic {
        let mut protocols = Protocol::ALL.into_iter();
        match (protocols.find(|p| protocol_name(*p) == self.protocol), self.port) {
            (Some(protocol), Some(port)) => Traffic::Port(protocol, port),
            _ => Traffic::Other,
        }
    }

    /// Which end of it lies in a range of a node's pods, and is no known pod's or node's: with `--unknown-pods drop` that is why it
    /// was denied. Only this node's ranges matter there; `node` may be none where nobody knows which it is.
    pub fn unknown_end(&self, cluster: &Cluster, book: &AddressBook, node: Option<&Name>) -> Option<IpAddr> {
        let here = |name: &Name| node.is_none_or(|node| node == name);
        let nodes = || cluster.nodes.values().filter(|node| here(&node.name));
        let is_known = |address| book.pod(address).is_some() || book.node(&Endpoint::Address(address)).is_some();
        [self.from, self.to].into_iter().find(|address| {
            let mut ranges = nodes().flat_map(|node| &node.pod_cidrs);
            ranges.any(|range| range.contains(address)) && !is_known(*address)
        })
    }

    /// The set of the record that it is an entry of.
    pub fn set(&self) -> SetName {
        set_of(self.from, self.port)
    }

    /// The traffic in words: `5432/TCP`, `ICMP`.
    pub fn words(&self) -> String {
        match self.traffic() {
            Traffic::Other => self.protocol.to_uppercase(),
            port => port.to_string(),
        }
    }

    /// Why it was denied although no policy denies it, if that is so: pods of one bridge sent it each other without saying whom
    /// they mean (chain `shared_link`).
    pub fn by_shared_link(&self) -> Option<&'static str> {
        let link_local = |address| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        let to_many = self.to.is_multicast() || self.to == IpAddr::V4(Ipv4Addr::BROADCAST);
        (to_many || link_local(self.from) || link_local(self.to))
            .then_some("addressed to no pod, and a pod of the node is isolated: a bridge carries only discovery then")
    }
}

/// Why a packet of an address was denied that is no known pod's, in words.
pub fn unknown_words(address: IpAddr) -> String {
    format!("no pod of the cluster has {address} (--unknown-pods drop)")
}

/// The sets of the record.
pub(super) fn record_sets() -> impl Iterator<Item = SetName> {
    Family::BOTH
        .into_iter()
        .flat_map(|family| [SetName::Denied(family), SetName::DeniedOther(family)])
}

/// The set of the record that has entries from such an address.
pub(super) fn set_of(from: IpAddr, port: Option<u16>) -> SetName {
    let family = Family::of(from);
    match port {
        Some(_) => SetName::Denied(family),
        None => SetName::DeniedOther(family),
    }
}

/// What takes entries out of the record, a step for each set: nft refuses a step that names an entry which is not there.
pub fn forget(entries: impl IntoIterator<Item = Denial>) -> Result<Transaction, OperationError> {
    let mut sets: BTreeMap<SetName, Vec<Denial>> = BTreeMap::new();
    for entry in entries {
        sets.entry(entry.set()).or_default().push(entry);
    }
    let mut transaction = Transaction::default();
    for (set, entries) in sets {
        transaction.next_step();
        transaction.add(Operation::Forget(set, entries))?;
    }
    Ok(transaction)
}

/// An entry's key as nft text.
pub(super) fn element(entry: &Denial) -> String {
    let Denial { from, to, protocol, .. } = entry;
    match entry.port {
        Some(port) => format!("{from} . {to} . {protocol} . {port}"),
        None => format!("{from} . {to} . {protocol}"),
    }
}

/// Reads the listing of one set of the record.
pub(super) fn parse_record(json: &str) -> Result<Vec<Denial>, String> {
    elements(json)?.iter().map(denial).collect()
}

/// Reads the listing of one set of counters.
pub(super) fn parse_counts(json: &str, side: Side) -> Result<Vec<Count>, String> {
    elements(json)?
        .iter()
        .map(|element| {
            let inner = &element["elem"];
            let (packets, bytes) = counter(inner)?;
            let address = address(&inner["val"])?;
            match ruleset::Key::Address(address).fits(&SetName::Counters(side)) {
                true => Ok(Count {
                    address,
                    packets,
                    bytes,
                }),
                false => Err(format!("{address} is of another family than {side}")),
            }
        })
        .collect()
}

/// Reads the listing of a chain: the packets that its rules have counted.
pub(super) fn parse_chain(json: &str) -> Result<u64, String> {
    let document: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let objects = document["nftables"].as_array().ok_or("there is no list of objects")?;
    let rules = objects.iter().filter_map(|object| object["rule"]["expr"].as_array());
    let counters = rules
        .flatten()
        .filter(|statement| !statement["counter"].is_null())
        .map(counter);
    counters.map(|counted| counted.map(|(packets, _)| packets)).sum()
}

/// The elements of the only set in a listing.
fn elements(json: &str) -> Result<Vec<Value>, String> {
    let mut document: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let objects = document["nftables"]
        .as_array_mut()
        .ok_or("there is no list of objects")?;
    let set = objects.iter_mut().find_map(|object| object.get_mut("set"));
    match set.ok_or("there is no set")?.get_mut("elem").map(Value::take) {
        Some(Value::Array(elements)) => Ok(elements),
        // An empty set has no such field.
        None => Ok(Vec::new()),
        Some(other) => Err(format!("elements that are not understood: {other}")),
    }
}

fn denial(element: &Value) -> Result<Denial, String> {
    let odd = || format!("an entry that is not understood: {element}");
    let inner = &element["elem"];
    let (packets, bytes) = counter(inner)?;
    let left = inner["expires"].as_u64().ok_or_else(odd)?;
    let (from, to, protocol, port) = match inner["val"]["concat"].as_array().map(Vec::as_slice) {
        Some([from, to, protocol]) => (from, to, protocol, None),
        Some([from, to, protocol, port]) => (from, to, protocol, Some(port)),
        _ => return Err(odd()),
    };
    let port = match port {
        Some(port) => Some(port.as_u64().and_then(|p| u16::try_from(p).ok()).ok_or_else(odd)?),
        None => None,
    };
    Ok(Denial {
        from: address(from)?,
        to: address(to)?,
        protocol: protocol_text(protocol).ok_or_else(odd)?,
        port,
        packets,
        bytes,
        ago: Duration::from_secs(u64::from(RECORD_SECONDS).saturating_sub(left)),
    })
}

fn counter(element: &Value) -> Result<(u64, u64), String> {
    let counter = &element["counter"];
    let numbers = counter["packets"].as_u64().zip(counter["bytes"].as_u64());
    numbers.ok_or_else(|| format!("an element without a counter: {element}"))
}

fn address(value: &Value) -> Result<IpAddr, String> {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("not an address: {value}"))
}

/// A name, or a number where /etc/protocols is missing; the numbers that matter have one name here.
fn protocol_text(value: &Value) -> Option<String> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    match number {
        Some(number) => {
            let name = u32::try_from(number).ok().and_then(name_of_number);
            Some(name.map_or_else(|| number.to_string(), str::to_owned))
        }
        None => value.as_str().map(str::to_owned),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use policy_compiler::policy::Direction;

    use super::*;

    #[test]
    fn the_record_is_read() {
        // As nft 1.0.6 writes it, with and without names of protocols.
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"set": {"family": "inet", "name": "denied4",
            "table": "palisade", "type": ["ipv4_addr", "ipv4_addr", "inet_proto", "inet_service"], "handle": 4,
            "size": 4096, "flags": ["timeout"], "timeout": 3600, "elem": [
            {"elem": {"val": {"concat": ["10.0.0.1", "10.0.0.2", "tcp", 80]}, "expires": 3598,
              "counter": {"packets": 2, "bytes": 120}}},
            {"elem": {"val": {"concat": ["10.0.0.1", "10.0.0.2", 17, 53]}, "expires": 3600,
              "counter": {"packets": 1, "bytes": 60}}}], "stmt": [{"counter": null}]}}]}"#;
        let words: Vec<String> = parse_record(json).unwrap().iter().map(Denial::words).collect();
        assert_eq!(words, ["80/TCP", "53/UDP"]);
        let first = parse_record(json).unwrap().remove(0);
        assert_eq!(
            (first.packets, first.bytes, first.ago),
            (2, 120, Duration::from_secs(2))
        );

        let other = r#"{"nftables": [{"set": {"elem": [{"elem": {"val": {"concat": ["fd00::1", "fd00::2", 58]}, "expires": 0,
            "counter": {"packets": 1, "bytes": 60}}}]}}]}"#;
        let found = parse_record(other).unwrap().remove(0);
        assert_eq!((found.words().as_str(), found.traffic()), ("IPV6-ICMP", Traffic::Other));
        assert_eq!(found.ago, Duration::from_secs(3600));

        assert_eq!(
            parse_record(r#"{"nftables": [{"set": {"name": "denied4"}}]}"#),
            Ok(Vec::new())
        );
        for odd in [
            "",
            "{}",
            r#"{"nftables": []}"#,
            &json.replace("3598", "null"),
            &json.replace(", 80]", ", 80000]"),
        ] {
            assert!(parse_record(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn the_counter_of_a_chain_is_read() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"chain": {"family": "inet", "name": "unknown"}},
            {"rule": {"chain": "unknown", "expr": [{"jump": {"target": "record"}}]}},
            {"rule": {"chain": "unknown", "expr": [{"counter": {"packets": 7, "bytes": 420}}, {"drop": null}]}}]}"#;
        assert_eq!(parse_chain(json), Ok(7));
        for odd in ["", "{}", &json.replace("packets", "p")] {
            assert!(parse_chain(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn counters_are_read() {
        let side = |family| Side {
            direction: Direction::Ingress,
            family,
        };
        let json = r#"{"nftables": [{"set": {"name": "in4_counters", "elem": [
            {"elem": {"val": "10.0.0.1", "comment": "shop/web", "counter": {"packets": 54, "bytes": 2640}}}],
            "stmt": [{"counter": null}]}}]}"#;
        let expected = Count {
            address: "10.0.0.1".parse().unwrap(),
            packets: 54,
            bytes: 2640,
        };
        assert_eq!(parse_counts(json, side(Family::V4)), Ok(vec![expected]));
        assert!(parse_counts(json, side(Family::V6)).is_err());
        assert!(parse_counts(&json.replace("packets", "p"), side(Family::V4)).is_err());
    }
}
