//! The columns of the table: the cells of a signature, and the classes of signatures with equal columns.

use std::collections::BTreeMap;

use super::{Contribution, Half, Signature, SignatureId, SignatureKey};
use crate::policy::{Action, Direction};
use crate::ports::PortSet;
use crate::rules::{PortName, Prepared, Sets, resolve};
use crate::table::{Class, ClassId, GroupId, Kind};

impl Contribution {
    /// Adds to a list of sets what this adds to a cell.
    fn add_to(&self, cell: &mut Vec<u32>, key: &SignatureKey, sets: &mut Sets) {
        cell.push(self.fixed);
        if !self.names.is_empty() {
            let named = resolve(&key.names, |name: &PortName| self.names.contains(name), sets);
            cell.extend(named.iter().map(|(_, ports)| *ports));
        }
    }
}

impl Half {
    /// The ports of a group and a signature; none when that is the group's default.
    pub(super) fn cell(&mut self, group: GroupId, key: &SignatureKey) -> Option<u32> {
        let default = self.groups.get(group.0 as usize)?.defaults[key.kind as usize];
        let cell = if self.tiered.contains(&group) {
            let cell = self.tiered_cell(group, key);
            self.sets.id(cell)
        } else {
            let by_term = key
                .pods
                .iter()
                .chain(key.blocks.iter())
                .map(|t| &self.terms[*t as usize].contributions);
            let by_kind = (!key.names.is_empty()).then_some(&self.by_kind[key.kind as usize]);
            let contributions = by_term.chain(by_kind).filter_map(|c| c.get(&group)).flatten();
            let mut cell = vec![default];
            for contribution in contributions {
                contribution.add_to(&mut cell, key, &mut self.sets);
            }
            self.sets.union_of(&cell)
        };
        (cell != default).then_some(cell)
    }

    /// The cells of a signature that are not their group's default, sorted by group. It walks what the terms contribute, once:
    /// asking each term about each group costs a large cluster's compile a fifth more.
    pub(super) fn column_of(&mut self, key: &SignatureKey) -> Vec<(GroupId, u32)> {
        let (groups, sets) = (&self.groups, &mut self.sets);
        let default = |group: GroupId| groups[group.0 as usize].defaults[key.kind as usize];
        let terms = key.pods.iter().chain(key.blocks.iter());
        let by_term = terms.map(|t| &self.terms[*t as usize].contributions);
        let by_kind = (!key.names.is_empty()).then_some(&self.by_kind[key.kind as usize]);
        let (mut cells, mut sum): (Vec<(GroupId, u32)>, Vec<u32>) = Default::default();
        for (group, contributions) in by_term.chain(by_kind).flatten() {
            sum.clear();
            sum.push(default(*group));
            for contribution in contributions {
                contribution.add_to(&mut sum, key, sets);
            }
            cells.push((*group, sets.union_of(&sum)));
        }
        cells.sort_unstable();
        let by_group = cells.chunk_by(|a, b| a.0 == b.0).map(|same| {
            sum.clear();
            sum.extend(same.iter().map(|(_, cell)| *cell));
            (same[0].0, sets.union_of(&sum))
        });
        let mut cells: Vec<(GroupId, u32)> = by_group.filter(|(group, cell)| *cell != default(*group)).collect();
        if !self.tiered.is_empty() {
            let tiered: Vec<GroupId> = self.tiered.iter().copied().collect();
            cells.extend(
                tiered
                    .into_iter()
                    .filter_map(|group| Some((group, self.cell(group, key)?))),
            );
            cells.sort_unstable();
        }
        cells
    }

