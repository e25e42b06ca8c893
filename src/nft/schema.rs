//! Operations as nft's JSON. The types are those of the `nftables` crate; what it cannot say in 0.6.3 stands here: maps to
//! verdicts with their elements, and sets whose elements count.

use std::net::IpAddr;

use nftables::schema::SetType::{self, InetProto, InetService};
use nftables::schema::{Chain, Rule as JsonRule, SetTypeValue, Table};
use nftables::stmt::Statement;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::denials::Denial;
use super::expressions::{name_of_number, protocol_number};
use super::names::{ChainName, Family, KeyType, SetName, TABLE};
use super::render_base::beyond_share;
use super::ruleset::{Element, Key, Rule};
use super::text::PRIORITY;
use super::transaction::Operation;

/// A document for `nft -j -f -`.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    #[serde(rename = "nftables")]
    commands: Vec<Command<'a>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(operations: &'a [Operation]) -> Self {
        Document {
            commands: operations.iter().map(command).collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Command<'a> {
    Add(Object<'a>),
    Delete(Object<'a>),
    Flush(Object<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Object<'a> {
    Table(Table<'a>),
    Chain(Box<Chain<'a>>),
    Rule(Box<JsonRule<'a>>),
    Set(SetObject),
    Map(SetObject),
    Element(ElementObject<'a>),
}

#[derive(Serialize)]
struct SetObject {
    family: NfFamily,
    table: &'static str,
    name: String,
    #[serde(flatten)]
    spec: Option<SetSpec>,
}

#[derive(Serialize)]
struct SetSpec {
    #[serde(rename = "type")]
    key: SetTypeValue<'static>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<&'static str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    flags: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
    /// What each element does when it is met: `[{"counter": null}]`, or `[{"limit": {…}}]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stmt: Option<[Each; 1]>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Each {
    Counter(()),
    #[serde(untagged)]
    Limit(Box<Statement<'static>>),
}

#[derive(Serialize)]
struct ElementObject<'a> {
    family: NfFamily,
    table: &'static str,
    name: String,
    elem: Items<'a>,
}

enum Items<'a> {
    Elements(&'a [(Key, Element)]),
    Keys(&'a [Key]),
    Entries(&'a [Denial]),
}

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Items::Elements(elements) => serializer.collect_seq(elements.iter().map(|(key, e)| Item(key, e))),
            Items::Keys(keys) => serializer.collect_seq(keys.iter().map(KeyItem)),
            Items::Entries(entries) => serializer.collect_seq(entries.iter().map(EntryItem)),
        }
    }
}

/// An element of a set, or the pair of key and verdict of a map.
struct Item<'a>(&'a Key, &'a Element);

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Item(key, element) = self;
        match &element.goto {
            Some(chain) => (CommentedKey(key, element), Goto::to(*chain)).serialize(serializer),
            None => CommentedKey(key, element).serialize(serializer),
        }
    }
}

struct CommentedKey<'a>(&'a Key, &'a Element);

impl Serialize for CommentedKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Inner<'a> {
            val: KeyItem<'a>,
            comment: &'a str,
        }
        let CommentedKey(key, element) = self;
        match &element.comment {
            Some(comment) => {
                let mut map = serializer.serialize_map(Some(1))?;
                let val = KeyItem(key);
                map.serialize_entry("elem", &Inner { val, comment })?;
                map.end()
            }
            None => KeyItem(key).serialize(serializer),
        }
    }
}

struct KeyItem<'a>(&'a Key);

impl Serialize for KeyItem<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "lowercase")]
        enum Compound {
            Range([IpAddr; 2]),
            Concat(Parts),
        }
        struct Parts(Key);
        impl Serialize for Parts {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut parts = serializer.serialize_seq(None)?;
                match self.0 {
                    Key::Pair(a, b) => {
                        parts.serialize_element(&a)?;
                        parts.serialize_element(&b)?;
                    }
                    Key::Port(address, protocol, port) => {
                        parts.serialize_element(&address)?;
                        parts.serialize_element(&protocol_number(protocol))?;
                        parts.serialize_element(&port)?;
                    }
                    Key::Address(a) => parts.serialize_element(&a)?,
                    Key::Interval(r) => parts.serialize_element(&r.first)?,
                }
                parts.end()
            }
        }
        match self.0 {
            Key::Address(a) => a.serialize(serializer),
            Key::Interval(r) if r.first == r.last => r.first.serialize(serializer),
            Key::Interval(r) => Compound::Range([r.first, r.last]).serialize(serializer),
            concat => Compound::Concat(Parts(*concat)).serialize(serializer),
        }
    }
}

/// An entry of the record: `{"concat": ["10.0.0.1", "10.0.0.2", 6, 80]}`.
struct EntryItem<'a>(&'a Denial);

