//! Small constructors of rules' parts, each with the nft text that it stands for.

use std::collections::HashSet;

use ipnet::IpNet;
use nftables::expr::{
    BinaryOperation, CT, CTDir, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadBase, PayloadField, PayloadRaw, Prefix, Range,
};
use nftables::stmt::{
    AnonymousCounter, Counter, JumpTarget, Limit, Mangle, Match, Operator, Reject, RejectType, Set, SetOp, Statement,
    VerdictMap,
};
use nftables::types::RejectCode;
use policy_compiler::cells::AddressRange;
use policy_compiler::policy::Direction;
use policy_compiler::ports::{PortRange, Protocol};

use super::names::{ChainName, Family, SetName};

/// The protocol's name in nft.
pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The protocol's number. Rules and elements have numbers: nft looks names up in /etc/protocols, which small container
/// images do not have.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// The number of ICMP in a family.
pub(super) fn icmp_number(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

/// What nft calls a protocol that rules compare with.
pub(super) fn name_of_number(number: u32) -> Option<&'static str> {
    match number {
        1 => Some("icmp"),
        58 => Some("ipv6-icmp"),
        _ => {
            let mut all = Protocol::ALL.into_iter();
            all.find(|p| u32::from(protocol_number(*p)) == number)
                .map(protocol_name)
        }
    }
}

/// `ct original ip saddr`: who opened the connection.
pub(super) fn client(family: Family) -> Expression<'static> {
    connection_address(family, CTDir::Original)
}

/// `ct reply ip saddr`: who answers, after any DNAT.
pub(super) fn server(family: Family) -> Expression<'static> {
    connection_address(family, CTDir::Reply)
}

/// `ct reply proto-src`: the port of the one who answers. nft wants `meta l4proto` compared earlier in the rule.
pub(super) fn server_port() -> Expression<'static> {
    ct("proto-src", Some(CTDir::Reply))
}

/// `ct protocol`
pub(super) fn connection_protocol() -> Expression<'static> {
    ct("protocol", None)
}

/// The pod that is judged: the client for egress, the server for ingress.
pub(super) fn subject(direction: Direction, family: Family) -> Expression<'static> {
    match direction {
        Direction::Ingress => server(family),
        Direction::Egress => client(family),
    }
}

/// The other end.
pub(super) fn peer(direction: Direction, family: Family) -> Expression<'static> {
    match direction {
        Direction::Ingress => client(family),
        Direction::Egress => server(family),
    }
}

/// `a . b . c`
pub(super) fn concat(parts: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts.into_iter().collect()))
}

/// `ip saddr`, `tcp flags`, `icmpv6 type`
pub(super) fn header(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

/// `meta nfproto ipv6`
pub(super) fn is_family(family: Family) -> Statement<'static> {
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    compare(meta(MetaKey::Nfproto), Operator::EQ, text(name))
}

/// `meta l4proto tcp`
pub(super) fn packet_protocol(number: u8) -> Statement<'static> {
    compare(meta(MetaKey::L4proto), Operator::EQ, Expression::Number(number.into()))
}

/// `meta l4proto != tcp`
pub(super) fn not_packet_protocol(number: u8) -> Statement<'static> {
    compare(meta(MetaKey::L4proto), Operator::NEQ, Expression::Number(number.into()))
}

/// `ct protocol tcp`
pub(super) fn of_connection(protocol: Protocol) -> Statement<'static> {
    compare(
        connection_protocol(),
        Operator::EQ,
        Expression::Number(protocol_number(protocol).into()),
    )
}

/// `ct protocol != tcp`
pub(super) fn not_of_connection(protocol: Protocol) -> Statement<'static> {
    compare(
        connection_protocol(),
        Operator::NEQ,
        Expression::Number(protocol_number(protocol).into()),
    )
}

/// `ct state invalid,untracked`
pub(super) fn state(names: &[&'static str]) -> Statement<'static> {
    let names: Vec<_> = names.iter().copied().map(text).collect();
    compare(ct("state", None), Operator::IN, Expression::List(names))
}

/// `ct mark & 0xffff0000 == 0x00010000`
pub(super) fn mark_is(mask: u32, value: u32) -> Statement<'static> {
    compare(
        and(ct("mark", None), Expression::Number(mask)),
        Operator::EQ,
        Expression::Number(value),
    )
}

/// `ct mark & 0xffff0000 != 0x00010000`
pub(super) fn mark_is_not(mask: u32, value: u32) -> Statement<'static> {
    compare(
        and(ct("mark", None), Expression::Number(mask)),
        Operator::NEQ,
        Expression::Number(value),
    )
}

