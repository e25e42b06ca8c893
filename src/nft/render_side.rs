//! One direction in one family: the map from peers to their classes, and the columns of the classes, kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy_compiler::cells::AddressRange;
use policy_compiler::changes::HalfChanges;
use policy_compiler::policy::Direction;
use policy_compiler::table::{ClassId, GroupId, Half, Table};

use super::draft::Draft;
use super::expressions::{goto, peer, verdict_of};
use super::names::{ChainName, Column, Family, PeerKind, SetName, Side};
use super::numbering::{Numbers, RangeChains};
use super::render_column::Content;
use super::render_words::About;
use super::ruleset::{Element, Elements, Key, Rule};

/// So many times as many peers are gone through in a row in the time in which some are looked up one by one.
const FEW: usize = 8;

/// The addresses of each group's pods.
pub(super) type Members = BTreeMap<GroupId, Vec<IpAddr>>;

/// What was rendered of a side, as far as it must be known to follow changes.
#[derive(Debug)]
pub(super) struct SideRenderer {
    side: Side,
    /// The addresses of each group's pods, of this family.
    local: Members,
    /// Where peers of a sort go by default.
    defaults: BTreeMap<PeerKind, ChainName>,
    /// The classes of this family.
    classes: BTreeMap<ClassId, PeerKind>,
    /// Of those classes that have more than the default.
    numbers: Numbers,
    /// Where the peers of those go.
    targets: BTreeMap<ClassId, ChainName>,
    /// Where every address goes that is no known pod's; neighbours differ.
    cells: Vec<(AddressRange, ChainName)>,
    ranges: RangeChains,
}

impl SideRenderer {
    pub(super) fn new(side: Side) -> Self {
        SideRenderer {
            side,
            local: Members::new(),
            defaults: BTreeMap::new(),
            classes: BTreeMap::new(),
            numbers: Numbers::default(),
            targets: BTreeMap::new(),
            cells: Vec::new(),
            ranges: RangeChains::new(side),
        }
    }

    pub(super) fn side(&self) -> Side {
        self.side
    }

    /// Follows the table; without changes, everything may have changed.
    pub(super) fn follow(
        &mut self,
        table: &Table,
        members: &Members,
        changes: Option<&HalfChanges>,
        draft: &mut Draft<'_>,
    ) {
        let half = table.half(self.side.direction);
        let groups = self.refresh_local(members, changes);
        let before = self.all_targets();
        let defaults = self.defaults.clone();
        if changes.is_none() || !groups.is_empty() {
            self.write_defaults(table, half, draft);
        }
        let touched = match changes {
            Some(changes) => changes.classes.clone(),
            None => self
                .classes
                .keys()
                .copied()
                .chain(half.classes().map(|(id, _)| id))
                .collect(),
        };
        let freed = self.number(half, &touched, changes, draft);
        self.write_classes(table, half, &touched, &groups, &defaults, draft);
        for number in freed {
            self.write(
                Content::default(),
                Column::Class(number),
                ChainName::SideDenied(self.side),
                None,
                draft,
            );
        }
        for chain in self.ranges.drop_unused() {
            draft.chain(chain, Vec::new());
        }
        // Peers whose class is another one now are named by the changes; those of a class that now goes elsewhere are not.
        let now = self.all_targets();
        let created = |class| changes.is_some_and(|changes| changes.created.contains(class));
        let mut elsewhere = now
            .iter()
            .any(|(class, chain)| !created(class) && before.get(class).is_some_and(|before| before != chain));
        if elsewhere || changes.is_none_or(|changes| changes.cells) {
            elsewhere |= self.write_cells(half, draft);
        }
        match changes {
            Some(changes) if !elsewhere && changes.peers.len() * FEW < half.peer_count() => {
                self.write_some_peers(half, &changes.peers, draft);
            }
            _ => self.write_all_peers(half, draft),
        }
    }

