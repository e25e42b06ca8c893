//! Walks a packet through the rendered rules, the way the kernel does. A rule, expression or set that it does not know is an
//! error, so that nothing is rendered that no test has judged.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use nftables::expr::{BinaryOperation, CTDir, Expression, FibFlag, FibResult, MetaKey, NamedExpression, Payload};
use nftables::stmt::{Operator, RejectType, Statement};
use nftables::types::RejectCode;
use policy_compiler::ports::Protocol;
use thiserror::Error;

use super::expressions::FIRST_CHUNK;
use super::names::{ChainName, Family, KeyType, SetName};
use super::ruleset::{Key, Rule, Ruleset};

/// A packet at the forward hook, after DNAT and before SNAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its header's source.
    pub source: IpAddr,
    /// Its header's destination.
    pub destination: IpAddr,
    /// Its header's protocol, by number.
    pub protocol: u8,
    /// The flags of a TCP packet.
    pub tcp_flags: u8,
    /// The type of the first chunk of an SCTP packet.
    pub sctp_chunk: u8,
    /// The hop limit of an IPv6 packet.
    pub hop_limit: u8,
    /// The type of an ICMPv6 packet.
    pub icmp_type: u8,
    /// How it goes on from here.
    pub way: Way,
    /// What connection tracking says of it.
    pub state: State,
    /// The connection that it belongs to; none when it is invalid or untracked.
    pub connection: Option<Connection>,
}

/// How a packet is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// From one link to another.
    #[default]
    Routed,
    /// From one port of a bridge to another.
    Bridged,
    /// From one port of a bridge to all: the frame is a broadcast.
    Broadcast,
    /// From one port of a bridge to many: the frame is a multicast.
    Multicast,
}

/// `ct state`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `new`
    New,
    /// `established`
    Established,
    /// `related`: an ICMP error about the connection.
    Related,
    /// `invalid`
    Invalid,
    /// `untracked`
    Untracked,
}

/// A connection as connection tracking knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// `ct original saddr`
    pub client: IpAddr,
    /// `ct reply saddr`
    pub server: IpAddr,
    /// `ct protocol`, by number.
    pub protocol: u8,
    /// `ct reply proto-src`: the server's port; of ICMP the identifier.
    pub server_port: u16,
}

/// What else connection tracking keeps about a connection, and rules may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `ct mark`
    pub mark: u32,
    /// Whether it has seen a packet through, so that it is in the table.
    pub confirmed: bool,
    /// Whether it is out of the table again.
    pub dying: bool,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Whether it passes this table.
    pub accepted: bool,
    /// Whether policy denies it, so that it was counted; in audit mode such a packet passes.
    pub denied: bool,
    /// What its sender hears, when it is not just dropped.
    pub answer: Option<Answer>,
    /// The counters that it raised: the set and the pod's address.
    pub counted: Vec<(SetName, IpAddr)>,
    /// How many of its ends were counted as addresses of this node's pods that nobody knows.
    pub unknown: u64,
    /// What the record remembers of it: the set, who, whom, the protocol's number and the port.
    pub recorded: Vec<Recorded>,
    /// The chains that it went through.
    pub chains: Vec<ChainName>,
}

/// What the sender of a denied packet hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A TCP reset.
    Reset,
    /// The ICMP error "administratively prohibited".
    Prohibited,
}

/// An entry of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recorded {
    /// Who opened the connection.
    pub from: IpAddr,
    /// Whom it was to reach.
    pub to: IpAddr,
    /// The protocol, by number.
    pub protocol: u8,
    /// The destination's port, of protocols that have ports.
    pub port: Option<u16>,
}

/// Why a packet could not be walked through a ruleset.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TraceError {
    /// A part of a rule that the tracer does not know.
    #[error("the tracer does not know {0}")]
    Unknown(String),
    /// A name of nothing.
    #[error("there is no chain or set {0}")]
    Missing(String),
    /// What nft or the kernel would refuse.
    #[error("{0}")]
    Invalid(String),
}

/// The flag of the packet that opens a TCP connection.
pub const SYN: u8 = 0x02;
/// The flag of every other one.
pub const ACK: u8 = 0x10;
/// The type of the chunk that opens an SCTP association.
pub const INIT: u8 = 1;

