//! Brings the kernel to what a cluster asks of one node, and keeps it there: a snapshot or events go in, are compiled and
//! rendered as far as they change anything, and come out as one transaction. No clock, no files, no async: whoever has a
//! [`Kernel`] can use it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use policy_compiler::addresses::AddressConflict;
use policy_compiler::changes::Changes;
use policy_compiler::cluster::{Cluster, Pod, PodName};
use policy_compiler::compile::{self, Compiler, Event, Subjects};
use policy_compiler::labels::Name;
use policy_compiler::policy::Direction;
use policy_compiler::table::Table;
use thiserror::Error;

use self::seen::Seen;
use super::verified::{Step, Verified};
use crate::nft::transaction::OperationError;
use crate::nft::{
    Denial, Kernel, KernelError, Renderer, Ruleset, Settings, Transaction, denials, render, replace, restore,
};

mod seen;

/// Enforces policy on one node.
#[derive(Debug)]
pub struct Enforcer<K> {
    node: Name,
    settings: Settings,
    kernel: K,
    /// What the cluster asks for; none before the first snapshot.
    wanted: Option<Wanted>,
    /// What leads the kernel from what it held at the last commit to what is wanted.
    pending: Result<Transaction, OperationError>,
    /// Whether the kernel holds what was wanted before `pending`, as far as is known; if not, the next transaction replaces the
    /// whole table.
    held: bool,
    /// What is known of the table in the kernel; none when anybody may have changed it.
    seen: Option<Seen>,
    /// Which connections pass by their mark.
    verified: Verified,
}

#[derive(Debug)]
struct Wanted {
    compiler: Compiler,
    renderer: Renderer,
    here: Here,
}

/// What a cluster has on this node.
#[derive(Debug, Default)]
struct Here {
    /// Whether the node itself is known.
    node: bool,
    /// Its pods, and whether policy can select them.
    pods: BTreeMap<PodName, bool>,
}

/// Why the kernel could not be brought to what is wanted.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The rules were never sent.
    #[error("the rules cannot be put into a transaction: {0}")]
    Operation(#[from] OperationError),
    /// nft failed, or refused them.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What [`Enforcer::commit`] has done.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Whether the kernel was changed.
    pub changed: bool,
    /// The operations of the transaction.
    pub operations: usize,
    /// How long the kernel took.
    pub duration: Duration,
}

/// What a cluster comes to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Live pods in the cluster.
    pub pods: usize,
    /// Those on this node that policy can select.
    pub node_pods: usize,
    /// Policies that select one of them.
    pub policies: usize,
    /// Whether the cluster knows this node: the node itself, or a pod on it.
    pub node_known: bool,
    /// The ranges that this node's pods have their addresses from, as far as the API tells.
    pub pod_ranges: usize,
    /// Addresses of pods of this node that are in none of them.
    pub pods_outside_ranges: usize,
    /// Addresses that more than one live pod claims.
    pub conflicts: Vec<AddressConflict>,
}

impl<K: Kernel> Enforcer<K> {
    /// For one node; nothing is applied yet.
    pub fn new(node: Name, settings: impl Into<Settings>, kernel: K) -> Self {
        let settings = settings.into();
        Enforcer {
            node,
            settings,
            verified: Verified::new(settings),
            kernel,
            wanted: None,
            pending: Ok(Transaction::default()),
            held: false,
            seen: None,
        }
    }

    /// The node.
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// How the rules are rendered.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Brings the kernel to a snapshot, compiled from scratch, by replacing the whole table: for the start.
    pub fn load(&mut self, cluster: &Cluster) -> Result<Applied, ApplyError> {
        self.wanted = None;
        self.apply(cluster)
    }

    /// Brings the kernel to a snapshot: [`compile`](Self::compile), then [`commit`](Self::commit).
    pub fn apply(&mut self, cluster: &Cluster) -> Result<Applied, ApplyError> {
        self.compile(cluster);
        self.commit()
    }

    /// Brings the kernel to what the cluster is after these events, in one transaction: [`take`](Self::take), then
    /// [`commit`](Self::commit).
    pub fn follow(&mut self, events: impl IntoIterator<Item = Event>) -> Result<Applied, ApplyError> {
        self.take(events);
        self.commit()
    }

