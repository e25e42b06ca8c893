//! The part of the table that is always there: the base chain, packets without a connection, and the end of what is denied.

use policy_compiler::policy::Direction;
use policy_compiler::ports::Protocol;

use super::expressions::{
    accept, back, client, concat, connection_protocol, counter, drop, goto, header, is_in, jump, limit,
    neighbour_discovery, not_a_syn, not_of_connection, packet_protocol, protocol_number, server, server_port, state,
    subject, update,
};
use super::marks::Marks;
use super::names::{ChainName, Family, SetName, Side};
use super::ruleset::{Rule, Ruleset};
use super::settings::{Mode, Settings};

/// So many denied connections are looked at in a second; a scan must not cost more than it is worth.
const RECORDS_PER_SECOND: u32 = 100;

/// Writes the base chains, and the sets that they use.
pub(super) fn base(settings: Settings, ruleset: &mut Ruleset) {
    let sides = Side::all().map(SetName::Isolated);
    let families = Family::BOTH.into_iter().flat_map(|family| {
        [
            SetName::Exempt(family),
            SetName::Denied(family),
            SetName::DeniedOther(family),
        ]
    });
    for set in sides.chain(families) {
        ruleset.sets.entry(set).or_default();
    }
    ruleset.chains.insert(ChainName::Forward, forward(Marks::None));
    ruleset.chains.insert(ChainName::Stray, stray());
    ruleset.chains.insert(ChainName::Denied, denied(settings));
    ruleset.chains.insert(ChainName::Record, record());
}

/// The base chain, with what marks need first and last.
pub(super) fn forward(marks: Marks) -> Vec<Rule> {
    let [from_the_link, neighbour_discovery] = neighbour_discovery();
    let mut rules = marks.first();
    rules.extend([
        Rule::new([from_the_link, neighbour_discovery, accept()]).commented("neighbour discovery is never dropped"),
        Rule::new([state(&["invalid", "untracked"]), jump(ChainName::Stray)])
            .commented("no connection, so no rule below would match"),
        Rule::new([state(&["new"]), not_a_syn(), jump(ChainName::Stray)])
            .commented("a lost connection must be opened anew, not picked up in reverse"),
    ]);
    for direction in [Direction::Egress, Direction::Ingress] {
        for family in Family::BOTH {
            let side = Side { direction, family };
            let isolated = is_in(subject(direction, family), SetName::Isolated(side));
            rules.push(Rule::new([isolated, jump(ChainName::Entry(side))]));
        }
    }
    rules.extend(marks.last());
    rules
}

/// Judged by its headers: denied when either end is a pod that any policy judges.
fn stray() -> Vec<Rule> {
    let mut rules = Vec::new();
    for side in Side::all() {
        let protocol = match side.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        for field in ["saddr", "daddr"] {
            let isolated = is_in(header(protocol, field), SetName::Isolated(side));
            rules.push(Rule::new([isolated, goto(ChainName::Denied)]));
        }
    }
    rules
}

/// The one place that decides what becomes of denied packets. It is reached by `goto`, so `return` leads back to the base
/// chain: there the other end of the connection is judged next, or the packet passes.
fn denied(settings: Settings) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::BOTH
        .into_iter()
        .map(|family| {
            let pair = concat([client(family), server(family)]);
            Rule::new([is_in(pair, SetName::Exempt(family)), back()])
        })
        .collect();
    rules[0] = rules[0].clone().commented("a pod and itself, a pod and its own node");
    rules.push(Rule::new([limit(RECORDS_PER_SECOND), jump(ChainName::Record)]));
    rules.push(match settings.mode {
        Mode::Enforce => Rule::new([counter(), drop()]),
        Mode::Audit => Rule::new([counter(), back()]).commented("audit mode: counted, not dropped"),
    });
    rules
}

fn record() -> Vec<Rule> {
    let mut rules = Vec::new();
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