// Any numbers, so long as they differ: the kernel's are other ones for frames and for addresses.
const BRIDGE: u64 = 1;
const BROADCAST: u64 = 1;
const MULTICAST: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// The end of a chain, or `return`.
    Return,
}

/// What a statement does next.
enum Flow {
    /// The next statement of the rule.
    Next,
    /// The next rule.
    NoMatch,
    Verdict(Verdict),
    Jump(ChainName),
    Goto(ChainName),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Address(IpAddr),
    Number(u64),
    Concat(Vec<Value>),
}

/// nft's limit on nested jumps.
const DEPTH: usize = 16;

/// Walks packets through a ruleset.
pub struct Tracer<'a> {
    ruleset: &'a Ruleset,
    chains: HashMap<String, ChainName>,
    sets: HashMap<String, SetName>,
}

impl<'a> Tracer<'a> {
    /// A tracer for this ruleset.
    pub fn new(ruleset: &'a Ruleset) -> Self {
        Tracer {
            ruleset,
            chains: ruleset.chains.keys().map(|name| (name.to_string(), *name)).collect(),
            sets: ruleset.sets.keys().map(|name| (name.to_string(), *name)).collect(),
        }
    }

    /// Walks one packet through the rules.
    pub fn trace(&self, packet: &Packet) -> Result<Trace, TraceError> {
        let mut entry = Entry {
            mark: 0,
            confirmed: packet.state != State::New,
            dying: false,
        };
        self.trace_marked(packet, &mut entry)
    }

    /// Walks one packet through the rules; its connection's mark becomes what they set.
    pub fn trace_marked(&self, packet: &Packet, entry: &mut Entry) -> Result<Trace, TraceError> {
        let walk = Walk {
            tracer: self,
            packet,
            mark: Cell::new(entry.mark),
            entry: *entry,
        };
        let mut trace = Trace {
            accepted: true,
            denied: false,
            answer: None,
            counted: Vec::new(),
            unknown: 0,
            recorded: Vec::new(),
            chains: Vec::new(),
        };
        // What falls off the base chain meets its policy: accept.
        trace.accepted = walk.chain(ChainName::Forward, 0, &mut trace)? != Verdict::Drop;
        entry.mark = walk.mark.get();
        Ok(trace)
    }

    fn chain_name(&self, text: &str) -> Result<ChainName, TraceError> {
        let found = self.chains.get(text).copied();
        found.ok_or_else(|| TraceError::Missing(text.to_owned()))
    }

    fn set_name(&self, text: &str) -> Result<SetName, TraceError> {
        let found = self.sets.get(text).copied();
        found.ok_or_else(|| TraceError::Missing(text.to_owned()))
    }

    fn set_reference(&self, expression: &Expression<'static>) -> Result<SetName, TraceError> {
        match expression {
            Expression::String(text) if text.starts_with('@') => self.set_name(&text[1..]),
            other => Err(TraceError::Unknown(format!("{other:?}"))),
        }
    }
}

/// One packet on its way.
struct Walk<'a> {
    tracer: &'a Tracer<'a>,
    packet: &'a Packet,
    mark: Cell<u32>,
    entry: Entry,
}