    /// Whether the kernel would take the whole table of a snapshot. Changes nothing.
    pub fn check(&self, cluster: &Cluster) -> Result<(), ApplyError> {
        let table = compile::compile(cluster, &Subjects::Node(self.node.clone()));
        Ok(self.kernel.check(&replace(&render(&table, self.settings))?)?)
    }

    /// Works out what a snapshot asks of the kernel here: from scratch the first time, then from what is different from the
    /// cluster as it is known. The kernel is left alone.
    pub fn compile(&mut self, cluster: &Cluster) {
        if let Some(wanted) = &self.wanted {
            let events = wanted.compiler.events_to(cluster);
            self.take(events);
            // Ended pods, which the compiler does not know, are here nevertheless.
            if let Some(wanted) = &mut self.wanted {
                wanted.here = Here::of(&self.node, cluster);
            }
            return;
        }
        let compiler = Compiler::new(cluster, Subjects::Node(self.node.clone()));
        let renderer = Renderer::new(compiler.table(), self.settings);
        self.held = false;
        self.wanted = Some(Wanted {
            compiler,
            renderer,
            here: Here::of(&self.node, cluster),
        });
    }

    /// Works out what events ask of the kernel here. Before a first snapshot they are those of an empty cluster. The kernel is
    /// left alone.
    pub fn take(&mut self, events: impl IntoIterator<Item = Event>) {
        if self.wanted.is_none() {
            self.compile(&Cluster::default());
        }
        // A transaction that was never committed has not led to where this one could go on from.
        self.held = self.is_held();
        let Some(wanted) = &mut self.wanted else { return };
        let mut changes = Changes::default();
        for event in events {
            wanted.here.follow(&self.node, &event);
            changes.extend(wanted.compiler.apply(event));
        }
        self.pending = wanted.renderer.follow(wanted.compiler.table(), &changes);
    }

    /// Brings the kernel to what was worked out, in one transaction, or none when it holds it already.
    ///
    /// After an error the kernel holds what it held before, or what it is after the first of the transaction's steps, or (nft was
    /// stopped half way) nobody knows: the next transaction brings the whole.
    pub fn commit(&mut self) -> Result<Applied, ApplyError> {
        let pending = std::mem::replace(&mut self.pending, Ok(Transaction::default()));
        if !self.held {
            return self.restore();
        }
        if pending.as_ref().is_ok_and(Transaction::is_empty) {
            return Ok(Applied::default());
        }
        // Before anything can fail, so that whoever tries again brings the whole.
        self.held = false;
        let seen = self.seen.take();
        let mut transaction = pending?;
        let before = self.verified.marks();
        let marks = self.verified.judge();
        if marks != before {
            // Not after the rules that change: none is judged by the old ones and then marked as if by the new.
            if let Some(wanted) = &mut self.wanted {
                wanted.renderer.mark(marks);
                marks
                    .operations(wanted.renderer.ranges())
                    .into_iter()
                    .try_for_each(|operation| transaction.add_to_first_step(operation))?;
            }
        }
        let start = Instant::now();
        self.seen = seen::apply(&self.kernel, seen, &transaction)?;
        self.held = true;
        Ok(Applied {
            changed: true,
            operations: transaction.size(),
            duration: start.elapsed(),
        })
    }

    /// Brings the kernel to what is wanted from wherever it is: the rules of a sound table anew, else the whole table.
    fn restore(&mut self) -> Result<Applied, ApplyError> {
        let Some(wanted) = &mut self.wanted else {
            return Ok(Applied::default());
        };
        wanted.renderer.mark(self.verified.forget());
        // A table that cannot be read is replaced.
        let found = self.kernel.read().ok().flatten();
        let ruleset = wanted.renderer.ruleset();
        let (mut transaction, whole) = (restore(found.as_ref(), ruleset)?, replace(ruleset)?);
        self.seen = None;
        let start = Instant::now();
        let written = match seen::write(&self.kernel, &transaction) {
            Err(KernelError::Refused(_)) if transaction != whole => {
                transaction = whole;
                seen::write(&self.kernel, &transaction)
            }
            result => result,
        };
        self.seen = written?;
        self.held = true;
        Ok(Applied {
            changed: true,
            operations: transaction.size(),
            duration: start.elapsed(),
        })
    }

