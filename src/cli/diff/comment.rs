//! `palisade diff -o markdown`: a comment on a pull request, for the team whose connections they are. Bounded, for GitHub
//! refuses a comment of more than 65,536 characters; what is left out is counted.

use std::collections::BTreeSet;
use std::fmt::Write;

use policy_compiler::difference::Block;

use super::cause::{Cause, of_audit, of_verdict};
use super::text::{about, lone_words, names};
use super::{Diff, Example};
use crate::cli::args::DiffArgs;
use crate::cli::describe::join;
use crate::cli::markdown::{clipped, code, heading, prose, row};
use crate::cli::output::{count, place_in_repository};

/// How many rows of a table are seen at once; the others are folded.
const SEEN: usize = 10;
/// How many bytes the isolation, the objects and the examples may take. Each has a room of its own, so that none crowds out another.
const ISOLATION: usize = 4_000;
const OBJECTS: usize = 6_000;
const EXAMPLES: usize = 12_000;
/// How many characters a cell has at most, and a reason.
const CELL: usize = 300;
const REASON: usize = 600;
/// How many bytes the command that shows all may take, as markdown; of a longer one only its form is told.
const COMMAND: usize = 1_000;

/// What becomes of connections.
#[derive(Clone, Copy)]
enum List {
    Opened,
    Closed,
    Told,
    Untold,
}

impl List {
    fn words(self) -> [&'static str; 2] {
        match self {
            List::Opened => ["Opened", "passes now"],
            List::Closed => ["Closed", "no longer passes"],
            List::Told => ["Audit tells", "passes, and would not if audited policies were in force"],
            List::Untold => ["Audit no longer tells", "audited policies would have denied it"],
        }
    }

    /// How many bytes its rows may take.
    fn room(self) -> usize {
        match self {
            List::Opened | List::Closed => 15_000,
            List::Told | List::Untold => 3_000,
        }
    }

    /// To which policies it is owed, given which changed.
    fn cause(self, example: &Example, changed: &BTreeSet<&str>) -> Cause {
        let changed = |name: &_| changed.contains(&*ToString::to_string(name));
        let [before, after] = &example.decisions;
        match self {
            List::Opened => of_verdict(before, after, changed),
            List::Closed => of_verdict(after, before, changed),
            List::Told => of_audit(after, changed),
            List::Untold => of_audit(before, changed),
        }
    }
}

impl Diff<'_> {
    /// For a pull request. The command is the one that shows all.
    pub(crate) fn markdown(&self, command: &str) -> String {
        let mut comment = Comment {
            text: format!("### Connectivity: {}\n", prose(&self.summary())),
            left_out: Vec::new(),
        };
        let found = &self.differences;
        let changed = self.objects.policies.iter().map(|policy| &*policy.name).collect();
        // Those of what is seen at once come first.
        let (mut examples, mut others) = (Vec::new(), Vec::new());
        for (list, blocks) in [
            (List::Opened, &found.opened),
            (List::Closed, &found.closed),
            (List::Told, &found.told),
            (List::Untold, &found.untold),
        ] {
            let mut rows = Vec::new();
            for block in blocks {
                let (row, example) = self.connection(list, block, &changed);
                let of_seen = rows.len() < SEEN;
                if of_seen { &mut examples } else { &mut others }.extend(example);
                rows.push(row);
            }
            let [title, meaning] = list.words();
            let columns = ["from", "to", "ports", "policies"];
            comment.table(title, meaning, &columns, &rows, list.room());
        }
        let columns = ["pods", "isolation", "policies"];
        comment.table("Isolation", "", &columns, &self.isolation_rows(), ISOLATION);
        let columns = ["object", "change", "", "where"];
        comment.table("Objects", "", &columns, &self.object_rows(), OBJECTS);
        examples.append(&mut others);
        comment.folded("Examples: why each has changed", &examples, EXAMPLES);
        comment.end(command)
    }

    /// A row for connections that changed alike, and their example with its reasons.
    fn connection(&self, list: List, block: &Block, changed: &BTreeSet<&str>) -> (String, Option<String>) {
        let entry = self.entry(block);
        let [from, to] = [&entry.from, &entry.to].map(|party| cell(&join(&party.words)));
        let ports = cell(&about(&entry));
        let Some(example) = entry.example else {
            return (row(&[from, to, ports, String::new()]), None);
        };
        let Cause { policies, changed } = list.cause(&example, changed);
        let unchanged = if changed || policies.is_empty() {
            ""
        } else {
            " (unchanged)"
        };
        let Example {
            from: source,
            to: destination,
            port,
            ..
        } = &example;
        let mut text = format!(
            "- **{}**: {}\n",
            list.words()[0],
            prose(&format!("{source} → {destination} on {port}"))
        );
        for (when, judged) in [("before", &example.before), ("after", &example.after)] {
            let word = judged.verdict.word().0;
            let _ = writeln!(text, "  - {when}, {word}: {}", prose(&clipped(&judged.reason, REASON)));
        }
        (row(&[from, to, ports, cell(&names(&policies)) + unchanged]), Some(text))
    }

    fn isolation_rows(&self) -> Vec<String> {
        let rows = self.isolation.iter().map(|isolation| {
            let isolated = self.isolated(isolation);
            let word = if isolated.isolated { "now" } else { "no longer" };
            let (pods, policies) = (join(&isolated.pods.words), names(&isolated.policies));
            row(&[cell(&pods), format!("{} {word}", isolated.direction), cell(&policies)])
        });
        rows.collect()
    }

    fn object_rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for (word, version, pods) in [("added", 1, &self.pods.added), ("removed", 0, &self.pods.removed)] {
            for lone in self.lone(pods, version) {
                let name = format!("{} ({})", lone.name, count(lone.pods.len(), "pod"));
                rows.push(row(&[
                    cell(&name),
                    word.to_owned(),
                    cell(&lone_words(&lone)),
                    String::new(),
                ]));
            }
        }
        for object in self.objects.sections().into_iter().flat_map(|(_, changed)| changed) {
            let name = match object.name.split_once(' ') {
                Some((workload, pods)) => format!("{} {}", code(workload), prose(pods)),
                None => code(&object.name),
            };
            let place = object.source.as_ref().and_then(place_in_repository);
            let place = place.map(|place| code(&place)).unwrap_or_default();
            let effect = object.effect_words().unwrap_or_default();
            let name = format!("{} {name}", object.kind);
            rows.push(row(&[name, cell(&object.words()), cell(effect), place]));
        }
        rows
    }
}