/// `ct mark set ct mark & 0x0000ffff | 0x00010000`: other bits stay.
pub(super) fn set_mark(mask: u32, value: u32) -> Statement<'static> {
    let others = and(ct("mark", None), Expression::Number(!mask));
    let value = match value {
        0 => others,
        _ => Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![others, Expression::Number(value)]))),
    };
    Statement::Mangle(Mangle {
        key: ct("mark", None),
        value,
    })
}

/// `ct status & (confirmed|dying) == confirmed`: the connection is in the table of connection tracking.
pub(super) fn is_confirmed() -> Statement<'static> {
    let either = BinaryOperation::OR(vec![text("confirmed"), text("dying")]);
    let status = and(ct("status", None), Expression::BinaryOperation(Box::new(either)));
    compare(status, Operator::EQ, text("confirmed"))
}

/// `ct status & confirmed == 0`: this is its first packet.
pub(super) fn is_unconfirmed() -> Statement<'static> {
    compare(
        and(ct("status", None), text("confirmed")),
        Operator::EQ,
        Expression::Number(0),
    )
}

/// `tcp flags & (fin|syn|rst|ack) != syn`: anything but the packet that opens a connection.
pub(super) fn not_a_syn() -> Statement<'static> {
    // nft's `|` takes two operands.
    let or = |a, b| Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![a, b])));
    let mask = or(or(text("fin"), text("syn")), or(text("rst"), text("ack")));
    compare(and(header("tcp", "flags"), mask), Operator::NEQ, text("syn"))
}

/// `@th,96,8`: the type of the first chunk of an SCTP packet.
pub(super) const FIRST_CHUNK: PayloadRaw = PayloadRaw {
    base: PayloadBase::TH,
    offset: 96,
    len: 8,
};

/// `meta l4proto sctp @th,96,8 != 1`: anything but the packet that opens an SCTP association. (`sctp chunk init` would look
/// for it anywhere in the packet, and needs a newer kernel.)
pub(super) fn not_an_init() -> [Statement<'static>; 2] {
    let chunk = Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(FIRST_CHUNK)));
    [
        packet_protocol(protocol_number(Protocol::Sctp)),
        compare(chunk, Operator::NEQ, Expression::Number(1)),
    ]
}

/// `ip6 hoplimit 255 icmpv6 type 133-137`: no router forwards it with this hop limit, so it is from the same link, and
/// no pod can send anything elsewhere in its guise.
pub(super) fn neighbour_discovery() -> [Statement<'static>; 2] {
    [
        compare(header("ip6", "hoplimit"), Operator::EQ, Expression::Number(255)),
        compare(header("icmpv6", "type"), Operator::EQ, range(133, 137)),
    ]
}

/// `meta iifkind "bridge" meta oifkind "bridge"`: switched between two ports of a bridge, or routed between two bridges.
pub(super) fn bridged() -> [Statement<'static>; 2] {
    [MetaKey::Iifkind, MetaKey::Oifkind].map(|key| compare(meta(key), Operator::EQ, text("bridge")))
}

/// To how many receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cast {
    Broadcast,
    Multicast,
}

impl Cast {
    pub(super) const BOTH: [Cast; 2] = [Cast::Broadcast, Cast::Multicast];

    fn text(self) -> Expression<'static> {
        text(match self {
            Cast::Broadcast => "broadcast",
            Cast::Multicast => "multicast",
        })
    }
}

/// `meta pkttype multicast`: whom the frame is addressed to.
pub(super) fn frame_is(cast: Cast) -> Statement<'static> {
    compare(meta(MetaKey::Pkttype), Operator::EQ, cast.text())
}

/// `fib daddr type multicast`: whom the packet is addressed to, whatever its frame says.
pub(super) fn destination_is(cast: Cast) -> Statement<'static> {
    let kind = Fib {
        result: FibResult::Type,
        flags: HashSet::from([FibFlag::Daddr]),
    };
    compare(Expression::Named(NamedExpression::Fib(kind)), Operator::EQ, cast.text())
}

/// `icmpv6 type 130-132`: multicast listener discovery (RFC 2710), without which bridges that snoop lose neighbour discovery.
/// `icmpv6 type 143`: the same, version 2 (RFC 3810).
pub(super) fn listener_discovery() -> [Statement<'static>; 2] {
    let kind = || header("icmpv6", "type");
    [
        compare(kind(), Operator::EQ, range(130, 132)),
        compare(kind(), Operator::EQ, Expression::Number(143)),
    ]
}