    /// The cell of a group with policies of several tiers, by set algebra: what is still open goes from tier to tier.
    pub(super) fn tiered_cell(&mut self, id: GroupId, key: &SignatureKey) -> PortSet {
        let group = self.group(id);
        let names = match self.direction {
            Direction::Ingress => group.names.clone(),
            Direction::Egress => resolve(&key.names, |_| true, &mut self.sets),
        };
        let group = self.group(id);
        let matching = |rule: &&Prepared| {
            let has = |term: &u32| key.pods.binary_search(term).is_ok() || key.blocks.binary_search(term).is_ok();
            rule.kinds[key.kind as usize] || rule.terms.iter().any(has)
        };
        let ports = |rule: &Prepared| {
            let named = names.iter().filter(|(name, _)| rule.names.contains(name));
            named.fold(self.sets.get(rule.fixed).clone(), |set, (_, id)| {
                set.union(self.sets.get(*id))
            })
        };
        let (mut open, mut allowed) = (PortSet::all(), PortSet::none());
        let tier_of = |p: &u32| self.usages[p].tiered.map(|tier| std::mem::discriminant(&tier));
        for tier in group.policies.chunk_by(|a, b| tier_of(a) == tier_of(b)) {
            let rules = tier.iter().flat_map(|p| self.usages[p].rules.iter()).filter(matching);
            if tier_of(&tier[0]).is_none() {
                let union = rules.fold(PortSet::none(), |set, rule| set.union(&ports(rule)));
                allowed = allowed.union(&union.intersection(&open));
                open = PortSet::none();
                continue;
            }
            let mut passed = PortSet::none();
            for rule in rules {
                let hit = ports(rule).intersection(&open).minus(&passed);
                match rule.action {
                    Action::Accept => {
                        allowed = allowed.union(&hit);
                        open = open.minus(&hit);
                    }
                    Action::Deny => open = open.minus(&hit),
                    Action::Pass => passed = passed.union(&hit),
                }
            }
        }
        allowed.union(&open)
    }

    /// Sets the cells of one group anew in the columns of these signatures.
    pub(super) fn recolour(&mut self, group: GroupId, affected: Vec<SignatureId>) {
        let mut by_class: BTreeMap<ClassId, Vec<(SignatureId, Option<u32>)>> = BTreeMap::new();
        for id in affected {
            let Signature { key, class, .. } = &self.signatures[id as usize];
            let (key, class) = (key.clone(), *class);
            let cell = self.cell(group, &key);
            by_class.entry(class).or_default().push((id, cell));
        }
        for (class_id, cells) in by_class {
            let class = &self.classes[class_id.0 as usize];
            let with = |cell: Option<u32>| {
                let mut column = class.column.clone();
                let at = column.binary_search_by_key(&group, |(g, _)| *g);
                match (at, cell) {
                    (Ok(at), Some(cell)) => column[at].1 = cell,
                    (Ok(at), None) => {
                        column.remove(at);
                    }
                    (Err(at), Some(cell)) => column.insert(at, (group, cell)),
                    (Err(_), None) => {}
                }
                column
            };
            let kind = class.kind;
            let whole = cells.len() == class.signatures && cells.iter().all(|(_, c)| *c == cells[0].1);
            if whole {
                let column = with(cells[0].1);
                if column == class.column {
                    continue;
                }
                if !self.class_ids.contains_key(&(kind, column.clone())) {
                    // The whole class changes alike, and no other class is like it now: it keeps its number.
                    let before = std::mem::replace(&mut self.classes[class_id.0 as usize].column, column.clone());
                    self.class_ids.remove(&(kind, before));
                    self.class_ids.insert((kind, column), class_id);
                    self.pending.changes.classes.insert(class_id);
                    continue;
                }
            }
            let columns: Vec<(SignatureId, Vec<(GroupId, u32)>)> =
                cells.into_iter().map(|(id, cell)| (id, with(cell))).collect();
            for (id, column) in columns {
                let class = self.class_for(kind, column);
                self.reclass(id, class);
            }
        }
    }

    pub(super) fn class_for(&mut self, kind: Kind, column: Vec<(GroupId, u32)>) -> ClassId {
        let (classes, pending) = (&mut self.classes, &mut self.pending);
        *self
            .class_ids
            .entry((kind, column))
            .or_insert_with_key(|(kind, column)| {
                let id = ClassId(classes.insert(Class {
                    kind: *kind,
                    column: column.clone(),
                    signatures: 0,
                }) as u32);
                pending.changes.classes.insert(id);
                pending.changes.created.insert(id);
                id
            })
    }

    /// Moves a signature to a class.
    pub(super) fn reclass(&mut self, id: SignatureId, class: ClassId) {
        let signature = &mut self.signatures[id as usize];
        let before = std::mem::replace(&mut signature.class, class);
        if before == class {
            return;
        }
        for member in &signature.members {
            self.pending.moved.entry(*member).or_insert(Some(before));
        }
        self.pending.changes.classes.extend([before, class]);
        self.classes[class.0 as usize].signatures += 1;
        self.leave_class(before);
    }

    pub(super) fn leave_class(&mut self, id: ClassId) {
        let class = &mut self.classes[id.0 as usize];
        class.signatures -= 1;
        if class.signatures == 0 {
            self.pending.classes.push(id);
        }
    }
}