    /// Takes over the addresses of local pods; answers with the groups whose cells are to be written anew.
    fn refresh_local(&mut self, members: &Members, changes: Option<&HalfChanges>) -> BTreeSet<GroupId> {
        let family = self.side.family;
        let ours = |addresses: &Vec<IpAddr>| addresses.iter().copied().filter(|a| Family::of(*a) == family).collect();
        let local: Members = members.iter().map(|(id, addresses)| (*id, ours(addresses))).collect();
        let before = std::mem::replace(&mut self.local, local);
        let all = before.keys().chain(self.local.keys()).copied();
        let mut groups: BTreeSet<GroupId> = all.filter(|id| before.get(id) != self.local.get(id)).collect();
        groups.extend(changes.into_iter().flat_map(|c| &c.groups));
        groups
    }

    fn target(&self, class: ClassId) -> ChainName {
        let by_default = || self.defaults.get(self.classes.get(&class)?);
        let target = self.targets.get(&class).or_else(by_default);
        target.copied().unwrap_or(ChainName::SideDenied(self.side))
    }

    fn all_targets(&self) -> BTreeMap<ClassId, ChainName> {
        self.classes.keys().map(|class| (*class, self.target(*class))).collect()
    }

    fn ours(&self, peers: impl Iterator<Item = (IpAddr, ClassId)>) -> impl Iterator<Item = (IpAddr, ClassId)> {
        let family = self.side.family;
        peers.filter(move |(address, _)| Family::of(*address) == family)
    }

    /// Sees which classes there are and gives numbers to those that need one; answers with the numbers that nobody has any more.
    fn number(
        &mut self,
        half: &Half,
        touched: &BTreeSet<ClassId>,
        changes: Option<&HalfChanges>,
        draft: &Draft<'_>,
    ) -> BTreeSet<u32> {
        let (mut freed, mut new) = (BTreeSet::new(), BTreeSet::new());
        for id in touched {
            let kind = half.find_class(*id).and_then(|class| PeerKind::of(class.kind));
            let kind = kind.filter(|(family, _)| *family == self.side.family);
            let more = kind.is_some() && half.column(*id).next().is_some();
            match kind {
                Some((_, kind)) => self.classes.insert(*id, kind),
                None => self.classes.remove(id),
            };
            // What came is another class, even where the compiler's number for it is one that was in use.
            if !more || changes.is_some_and(|changes| changes.created.contains(id)) {
                freed.extend(self.numbers.free(*id));
                self.targets.remove(id);
            }
            if more && self.numbers.get(*id).is_none() {
                new.insert(*id);
            }
        }
        if new.is_empty() {
            return freed;
        }
        let peers: Vec<(IpAddr, ClassId)> = match changes {
            None => self.ours(half.peers()).collect(),
            Some(changes) => {
                let peers = changes.peers.iter();
                let peers = peers.filter_map(|address| Some((*address, half.class_of_peer(*address)?)));
                self.ours(peers).collect()
            }
        };
        let cells: Vec<(IpAddr, ClassId)> = match changes {
            Some(changes) if !changes.cells => Vec::new(),
            _ => {
                let cells = half.cells();
                self.ours(cells.iter().map(|cell| (cell.range.first, cell.class)))
                    .collect()
            }
        };
        // In the order of their first address, so that the compiler's own numbers do not show.
        let met = peers.iter().chain(&cells).map(|(_, class)| *class);
        let mut rest = new.clone();
        let mut ordered: Vec<ClassId> = met.filter(|class| rest.remove(class)).collect();
        ordered.extend(rest);

        let gotos = draft.elements(SetName::Peers(self.side));
        let of_peers = peers.iter().filter_map(|(address, class)| {
            let element = gotos?.get(&Key::Address(*address))?;
            Some((*class, element.goto?))
        });
        let of_cells = cells
            .iter()
            .filter_map(|(first, class)| Some((*class, self.cell_target(*first)?)));
        let claims: Vec<(ClassId, ChainName)> = of_peers
            .chain(of_cells)
            .filter(|(class, _)| new.contains(class))
            .collect();
        self.numbers.give(&ordered, claims.into_iter(), &mut freed);
        freed
    }

