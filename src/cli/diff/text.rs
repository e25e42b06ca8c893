//! `palisade diff -o text`: sections with signs, each list bounded; JSON has it all.

use std::fmt::Write;

use policy_compiler::difference::Block;
use policy_compiler::policy::PolicyName;
use policy_compiler::ports::PortSet;

use super::{Diff, Entry, Lone};
use crate::cli::describe::join;
use crate::cli::output::{Style, count};
use crate::plain::line;

/// How many entries a list shows.
const SHOWN: usize = 20;

impl Diff<'_> {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let style = match (self.is_empty(), self.pods.both.is_empty()) {
            (false, _) => Style::Bold,
            (true, false) => Style::Good,
            (true, true) => Style::Warn,
        };
        let mut out = format!("{}\n", style.paint(&self.summary()));
        let found = &self.differences;
        self.connections(&mut out, "Opened", "passes now", '+', &found.opened);
        self.connections(&mut out, "Closed", "no longer passes", '-', &found.closed);
        let told = "passes, and would not if audited policies were in force";
        self.connections(&mut out, "Audit tells", told, '+', &found.told);
        self.connections(&mut out, "Audit no longer tells", "", '-', &found.untold);
        self.isolation_text(&mut out);
        let [removed, added] = [(0, &self.pods.removed), (1, &self.pods.added)].map(|(at, pods)| self.lone(pods, at));
        if !added.is_empty() || !removed.is_empty() {
            heading(&mut out, "Pods of one side only", "not compared");
            bounded(&mut out, &added, |lone| lone_line('+', lone));
            bounded(&mut out, &removed, |lone| lone_line('-', lone));
        }
        for (title, changed) in self.objects.sections() {
            if changed.is_empty() {
                continue;
            }
            heading(&mut out, title, "");
            bounded(&mut out, changed, |object| {
                let what = object.words();
                let effect = object
                    .effect_words()
                    .map(|words| Style::Warn.paint(&format!("; {words}")));
                let effect = effect.unwrap_or_default();
                let source = object
                    .source
                    .as_ref()
                    .map(|s| format!("  {}", Style::Dim.paint(&line(&s.to_string()))));
                let sign = sign(object.sign());
                format!(
                    "  {sign} {}  {what}{effect}{}\n",
                    object.name,
                    source.unwrap_or_default()
                )
            });
        }
        if self.objects.moved_pods > 0 {
            let pods = count(self.objects.moved_pods, "pod");
            let note = format!("{pods} with another address, or on another node");
            let _ = writeln!(out, "\n{}", Style::Dim.paint(&note));
        }
        out
    }

    /// What differs, counted in a line.
    pub(super) fn summary(&self) -> String {
        let found = &self.differences;
        let mut parts: Vec<String> = [
            (found.opened.len(), "opened"),
            (found.closed.len(), "closed"),
            (found.told.len() + found.untold.len(), "told otherwise by audit"),
            (self.isolation.len(), "isolated otherwise"),
        ]
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"))
        .collect();
        if parts.is_empty() {
            let pods = [&self.before, &self.after]
                .iter()
                .any(|version| version.1.table.pod_count() > 0);
            parts.push(String::from(match (self.pods.both.is_empty(), pods) {
                (false, _) => "no connection differs",
                (true, true) => "nothing was compared: no pod is on both sides",
                (true, false) => "nothing was compared: neither side has a pod",
            }));
        }
        for (pods, what) in [(&self.pods.added, "added"), (&self.pods.removed, "removed")] {
            if !pods.is_empty() {
                parts.push(format!("{} {what}", count(pods.len(), "pod")));
            }
        }
        parts.extend(self.objects.summary());
        parts.join("; ")
    }

    fn connections(&self, out: &mut String, title: &str, meaning: &str, mark: char, blocks: &[Block]) {
        if blocks.is_empty() {
            return;
        }
        heading(out, title, meaning);
        bounded(out, blocks, |block| {
            let entry = self.entry(block);
            let about = about(&entry);
            let line = format!("{} → {}", join(&entry.from.words), join(&entry.to.words));
            let mut text = format!("  {} {}  {about}\n", sign(mark), Style::Bold.paint(&line));
            if let Some(example) = &entry.example {
                let pair = format!("{} → {} on {}", example.from, example.to, example.port);
                let _ = writeln!(text, "      {}", Style::Dim.paint(&format!("for example {pair}")));
                for (when, judged) in [("before", &example.before), ("after", &example.after)] {
                    let (word, style) = judged.verdict.word();
                    let _ = writeln!(text, "      {when:6}  {}: {}", style.paint(word), judged.reason);
                }
            }
            text
        });
    }

    fn isolation_text(&self, out: &mut String) {
        if self.isolation.is_empty() {
            return;
        }
        heading(out, "Isolation", "");
        bounded(out, &self.isolation, |isolation| {
            let isolated = self.isolated(isolation);
            let policies = names(&isolated.policies);
            let (mark, words) = match isolated.isolated {
                true => ('+', format!("now isolated, by {policies}")),
                false => ('-', format!("no longer isolated (it was, by {policies})")),
            };
            let pods = Style::Bold.paint(&join(&isolated.pods.words));
            format!("  {} {pods}  {} {words}\n", sign(mark), isolated.direction)
        });
    }
}

