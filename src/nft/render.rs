//! From the compiled table to the content of the kernel's: a pure function. One chain finds the class of the peer with one
//! look-up, one chain for each class looks the local pod up among those that the class may reach.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy_compiler::policy::Direction;
use policy_compiler::table::{ClassId, Group, GroupId, Half, PodIndex, Table};

use super::expressions::{goto, peer, verdict_of};
use super::names::{ChainName, Column, Family, PeerKind, SetName, Side};
use super::numbering::{RangeChains, generation, number_classes};
use super::render_base;
use super::render_column::Content;
use super::ruleset::{Element, Elements, Key, Rule, Ruleset, comment};
use super::settings::Settings;

/// The ruleset of a compiled table. Give the previous one, so that what stays the same keeps its name.
pub fn render(table: &Table, settings: Settings, previous: Option<&Ruleset>) -> Ruleset {
    let mut ruleset = Ruleset::default();
    render_base::base(settings, &mut ruleset);
    for direction in Direction::BOTH {
        let members = local_addresses(table, table.half(direction), &mut ruleset);
        for family in Family::BOTH {
            let side = Side { direction, family };
            SideRenderer {
                table,
                half: table.half(direction),
                side,
                members: &members,
                ranges: RangeChains::new(side, previous),
                ruleset: &mut ruleset,
            }
            .render(previous);
        }
    }
    exemptions(table, &mut ruleset);
    ruleset
}

/// The addresses of each group's pods.
type Members = BTreeMap<GroupId, Vec<IpAddr>>;

/// The addresses of each group's pods; they also become the sets of isolated pods.
fn local_addresses(table: &Table, half: &Half, ruleset: &mut Ruleset) -> Members {
    let mut all = Members::new();
    for (id, group) in half.groups() {
        let mut addresses = Vec::new();
        for pod in &group.members {
            let pod = table.pod(*pod);
            // The name and nothing that changes oftener: an element with another comment is taken out and put in again.
            let about = comment(&pod.name.to_string());
            for address in table.addresses().owned(pod) {
                let side = Side {
                    direction: half.direction(),
                    family: Family::of(address),
                };
                let element = Element {
                    goto: None,
                    comment: Some(about.as_str().into()),
                };
                ruleset.add_element(SetName::Isolated(side), Key::Address(address), element.clone());
                // The same pods: packets without a connection are judged by the counters alone.
                ruleset.add_element(SetName::Counters(side), Key::Address(address), element);
                if audited(group) {
                    ruleset.add_element(SetName::Audited(side), Key::Address(address), Element::default());
                }
                addresses.push(address);
            }
        }
        all.insert(id, addresses);
    }
    all
}

/// Whether only audited policies judge a group's pods. None are audited one by one yet.
fn audited(_group: &Group) -> bool {
    false
}

/// Pairs of addresses that policy never touches, for every pod that is judged. What passes between a pod and an address
/// that its node itself holds never meets the forward hook; these pairs are for the rest: a pod that reaches itself through
/// a Service, and addresses of the node that are translated outside it.
fn exemptions(table: &Table, ruleset: &mut Ruleset) {
    let judged: BTreeSet<PodIndex> = Direction::BOTH
        .into_iter()
        .flat_map(|direction| table.half(direction).groups())
        .flat_map(|(_, group)| group.members.iter().copied())
        .collect();
    let book = table.addresses();
    let mut of_node: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for (address, node) in book.node_addresses().filter(|(a, _)| book.pod(*a).is_none()) {
        of_node.entry(node).or_default().push(address);
    }
    for pod in judged {
        let pod = table.pod(pod);
        let own = book.owned(pod);
        let node = pod.node.as_deref().and_then(|node| of_node.get(node));
        for address in &own {
            let mut exempt = |a: IpAddr, b: IpAddr| {
                if Family::of(a) == Family::of(b) {
                    ruleset.add_element(SetName::Exempt(Family::of(a)), Key::Pair(a, b), Element::default());
                }
            };
            own.iter().for_each(|other| exempt(*address, *other));
            for other in node.into_iter().flatten() {
                exempt(*address, *other);
                exempt(*other, *address);
            }
        }
    }
}

struct SideRenderer<'a> {
    table: &'a Table,
    half: &'a Half,
    side: Side,
    /// The addresses of each group's pods.
    members: &'a Members,
    ranges: RangeChains,
    ruleset: &'a mut Ruleset,
}