    /// Where an address goes that is no known pod's.
    fn cell_target(&self, address: IpAddr) -> Option<ChainName> {
        let at = self.cells.partition_point(|(range, _)| range.last < address);
        self.cells.get(at).map(|(_, target)| *target)
    }

    /// What every peer of a sort may reach at least.
    fn write_defaults(&mut self, table: &Table, half: &Half, draft: &mut Draft<'_>) {
        for kind in PeerKind::BOTH {
            let mut content = Content::default();
            let of_kind = kind.kind(self.side.family);
            for (id, addresses) in &self.local {
                content.add(addresses, half.default_ports(*id, of_kind), None);
            }
            let peers = match kind {
                PeerKind::Pods => "what every pod may reach",
                PeerKind::Outside => "what every other address may reach",
            };
            let policies = self.local.keys().flat_map(|id| half.default_policies(*id, of_kind));
            let about = About::default(table, peers, policies);
            let chain = self.write(
                content,
                Column::Default(kind),
                ChainName::SideDenied(self.side),
                Some(about),
                draft,
            );
            self.defaults.insert(kind, chain);
        }
    }

    /// What classes may reach on top of that: of those classes for which it may be another now.
    fn write_classes(
        &mut self,
        table: &Table,
        half: &Half,
        touched: &BTreeSet<ClassId>,
        groups: &BTreeSet<GroupId>,
        defaults: &BTreeMap<PeerKind, ChainName>,
        draft: &mut Draft<'_>,
    ) {
        let diverted = PeerKind::BOTH.map(|kind| defaults.get(&kind) != self.defaults.get(&kind));
        let stale = |class: &ClassId| {
            touched.contains(class)
                || self.classes.get(class).is_some_and(|kind| diverted[*kind as usize])
                || !groups.is_empty() && half.column(*class).any(|(group, _)| groups.contains(&group))
        };
        let classes: BTreeSet<ClassId> = self.numbers.classes().filter(stale).collect();
        if classes.is_empty() {
            return;
        }
        let origins = half.origins(&classes);
        for class in classes {
            let (Some(number), Some(kind)) = (self.numbers.get(class), self.classes.get(&class)) else {
                continue;
            };
            let after = self
                .defaults
                .get(kind)
                .copied()
                .unwrap_or(ChainName::SideDenied(self.side));
            let of_kind = kind.kind(self.side.family);
            let mut content = Content::default();
            for (group, ports) in half.column(class) {
                if let Some(addresses) = self.local.get(&group) {
                    content.add(addresses, ports, Some(half.default_ports(group, of_kind)));
                }
            }
            let about = About::class(table, origins.get(&class));
            let chain = self.write(content, Column::Class(number), after, Some(about), draft);
            self.targets.insert(class, chain);
        }
    }

    /// Writes the chain and sets of a column; returns the chain to go to, which is `after` when the column adds nothing.
    fn write(
        &mut self,
        content: Content,
        column: Column,
        after: ChainName,
        about: Option<About>,
        draft: &mut Draft<'_>,
    ) -> ChainName {
        content.write(self.side, column, after, about, &mut self.ranges, draft)
    }