impl Walk<'_> {
    fn chain(&self, name: ChainName, depth: usize, trace: &mut Trace) -> Result<Verdict, TraceError> {
        let mut current = name;
        if depth > DEPTH {
            return Err(TraceError::Invalid(format!("too many jumps, the last to {name}")));
        }
        'chain: loop {
            if trace.chains.len() > 100 {
                return Err(TraceError::Invalid(format!("a loop through {current}")));
            }
            trace.chains.push(current);
            let missing = || TraceError::Missing(current.to_string());
            for rule in self.tracer.ruleset.chains.get(&current).ok_or_else(missing)? {
                match self.rule(current, rule, trace)? {
                    Flow::Next | Flow::NoMatch => {}
                    Flow::Verdict(verdict) => return Ok(verdict),
                    Flow::Goto(next) => {
                        current = next;
                        continue 'chain;
                    }
                    Flow::Jump(next) => match self.chain(next, depth + 1, trace)? {
                        Verdict::Return => {}
                        verdict => return Ok(verdict),
                    },
                }
            }
            return Ok(Verdict::Return);
        }
    }

    fn rule(&self, chain: ChainName, rule: &Rule, trace: &mut Trace) -> Result<Flow, TraceError> {
        // nft reads a port only when the rule has compared the protocol before.
        let mut protocol_known = false;
        for statement in &rule.statements {
            if let Statement::Match(m) = statement {
                let is_l4proto = |m: &nftables::expr::Meta| m.key == MetaKey::L4proto;
                protocol_known |= matches!(&m.left, Expression::Named(NamedExpression::Meta(meta)) if is_l4proto(meta));
            }
            match self.statement(chain, statement, protocol_known, trace)? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn statement(
        &self,
        chain: ChainName,
        statement: &Statement<'static>,
        protocol_known: bool,
        trace: &mut Trace,
    ) -> Result<Flow, TraceError> {
        Ok(match statement {
            Statement::Accept(_) if may_accept(chain) => Flow::Verdict(Verdict::Accept),
            Statement::Accept(_) => return Err(TraceError::Invalid(format!("{chain} accepts: it may only return"))),
            Statement::Drop(_) => Flow::Verdict(Verdict::Drop),
            Statement::Return(_) => Flow::Verdict(Verdict::Return),
            Statement::Jump(to) => Flow::Jump(self.tracer.chain_name(&to.target)?),
            Statement::Goto(to) => Flow::Goto(self.tracer.chain_name(&to.target)?),
            Statement::Counter(_) if chain == ChainName::Unknown => {
                trace.unknown += 1;
                trace.denied = true;
                Flow::Next
            }
            Statement::Counter(_) => Flow::Next,
            // No rate is ever exceeded here.
            Statement::Limit(limit) if limit.inv == Some(true) => Flow::NoMatch,
            Statement::Limit(_) => Flow::Next,
            Statement::Reject(Some(reject)) => {
                trace.answer = match (reject._type, reject.expr) {
                    (Some(RejectType::TCPReset), None) if self.packet.protocol == number_of(Protocol::Tcp) => {
                        Some(Answer::Reset)
                    }
                    (Some(RejectType::TCPReset), None) => {
                        return Err(TraceError::Invalid(format!("{chain} resets what is no TCP")));
                    }
                    (Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited)) => Some(Answer::Prohibited),
                    _ => return Err(TraceError::Unknown(format!("{reject:?}"))),
                };
                Flow::Verdict(Verdict::Drop)
            }
            Statement::Set(update) => {
                let set = self.tracer.set_name(update.set.trim_start_matches('@'))?;
                if !set.is_dynamic() {
                    return Err(TraceError::Invalid(format!("a rule updates {set}")));
                }
                match self.value(&update.elem, protocol_known)? {
                    // No rate is ever exceeded here either.
                    Some(Value::Address(source)) if set.limits() && set.family() == Family::of(source) => Flow::NoMatch,
                    Some(key) => {
                        trace.recorded.push(recorded(set, &key)?);
                        Flow::Next
                    }
                    None => Flow::NoMatch,
                }
            }
            Statement::Mangle(mangle) => {
                let unknown = || TraceError::Unknown(format!("{statement:?}"));
                match &mangle.key {
                    Expression::Named(NamedExpression::CT(ct)) if ct.key == "mark" && ct.dir.is_none() => {}
                    _ => return Err(unknown()),
                }
                match self.value(&mangle.value, protocol_known)? {
                    Some(Value::Number(mark)) => self.mark.set(u32::try_from(mark).map_err(|_| unknown())?),
                    Some(_) => return Err(unknown()),
                    None => return Ok(Flow::NoMatch),
                }
                Flow::Next
            }
            Statement::VerdictMap(map) => {
                let Some(key) = self.value(&map.key, protocol_known)? else {
                    return Ok(Flow::NoMatch);
                };
                let name = self.tracer.set_reference(&map.data)?;
                match self.look_up(name, &key)? {
                    Some(Some(chain)) => Flow::Goto(chain),
                    Some(None) => return Err(TraceError::Invalid(format!("an element of {name} has no verdict"))),
                    None => Flow::NoMatch,
                }
            }
            Statement::Match(m) => {
                let Some(left) = self.value(&m.left, protocol_known)? else {
                    return Ok(Flow::NoMatch);
                };
                if self.matches(&left, &m.op, &m.right)? {
                    if let (Some(set @ SetName::Counters(_)), Value::Address(address)) = (self.set_of(&m.right), &left)
                        && m.op == Operator::EQ
                    {
                        trace.counted.push((set, *address));
                        trace.denied = true;
                    }
                    Flow::Next
                } else {
                    Flow::NoMatch
                }
            }
            other => return Err(TraceError::Unknown(format!("{other:?}"))),
        })
    }

    /// The value of an expression; none when the packet has none, so that the rule does not match.
    fn value(&self, expression: &Expression<'static>, protocol_known: bool) -> Result<Option<Value>, TraceError> {
        let unknown = || TraceError::Unknown(format!("{expression:?}"));
        let packet = self.packet;
        Ok(match expression {
            Expression::Named(NamedExpression::Concat(parts)) => {
                let parts: Result<Vec<_>, _> = parts.iter().map(|part| self.value(part, protocol_known)).collect();
                parts?.into_iter().collect::<Option<Vec<_>>>().map(Value::Concat)
            }
            Expression::Named(NamedExpression::Meta(meta)) if meta.key == MetaKey::Nfproto => {
                Some(Value::Number(nfproto(Family::of(packet.source))))
            }
            Expression::Named(NamedExpression::Meta(meta)) if meta.key == MetaKey::L4proto => {
                Some(Value::Number(packet.protocol.into()))
            }
            Expression::Named(NamedExpression::Meta(meta))
                if matches!(meta.key, MetaKey::Iifkind | MetaKey::Oifkind) =>
            {
                Some(Value::Number(if packet.way == Way::Routed { 0 } else { BRIDGE }))
            }
            Expression::Named(NamedExpression::Meta(meta)) if meta.key == MetaKey::Pkttype => {
                Some(Value::Number(match packet.way {
                    Way::Routed | Way::Bridged => 0,
                    Way::Broadcast => BROADCAST,
                    Way::Multicast => MULTICAST,
                }))
            }
            Expression::Named(NamedExpression::Fib(fib))
                if fib.result == FibResult::Type && fib.flags.iter().eq([&FibFlag::Daddr]) =>
            {
                Some(Value::Number(match packet.destination {
                    IpAddr::V4(Ipv4Addr::BROADCAST) => BROADCAST,
                    address if address.is_multicast() => MULTICAST,
                    _ => 0,
                }))
            }
            Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
                let address =
                    |address: IpAddr, family| (Family::of(address) == family).then_some(Value::Address(address));
                let number = |of: u8, value: u8| (packet.protocol == of).then_some(Value::Number(value.into()));
                match (&*field.protocol, &*field.field) {
                    ("ip", "saddr") => address(packet.source, Family::V4),
                    ("ip", "daddr") => address(packet.destination, Family::V4),
                    ("ip6", "saddr") => address(packet.source, Family::V6),
                    ("ip6", "daddr") => address(packet.destination, Family::V6),
                    ("ip6", "hoplimit") => {
                        (Family::of(packet.source) == Family::V6).then_some(Value::Number(packet.hop_limit.into()))
                    }
                    ("icmpv6", "type") => number(58, packet.icmp_type),
                    ("tcp", "flags") => number(6, packet.tcp_flags),
                    _ => return Err(unknown()),
                }
            }
            // Behind ports, tag and checksum stands the type of the first chunk, and in other protocols something else.
            Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(raw))) if *raw == FIRST_CHUNK => {
                match packet.protocol {
                    132 => Some(Value::Number(packet.sctp_chunk.into())),
                    _ => {
                        return Err(TraceError::Invalid(
                            "a chunk is read in another protocol than SCTP".to_owned(),
                        ));
                    }
                }
            }
            Expression::Named(NamedExpression::CT(ct)) => {
                let connection = packet.connection;
                let address = |pick: fn(&Connection) -> IpAddr, family| {
                    let address = pick(connection.as_ref()?);
                    (Family::of(address) == family).then_some(Value::Address(address))
                };
                match (&*ct.key, ct.dir) {
                    ("ip saddr", Some(CTDir::Original)) => address(|c| c.client, Family::V4),
                    ("ip6 saddr", Some(CTDir::Original)) => address(|c| c.client, Family::V6),
                    ("ip saddr", Some(CTDir::Reply)) => address(|c| c.server, Family::V4),
                    ("ip6 saddr", Some(CTDir::Reply)) => address(|c| c.server, Family::V6),
                    ("protocol", None) => connection.map(|c| Value::Number(c.protocol.into())),
                    ("proto-src", Some(CTDir::Reply)) if protocol_known => {
                        connection.map(|c| Value::Number(c.server_port.into()))
                    }
                    ("proto-src", Some(CTDir::Reply)) => {
                        return Err(TraceError::Invalid("a port is read before meta l4proto".to_owned()));
                    }
                    ("state", None) => Some(Value::Number(state_bit(packet.state))),
                    ("mark", None) => connection.map(|_| Value::Number(self.mark.get().into())),
                    ("status", None) => connection.map(|_| Value::Number(status_bits(self.entry))),
                    _ => return Err(unknown()),
                }
            }
            Expression::BinaryOperation(operation) => match &**operation {
                BinaryOperation::AND(a, b) => match (self.value(a, protocol_known)?, constant(b)) {
                    (Some(Value::Number(a)), Some(b)) => Some(Value::Number(a & b)),
                    (None, Some(_)) => None,
                    _ => return Err(unknown()),
                },
                BinaryOperation::OR(parts) => match parts.as_slice() {
                    [a, b] => match (self.value(a, protocol_known)?, constant(b)) {
                        (Some(Value::Number(a)), Some(b)) => Some(Value::Number(a | b)),
                        (None, Some(_)) => None,
                        _ => return Err(unknown()),
                    },
                    _ => return Err(unknown()),
                },
                _ => return Err(unknown()),
            },
            _ => return Err(unknown()),
        })
    }

    fn matches(&self, left: &Value, op: &Operator, right: &Expression<'static>) -> Result<bool, TraceError> {
        let unknown = || TraceError::Unknown(format!("{left:?} {op:?} {right:?}"));
        match (op, right) {
            (Operator::EQ | Operator::NEQ, Expression::String(text)) if text.starts_with('@') => {
                let name = self.tracer.set_reference(right)?;
                if name.is_map() {
                    return Err(TraceError::Invalid(format!("{name} is a map, not a set")));
                }
                if *op == Operator::NEQ && name.counts() {
                    return Err(TraceError::Invalid(format!("{name} counts what is to be in it")));
                }
                Ok(self.look_up(name, left)?.is_some() == (*op == Operator::EQ))
            }
            (Operator::EQ, Expression::Named(NamedExpression::Prefix(prefix))) => {
                let network = match (&*prefix.addr, u8::try_from(prefix.len)) {
                    (Expression::String(text), Ok(len)) => text.parse().ok().and_then(|a| IpNet::new(a, len).ok()),
                    _ => None,
                };
                match (left, network) {
                    (Value::Address(address), Some(network)) if network.trunc() == network => {
                        Ok(network.contains(address))
                    }
                    _ => Err(unknown()),
                }
            }
            (Operator::EQ, Expression::Range(range)) => {
                match (left, constant(&range.range[0]), constant(&range.range[1])) {
                    (Value::Number(n), Some(first), Some(last)) => Ok((first..=last).contains(n)),
                    _ => Err(unknown()),
                }
            }
            (Operator::IN, Expression::List(names)) => {
                let bits = names
                    .iter()
                    .map(state_constant)
                    .collect::<Option<Vec<u64>>>()
                    .ok_or_else(unknown)?;
                match left {
                    Value::Number(state) => Ok(bits.iter().any(|bit| bit & state != 0)),
                    _ => Err(unknown()),
                }
            }
            (Operator::EQ | Operator::NEQ, _) => match (left, constant(right)) {
                (Value::Number(a), Some(b)) => Ok((*a == b) == (*op == Operator::EQ)),
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        }
    }

    /// The set that an expression refers to, if it does.
    fn set_of(&self, expression: &Expression<'static>) -> Option<SetName> {
        self.tracer.set_reference(expression).ok()
    }

    /// The element of a key, if any, with the chain that it goes to, if any.
    fn look_up(&self, name: SetName, value: &Value) -> Result<Option<Option<ChainName>>, TraceError> {
        let elements = &self.tracer.ruleset.sets[&name];
        let found = match (name.key_type(), value) {
            (KeyType::Interval, Value::Address(address)) => elements
                .iter()
                .find(|(key, _)| matches!(key, Key::Interval(range) if range.contains(*address)))
                .map(|(_, element)| element),
            (KeyType::Address, Value::Address(address)) => elements.get(&Key::Address(*address)),
            (KeyType::Pair, Value::Concat(parts)) => match parts.as_slice() {
                [Value::Address(a), Value::Address(b)] => elements.get(&Key::Pair(*a, *b)),
                _ => return Err(wrong_type(name, value)),
            },
            (KeyType::Port, Value::Concat(parts)) => match parts.as_slice() {
                [Value::Address(a), Value::Number(protocol), Value::Number(port)] => {
                    let port = u16::try_from(*port).map_err(|_| wrong_type(name, value))?;
                    let protocol = Protocol::ALL
                        .into_iter()
                        .find(|p| u64::from(number_of(*p)) == *protocol);
                    protocol.and_then(|protocol| elements.get(&Key::Port(*a, protocol, port)))
                }
                _ => return Err(wrong_type(name, value)),
            },
            _ => return Err(wrong_type(name, value)),
        };
        Ok(found.map(|element| element.goto))
    }
}

