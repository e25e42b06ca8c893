//! From the compiled table to the content of the kernel's, and from changes of the one to a transaction that follows them. One
//! chain finds the class of the peer with one look-up, one chain for each class looks the local pod up among those that the
//! class may reach.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_compiler::changes::Changes;
use policy_compiler::policy::Direction;
use policy_compiler::table::{Half, PodIndex, Table};

use super::draft::Draft;
use super::marks::Marks;
use super::names::{ChainName, Family, SetName, Side};
use super::render_base;
use super::render_side::{Members, SideRenderer};
use super::ruleset::{Element, Elements, Key, Ruleset, comment};
use super::settings::Settings;
use super::transaction::{OperationError, Transaction};
use super::unknown;

/// The ruleset of a compiled table.
pub fn render(table: &Table, settings: Settings) -> Ruleset {
    Renderer::new(table, settings).ruleset
}

/// A ruleset that follows its table. Equal to one that is rendered from scratch at every moment, but for the numbers of classes, chains of
/// port ranges and generations of CIDR maps.
#[derive(Debug)]
pub struct Renderer {
    ruleset: Ruleset,
    sides: Vec<SideRenderer>,
    settings: Settings,
    marks: Marks,
    /// Where unknown pods pass nothing.
    ranges: BTreeSet<IpNet>,
}

impl Renderer {
    /// Renders a table from scratch.
    pub fn new(table: &Table, settings: Settings) -> Self {
        let mut ruleset = Ruleset::default();
        render_base::base(settings, &mut ruleset);
        let mut renderer = Renderer {
            ruleset,
            sides: Side::all().map(SideRenderer::new).collect(),
            settings,
            marks: Marks::None,
            ranges: BTreeSet::new(),
        };
        // Nobody has what was there before: the kernel gets the ruleset whole.
        drop(renderer.update(table, None));
        renderer
    }

    /// What the kernel should hold.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// Makes the base chain do this about marks. Whoever says so sees to the kernel ([`Marks::operations`]).
    pub fn mark(&mut self, marks: Marks) {
        self.marks = marks;
        self.ruleset.chains.extend(render_base::forward(marks, &self.ranges));
    }

    /// The ranges whose unknown addresses pass nothing, sorted.
    pub fn ranges(&self) -> &BTreeSet<IpNet> {
        &self.ranges
    }

    /// Follows the table: what it is now, and what has changed in it since the last call. Answers with the transaction that does the
    /// same to a kernel that holds the ruleset; empty when nothing is different there. The work follows the changes and the
    /// pods of this node; only when ranges of addresses or what a whole class may do changed are all peers looked at.
    ///
    /// After an error the ruleset is right, and [`super::replace`] is the way to it.
    pub fn follow(&mut self, table: &Table, changes: &Changes) -> Result<Transaction, OperationError> {
        self.update(table, Some(changes)).transaction()
    }

    /// Brings everything up to date that the changes may touch; without any, everything.
    fn update(&mut self, table: &Table, changes: Option<&Changes>) -> Draft<'_> {
        let mut draft = Draft::new(&mut self.ruleset);
        // An address may change hands, or a node get another one, and the changes of the table do not tell: whatever is about the
        // few pods of this node is worked out anew each time, and compared.
        let members = Direction::BOTH.map(|direction| local_addresses(table, table.half(direction), &mut draft));
        for side in &mut self.sides {
            let direction = side.side().direction;
            let members = &members[direction as usize];
            let changes = changes.map(|changes| changes.half(direction));
            side.follow(table, members, changes, &mut draft);
        }
        exemptions(table, &mut draft);
        draft.chain(ChainName::SharedLink, render_base::shared_link(is_any_isolated(table)));
        let ranges = unknown::ranges(table, self.settings);
        if ranges != self.ranges {
            // As with every other change, no verdict is kept.
            self.marks = self.marks.judging();
            self.ranges = ranges;
        }
        unknown::write(&self.ranges, table, self.settings, &mut draft);
        for (chain, rules) in render_base::forward(self.marks, &self.ranges) {
            draft.chain(chain, rules);
        }
        draft
    }
}

/// The addresses of each group's pods; they also become the sets of isolated pods.
fn local_addresses(table: &Table, half: &Half, draft: &mut Draft<'_>) -> Members {
    let mut all = Members::new();
    let [mut isolated, mut audited] = [(); 2].map(|()| Family::BOTH.map(|_| Elements::new()));
    for (id, group) in half.groups() {
        let mut addresses = Vec::new();
        for pod in &group.members {
            let pod = table.pod(*pod);
            // The name and nothing that changes oftener: an element with another comment is taken out and put in again.
            let about = comment(&pod.name.to_string());
            for address in table.addresses().owned(pod) {
                let element = Element {
                    goto: None,
                    comment: Some(about.as_str().into()),
                };
                let family = Family::of(address);
                isolated[family as usize].insert(Key::Address(address), element);
                if group.audited {
                    audited[family as usize].insert(Key::Address(address), Element::default());
                }
                addresses.push(address);
            }
        }
        all.insert(id, addresses);
    }
    let direction = half.direction();
    for (family, (isolated, audited)) in Family::BOTH.into_iter().zip(isolated.into_iter().zip(audited)) {
        let side = Side { direction, family };
        // The same pods: packets without a connection are judged by the counters alone.
        draft.set(SetName::Counters(side), isolated.clone());
        draft.set(SetName::Isolated(side), isolated);
        draft.set(SetName::Audited(side), audited);
    }
    all
}

/// Whether enforced policies isolate a pod. By name and not by address: one without IPv6 still has a link-local address.
fn is_any_isolated(table: &Table) -> bool {
    let groups = |direction| table.half(direction).groups();
    let mut groups = Direction::BOTH.into_iter().flat_map(groups);
    groups.any(|(_, group)| !group.audited && !group.members.is_empty())
}

/// Pairs of addresses that policy never touches, for every pod that is judged. What passes between a pod and an address
/// that its node itself holds never meets the forward hook; these pairs are for the rest: a pod that reaches itself through
/// a Service, and addresses of the node that are translated outside it.
fn exemptions(table: &Table, draft: &mut Draft<'_>) {
    let judged: BTreeSet<PodIndex> = Direction::BOTH
        .into_iter()
        .flat_map(|direction| table.half(direction).groups())
        .flat_map(|(_, group)| group.members.iter().copied())
        .collect();
    let book = table.addresses();
    let mut of_node: BTreeMap<&str, Vec<IpAddr>> = judged
        .iter()
        .filter_map(|pod| Some((table.pod(*pod).node.as_deref()?, Vec::new())))
        .collect();
    for (address, node) in book.node_addresses() {
        if let Some(addresses) = of_node.get_mut(&**node)
            && book.pod(address).is_none()
        {
            addresses.push(address);
        }
    }
    let mut pairs = Family::BOTH.map(|_| Elements::new());
    for pod in judged {
        let pod = table.pod(pod);
        let own = book.owned(pod);
        let node = pod.node.as_deref().and_then(|node| of_node.get(node));
        for address in &own {
            let mut exempt = |a: IpAddr, b: IpAddr| {
                if Family::of(a) == Family::of(b) {
                    pairs[Family::of(a) as usize].insert(Key::Pair(a, b), Element::default());
                }
            };
            own.iter().for_each(|other| exempt(*address, *other));
            for other in node.into_iter().flatten() {
                exempt(*address, *other);
                exempt(*other, *address);
            }
        }
    }
    for (family, pairs) in Family::BOTH.into_iter().zip(pairs) {
        draft.set(SetName::Exempt(family), pairs);
    }
}