    /// Writes where addresses go that are no known pod's, and the chain that looks peers up; whether that is another now.
    fn write_cells(&mut self, half: &Half, draft: &mut Draft<'_>) -> bool {
        let cells = half.cells().into_iter();
        let mut cells: Vec<_> = cells
            .filter(|cell| Family::of(cell.range.first) == self.side.family)
            .map(|cell| (cell.range, self.target(cell.class)))
            .collect();
        // Neighbours that go to the same chain are one element.
        cells.dedup_by(|next, kept| {
            let same = next.1 == kept.1;
            if same {
                kept.0.last = next.0.last;
            }
            same
        });
        if cells == self.cells {
            return false;
        }
        self.cells = cells;
        let lookup = || peer(self.side.direction, self.side.family);
        let about = match self.side.direction {
            Direction::Ingress => "who opened the connection: first pods, then other addresses",
            Direction::Egress => "who answers the connection: first pods, then other addresses",
        };
        let mut rules = vec![Rule::new([verdict_of(lookup(), SetName::Peers(self.side))]).commented(about)];
        let before = draft.cidrs(self.side);
        let cidrs = |generation| SetName::Cidrs(self.side, generation);
        let (generation, rest) = match self.cells.as_slice() {
            // Every other address fares alike: no map is needed, and an interval map is best avoided.
            [(_, only)] => (None, *only),
            cells => {
                let named = cells
                    .iter()
                    .filter(|(_, target)| *target != ChainName::SideDenied(self.side));
                let elements: Elements = named
                    .map(|(range, target)| (Key::Interval(*range), to(*target)))
                    .collect();
                // The same elements stay where they are; others go into the other one of two maps.
                let generation = match before {
                    Some(generation) if draft.elements(cidrs(generation)) == Some(&elements) => generation,
                    Some(generation) => 1 - generation,
                    None => 0,
                };
                draft.set(cidrs(generation), elements);
                rules.push(Rule::new([verdict_of(lookup(), cidrs(generation))]));
                (Some(generation), ChainName::SideDenied(self.side))
            }
        };
        if let Some(before) = before.filter(|before| Some(*before) != generation) {
            draft.set_or_none(cidrs(before), Elements::new());
        }
        rules.push(Rule::new([goto(rest)]));
        draft.chain(ChainName::Entry(self.side), rules);
        true
    }

    /// Where a known pod's address goes by an element of its own; one that fares as any other address around it needs none.
    fn own_target(&self, class: ClassId, around: Option<ChainName>) -> Option<ChainName> {
        Some(self.target(class)).filter(|target| Some(*target) != around)
    }

    fn write_some_peers(&self, half: &Half, addresses: &BTreeSet<IpAddr>, draft: &mut Draft<'_>) {
        for address in addresses.iter().copied().filter(|a| Family::of(*a) == self.side.family) {
            let class = half.class_of_peer(address);
            let target = class.and_then(|class| self.own_target(class, self.cell_target(address)));
            draft.element(SetName::Peers(self.side), Key::Address(address), target.map(to));
        }
    }

    /// Goes through all peers and all cells and all elements at once; each is sorted by address.
    fn write_all_peers(&self, half: &Half, draft: &mut Draft<'_>) {
        let name = SetName::Peers(self.side);
        let none = Elements::new();
        let before = draft.elements(name);
        let mut elements = before.unwrap_or(&none).iter().peekable();
        let mut cells = self.cells.iter().peekable();
        let mut different: Vec<(Key, Option<Element>)> = Vec::new();
        for (address, class) in self.ours(half.peers()) {
            let key = Key::Address(address);
            while let Some((gone, _)) = elements.next_if(|(k, _)| **k < key) {
                different.push((*gone, None));
            }
            while cells.next_if(|(range, _)| range.last < address).is_some() {}
            let target = self.own_target(class, cells.peek().map(|(_, target)| *target));
            let element = elements.next_if(|(k, _)| **k == key);
            if element.and_then(|(_, element)| element.goto) != target {
                different.push((key, target.map(to)));
            }
        }
        different.extend(elements.map(|(gone, _)| (*gone, None)));
        if before.is_none() {
            let all = different.into_iter().filter_map(|(key, element)| Some((key, element?)));
            draft.set(name, all.collect());
            return;
        }
        for (key, element) in different {
            draft.element(name, key, element);
        }
    }
}

fn to(chain: ChainName) -> Element {
    Element {
        goto: Some(chain),
        comment: None,
    }
}
