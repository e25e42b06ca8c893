//! The part of the table that is always there: the base chain, packets without a connection, and the end of what is denied.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};
use nftables::expr::Expression;
use nftables::stmt::Statement;
use policy_compiler::policy::Direction;
use policy_compiler::ports::Protocol;

use super::expressions::{
    Cast, accept, back, bridged, client, concat, connection_protocol, counter, destination_is, drop, frame_is, goto,
    header, is_family, is_in, is_not_in, is_of, jump, limit, limit_over, listener_discovery, neighbour_discovery,
    not_a_syn, not_an_init, not_of_connection, not_packet_protocol, packet_protocol, prohibited, protocol_number,
    reset, server, server_port, state, subject, update,
};
use super::marks::Marks;
use super::names::{ChainName, Family, SetName, Side};
use super::ruleset::{Rule, Ruleset};
use super::settings::{DenyAction, Mode, Settings};
use super::{RECORDS_PER_SECOND, SHARE_AT_ONCE, SHARE_PER_SECOND, unknown};

/// So many senders of denied packets are answered in a second, of each sort of answer; beyond that they hear nothing.
const ANSWERS_PER_SECOND: u32 = 1000;

/// Writes the base chains, and the sets that they use.
pub(super) fn base(settings: Settings, ruleset: &mut Ruleset) {
    let sides = Side::all().flat_map(|side| [SetName::Isolated(side), SetName::Counters(side), SetName::Audited(side)]);
    let families = Family::BOTH.into_iter().flat_map(|family| {
        [
            SetName::Exempt(family),
            SetName::Sources(family),
            SetName::Talkers(family),
            SetName::Denied(family),
            SetName::DeniedOther(family),
        ]
    });
    for set in sides.chain(families) {
        ruleset.sets.entry(set).or_default();
    }
    ruleset.chains.extend(forward(Marks::None, &BTreeSet::new()));
    ruleset.chains.insert(ChainName::Opening, opening());
    ruleset.chains.insert(ChainName::SharedLink, shared_link(false));
    ruleset.chains.insert(ChainName::Stray, stray());
    ruleset.chains.insert(ChainName::StrayDenied, stray_denied(settings));
    ruleset.chains.insert(ChainName::StrayAudited, stray_audited());
    for side in Side::all() {
        ruleset.chains.insert(ChainName::SideDenied(side), side_denied(side));
    }
    ruleset.chains.insert(ChainName::Denied, denied(settings));
    ruleset.chains.insert(ChainName::Record, record());
}

/// The chains that every packet goes through, with what marks need first and last. Measured: each look-up of a set costs more than
/// all that is compared here, so a packet of a running connection meets one comparison of its state, one of its family, and
/// the look-ups of that family. Where unknown pods of these ranges pass nothing, each end is compared with them first.
pub(super) fn forward(marks: Marks, ranges: &BTreeSet<IpNet>) -> [(ChainName, Vec<Rule>); 2] {
    let mut rules = marks.first(!ranges.is_empty());
    rules.extend(unknown::rules(ranges));
    rules.extend([
        Rule::new([
            state(&["invalid", "new", "related", "untracked"]),
            jump(ChainName::Opening),
        ]),
        Rule::new([is_family(Family::V6), goto(ChainName::Six)]),
    ]);
    rules.extend(isolated(marks, Family::V4));
    let mut six = Vec::from(by_link_local_addresses());
    six.extend(isolated(marks, Family::V6));
    [(ChainName::Forward, rules), (ChainName::Six, six)]
}

/// Both ends of a connection, one after the other.
fn isolated(marks: Marks, family: Family) -> Vec<Rule> {
    let last = marks.last(family);
    // Where nothing comes after, there is nothing to come back to.
    let enter = if last.is_empty() { goto } else { jump };
    let rule = |direction, enter: fn(ChainName) -> Statement<'static>| {
        let side = Side { direction, family };
        let isolated = is_in(subject(direction, family), SetName::Isolated(side));
        Rule::new([isolated, enter(ChainName::Entry(side))])
    };
    let mut rules = vec![rule(Direction::Egress, jump), rule(Direction::Ingress, enter)];
    rules.extend(last);
    rules
}

/// The addresses of any one link (RFC 4291, 2.5.6), which nobody forwards: they are here because a bridge shows what it switches.
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

fn by_link_local_addresses() -> [Rule; 2] {
    let [source, destination] = ["saddr", "daddr"].map(|field| {
        Rule::new([
            is_of(header("ip6", field), LINK_LOCAL.into()),
            jump(ChainName::SharedLink),
        ])
    });
    [
        source.commented("an address of which no policy knows whose it is"),
        destination,
    ]
}