impl SideRenderer<'_> {
    fn render(mut self, previous: Option<&Ruleset>) {
        let half = self.half;
        let (defaults, targets) = self.columns(previous);
        let by_default = |class| PeerKind::of(half.class(class).kind).and_then(|(_, kind)| defaults.get(&kind));
        let target = |class: ClassId| {
            let chain = targets.get(&class).or_else(|| by_default(class));
            chain.copied().unwrap_or(ChainName::SideDenied(self.side))
        };
        let cells = self.half.cells().into_iter();
        let mut cells: Vec<_> = cells
            .filter(|cell| Family::of(cell.range.first) == self.side.family)
            .map(|cell| (cell.range, target(cell.class)))
            .collect();
        // Neighbours that go to the same chain are one element.
        cells.dedup_by(|next, kept| {
            let same = next.1 == kept.1;
            if same {
                kept.0.last = next.0.last;
            }
            same
        });

        let peers = SetName::Peers(self.side);
        let mut elements = Elements::new();
        for (address, class) in self.half.peers() {
            if Family::of(address) != self.side.family {
                continue;
            }
            let at = cells.partition_point(|(range, _)| range.last < address);
            let otherwise = cells.get(at).map(|(_, target)| *target);
            // An address that fares as any other around it needs no element of its own.
            if otherwise != Some(target(class)) {
                elements.insert(Key::Address(address), to(target(class)));
            }
        }
        self.ruleset.sets.insert(peers, elements);

        let subject_peer = || peer(self.side.direction, self.side.family);
        let about = match self.side.direction {
            Direction::Ingress => "who opened the connection: first pods, then other addresses",
            Direction::Egress => "who answers the connection: first pods, then other addresses",
        };
        let mut rules = vec![Rule::new([verdict_of(subject_peer(), peers)]).commented(about)];
        let rest = match cells.as_slice() {
            // Every other address fares alike: no map is needed, and an interval map is best avoided.
            [(_, only)] => *only,
            _ => {
                let named = cells
                    .iter()
                    .filter(|(_, target)| *target != ChainName::SideDenied(self.side));
                let elements: Elements = named
                    .map(|(range, target)| (Key::Interval(*range), to(*target)))
                    .collect();
                let cidrs = SetName::Cidrs(self.side, generation(self.side, &elements, previous));
                self.ruleset.sets.insert(cidrs, elements);
                rules.push(Rule::new([verdict_of(subject_peer(), cidrs)]));
                ChainName::SideDenied(self.side)
            }
        };
        rules.push(Rule::new([goto(rest)]));
        self.ruleset.chains.insert(ChainName::Entry(self.side), rules);
    }

    /// Writes the chains and sets of all columns, and says where peers go: by default, and of the classes that have more.
    fn columns(&mut self, previous: Option<&Ruleset>) -> (BTreeMap<PeerKind, ChainName>, BTreeMap<ClassId, ChainName>) {
        let mut defaults = BTreeMap::new();
        for kind in PeerKind::BOTH {
            let mut content = Content::default();
            for (id, addresses) in self.members {
                let ports = self.half.default_ports(*id, kind.kind(self.side.family));
                content.add(self.of_family(addresses), ports, None);
            }
            let about = match kind {
                PeerKind::Pods => "what every pod may reach",
                PeerKind::Outside => "what every other address may reach",
            };
            let column = Column::Default(kind);
            let chain = content.write(
                self.side,
                column,
                ChainName::SideDenied(self.side),
                about,
                &mut self.ranges,
                self.ruleset,
            );
            defaults.insert(kind, chain);
        }
        let numbers = number_classes(self.half, self.side, previous);
        let mut words = self.words();
        let mut targets = BTreeMap::new();
        for (class, number) in numbers {
            let Some((family, kind)) = PeerKind::of(self.half.class(class).kind) else {
                continue;
            };
            let after = defaults.get(&kind).copied().unwrap_or(ChainName::SideDenied(self.side));
            let mut content = Content::default();
            for (group, ports) in self.half.column(class) {
                let addresses = self.of_family(&self.members[&group]);
                let default = self.half.default_ports(group, kind.kind(family));
                content.add(addresses, ports, Some(default));
            }
            let about = format!("peers: {}", words.remove(&class).unwrap_or_default());
            let column = Column::Class(number);
            let chain = content.write(self.side, column, after, &about, &mut self.ranges, self.ruleset);
            targets.insert(class, chain);
        }
        (defaults, targets)
    }

    fn of_family<'m>(&self, addresses: &'m [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'m> {
        let family = self.side.family;
        addresses.iter().copied().filter(move |a| Family::of(*a) == family)
    }

    /// A few of the peers of each class, for people: workloads, pods that have none, and address ranges.
    fn words(&self) -> BTreeMap<ClassId, String> {
        const SHOWN: usize = 3;
        let mut found: BTreeMap<ClassId, BTreeSet<String>> = BTreeMap::new();
        let mut note = |class: ClassId, word: &dyn Fn() -> String| {
            if self.half.column(class).next().is_none() {
                return;
            }
            let words = found.entry(class).or_default();
            words.insert(word());
            // One more than is shown says that there are more.
            if words.len() > SHOWN + 1 {
                words.pop_last();
            }
        };
        for (address, class) in self.half.peers() {
            if let Some(pod) = self.table.addresses().pod(address) {
                note(class, &|| match &pod.workload {
                    Some(workload) => format!("{}/{}/{}", pod.name.namespace, workload.kind, workload.name),
                    None => pod.name.to_string(),
                });
            }
        }
        for cell in self.half.cells() {
            note(cell.class, &|| Key::Interval(cell.range).to_string());
        }
        let line = |words: BTreeSet<String>| {
            let more = if words.len() > SHOWN { ", ..." } else { "" };
            let shown: Vec<String> = words.into_iter().take(SHOWN).collect();
            format!("{}{more}", shown.join(", "))
        };
        found.into_iter().map(|(class, words)| (class, line(words))).collect()
    }
}

fn to(chain: ChainName) -> Element {
    Element {
        goto: Some(chain),
        comment: None,
    }
}
