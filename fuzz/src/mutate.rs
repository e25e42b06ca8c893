//! Manifests changed at the word of a script of bytes: in their text, or in their tree, which is then written as JSON.

use palisade::manifests::{Node, Value, documents};

/// The most changes to one text: more leave nothing of it.
const CHANGES: usize = 12;

/// What stands where something else stood: words of YAML, values at the limits, names that mean something.
const WORDS: [&str; 40] = [
    "",
    "~",
    "null",
    "{}",
    "[]",
    "[[]]",
    "{a: b}",
    "- ",
    "? ",
    ": ",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "!!binary ",
    "|",
    ">-",
    "\"",
    "'",
    "#",
    "---",
    "...",
    "\t",
    "\r\n",
    "\u{feff}",
    "\0",
    "\"\\ud800\"",
    "-1",
    "0",
    "65535",
    "65536",
    "1e999",
    "9223372036854775808",
    "0.0.0.0/0",
    "::ffff:10.0.0.0/104",
    "010.1.1.1/8",
    "10.0.0.0/33",
    "In",
    "NotIn",
    "yes",
];

/// Keys that an entry may get instead of its own.
const KEYS: [&str; 12] = [
    "podSelector",
    "namespaceSelector",
    "ipBlock",
    "except",
    "ports",
    "endPort",
    "items",
    "kind",
    "from",
    "to",
    "metadata",
    "<<",
];

/// Bytes that are read as decisions; when they are used up, every decision is the first one.
pub(super) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Script(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below a limit, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        let taken = if limit > 256 { 2 } else { 1 };
        let (bytes, rest) = self.0.split_at(taken.min(self.0.len()));
        self.0 = rest;
        bytes.iter().fold(0, |number, b| number * 256 + usize::from(*b)) % limit
    }

    pub(super) fn pick<T>(&mut self, from: impl ExactSizeIterator<Item = T>) -> Option<T> {
        let mut from = from;
        let at = self.below(from.len().max(1));
        from.nth(at)
    }
}

/// Changes lines and words.
pub(super) fn text(text: &str, script: &mut Script<'_>) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..CHANGES {
        if script.is_empty() || lines.is_empty() {
            break;
        }
        let at = script.below(lines.len());
        let word = WORDS[script.below(WORDS.len())];
        match script.below(8) {
            0 => {
                lines.remove(at);
            }
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let other = script.below(lines.len());
                lines.swap(at, other);
            }
            3 => lines[at].insert_str(0, &" ".repeat(script.below(4))),
            4 => lines[at] = lines[at].trim_start_matches(' ').to_owned(),
            5 => lines.insert(at, word.to_owned()),
            6 => {
                let key = lines[at].split_once(": ").map_or("", |(key, _)| key).to_owned();
                lines[at] = format!("{key}: {word}");
            }
            _ => {
                let places: Vec<usize> = lines[at].char_indices().map(|(at, _)| at).collect();
                let place = places.get(script.below(places.len().max(1))).copied().unwrap_or(0);
                lines[at].insert_str(place, word);
            }
        }
    }
    let end = ["\n", "\r\n", "\r"][script.below(3)];
    lines.join(end)
}

/// Changes values, keys and lists.
pub(super) fn tree(text: &str, script: &mut Script<'_>) -> String {
    let mut nodes = documents(text).documents;
    for _ in 0..CHANGES {
        let Some(at) = (!script.is_empty() && !nodes.is_empty()).then(|| script.below(nodes.len())) else {
            break;
        };
        change(&mut nodes[at], script);
    }
    let mut out = String::new();
    for node in &nodes {
        write(node, &mut out);
        out.push('\n');
    }
    out
}

/// Goes down a random way and changes what is there.
fn change(node: &mut Node, script: &mut Script<'_>) {
    let deeper = script.below(8) > 0;
    match &mut node.value {
        Value::List(items) if deeper && !items.is_empty() => {
            let at = script.below(items.len());
            match script.below(6) {
                0 => {
                    items.remove(at);
                }
                1 => items.push(items[at].clone()),
                _ => change(&mut items[at], script),
            }
        }
        Value::Map(entries) if deeper && !entries.is_empty() => {
            let at = script.below(entries.len());
            match script.below(10) {
                0 => {
                    entries.remove(at);
                }
                1 => entries.push(entries[at].clone()),
                2 => entries[at].key = KEYS[script.below(KEYS.len())].into(),
                _ => change(&mut entries[at].value, script),
            }
        }
        value => {
            *value = match script.below(8) {
                0 => Value::Null,
                1 => Value::Bool(true),
                2 => Value::Integer([0, -1, 1, 53, 80, 65_535, 65_536, i64::MAX][script.below(8)]),
                3 => Value::Float(0.5),
                4 => Value::List(vec![plain(value.clone()), plain(value.clone())]),
                5 => Value::Map(Vec::new()),
                6 => Value::String("x".repeat([1, 15, 16, 63, 64, 253, 254, 10_000][script.below(8)])),
                _ => Value::String(WORDS[script.below(WORDS.len())].to_owned()),
            };
        }
    }
}

fn plain(value: Value) -> Node {
    Node {
        position: Default::default(),
        value,
        source: None,
    }
}

fn write(node: &Node, out: &mut String) {
    match &node.value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(&value.to_string()),
        Value::Integer(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&value.to_string()),
        Value::String(text) => quoted(text, out),
        Value::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write(item, out);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for (at, entry) in entries.iter().enumerate() {
                out.push_str(if at > 0 { ",\n" } else { "" });
                quoted(&entry.key, out);
                out.push(':');
                write(&entry.value, out);
            }
            out.push('}');
        }
    }
}

fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}
