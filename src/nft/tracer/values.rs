//! What an expression of a rule is for a packet on its way, and what a set has for it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use nftables::expr::{BinaryOperation, CTDir, Expression, FibFlag, FibResult, MetaKey, NamedExpression, Payload};
use nftables::stmt::Operator;
use policy_compiler::ports::Protocol;

use super::super::expressions::FIRST_CHUNK;
use super::super::names::{ChainName, Family, KeyType, SetName};
use super::super::ruleset::Key;
use super::{ACK, Connection, Entry, Recorded, SYN, State, TraceError, Walk, Way, number_of};

// Any numbers, so long as they differ: the kernel's are other ones for frames and for addresses.
const BRIDGE: u64 = 1;
const BROADCAST: u64 = 1;
const MULTICAST: u64 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Address(IpAddr),
    Number(u64),
    Concat(Vec<Value>),
}

impl Walk<'_> {
    /// The value of an expression; none when the packet has none, so that the rule does not match.
    pub(super) fn value(
        &self,
        expression: &Expression<'static>,
        protocol_known: bool,
    ) -> Result<Option<Value>, TraceError> {
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

    pub(super) fn matches(&self, left: &Value, op: &Operator, right: &Expression<'static>) -> Result<bool, TraceError> {
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
    pub(super) fn set_of(&self, expression: &Expression<'static>) -> Option<SetName> {
        self.tracer.set_reference(expression).ok()
    }

    /// The element of a key, if any, with the chain that it goes to, if any.
    pub(super) fn look_up(&self, name: SetName, value: &Value) -> Result<Option<Option<ChainName>>, TraceError> {
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

/// The entry of the record that a key of this set is.
pub(super) fn recorded(set: SetName, key: &Value) -> Result<Recorded, TraceError> {
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

// From linux/netfilter.h.
fn nfproto(family: Family) -> u64 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
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