impl Serialize for EntryItem<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum ProtocolPart<'a> {
            Number(u32),
            // As nft has written it.
            Name(&'a str),
        }
        let Denial { from, to, protocol, .. } = self.0;
        let known = || (0..256).find(|number| name_of_number(*number) == Some(protocol));
        let number = protocol.parse().ok().or_else(known);
        let protocol = number.map_or(ProtocolPart::Name(protocol), ProtocolPart::Number);
        let mut map = serializer.serialize_map(Some(1))?;
        match self.0.port {
            Some(port) => map.serialize_entry("concat", &(from, to, protocol, port))?,
            None => map.serialize_entry("concat", &(from, to, protocol))?,
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Goto {
    goto: Target,
}

#[derive(Serialize)]
struct Target {
    target: String,
}

impl Goto {
    fn to(chain: ChainName) -> Self {
        Goto {
            goto: Target {
                target: chain.to_string(),
            },
        }
    }
}

fn command(operation: &Operation) -> Command<'_> {
    match operation {
        Operation::AddTable => Command::Add(table()),
        Operation::DeleteTable => Command::Delete(table()),
        Operation::AddChain(name) => Command::Add(chain(*name, true)),
        Operation::FlushChain(name) => Command::Flush(chain(*name, false)),
        Operation::DeleteChain(name) => Command::Delete(chain(*name, false)),
        Operation::AddRule(name, r) => Command::Add(rule(*name, r)),
        Operation::AddSet(name) => Command::Add(set(*name, Some(set_spec(*name)))),
        Operation::DeleteSet(name) => Command::Delete(set(*name, None)),
        Operation::AddElements(name, elements) => Command::Add(elements_of(*name, Items::Elements(elements))),
        Operation::DeleteElements(name, keys) => Command::Delete(elements_of(*name, Items::Keys(keys))),
        Operation::Forget(name, entries) => Command::Delete(elements_of(*name, Items::Entries(entries))),
    }
}

fn table<'a>() -> Object<'a> {
    Object::Table(Table {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    })
}

fn chain<'a>(name: ChainName, full: bool) -> Object<'a> {
    let mut chain = Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.to_string().into(),
        ..Chain::default()
    };
    if full && name == ChainName::Forward {
        chain._type = Some(NfChainType::Filter);
        chain.hook = Some(NfHook::Forward);
        chain.prio = Some(PRIORITY);
        chain.policy = Some(NfChainPolicy::Accept);
    }
    Object::Chain(Box::new(chain))
}

fn rule(chain: ChainName, rule: &Rule) -> Object<'_> {
    Object::Rule(Box::new(JsonRule {
        family: NfFamily::INet,
        table: TABLE.into(),
        chain: chain.to_string().into(),
        expr: rule.statements.as_slice().into(),
        comment: rule.comment.as_deref().map(Into::into),
        ..JsonRule::default()
    }))
}

fn set<'a>(name: SetName, spec: Option<SetSpec>) -> Object<'a> {
    let object = set_object(name, spec);
    if name.is_map() {
        Object::Map(object)
    } else {
        Object::Set(object)
    }
}

fn set_object(name: SetName, spec: Option<SetSpec>) -> SetObject {
    SetObject {
        family: NfFamily::INet,
        table: TABLE,
        name: name.to_string(),
        spec,
    }
}

fn set_spec(name: SetName) -> SetSpec {
    let address = match name.family() {
        Family::V4 => SetType::Ipv4Addr,
        Family::V6 => SetType::Ipv6Addr,
    };
    let concatenated = |parts: &[SetType]| SetTypeValue::Concatenated(parts.to_vec().into());
    let interval = name.key_type() == KeyType::Interval;
    let (size, timeout) = name.bounds().unzip();
    SetSpec {
        key: match name.key_type() {
            KeyType::Address | KeyType::Interval => SetTypeValue::Single(address),
            KeyType::Pair => concatenated(&[address, address]),
            KeyType::Port => concatenated(&[address, InetProto, InetService]),
            KeyType::Connection => concatenated(&[address, address, InetProto, InetService]),
            KeyType::ConnectionOther => concatenated(&[address, address, InetProto]),
        },
        map: name.is_map().then_some("verdict"),
        flags: if interval {
            &["interval"]
        } else if timeout.is_some() {
            // nft 1.0.6 refuses "dynamic" here; the rule that updates the set brings it about.
            &["timeout"]
        } else {
            &[]
        },
        timeout,
        size,
        stmt: match (name.counts(), name.limits()) {
            (true, _) => Some([Each::Counter(())]),
            (_, true) => Some([Each::Limit(Box::new(beyond_share()))]),
            _ => None,
        },
    }
}

/// The object that adds a set, as JSON.
pub(super) fn definition(name: SetName) -> String {
    // Nothing in it can fail to be written.
    serde_json::to_string(&set_object(name, Some(set_spec(name)))).unwrap_or_default()
}

fn elements_of(name: SetName, elem: Items<'_>) -> Object<'_> {
    Object::Element(ElementObject {
        family: NfFamily::INet,
        table: TABLE,
        name: name.to_string(),
        elem,
    })
}