/// What is not of a running connection. What comes to the end is judged like any other packet.
fn opening() -> Vec<Rule> {
    let [from_the_link, neighbour_discovery] = neighbour_discovery();
    let [sctp, not_an_init] = not_an_init();
    let mut rules = vec![
        // Connection tracking calls these untracked, and redirects invalid or related.
        Rule::new([from_the_link, neighbour_discovery, accept()]).commented("neighbour discovery is never dropped"),
    ];
    let to_shared_link = || jump(ChainName::SharedLink);
    // What most packets fail comes first.
    for cast in Cast::BOTH {
        let [from, to] = bridged();
        rules.push(Rule::new([frame_is(cast), from, to, to_shared_link()]));
    }
    for cast in Cast::BOTH {
        let [from, to] = bridged();
        rules.push(Rule::new([from, to, destination_is(cast), to_shared_link()]));
    }
    // Again, because not all of what follows comes back to the base chain.
    rules.extend(by_link_local_addresses());
    rules.extend([
        Rule::new([state(&["invalid", "untracked"]), goto(ChainName::Stray)])
            .commented("no connection, so no rule after this one would match"),
        Rule::new([state(&["new"]), not_a_syn(), goto(ChainName::Stray)])
            .commented("a lost connection must be opened anew, not picked up in reverse"),
        Rule::new([state(&["new"]), sctp, not_an_init, goto(ChainName::Stray)]).commented("the same for SCTP"),
    ]);
    rules
}

/// What pods of one bridge send each other by link-local addresses, broadcast and multicast. No policy knows who is reached by
/// these, and an isolated pod may be: as soon as there is one on the node, only discovery passes. Answers to a broadcast come
/// from a pod's own address, and are a connection of their own.
pub(super) fn shared_link(isolated: bool) -> Vec<Rule> {
    if !isolated {
        return vec![Rule::new([back()]).commented("no pod of this node is isolated")];
    }
    let mut rules: Vec<Rule> = listener_discovery().map(|is| Rule::new([is, back()])).into();
    let [from_the_link, neighbour_discovery] = neighbour_discovery();
    rules.push(Rule::new([from_the_link, neighbour_discovery, back()]));
    rules.push(
        Rule::new([goto(ChainName::StrayDenied)]).commented("a pod of this node is isolated, and may be reached"),
    );
    rules
}

/// Packets without a connection, judged by their headers: denied when either end is a pod that any policy judges. What
/// passes here is accepted, so that it is neither judged nor counted a second time in the rest of the base chain; both ends
/// have been looked at.
///
/// A look-up among the counters counts the packet for that pod, so it is the last condition of its rule.
fn stray() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::BOTH.map(|family| exempt(family, accept())).into();
    let ends = || ENDS.into_iter().flat_map(end);
    let mut enforced: Vec<Rule> = ends()
        .map(|(side, end)| {
            Rule::new([
                is_not_in(end.clone(), SetName::Audited(side)),
                is_in(end, SetName::Counters(side)),
                goto(ChainName::StrayDenied),
            ])
        })
        .collect();
    enforced[0] = enforced[0].clone().commented("a pod that enforced policies judge");
    let mut audited: Vec<Rule> = ends()
        .map(|(side, end)| Rule::new([is_in(end, SetName::Counters(side)), goto(ChainName::StrayAudited)]))
        .collect();
    audited[0] = audited[0].clone().commented("a pod that only audited policies judge");
    rules.extend(enforced);
    rules.extend(audited);
    rules.push(Rule::new([accept()]).commented("no policy judges either end"));
    rules
}

/// Which policies judge which end of a packet by its header: first as if it came from the client, then as if from the server.
const ENDS: [(Direction, &str); 4] = [
    (Direction::Egress, "saddr"),
    (Direction::Ingress, "daddr"),
    (Direction::Egress, "daddr"),
    (Direction::Ingress, "saddr"),
];

fn end((direction, field): (Direction, &'static str)) -> [(Side, Expression<'static>); 2] {
    Family::BOTH.map(|family| {
        let protocol = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        (Side { direction, family }, header(protocol, field))
    })
}