/// The chains that see a packet before any policy does, or instead of it: what another pod's policy has yet to judge comes through
/// none of them.
fn may_accept(chain: ChainName) -> bool {
    use ChainName::{Forward, Opening, Stray, StrayAudited, StrayDenied};
    [Forward, Opening, Stray, StrayAudited, StrayDenied].contains(&chain)
}

// From linux/netfilter.h.
fn nfproto(family: Family) -> u64 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The number of a protocol in an IP header.
pub fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn recorded(set: SetName, key: &Value) -> Result<Recorded, TraceError> {
    let wrong = || wrong_type(set, key);
    let Value::Concat(parts) = key else { return Err(wrong()) };
    let (from, to, protocol, port) = match (set.key_type(), parts.as_slice()) {
        (
            KeyType::Connection,
            [
                Value::Address(from),
                Value::Address(to),
                Value::Number(protocol),
                Value::Number(port),
            ],
        ) => (from, to, protocol, Some(u16::try_from(*port).map_err(|_| wrong())?)),
        (KeyType::ConnectionOther, [Value::Address(from), Value::Address(to), Value::Number(protocol)]) => {
            (from, to, protocol, None)
        }
        _ => return Err(wrong()),
    };
    let ours = |address: &IpAddr| Family::of(*address) == set.family();
    let protocol = u8::try_from(*protocol).map_err(|_| wrong())?;
    match ours(from) && ours(to) {
        true => Ok(Recorded {
            from: *from,
            to: *to,
            protocol,
            port,
        }),
        false => Err(wrong()),
    }
}