/// Ports, by those that are missing where that is shorter.
fn ports(ports: &PortSet) -> String {
    let (plain, except) = (ports.to_string(), format!("all except {}", ports.complement()));
    match ports.is_all() || plain.len() <= except.len() {
        true => plain,
        false => except,
    }
}

/// What an entry is about: ports, the family where it is one of two, and whether only pods and their own nodes are meant.
pub(super) fn about(entry: &Entry) -> String {
    let over = entry.family.map(|family| format!(" over {family}")).unwrap_or_default();
    let own_node = if entry.own_node { " (with its own node)" } else { "" };
    format!("{}{over}{own_node}", ports(&entry.ports))
}

pub(super) fn names(policies: &[PolicyName]) -> String {
    let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
    join(&names)
}

/// What is to know of pods that only one side has.
pub(super) fn lone_words(lone: &Lone) -> String {
    if lone.replicas {
        return "other pods of it are on both sides".to_owned();
    }
    let side = |direction: &str, policies: &[PolicyName]| match policies {
        [] => format!("{direction} not isolated"),
        policies => format!("{direction} isolated by {}", names(policies)),
    };
    let ingress = side("ingress", &lone.ingress_isolated_by);
    format!("{ingress}; {}", side("egress", &lone.egress_isolated_by))
}

fn lone_line(mark: char, lone: &Lone) -> String {
    let pods = count(lone.pods.len(), "pod");
    let name = Style::Bold.paint(&lone.name);
    format!("  {} {name} ({pods})  {}\n", sign(mark), lone_words(lone))
}

fn heading(out: &mut String, title: &str, meaning: &str) {
    let meaning = match meaning {
        "" => String::new(),
        meaning => format!("  {}", Style::Dim.paint(meaning)),
    };
    let _ = writeln!(out, "\n{}{meaning}", Style::Bold.paint(title));
}

fn sign(mark: char) -> String {
    let style = match mark {
        '+' => Style::Good,
        '-' => Style::Bad,
        _ => Style::Warn,
    };
    style.paint(&mark.to_string())
}

/// The first of a list, and how many more there are.
fn bounded<T>(out: &mut String, list: &[T], text: impl Fn(&T) -> String) {
    for item in list.iter().take(SHOWN) {
        out.push_str(&text(item));
    }
    if list.len() > SHOWN {
        let more = format!("… and {} more (-o json has all)", list.len() - SHOWN);
        let _ = writeln!(out, "    {}", Style::Dim.paint(&more));
    }
}
