//! `palisade diff -o json`: everything, for programs.

use policy_compiler::difference::Block;
use serde::Serialize;

use super::objects::Objects;
use super::{Diff, Entry, Isolated, Lone};
use crate::cli::output::{self, API_VERSION};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Audit {
    told: Vec<Entry>,
    no_longer_told: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    api_version: &'static str,
    kind: &'static str,
    differs: bool,
    opened: Vec<Entry>,
    closed: Vec<Entry>,
    audit: Audit,
    isolation: Vec<Isolated>,
    added_pods: Vec<Lone>,
    removed_pods: Vec<Lone>,
    objects: &'a Objects,
}

impl Diff<'_> {
    /// For programs.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        let entries = |blocks: &[Block]| blocks.iter().map(|block| self.entry(block)).collect();
        output::json(&Json {
            api_version: API_VERSION,
            kind: "Diff",
            differs: !self.is_empty(),
            opened: entries(&self.differences.opened),
            closed: entries(&self.differences.closed),
            audit: Audit {
                told: entries(&self.differences.told),
                no_longer_told: entries(&self.differences.untold),
            },
            isolation: self.isolation.iter().map(|i| self.isolated(i)).collect(),
            added_pods: self.lone(&self.pods.added, 1),
            removed_pods: self.lone(&self.pods.removed, 0),
            objects: &self.objects,
        })
    }
}