    /// Does what is due so that connections may pass by their marks again after a change, if anything is and the kernel holds
    /// what it should. Policy is in force without it: call it when there is nothing more urgent, and again while it returns true.
    ///
    /// An error means that nobody knows what the kernel holds: call [`resync`](Self::resync).
    pub fn verify(&mut self) -> Result<bool, ApplyError> {
        let held = self.is_held();
        let Some(wanted) = self.wanted.as_mut().filter(|_| held) else {
            return Ok(false);
        };
        match self.verified.next(Instant::now()) {
            Step::Nothing => return Ok(false),
            Step::Clear(mask) => self.verified.clearing(self.kernel.clear_marks(mask)),
            Step::Apply(marks) => match seen::apply(
                &self.kernel,
                self.seen.take(),
                &marks.transaction(wanted.renderer.ranges())?,
            ) {
                Ok(seen) => {
                    wanted.renderer.mark(marks);
                    self.verified.applied(marks);
                    self.seen = seen;
                }
                Err(error @ KernelError::Refused(_)) => {
                    self.verified.refused(&error, Instant::now());
                    return Ok(false);
                }
                Err(error) => {
                    self.held = false;
                    return Err(error.into());
                }
            },
        }
        Ok(true)
    }

    /// Takes entries out of the record of denials. Whatever becomes of it, policy is not touched.
    pub fn forget(&mut self, entries: impl IntoIterator<Item = Denial>) -> Result<(), ApplyError> {
        let transaction = denials::forget(entries)?;
        match &mut self.seen {
            Some(seen) => seen.follow(&self.kernel, &transaction)?,
            None => self.kernel.apply(&transaction)?,
        }
        Ok(())
    }

    /// Which connections pass by their mark, and why not.
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Does all that [`verify`](Self::verify) has to do, and waits for what takes longer, each time for so long at most.
    pub fn verify_all(&mut self, at_most: Duration) -> Result<(), ApplyError> {
        while self.verify()? {
            self.verified.wait(at_most);
        }
        Ok(())
    }

    /// What the cluster comes to on this node. The work follows what is on the node.
    pub fn summary(&self) -> Summary {
        let Some(Wanted { compiler, here, .. }) = &self.wanted else {
            return Summary::default();
        };
        let table = compiler.table();
        let groups = Direction::BOTH
            .into_iter()
            .flat_map(|direction| table.half(direction).groups());
        let policies: BTreeSet<u32> = groups.flat_map(|(_, group)| group.policies.iter().copied()).collect();
        let ranges = table.pod_ranges();
        let selectable = here.pods.iter().filter(|(_, selectable)| **selectable);
        let local = selectable.filter_map(|(name, _)| Some(table.pod(table.pod_index(name)?)));
        let addresses = local.flat_map(|pod| table.addresses().owned(pod));
        let outside = addresses.filter(|address| !ranges.iter().any(|range| range.contains(address)));
        Summary {
            pods_outside_ranges: outside.count(),
            pod_ranges: ranges.len(),
            pods: table.pod_count(),
            node_pods: here.pods.values().filter(|selectable| **selectable).count(),
            policies: policies.len(),
            node_known: here.node || !here.pods.is_empty(),
            conflicts: table.addresses().conflicts(),
        }
    }

    /// What the kernel should hold; none before the first snapshot.
    pub fn wanted(&self) -> Option<&Ruleset> {
        self.wanted.as_ref().map(|wanted| wanted.renderer.ruleset())
    }

    /// What the cluster comes to here, compiled; none before the first snapshot.
    pub fn compiled(&self) -> Option<&Table> {
        self.wanted.as_ref().map(|wanted| wanted.compiler.table())
    }

    /// Whether the kernel holds what the cluster asks for, as far as is known.
    pub fn is_held(&self) -> bool {
        self.held && self.pending.as_ref().is_ok_and(Transaction::is_empty)
    }

    /// Replaces the whole table by what the cluster asks for; nothing when none is known yet.
    pub fn resync(&mut self) -> Result<Applied, ApplyError> {
        self.held = false;
        self.commit()
    }

