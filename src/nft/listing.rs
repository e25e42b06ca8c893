//! What the kernel says that the table holds, in a form that can be compared: with another listing (has anybody changed
//! it?), and with the ruleset that should be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::names::ChainName;
use super::render_base::AUDIT;
use super::ruleset::Ruleset;
use super::{expressions, schema, text};

/// The content of the table without what changes by itself: counters, handles, and sets that rules fill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Whether the table has flags, such as `dormant`: then none of its chains sees a packet. Ours has none.
    pub flagged: bool,
    /// Chains with their rules.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Sets and maps with their elements.
    pub sets: BTreeMap<String, BTreeSet<String>>,
    /// What each of these is by its definition: the type of its elements, how many for how long, and what each does when it is met.
    pub definitions: BTreeMap<String, String>,
}

impl Listing {
    /// Reads the answer to `nft -j list table`: element by element, for all of a large table as a tree of values takes ten times
    /// the memory of the answer.
    pub fn parse(json: &str) -> Result<Self, String> {
        let document: Document<'_> = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let mut listing = Listing::default();
        for (kind, object) in document.nftables.into_iter().flatten() {
            if matches!(kind, "set" | "map") {
                let set: Set<'_> = read(object)?;
                listing.definitions.insert(set.name.clone(), set.definition());
                let elements = match (set.timeout, set.elem) {
                    (None, Some(elements)) => read::<Elements>(elements)?.0,
                    _ => BTreeSet::new(),
                };
                listing.sets.insert(set.name, elements);
                continue;
            }
            let value: Value = read(object)?;
            let text = |key: &str| {
                value[key]
                    .as_str()
                    .map(str::to_owned)
                    .ok_or(format!("{kind} without {key}"))
            };
            match kind {
                // That there are flags is all that can be told: nft 1.0.6 names them wrongly here.
                "table" => listing.flagged = !value["flags"].is_null(),
                "chain" => {
                    // The hook is part of a chain's meaning; a chain without one has nothing to say here.
                    let hook = ["type", "hook", "prio", "policy"].map(|key| value[key].to_string());
                    let rules = listing.chains.entry(text("name")?).or_default();
                    if value["hook"].is_string() {
                        rules.insert(0, hook.join(" "));
                    }
                }
                "rule" => {
                    let mut rule = value["expr"].clone();
                    forget_counters(&mut rule);
                    let line = format!("{rule} {}", value["comment"]);
                    listing.chains.entry(text("chain")?).or_default().push(line);
                }
                _ => {}
            }
        }
        Ok(listing)
    }

    /// In which respect the content is not that of the ruleset: a table switched off, missing or foreign chains, sets and elements,
    /// sets of another definition, another hook or policy of the base chain, or chains with another number of rules. None when it is
    /// as it should be.
    pub fn difference(&self, ruleset: &Ruleset) -> Option<String> {
        let expected = Listing::of(ruleset);
        if self.flagged {
            return Some("the table has flags, and may be switched off (dormant)".to_owned());
        }
        if let Some(difference) = names_differ("chain", &self.chains, &expected.chains) {
            return Some(difference);
        }
        if let Some(difference) = names_differ("set", &self.sets, &expected.sets) {
            return Some(difference);
        }
        for (name, found) in &self.definitions {
            let wanted = expected.definitions.get(name);
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                return Some(format!("set {name} is defined as {found} instead of {wanted}"));
            }
        }
        for (name, rules) in &self.chains {
            let wanted = expected.chains[name].len();
            if rules.len() != wanted {
                return Some(format!("chain {name} has {} rules instead of {wanted}", rules.len()));
            }
        }
        for name in ruleset.chains.keys().filter(|name| text::listed_hook(**name).is_some()) {
            let (found, wanted) = [self, &expected]
                .map(|listing| listing.chains[&name.to_string()].first())
                .into();
            if found != wanted {
                return Some(format!("chain {name} has another type, hook, priority or policy"));
            }
        }
        for (name, elements) in &self.sets {
            let wanted = &expected.sets[name];
            if let Some(missing) = wanted.difference(elements).next() {
                return Some(format!("{missing} is missing in {name}"));
            }
            if let Some(foreign) = elements.difference(wanted).next() {
                return Some(format!("{foreign} does not belong in {name}"));
            }
        }
        None
    }

    /// Whether what is denied passes (`--mode audit`).
    pub fn audits(&self) -> bool {
        let denied = self.chains.get(&ChainName::Denied.to_string());
        denied.is_some_and(|rules| rules.iter().any(|rule| rule.contains(AUDIT)))
    }

    /// What a listing of this ruleset would be, with rules as nft text.
    pub(crate) fn of(ruleset: &Ruleset) -> Self {
        let chains = ruleset.chains.iter().map(|(name, rules)| {
            let hook = text::listed_hook(*name).into_iter();
            (
                name.to_string(),
                hook.chain(rules.iter().map(|r| text::Line(r).to_string())).collect(),
            )
        });
        let sets = ruleset.sets.iter().map(|(name, elements)| {
            (
                name.to_string(),
                elements.iter().map(|(key, e)| text::element(key, e)).collect(),
            )
        });
        let definitions = ruleset.sets.keys().map(|name| {
            let json = schema::definition(*name);
            let set: Result<Set<'_>, _> = serde_json::from_str(&json);
            (
                name.to_string(),
                set.map(|set| set.definition()).unwrap_or(json.clone()),
            )
        });
        Listing {
            flagged: false,
            chains: chains.collect(),
            sets: sets.collect(),
            definitions: definitions.collect(),
        }
    }
}