/// The end of packets without a connection. Of these only the ones that would open a connection are answered: a reset
/// for a packet that tracking merely failed to understand would end a healthy connection.
fn stray_denied(settings: Settings) -> Vec<Rule> {
    let mut rules = vec![Rule::new([jump(ChainName::Record)])];
    match (settings.mode, settings.deny_action) {
        (Mode::Enforce, DenyAction::Reject) => {
            rules.push(Rule::new([state(&["new"]), goto(ChainName::Denied)]));
            rules.push(Rule::new([counter(), drop()]).commented("an answer could end a healthy connection"));
        }
        (Mode::Audit, _) => {
            rules.push(Rule::new([jump(ChainName::Denied)]));
            rules.push(Rule::new([accept()]).commented("counted once"));
        }
        _ => rules.push(Rule::new([goto(ChainName::Denied)])),
    }
    rules
}

fn stray_audited() -> Vec<Rule> {
    vec![Rule::new([jump(ChainName::Record)]), Rule::new([accept()])]
}

/// The end of what no policy of one side admits. It is reached by `goto`, so `return` leads back to the base chain: there
/// the other end of the connection is judged next, or the packet passes.
fn side_denied(side: Side) -> Vec<Rule> {
    let Side { direction, family } = side;
    vec![
        exempt(family, back()),
        Rule::new([jump(ChainName::Record)]),
        Rule::new([is_in(subject(direction, family), SetName::Counters(side))]).commented("counts for that pod"),
        Rule::new([is_in(subject(direction, family), SetName::Audited(side)), back()])
            .commented("only audited policies judge it"),
        Rule::new([goto(ChainName::Denied)]),
    ]
}

fn exempt(family: Family, passes: Statement<'static>) -> Rule {
    let pair = concat([client(family), server(family)]);
    Rule::new([is_in(pair, SetName::Exempt(family)), passes]).commented("a pod and itself, a pod and its own node")
}

/// What the rule of `--mode audit` in the chain `denied` says: by it a table is told from one that drops.
pub(super) const AUDIT: &str = "audit mode: counted, not dropped";

/// The one place that decides what becomes of denied packets.
fn denied(settings: Settings) -> Vec<Rule> {
    if settings.mode == Mode::Audit {
        return vec![Rule::new([counter(), back()]).commented(AUDIT)];
    }
    let mut rules = Vec::new();
    if settings.deny_action == DenyAction::Reject {
        let tcp = protocol_number(Protocol::Tcp);
        let answered = || limit(ANSWERS_PER_SECOND);
        // A reset is never answered with a reset, nor an ICMP error with an error: the kernel sees to it.
        rules.push(Rule::new([packet_protocol(tcp), answered(), counter(), reset()]));
        rules.push(Rule::new([
            not_packet_protocol(tcp),
            answered(),
            counter(),
            prohibited(),
        ]));
    }
    rules.push(Rule::new([counter(), drop()]));
    rules
}

/// What is beyond one source's share of the record.
pub(super) fn beyond_share() -> Statement<'static> {
    limit_over(SHARE_PER_SECOND, SHARE_AT_ONCE)
}

/// Remembers who tried to reach whom, by the connection; a packet without one is only counted.
fn record() -> Vec<Rule> {
    let mut rules = Vec::new();
    // Apart, because in audit mode a busy connection would leave nothing to those that begin.
    type Share = fn(Family) -> SetName;
    let shares: [(&[&'static str], Share, _, _); 2] = [
        (
            &["new"],
            SetName::Sources,
            "what is beyond its share: a scan must not hide the others",
            "nor must many cost much",
        ),
        (
            &["established", "related"],
            SetName::Talkers,
            "the same of running connections: in audit mode a scan is answered",
            "nor busy connections",
        ),
    ];
    for (states, share, of_one, of_all) in shares {
        let [four, six] =
            Family::BOTH.map(|family| Rule::new([state(states), update(share(family), client(family)), back()]));
        let limited = limit_over(RECORDS_PER_SECOND, RECORDS_PER_SECOND);
        let all = Rule::new([state(states), limited, back()]);
        rules.extend([four.commented(of_one), six, all.commented(of_all)]);
    }
    for family in Family::BOTH {
        for protocol in Protocol::ALL {
            let key = concat([client(family), server(family), connection_protocol(), server_port()]);
            let record = update(SetName::Denied(family), key);
            rules.push(Rule::new([packet_protocol(protocol_number(protocol)), record]));
        }
        let mut statements: Vec<_> = Protocol::ALL.map(not_of_connection).into();
        let key = concat([client(family), server(family), connection_protocol()]);
        statements.push(update(SetName::DeniedOther(family), key));
        rules.push(Rule::new(statements));
    }
    rules
}