    /// Whether anybody else may have changed the table since it was last compared with what it should be. Cheap;
    /// [`drift`](Self::drift) then tells.
    pub fn is_touched(&mut self) -> bool {
        let Some(seen) = &mut self.seen else { return true };
        // Also when nothing has happened: what the kernel tells must be read, lest it be lost.
        seen.pass_over(&self.kernel);
        let generation = self.kernel.generation();
        generation.is_none() || seen.generation() != generation
    }

    /// Whether transactions of our own have changed the table since it was last compared with what it should be. Nobody doubts
    /// them, but nobody has looked.
    pub fn is_unconfirmed(&self) -> bool {
        self.seen.as_ref().is_none_or(Seen::is_followed)
    }

    /// In which respect the kernel's table is not what it should be, if somebody else has changed it.
    ///
    /// The kernel does not show rules as they were written, so they are compared with what they looked like at the first
    /// call, or [`learn`](Self::learn), after a transaction that changed them; call one of them soon. Everything else is compared with what
    /// it should be.
    pub fn drift(&mut self) -> Result<Option<String>, ApplyError> {
        let (true, Some(wanted)) = (self.held, &self.wanted) else {
            return Ok(None);
        };
        let wanted = wanted.renderer.ruleset();
        // Asked before the table is read: a change while it is read raises the number for the next call.
        let generation = self.kernel.generation();
        // Until it has been read, nobody knows what is there.
        self.held = false;
        let listing = self.kernel.read()?;
        self.held = true;
        let Some(listing) = listing else {
            return Ok(Some("the table is gone".to_owned()));
        };
        if let Some(difference) = listing.difference(wanted) {
            return Ok(Some(difference));
        }
        // Somebody changes rules at this moment: the next call looks again.
        let Some(rules) = self.kernel.rules()? else {
            return Ok(None);
        };
        match &self.seen {
            Some(seen) if !seen.agrees(&rules) => return Ok(Some("a rule is not what it was".to_owned())),
            // Nothing to compare with, and somebody has changed our table while it was read: the next call looks again.
            None if self.kernel.generation() != generation && !self.is_quiet_since(generation) => return Ok(None),
            _ => {}
        }
        self.seen = Some(Seen::new(rules, generation));
        Ok(None)
    }

    /// Whether all transactions since this number are known to have been about tables of others.
    fn is_quiet_since(&self, generation: Option<u32>) -> bool {
        generation.is_some_and(|known| seen::is_quiet_since(&self.kernel, known))
    }

    /// Looks what the rules look like that a transaction of our own has changed, if any, for later calls of [`drift`](Self::drift). Cheap.
    pub fn learn(&mut self) -> Result<(), ApplyError> {
        let Some(seen) = self.seen.as_mut().filter(|seen| seen.has_unlearned()) else {
            return Ok(());
        };
        let rules = self.kernel.rules()?;
        // Changed by somebody else in the meantime: the next look is at the whole table.
        let known = seen
            .generation()
            .filter(|known| self.kernel.generation() == Some(*known));
        if let Some(rules) = rules.filter(|rules| known.is_some() && seen.agrees(rules)) {
            seen.learn(rules);
        }
        Ok(())
    }
}

impl Here {
    fn of(node: &Name, cluster: &Cluster) -> Self {
        let mut here = Here {
            node: cluster.nodes.contains_key(node),
            ..Here::default()
        };
        cluster.pods.values().for_each(|pod| here.note(node, pod));
        here
    }

    fn follow(&mut self, node: &Name, event: &Event) {
        match event {
            Event::Pod(pod) => self.note(node, pod),
            Event::PodGone(name) => {
                self.pods.remove(name);
            }
            Event::Node(new) if new.name == *node => self.node = true,
            Event::NodeGone(name) if name == node => self.node = false,
            _ => {}
        }
    }

    fn note(&mut self, node: &Name, pod: &Pod) {
        if pod.node.as_ref() == Some(node) {
            self.pods.insert(pod.name.clone(), !pod.host_network && !pod.ended);
        } else {
            self.pods.remove(&pod.name);
        }
    }
}

#[cfg(test)]
mod tests;
