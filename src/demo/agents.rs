//! The agents of the demo: the enforcer that `palisade agent` runs, once for each node, in that node's namespace.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use policy_compiler::cluster::Cluster;
use policy_compiler::labels::Name;

use crate::agent::enforcer::Enforcer;
use crate::nft::{Mode, Nft};
use crate::sandbox::{Place, Sandbox, program};

/// One enforcer for each node.
pub(super) struct Agents<'a> {
    sandbox: &'a Sandbox,
    enforcers: Vec<(Name, Enforcer<Nft>)>,
}

/// What one round came to: at most one transaction on each node.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    nodes: Vec<Name>,
    operations: usize,
    duration: Duration,
}

impl<'a> Agents<'a> {
    /// Enforcers that have applied nothing yet.
    pub(super) fn new(sandbox: &'a Sandbox, cluster: &Cluster) -> anyhow::Result<Self> {
        let nft = Nft {
            program: program("nft")?.into(),
            ..Nft::default()
        };
        let enforcers = (cluster.nodes.keys())
            .map(|node| (node.clone(), Enforcer::new(node.clone(), Mode::Enforce, nft.clone())))
            .collect();
        Ok(Agents { sandbox, enforcers })
    }

    /// Brings every node to a cluster's policies.
    pub(super) fn apply(&mut self, cluster: &Cluster) -> anyhow::Result<Round> {
        let mut round = Round::default();
        for (node, enforcer) in &mut self.enforcers {
            let netns = self.sandbox.netns(&Place::Node(node.clone()))?;
            let applied = netns
                .run(|| enforcer.apply(cluster))?
                .with_context(|| format!("the policies of node {node} could not be enforced"))?;
            if applied.changed {
                round.nodes.push(node.clone());
                round.operations += applied.operations;
                round.duration += applied.duration;
            }
        }
        Ok(round)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes.is_empty() {
            return f.write_str("no node has anything to change");
        }
        let milliseconds = self.duration.as_secs_f64() * 1000.0;
        write!(
            f,
            "one transaction on {} ({} operations, {milliseconds:.0} ms)",
            self.nodes.join(", "),
            self.operations
        )
    }
}
