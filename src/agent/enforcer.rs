//! Brings the kernel to what a cluster snapshot asks of one node: compile, render, diff against what the kernel holds,
//! one transaction. No clock, no files, no async: whoever has a [`Kernel`] can use it.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use policy_compiler::addresses::AddressConflict;
use policy_compiler::cluster::{Cluster, Pod};
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::labels::Name;
use policy_compiler::policy::Direction;
use policy_compiler::table::Table;
use thiserror::Error;

use super::verified::{Step, Verified};
use crate::nft::names::ChainName;
use crate::nft::transaction::OperationError;
use crate::nft::{Kernel, KernelError, Marks, Ruleset, Settings, diff, render};

/// Enforces policy on one node.
#[derive(Debug)]
pub struct Enforcer<K> {
    node: Name,
    settings: Settings,
    kernel: K,
    /// What the last snapshot asks for.
    wanted: Option<Ruleset>,
    /// Whether the kernel holds `wanted`, as far as is known; if not, the next transaction replaces the whole table.
    held: bool,
    /// What the table looked like after the last transaction of our own.
    seen: Option<Seen>,
    /// Which connections pass by their mark.
    verified: Verified,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// A digest of all rules.
    rules: u64,
    generation: Option<u32>,
}

/// Why the kernel could not be brought to a snapshot.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The rules were never sent.
    #[error("the rules cannot be put into a transaction: {0}")]
    Operation(#[from] OperationError),
    /// nft failed, or refused them.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What [`Enforcer::apply`] has done.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Whether the kernel was changed.
    pub changed: bool,
    /// The operations of the transaction.
    pub operations: usize,
    /// How long the kernel took.
    pub duration: Duration,
}

/// What a snapshot comes to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Live pods in the cluster.
    pub pods: usize,
    /// Those on this node that policy can select.
    pub node_pods: usize,
    /// Policies that select one of them.
    pub policies: usize,
    /// Whether the snapshot knows this node: the node itself, or a pod on it.
    pub node_known: bool,
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

    /// Compiles a snapshot and brings the kernel to it: [`compile`](Self::compile), then [`commit`](Self::commit).
    pub fn apply(&mut self, cluster: &Cluster) -> Result<Applied, ApplyError> {
        let (ruleset, _) = self.compile(cluster);
        self.commit(ruleset)
    }

    /// What a snapshot asks of the kernel here. Changes nothing.
    pub fn compile(&self, cluster: &Cluster) -> (Ruleset, Summary) {
        let table = compile(cluster, &Subjects::Node(self.node.clone()));
        let summary = summary(&self.node, cluster, &table);
        (render(&table, self.settings, self.wanted.as_ref()), summary)
    }

    /// Brings the kernel to a ruleset, in one transaction, or none when it holds it already.
    ///
    /// After an error the kernel holds what it held before, or (nft was stopped half way) nobody knows: the next
    /// transaction replaces the whole table.
    pub fn commit(&mut self, mut ruleset: Ruleset) -> Result<Applied, ApplyError> {
        let held = self.wanted.as_ref().filter(|_| self.held);
        dress(&mut ruleset, self.verified.marks());
        if held == Some(&ruleset) {
            return Ok(Applied::default());
        }
        let marks = match held {
            Some(_) => self.verified.judge(),
            None => self.verified.forget(),
        };
        dress(&mut ruleset, marks);
        let transaction = match diff(held, &ruleset) {
            Ok(None) => return Ok(Applied::default()),
            Ok(Some(transaction)) => Ok(transaction),
            Err(error) => Err(error),
        };
        // Remembered before anything can fail, so that whoever tries again tries this and not what was there before.
        self.wanted = Some(ruleset);
        self.held = false;
        self.seen = None;
        let transaction = transaction?;
        let start = Instant::now();
        self.kernel.apply(&transaction)?;
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
        let Some(wanted) = self.wanted.as_mut().filter(|_| self.held) else {
            return Ok(false);
        };
        match self.verified.next(Instant::now()) {
            Step::Nothing => return Ok(false),
            Step::Clear(mask) => self.verified.clearing(self.kernel.clear_marks(mask)),
            Step::Apply(marks) => match self.kernel.apply(&marks.transaction()?) {
                Ok(()) => {
                    dress(wanted, marks);
                    self.verified.applied(marks);
                    self.seen = None;
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

    /// Whether the kernel holds what the last snapshot asks for, as far as is known.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Replaces the whole table by what the last snapshot asks for; nothing when there was none yet.
    pub fn resync(&mut self) -> Result<Applied, ApplyError> {
        self.held = false;
        match self.wanted.take() {
            Some(ruleset) => self.commit(ruleset),
            None => Ok(Applied::default()),
        }
    }

    /// Whether anybody may have changed the table since it was last compared with what it should be, ourselves included.
    /// Cheap; [`drift`](Self::drift) then tells.
    pub fn is_touched(&self) -> bool {
        let generation = self.kernel.generation();
        generation.is_none() || self.seen.is_none_or(|seen| seen.generation != generation)
    }

    /// In which respect the kernel's table is not what it should be, if somebody else has changed it.
    ///
    /// The kernel does not show rules as they were written, so they are compared with what they looked like at the first
    /// call after a transaction; call it soon. Everything else is compared with what it should be.
    pub fn drift(&mut self) -> Result<Option<String>, ApplyError> {
        let (true, Some(wanted)) = (self.held, &self.wanted) else {
            return Ok(None);
        };
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
        let mut hasher = DefaultHasher::new();
        listing.chains.hash(&mut hasher);
        let rules = hasher.finish();
        if self.seen.is_some_and(|seen| seen.rules != rules) {
            return Ok(Some("a rule is not what it was".to_owned()));
        }
        self.seen = Some(Seen { rules, generation });
        Ok(None)
    }
}

/// The base chain with the rules about marks.
fn dress(ruleset: &mut Ruleset, marks: Marks) {
    ruleset.chains.insert(ChainName::Forward, marks.base_chain());
}

fn summary(node: &Name, cluster: &Cluster, table: &Table) -> Summary {
    let here = |pod: &Pod| pod.node.as_ref() == Some(node);
    let groups = Direction::BOTH
        .into_iter()
        .flat_map(|direction| table.half(direction).groups());
    let policies: BTreeSet<u32> = groups.flat_map(|(_, group)| group.policies.iter().copied()).collect();
    Summary {
        pods: table.pods().count(),
        node_pods: table.pods().filter(|(_, pod)| here(pod) && !pod.host_network).count(),
        policies: policies.len(),
        node_known: cluster.nodes.contains_key(node) || cluster.pods.values().any(|pod| here(pod)),
        conflicts: table.addresses().conflicts(),
    }
}
