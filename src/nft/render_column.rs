//! One column of the table: which local pods a class of peers may reach, on which ports. Sets for what is exact, a chain
//! for each list of port ranges in use, so that no packet walks more rules because there are more policies.

use std::net::IpAddr;

use policy_compiler::ports::{PortRange, PortSet, Protocol};

use super::draft::Draft;
use super::expressions::{
    back, concat, connection_protocol, goto, icmp_number, is_in, not_of_connection, of_connection, packet_protocol,
    protocol_number, server_port, server_port_in, subject, verdict_of,
};
use super::names::{ChainName, Column, Extent, SetName, Side};
use super::numbering::RangeChains;
use super::render_words::About;
use super::ruleset::{Element, Elements, Key, Rule};

/// Ranges of at most so many ports become one element for each port; a longer one becomes a comparison in a chain of its
/// own. An element costs 0.05 ms once, the comparison a few nanoseconds for each packet.
const EXPANDED: u16 = 16;

/// What is in a column, by extent.
#[derive(Default)]
pub(super) struct Content {
    any: Vec<IpAddr>,
    ports: Vec<(IpAddr, Protocol, u16)>,
    other: Vec<IpAddr>,
    ranges: Vec<(IpAddr, Vec<(Protocol, PortRange)>)>,
}

impl Content {
    /// Adds a cell: these addresses may be reached on these ports, without those that are admitted anyway.
    pub(super) fn add(&mut self, addresses: &[IpAddr], ports: &PortSet, anyway: Option<&PortSet>) {
        let on_top = match anyway {
            Some(anyway) if *anyway == *ports => return,
            Some(anyway) => ports.minus(anyway),
            None => ports.clone(),
        };
        let (mut single, mut ranges) = (Vec::new(), Vec::new());
        for protocol in Protocol::ALL {
            for range in on_top.ranges(protocol) {
                if range.last - range.first < EXPANDED {
                    single.extend((range.first..=range.last).map(|port| (protocol, port)));
                } else {
                    ranges.push((protocol, *range));
                }
            }
        }
        for address in addresses.iter().copied() {
            if ports.is_all() {
                self.any.push(address);
                continue;
            }
            self.ports
                .extend(single.iter().map(|(protocol, port)| (address, *protocol, *port)));
            if on_top.has_other() {
                self.other.push(address);
            }
            if !ranges.is_empty() {
                self.ranges.push((address, ranges.clone()));
            }
        }
    }

    /// Writes the column's sets and its chain, which ends in `goto <after>`; returns the chain to go to, which is `after`
    /// when the column adds nothing.
    pub(super) fn write(
        self,
        side: Side,
        column: Column,
        after: ChainName,
        about: Option<About>,
        range_chains: &mut RangeChains,
        draft: &mut Draft<'_>,
    ) -> ChainName {
        let set = |extent| SetName::Cell(side, column, extent);
        let local = || subject(side.direction, side.family);
        let addresses = |list: Vec<IpAddr>| -> Elements {
            let keys = list.into_iter().map(Key::Address);
            keys.map(|key| (key, Element::default())).collect()
        };
        let mut rules = Vec::new();
        if !self.any.is_empty() {
            rules.push(Rule::new([is_in(local(), set(Extent::Any)), back()]));
        }
        draft.set_or_none(set(Extent::Any), addresses(self.any));

        if !self.ports.is_empty() {
            // nft reads the port only after one protocol is compared; the last one is for ICMP errors, which belong to
            // a connection of another protocol.
            let packets = Protocol::ALL
                .map(protocol_number)
                .into_iter()
                .chain([icmp_number(side.family)]);
            for number in packets {
                let key = concat([local(), connection_protocol(), server_port()]);
                rules.push(Rule::new([
                    packet_protocol(number),
                    is_in(key, set(Extent::Ports)),
                    back(),
                ]));
            }
        }
        let ports = self
            .ports
            .into_iter()
            .map(|(a, protocol, port)| Key::Port(a, protocol, port));
        draft.set_or_none(set(Extent::Ports), ports.map(|key| (key, Element::default())).collect());

        if !self.other.is_empty() {
            let mut statements: Vec<_> = Protocol::ALL.map(not_of_connection).into();
            statements.extend([is_in(local(), set(Extent::Other)), back()]);
            rules.push(Rule::new(statements));
        }
        draft.set_or_none(set(Extent::Other), addresses(self.other));

        if !self.ranges.is_empty() {
            rules.push(Rule::new([verdict_of(local(), set(Extent::Ranges))]));
        }
        let former = draft.elements(set(Extent::Ranges)).into_iter().flatten();
        let former: Vec<ChainName> = former.filter_map(|(_, element)| element.goto).collect();
        let mut ranges = Elements::new();
        for (address, list) in self.ranges {
            let list = (list, after);
            let rules = range_rules(side, &list.0, after);
            let (chain, new) = range_chains.enter(list);
            if new {
                draft.chain(chain, rules);
            }
            let element = Element {
                goto: Some(chain),
                comment: None,
            };
            ranges.insert(Key::Address(address), element);
        }
        // Afterwards, so that a chain that is still used keeps its number.
        former.into_iter().for_each(|chain| range_chains.leave(chain));
        draft.set_or_none(set(Extent::Ranges), ranges);

        let chain = ChainName::Column(side, column);
        if rules.is_empty() {
            draft.chain(chain, rules);
            return after;
        }
        let mut last = Rule::new([goto(after)]);
        if let Some(about) = about {
            rules[0] = rules[0].clone().commented(&about.peers);
            last = last.commented(&about.policies);
        }
        rules.push(last);
        draft.chain(chain, rules);
        chain
    }
}

fn range_rules(side: Side, ranges: &[(Protocol, PortRange)], after: ChainName) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (protocol, range) in ranges {
        if *range == PortRange::ALL {
            rules.push(Rule::new([of_connection(*protocol), back()]));
            continue;
        }
        let direct = [
            packet_protocol(protocol_number(*protocol)),
            server_port_in(*range),
            back(),
        ];
        rules.push(Rule::new(direct));
        // ICMP errors about such a connection.
        let error = [
            packet_protocol(icmp_number(side.family)),
            of_connection(*protocol),
            server_port_in(*range),
            back(),
        ];
        rules.push(Rule::new(error));
    }
    rules.push(Rule::new([goto(after)]));
    rules
}