/// `ct reply proto-src 8000-8080`
pub(super) fn server_port_in(ports: PortRange) -> Statement<'static> {
    compare(
        server_port(),
        Operator::EQ,
        range(ports.first.into(), ports.last.into()),
    )
}

/// `ct original ip saddr 10.0.0.0-10.0.0.255`
pub(super) fn peer_in(peer: Expression<'static>, range: AddressRange) -> Statement<'static> {
    let range = [range.first, range.last].map(|address| Expression::String(address.to_string().into()));
    compare(peer, Operator::EQ, Expression::Range(Box::new(Range { range })))
}

/// `ip saddr 10.244.1.0/24`
pub(super) fn is_of(address: Expression<'static>, network: IpNet) -> Statement<'static> {
    let network = Prefix {
        addr: Box::new(Expression::String(network.network().to_string().into())),
        len: u32::from(network.prefix_len()),
    };
    compare(
        address,
        Operator::EQ,
        Expression::Named(NamedExpression::Prefix(network)),
    )
}

/// `<expression> @<set>`
pub(super) fn is_in(left: Expression<'static>, set: SetName) -> Statement<'static> {
    compare(left, Operator::EQ, reference(set))
}

/// `<expression> != @<set>`
pub(super) fn is_not_in(left: Expression<'static>, set: SetName) -> Statement<'static> {
    compare(left, Operator::NEQ, reference(set))
}

/// `<expression> vmap @<map>`
pub(super) fn verdict_of(key: Expression<'static>, map: SetName) -> Statement<'static> {
    Statement::VerdictMap(VerdictMap {
        key,
        data: reference(map),
    })
}

/// `accept`
pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

/// `drop`
pub(super) fn drop() -> Statement<'static> {
    Statement::Drop(None)
}

/// `return`
pub(super) fn back() -> Statement<'static> {
    Statement::Return(None)
}

/// `jump <chain>`
pub(super) fn jump(chain: ChainName) -> Statement<'static> {
    Statement::Jump(target(chain))
}

/// `goto <chain>`
pub(super) fn goto(chain: ChainName) -> Statement<'static> {
    Statement::Goto(target(chain))
}

/// `counter`
pub(super) fn counter() -> Statement<'static> {
    Statement::Counter(Counter::Anonymous(Some(AnonymousCounter {
        packets: Some(0),
        bytes: Some(0),
    })))
}

/// `limit rate 100/second burst 100 packets`
pub(super) fn limit(rate: u32) -> Statement<'static> {
    Statement::Limit(Limit {
        rate,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(rate),
        burst_unit: None,
        inv: None,
    })
}

/// `limit rate over 10/second burst 50 packets`: matches what is beyond the rate.
pub(super) fn limit_over(rate: u32, burst: u32) -> Statement<'static> {
    match limit(rate) {
        Statement::Limit(limit) => Statement::Limit(Limit {
            burst: Some(burst),
            inv: Some(true),
            ..limit
        }),
        other => other,
    }
}

/// `reject with tcp reset`; nft wants `meta l4proto tcp` before it. The kernel never answers a reset.
pub(super) fn reset() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

/// `reject with icmpx type admin-prohibited`. The kernel never answers an ICMP error.
pub(super) fn prohibited() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(
        Some(RejectType::ICMPX),
        Some(RejectCode::AdminProhibited),
    )))
}

/// `update @<set> { <expression> }`
pub(super) fn update(set: SetName, elem: Expression<'static>) -> Statement<'static> {
    Statement::Set(Set {
        op: SetOp::Update,
        elem,
        set: format!("@{set}").into(),
    })
}

fn compare(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn and(left: Expression<'static>, right: Expression<'static>) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(left, right)))
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn text(name: &'static str) -> Expression<'static> {
    Expression::String(name.into())
}

fn range(first: u32, last: u32) -> Expression<'static> {
    Expression::Range(Box::new(Range {
        range: [Expression::Number(first), Expression::Number(last)],
    }))
}

fn reference(set: SetName) -> Expression<'static> {
    Expression::String(format!("@{set}").into())
}

fn target(chain: ChainName) -> JumpTarget<'static> {
    JumpTarget {
        target: chain.to_string().into(),
    }
}

fn connection_address(family: Family, dir: CTDir) -> Expression<'static> {
    // nft's JSON has the family in the key.
    let key = match family {
        Family::V4 => "ip saddr",
        Family::V6 => "ip6 saddr",
    };
    ct(key, Some(dir))
}

fn ct(key: &'static str, dir: Option<CTDir>) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        family: None,
        dir,
    }))
}
