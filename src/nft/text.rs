//! Rules, elements and rulesets as nft text.

use std::fmt;

use nftables::expr::{BinaryOperation, Expression, FibFlag, FibResult, MetaKey, NamedExpression, Payload};
use nftables::stmt::{Operator, RejectType, SetOp, Statement};
use nftables::types::RejectCode;

use super::expressions::{FIRST_CHUNK, name_of_number, protocol_name};
use super::names::{ChainName, KeyType, SetName, TABLE, TABLE_FAMILY};
use super::render_base::beyond_share;
use super::ruleset::{Element, Key, Rule, Ruleset};

/// The priority of the base chain on the forward hook.
///
/// Any priority there is after DNAT (prerouting) and before SNAT (postrouting). It comes after `filter` (0), so that what
/// the node's own firewall refuses (with its own answer, such as kube-proxy's reject for a Service without endpoints) is not
/// counted as denied by policy; and it is a number that nobody else uses (firewalld has 10, libvirt, Docker and
/// iptables-nft 0, kube-proxy -110 and 0), because the order of two chains of one priority is that of their creation.
pub const PRIORITY: i32 = 7;

/// One rule as a line of nft text.
pub(super) struct Line<'a>(pub(super) &'a Rule);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.statements.iter().map(statement).collect();
        f.write_str(&parts.join(" "))?;
        match &self.0.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Rule {
    /// Whether every part of the rule is one that this program writes, prints and traces.
    pub fn is_known(&self) -> bool {
        !self.statements.is_empty() && self.statements.iter().all(|s| known_statement(s).is_some())
    }
}

/// The hook of a base chain as nft text.
pub(super) fn hook(chain: ChainName) -> Option<String> {
    (chain == ChainName::Forward)
        .then(|| format!("type filter hook forward priority filter + {PRIORITY}; policy accept;"))
}

/// The same in the words of nft's JSON: type, hook, priority and policy.
pub(super) fn listed_hook(chain: ChainName) -> Option<String> {
    (chain == ChainName::Forward).then(|| format!("\"filter\" \"forward\" {PRIORITY} \"accept\""))
}

/// The specification of a set as nft text, without its elements.
pub(super) fn set_spec(name: SetName) -> String {
    let address = name.family().nft_type();
    let mut spec = match name.key_type() {
        KeyType::Address | KeyType::Interval => format!("type {address}"),
        KeyType::Pair => format!("type {address} . {address}"),
        KeyType::Port => format!("type {address} . inet_proto . inet_service"),
        KeyType::Connection => format!("type {address} . {address} . inet_proto . inet_service"),
        KeyType::ConnectionOther => format!("type {address} . {address} . inet_proto"),
    };
    if name.is_map() {
        spec.push_str(" : verdict");
    }
    spec.push(';');
    if name.key_type() == KeyType::Interval {
        spec.push_str(" flags interval;");
    }
    if let Some((size, seconds)) = name.bounds() {
        spec.push_str(&format!(" size {size}; flags dynamic,timeout; timeout {seconds}s;"));
    }
    if name.limits() {
        spec.push_str(&format!(" {};", statement(&beyond_share())));
    }
    if name.counts() {
        spec.push_str(" counter;");
    }
    spec
}

/// `set` or `map`.
pub(super) fn set_word(name: SetName) -> &'static str {
    if name.is_map() { "map" } else { "set" }
}

/// One element as nft text.
pub(super) fn element(key: &Key, element: &Element) -> String {
    let mut text = key.to_string();
    if let Some(comment) = &element.comment {
        text.push_str(&format!(" comment \"{comment}\""));
    }
    if let Some(chain) = &element.goto {
        text.push_str(&format!(" : goto {chain}"));
    }
    text
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Address(a) => a.fmt(f),
            Key::Interval(r) if r.first == r.last => r.first.fmt(f),
            Key::Interval(r) => write!(f, "{}-{}", r.first, r.last),
            Key::Pair(a, b) => write!(f, "{a} . {b}"),
            Key::Port(a, protocol, port) => write!(f, "{a} . {} . {port}", protocol_name(*protocol)),
        }
    }
}

impl fmt::Display for Ruleset {
    /// The whole table, as `nft -f` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {TABLE_FAMILY} {TABLE} {{")?;
        // Within one file nft takes any order; the data comes first, as in its own listing.
        for (name, elements) in &self.sets {
            writeln!(f, "\t{} {name} {{ {}", set_word(*name), set_spec(*name))?;
            if !elements.is_empty() {
                writeln!(f, "\t\telements = {{")?;
                for (key, value) in elements {
                    writeln!(f, "\t\t\t{},", element(key, value))?;
                }
                writeln!(f, "\t\t}}")?;
            }
            writeln!(f, "\t}}")?;
        }
        for (name, rules) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(hook) = hook(*name) {
                writeln!(f, "\t\t{hook}")?;
            }
            for rule in rules {
                writeln!(f, "\t\t{}", Line(rule))?;
            }
            writeln!(f, "\t}}")?;
        }
        f.write_str("}\n")
    }
}

fn statement(s: &Statement<'_>) -> String {
    // A transaction refuses what is not known before it is ever printed.
    known_statement(s).unwrap_or_else(|| format!("# not known: {s:?}"))
}