/// Objects, each under its kind.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    nftables: Vec<BTreeMap<&'a str, &'a RawValue>>,
}

#[derive(Deserialize)]
struct Set<'a> {
    name: String,
    #[serde(rename = "type")]
    key: Value,
    #[serde(default)]
    map: Value,
    #[serde(default)]
    flags: Value,
    size: Option<u64>,
    timeout: Option<u64>,
    #[serde(default)]
    policy: Value,
    #[serde(default)]
    stmt: Value,
    #[serde(borrow)]
    elem: Option<&'a RawValue>,
}

impl Set<'_> {
    /// What it is, whichever nft has listed it: `ipv4_addr, flags timeout, timeout 60, size 4096, limit over 10/second burst 50`.
    /// What nft 1.0.6 does not list (auto-merge) or nobody sees in a packet's way (how often the aged are swept out) is no part of it.
    fn definition(&self) -> String {
        let mut parts = vec![words(&self.key).join(" . ")];
        if !self.map.is_null() {
            parts.push(format!("to {}", words(&self.map).join(" . ")));
        }
        let mut flags = words(&self.flags);
        // By nft 1.0.6 not listed, nor taken.
        flags.retain(|flag| flag != "dynamic");
        flags.sort();
        parts.extend(flags.iter().map(|flag| format!("flags {flag}")));
        parts.extend(self.timeout.map(|seconds| format!("timeout {seconds}")));
        parts.extend(self.size.map(|size| format!("size {size}")));
        // The other is what a set has when nobody says anything.
        parts.extend((self.policy == "memory").then(|| "policy memory".to_owned()));
        parts.extend(self.stmt.as_array().into_iter().flatten().map(each));
        parts.join(", ")
    }
}

/// What a set's elements do when they are met, without what it has come to.
fn each(statement: &Value) -> String {
    let limit = &statement["limit"];
    if limit.is_object() {
        let over = if limit["inv"] == true { "over " } else { "" };
        // Packets have no unit.
        let [rate, unit, per, burst] = ["rate", "rate_unit", "per", "burst"].map(|key| words(&limit[key]).join(" "));
        return format!("limit {over}{rate}{unit}/{per} burst {burst}");
    }
    match statement.as_object().and_then(|object| object.keys().next()) {
        Some(name) if name == "counter" => name.clone(),
        _ => statement.to_string(),
    }
}

/// A list of one is a text by itself to some versions of nft.
fn words(value: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values.iter().map(word).collect(),
        one => vec![word(one)],
    }
}

/// Elements as [`text::element`] writes them.
struct Elements(BTreeSet<String>);

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Elements;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Elements, A::Error> {
                let mut elements = BTreeSet::new();
                while let Some(value) = list.next_element::<Value>()? {
                    elements.insert(element(&value).map_err(A::Error::custom)?);
                }
                Ok(Elements(elements))
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(json.get()).map_err(|error| error.to_string())
}

fn names_differ<T>(what: &str, found: &BTreeMap<String, T>, wanted: &BTreeMap<String, T>) -> Option<String> {
    let missing = wanted.keys().find(|name| !found.contains_key(*name));
    let foreign = found.keys().find(|name| !wanted.contains_key(*name));
    match (missing, foreign) {
        (Some(name), _) => Some(format!("{what} {name} is missing")),
        (None, Some(name)) => Some(format!("{what} {name} does not belong here")),
        (None, None) => None,
    }
}

fn forget_counters(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(counter) = object.get_mut("counter") {
                *counter = Value::Null;
            }
            object.values_mut().for_each(forget_counters);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_counters),
        _ => {}
    }
}

