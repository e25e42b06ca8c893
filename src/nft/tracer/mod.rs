//! Walks a packet through the rendered rules, the way the kernel does. A rule, expression or set that it does not know is an
//! error, so that nothing is rendered that no test has judged.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;

use nftables::expr::{Expression, MetaKey, NamedExpression};
use nftables::stmt::{Operator, RejectType, Statement};
use nftables::types::RejectCode;
use policy_compiler::ports::Protocol;
use thiserror::Error;

use self::values::{Value, recorded};
use super::names::{ChainName, Family, SetName};
use super::ruleset::{Rule, Ruleset};

mod values;

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

impl Packet {
    /// The first packet of a TCP connection to this port, routed.
    pub fn opening(source: IpAddr, destination: IpAddr, port: u16) -> Self {
        let protocol = number_of(Protocol::Tcp);
        Packet {
            source,
            destination,
            protocol,
            tcp_flags: SYN,
            sctp_chunk: 0,
            hop_limit: 63,
            icmp_type: 0,
            way: Way::Routed,
            state: State::New,
            connection: Some(Connection {
                client: source,
                server: destination,
                protocol,
                server_port: port,
            }),
        }
    }
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
}

/// The chains that see a packet before any policy does, or instead of it: what another pod's policy has yet to judge comes through
/// none of them.
fn may_accept(chain: ChainName) -> bool {
    use ChainName::{Forward, Opening, Stray, StrayAudited, StrayDenied};
    [Forward, Opening, Stray, StrayAudited, StrayDenied].contains(&chain)
}

/// The number of a protocol in an IP header.
pub fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}