fn wrong_type(name: SetName, value: &Value) -> TraceError {
    TraceError::Invalid(format!("{value:?} is looked up in {name}, whose type is another"))
}

fn state_bit(state: State) -> u64 {
    match state {
        State::Invalid => 1,
        State::Established => 2,
        State::Related => 4,
        State::New => 8,
        State::Untracked => 64,
    }
}

// From linux/netfilter/nf_conntrack_common.h.
const CONFIRMED: u64 = 1 << 3;
const DYING: u64 = 1 << 9;

fn status_bits(entry: Entry) -> u64 {
    let bit = |set, bit| if set { bit } else { 0 };
    bit(entry.confirmed, CONFIRMED) | bit(entry.dying, DYING)
}

fn state_constant(expression: &Expression<'static>) -> Option<u64> {
    match expression {
        Expression::String(text) => match &**text {
            "invalid" => Some(state_bit(State::Invalid)),
            "established" => Some(state_bit(State::Established)),
            "related" => Some(state_bit(State::Related)),
            "new" => Some(state_bit(State::New)),
            "untracked" => Some(state_bit(State::Untracked)),
            _ => None,
        },
        _ => None,
    }
}

fn constant(expression: &Expression<'static>) -> Option<u64> {
    match expression {
        Expression::Number(number) => Some((*number).into()),
        Expression::String(text) => match &**text {
            "fin" => Some(1),
            "syn" => Some(SYN.into()),
            "rst" => Some(4),
            "ack" => Some(ACK.into()),
            "confirmed" => Some(CONFIRMED),
            "dying" => Some(DYING),
            "bridge" => Some(BRIDGE),
            "broadcast" => Some(BROADCAST),
            "multicast" => Some(MULTICAST),
            "ipv4" => Some(nfproto(Family::V4)),
            "ipv6" => Some(nfproto(Family::V6)),
            _ => None,
        },
        Expression::BinaryOperation(operation) => match &**operation {
            BinaryOperation::OR(parts) => parts.iter().try_fold(0, |all, part| Some(all | constant(part)?)),
            _ => None,
        },
        _ => None,
    }
}
