//! `palisade diff` for programs (JSON, everything), and as a comment on a pull request (markdown, bounded).

use std::fmt::Write;

use policy_compiler::difference::Block;
use serde::Serialize;

use super::objects::Objects;
use super::text::{about, lone_words, names};
use super::{Diff, Entry, Isolated, Lone};
use crate::cli::describe::join;
use crate::cli::output::{self, API_VERSION, count};

/// How many rows a table of a comment has: more is not read, and GitHub refuses more than 65,536 characters.
const ROWS: usize = 50;

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

    /// For a pull request: tables of GitHub's markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("### Connectivity: {}\n", escape(&self.summary()));
        let found = &self.differences;
        let lists = [
            ("opened", &found.opened),
            ("closed", &found.closed),
            ("audit tells", &found.told),
            ("audit no longer tells", &found.untold),
        ];
        let all = lists
            .iter()
            .flat_map(|(word, blocks)| blocks.iter().map(move |block| (*word, block)));
        let entries: Vec<(&str, Entry)> = all.clone().take(ROWS).map(|(word, b)| (word, self.entry(b))).collect();
        if !entries.is_empty() {
            out.push_str("\n| | from | to | ports |\n| --- | --- | --- | --- |\n");
            for (word, entry) in &entries {
                let [from, to] = [&entry.from, &entry.to].map(|party| escape(&join(&party.words)));
                let _ = writeln!(out, "| **{word}** | {from} | {to} | {} |", about(entry));
            }
            more(&mut out, all.count());
            out.push_str("\n<details><summary>Why, by an example of each</summary>\n\n");
            for (word, entry) in &entries {
                let Some(example) = &entry.example else { continue };
                let _ = writeln!(
                    out,
                    "- {word}: {} → {} on {}\n  - before, {}: {}\n  - after, {}: {}",
                    escape(&example.from),
                    escape(&example.to),
                    example.port,
                    example.before.verdict.word().0,
                    escape(&example.before.reason),
                    example.after.verdict.word().0,
                    escape(&example.after.reason),
                );
            }
            out.push_str("\n</details>\n");
        }
        if !self.isolation.is_empty() {
            out.push_str("\n| pods | isolation | policies |\n| --- | --- | --- |\n");
            for isolated in self.isolation.iter().take(ROWS).map(|i| self.isolated(i)) {
                let word = if isolated.isolated { "now" } else { "no longer" };
                let (pods, policies) = (escape(&join(&isolated.pods.words)), escape(&names(&isolated.policies)));
                let _ = writeln!(out, "| {pods} | {} {word} | {policies} |", isolated.direction);
            }
            more(&mut out, self.isolation.len());
        }
        self.objects_markdown(&mut out);
        out
    }

    fn objects_markdown(&self, out: &mut String) {
        let mut rows: Vec<[String; 3]> = Vec::new();
        for (word, version, pods) in [("added", 1, &self.pods.added), ("removed", 0, &self.pods.removed)] {
            for lone in self.lone(pods, version) {
                let name = format!("{} ({})", lone.name, count(lone.pods.len(), "pod"));
                rows.push([name, word.to_owned(), lone_words(&lone)]);
            }
        }
        for (_, changed) in self.objects.sections() {
            for object in changed {
                let fields: Vec<String> = object.fields.iter().map(|field| field.words()).collect();
                let effect = object.effect_words().unwrap_or_default();
                let what = match fields.is_empty() {
                    true => object.change.to_owned(),
                    false => format!("changed: {}", fields.join(", ")),
                };
                rows.push([format!("{} {}", object.kind, object.name), what, effect.to_owned()]);
            }
        }
        if rows.is_empty() {
            return;
        }
        out.push_str("\n| object | change | |\n| --- | --- | --- |\n");
        for row in rows.iter().take(ROWS) {
            let cells: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        more(out, rows.len());
    }
}

fn more(out: &mut String, all: usize) {
    if all > ROWS {
        let _ = writeln!(out, "\n… and {} more", all - ROWS);
    }
}

/// Text as markdown shows it: names of labels and reasons may hold what markdown takes for its own.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '|' | '<' | '>' | '*' | '_' | '`' | '[' | ']' | '\\' | '@') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}