fn known_statement(s: &Statement<'_>) -> Option<String> {
    Some(match s {
        Statement::Accept(_) => "accept".to_owned(),
        Statement::Drop(_) => "drop".to_owned(),
        Statement::Return(_) => "return".to_owned(),
        Statement::Jump(to) => format!("jump {}", to.target),
        Statement::Goto(to) => format!("goto {}", to.target),
        Statement::Counter(_) => "counter".to_owned(),
        Statement::Limit(l) => {
            let over = if l.inv == Some(true) { "over " } else { "" };
            format!(
                "limit rate {over}{}/{} burst {} packets",
                l.rate,
                l.per.as_deref()?,
                l.burst?
            )
        }
        Statement::Reject(Some(r)) => match (r._type?, r.expr) {
            (RejectType::TCPReset, None) => "reject with tcp reset".to_owned(),
            (RejectType::ICMPX, Some(RejectCode::AdminProhibited)) => {
                "reject with icmpx type admin-prohibited".to_owned()
            }
            _ => return None,
        },
        Statement::Set(s) if s.op == SetOp::Update => format!("update {} {{ {} }}", s.set, expression(&s.elem)?),
        Statement::Mangle(m) => format!("{} set {}", expression(&m.key)?, expression(&m.value)?),
        Statement::VerdictMap(v) => format!("{} vmap {}", expression(&v.key)?, expression(&v.data)?),
        Statement::Match(m) => {
            let right = match (&m.left, &m.right) {
                (left, Expression::Number(number)) if is_protocol(left) => name_of_number(*number)?.to_owned(),
                // A word of nft's own otherwise.
                (left, right) if is_kind(left) => format!("\"{}\"", expression(right)?),
                (_, right) => expression(right)?,
            };
            let by_bits = matches!(m.left, Expression::BinaryOperation(_));
            let right = match &m.right {
                Expression::Number(_) if by_bits => bits(&m.right)?,
                _ => right,
            };
            let left = expression(&m.left)?;
            match m.op {
                Operator::EQ if by_bits => format!("{left} == {right}"),
                Operator::EQ | Operator::IN => format!("{left} {right}"),
                Operator::NEQ => format!("{left} != {right}"),
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn is_protocol(e: &Expression<'_>) -> bool {
    match e {
        Expression::Named(NamedExpression::Meta(m)) => m.key == MetaKey::L4proto,
        Expression::Named(NamedExpression::CT(ct)) => ct.key == "protocol",
        _ => false,
    }
}

fn is_kind(e: &Expression<'_>) -> bool {
    match e {
        Expression::Named(NamedExpression::Meta(m)) => matches!(m.key, MetaKey::Iifkind | MetaKey::Oifkind),
        _ => false,
    }
}

/// Numbers of which single bits matter.
fn bits(e: &Expression<'_>) -> Option<String> {
    match e {
        Expression::Number(number) => Some(format!("{number:#010x}")),
        other => expression(other),
    }
}

fn expression(e: &Expression<'_>) -> Option<String> {
    let joined = |parts: &[Expression<'_>], by: &str| {
        let parts: Option<Vec<String>> = parts.iter().map(expression).collect();
        Some(parts?.join(by))
    };
    Some(match e {
        Expression::String(text) => text.to_string(),
        Expression::Number(number) => number.to_string(),
        Expression::List(parts) => joined(parts, ",")?,
        Expression::Range(r) => joined(&r.range, "-")?,
        Expression::BinaryOperation(op) => match &**op {
            BinaryOperation::AND(a, b) => match b {
                Expression::BinaryOperation(_) => format!("{} & ({})", expression(a)?, expression(b)?),
                _ => format!("{} & {}", expression(a)?, bits(b)?),
            },
            BinaryOperation::OR(parts) => match parts.as_slice() {
                [a, number @ Expression::Number(_)] => format!("{} | {}", expression(a)?, bits(number)?),
                _ => joined(parts, "|")?,
            },
            _ => return None,
        },
        Expression::Named(NamedExpression::Concat(parts)) => joined(parts, " . ")?,
        Expression::Named(NamedExpression::Meta(m)) => match m.key {
            MetaKey::L4proto => "meta l4proto".to_owned(),
            MetaKey::Nfproto => "meta nfproto".to_owned(),
            MetaKey::Pkttype => "meta pkttype".to_owned(),
            MetaKey::Iifkind => "meta iifkind".to_owned(),
            MetaKey::Oifkind => "meta oifkind".to_owned(),
            _ => return None,
        },
        Expression::Named(NamedExpression::Prefix(p)) => format!("{}/{}", expression(&p.addr)?, p.len),
        Expression::Named(NamedExpression::Fib(fib))
            if fib.result == FibResult::Type && fib.flags.iter().eq([&FibFlag::Daddr]) =>
        {
            "fib daddr type".to_owned()
        }
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(p))) => format!("{} {}", p.protocol, p.field),
        Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(p))) if *p == FIRST_CHUNK => {
            format!("@th,{},{}", p.offset, p.len)
        }
        Expression::Named(NamedExpression::CT(ct)) => match ct.dir {
            Some(dir) => format!("ct {} {}", format!("{dir:?}").to_lowercase(), ct.key),
            None => format!("ct {}", ct.key),
        },
        _ => return None,
    })
}