fn cell(text: &str) -> String {
    prose(&clipped(text, CELL))
}

/// A comment in the making.
struct Comment {
    text: String,
    /// What did not fit, counted.
    left_out: Vec<String>,
}

impl Comment {
    /// As many rows as there is room for, of which the first are seen at once.
    fn table(&mut self, title: &str, meaning: &str, columns: &[&str], rows: &[String], room: usize) {
        let rows = self.fitting(title, rows, room);
        if rows.is_empty() {
            return;
        }
        let meaning = if meaning.is_empty() {
            String::new()
        } else {
            format!(": {meaning}")
        };
        let heading = heading(columns);
        let (seen, folded) = rows.split_at(rows.len().min(SEEN));
        let _ = write!(self.text, "\n**{title}**{meaning}\n\n{heading}{}", seen.concat());
        if !folded.is_empty() {
            self.details(&format!("{} more", folded.len()), &(heading + &folded.concat()));
        }
    }

    /// As many items as there is room for, folded.
    fn folded(&mut self, title: &str, items: &[String], room: usize) {
        let items = self.fitting(title, items, room);
        if !items.is_empty() {
            self.details(title, &items.concat());
        }
    }

    fn details(&mut self, summary: &str, text: &str) {
        let _ = write!(
            self.text,
            "\n<details><summary>{summary}</summary>\n\n{text}\n</details>\n"
        );
    }

    /// The first of the parts that fit into some bytes; the others are counted.
    fn fitting<'p>(&mut self, title: &str, parts: &'p [String], room: usize) -> &'p [String] {
        let ends = parts.iter().scan(0, |length, part| {
            *length += part.len();
            Some(*length)
        });
        let fitting = ends.take_while(|end| *end <= room).count();
        if fitting < parts.len() {
            let title = title.split(':').next().unwrap_or(title);
            self.left_out
                .push(format!("{title} {} of {}", parts.len() - fitting, parts.len()));
        }
        &parts[..fitting]
    }

    /// The text, with what was left out and the command that shows it.
    fn end(mut self, command: &str) -> String {
        if !self.left_out.is_empty() {
            let left_out = self.left_out.join(", ");
            let _ = writeln!(
                self.text,
                "\nLeft out here: {left_out}. All is in the answer of {}.",
                code(command)
            );
        }
        self.text
    }
}

/// The command that shows all that a diff with these arguments finds.
pub(crate) fn command(args: &DiffArgs) -> String {
    let DiffArgs {
        paths,
        overlay,
        prune,
        live,
        output: _,
    } = args;
    let mut words = vec!["palisade diff".to_owned()];
    words.extend(live.live.then(|| "--live".to_owned()));
    words.extend(
        live.context
            .iter()
            .map(|context| format!("--context {}", quoted(context))),
    );
    let kubeconfig = live.kubeconfig.iter();
    words.extend(kubeconfig.map(|file| format!("--kubeconfig {}", quoted(&file.display().to_string()))));
    words.extend(paths.iter().map(|path| quoted(&path.display().to_string())));
    words.extend(overlay.then(|| "--overlay".to_owned()));
    words.extend(prune.then(|| "--prune".to_owned()));
    words.push("-o json".to_owned());
    let command = words.join(" ");
    match code(&command).len() <= COMMAND {
        true => command,
        false => "palisade diff … -o json".to_owned(),
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-' | '+' | '=' | ':' | '@' | '%');
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_with_every_list_full_is_one_that_github_takes() {
        let mut comment = Comment {
            text: "#".repeat(1_000),
            left_out: Vec::new(),
        };
        let rows: Vec<String> = (0..1_000).map(|_| row(&["→".repeat(31)])).collect();
        let lists = [List::Opened, List::Closed, List::Told, List::Untold];
        for list in lists {
            let [title, meaning] = list.words();
            comment.table(title, meaning, &["from", "to", "ports", "policies"], &rows, list.room());
        }
        for room in [ISOLATION, OBJECTS] {
            comment.table("Objects", "", &["object", "change", "", "where"], &rows, room);
        }
        comment.folded("Examples: why each has changed", &rows, EXAMPLES);
        assert_eq!(comment.left_out.len(), 7);
        let text = comment.end(&"x".repeat(COMMAND));
        assert!((50_000..65_536).contains(&text.len()), "{}", text.len());
    }

    #[test]
    fn the_command_is_one_that_a_shell_takes() {
        #[track_caller]
        fn check(word: &str, expected: &str) {
            assert_eq!(quoted(word), expected);
        }
        check("../old/shop-1.yaml", "../old/shop-1.yaml");
        check("it's new", "'it'\\''s new'");
        check("$(id)", "'$(id)'");
        check("", "''");
    }
}