/// An element as [`text::element`] writes it.
fn element(value: &Value) -> Result<String, String> {
    let (key, verdict) = match value.as_array().map(Vec::as_slice) {
        Some([key, verdict]) => (key, Some(verdict)),
        _ => (value, None),
    };
    let (key, comment) = match key.get("elem") {
        Some(inner) => (&inner["val"], inner["comment"].as_str()),
        None => (key, None),
    };
    let mut line = key_text(key)?;
    if let Some(comment) = comment {
        line.push_str(&format!(" comment \"{comment}\""));
    }
    if let Some(verdict) = verdict {
        match verdict["goto"]["target"].as_str() {
            Some(chain) => line.push_str(&format!(" : goto {chain}")),
            None => line.push_str(&format!(" : {verdict}")),
        }
    }
    Ok(line)
}

fn key_text(key: &Value) -> Result<String, String> {
    let part = |value: &Value| match value {
        // nft writes `::1.2.3.4` where we write `::102:304`.
        Value::String(text) => Ok(text.parse().map_or(text.clone(), |a: IpAddr| a.to_string())),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("an element that is not understood: {other}")),
    };
    if let Some(parts) = key["concat"].as_array() {
        let mut parts: Vec<String> = parts.iter().map(part).collect::<Result<_, _>>()?;
        // Address, protocol, port: the protocol is a name only where nft finds its name in /etc/protocols.
        if let [_, protocol, _] = parts.as_mut_slice()
            && let Some(name) = protocol.parse().ok().and_then(expressions::name_of_number)
        {
            *protocol = name.to_owned();
        }
        return Ok(parts.join(" . "));
    }
    if let Some([first, last]) = key["range"].as_array().map(Vec::as_slice) {
        return Ok(format!("{}-{}", part(first)?, part(last)?));
    }
    if key["prefix"].is_object() {
        let net = format!("{}/{}", part(&key["prefix"]["addr"])?, part(&key["prefix"]["len"])?);
        let net: ipnet::IpNet = net.parse().map_err(|_| format!("not a network: {net}"))?;
        let (first, last): (IpAddr, IpAddr) = (net.network(), net.broadcast());
        return Ok(format!("{first}-{last}"));
    }
    part(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::names::{Family, SetName};
    use super::*;

    #[test]
    fn a_definition_is_the_same_in_the_words_of_any_version() {
        let definition = |set: &str| {
            let listed = format!(r#"{{"nftables": [{{"set": {set}}}]}}"#);
            Listing::parse(&listed)
                .unwrap()
                .definitions
                .into_values()
                .next()
                .unwrap()
        };
        let sources = "ipv4_addr, flags timeout, timeout 60, size 4096, limit over 10/second burst 50";
        for same in [
            schema::definition(SetName::Sources(Family::V4)).as_str(),
            // As nft 1.0.6 lists it.
            r#"{"family": "inet", "name": "denied4_sources", "table": "palisade", "type": "ipv4_addr", "handle": 1, "size": 4096,
                "flags": ["timeout"], "timeout": 60,
                "stmt": [{"limit": {"rate": 10, "burst": 50, "per": "second", "inv": true}}]}"#,
            // As one might that tells more.
            r#"{"name": "denied4_sources", "type": ["ipv4_addr"], "flags": ["timeout", "dynamic"], "timeout": 60, "size": 4096,
                "gc-interval": 1, "policy": "performance", "elem": [],
                "stmt": [{"limit": {"rate": 10, "per": "second", "burst": 50, "inv": true, "more": 1}}]}"#,
        ] {
            assert_eq!(definition(same), sources);
        }
        let record = "ipv4_addr . ipv4_addr . inet_proto, flags timeout, timeout 3600, size 4096, counter";
        assert_eq!(
            definition(&schema::definition(SetName::DeniedOther(Family::V4))),
            record
        );
        let record = r#"{"name": "denied4_other", "type": ["ipv4_addr", "ipv4_addr", "inet_proto"], "flags": "timeout",
            "timeout": 3600, "size": 4096, "stmt": [{"counter": {"packets": 0, "bytes": 0}}]}"#;
        assert_eq!(
            definition(record),
            definition(&schema::definition(SetName::DeniedOther(Family::V4)))
        );
        let other = r#"{"name": "m", "type": "ipv4_addr", "map": "verdict", "flags": "interval", "policy": "memory",
            "stmt": [{"limit": {"rate": 10, "per": "second", "burst": 5, "rate_unit": "kbytes"}}, {"quota": 7}]}"#;
        assert_eq!(
            definition(other),
            r#"ipv4_addr, to verdict, flags interval, policy memory, limit 10kbytes/second burst 5, {"quota":7}"#
        );
    }
}
