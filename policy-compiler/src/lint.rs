//! What is legal and yet hardly meant: a cluster and its table in, findings out. Nothing is guessed from the text that the table can prove.
//!
//! It holds all that [`diagnose`](crate::diagnostics::diagnose) tells beside every answer, and what only somebody wants to hear who asks for it.

mod isolation;
mod peers;
mod ports;
mod reach;
mod redundant;
mod wider;

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::cluster::Cluster;
use crate::diagnostics::{self, Diagnostic, Findings, listed, rules};
use crate::labels::Name;
use crate::policy::{Peer, PodSelection};
use crate::table::Table;

/// Looks over a cluster and its table, which must be that of all pods.
pub fn lint(cluster: &Cluster, table: &Table) -> Vec<Diagnostic> {
    let mut out = Findings::default();
    diagnostics::doubt(cluster, table, &mut out);
    let view = View::new(cluster, table);
    isolation::look(&view, &mut out);
    peers::look(&view, &mut out);
    ports::look(&view, &mut out);
    reach::look(&view, &mut out);
    redundant::look(&view, &mut out);
    out.finish()
}

/// What the rules look at.
struct View<'a> {
    cluster: &'a Cluster,
    table: &'a Table,
    /// The identities that each peer of each policy selects.
    selected: FxHashMap<&'a PodSelection, Vec<u32>>,
    /// The namespaces that have pods which a selector can match.
    namespaces: BTreeSet<&'a Name>,
}

impl<'a> View<'a> {
    fn new(cluster: &'a Cluster, table: &'a Table) -> Self {
        let mut selected = FxHashMap::default();
        let rules = cluster.policies.values().flat_map(|policy| rules(policy));
        for peer in rules.flat_map(|(_, _, rule)| listed(rule)) {
            if let Peer::Pods(selection) = peer {
                let identities = || table.population.matching(selection);
                selected.entry(selection).or_insert_with(identities);
            }
        }
        View {
            cluster,
            table,
            selected,
            namespaces: table.population.identities.iter().map(|(_, i)| &i.namespace).collect(),
        }
    }

    /// The identities that a peer selects.
    fn selected(&self, selection: &PodSelection) -> &[u32] {
        self.selected.get(selection).map_or(&[], Vec::as_slice)
    }
}
