//! YAML text in, trees of values out, each value with its line and column.
//!
//! The tree is what kubectl makes of the same text: plain scalars resolve by YAML 1.1, keys are strings, merge keys
//! (`<<`) are merged. JSON goes to a reader of its own. Mistakes that need not stop the reading are collected.

use std::collections::HashMap;

use policy_compiler::convert::{FieldPath, Segment};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::{json, scalar, template};

/// The deepest nesting of mappings and lists.
pub const MAX_DEPTH: usize = 128;

/// How many values a text may gain by its aliases; a bomb of nested aliases would gain billions.
pub const MAX_ALIASED: usize = 1_000_000;

/// A place in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// A value in a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub position: Position,
    /// The value.
    pub value: Value,
    /// How a plain scalar that is no string was written: `yes` for true.
    pub source: Option<Box<str>>,
}

/// What a value can be: what JSON has.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// A boolean; YAML 1.1 has many spellings.
    Bool(bool),
    /// A whole number of 64 bits.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text; every key once.
    Map(Vec<Entry>),
}

/// An entry of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: Box<str>,
    /// Where the key stands.
    pub position: Position,
    /// The value.
    pub value: Node,
}

/// What is wrong with a text before anything is known of its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub position: Position,
    /// What, in a lower-case sentence without a full stop.
    pub message: String,
}

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    /// The documents that are not empty, up to the first that cannot be read.
    pub documents: Vec<Node>,
    /// Everything that is wrong.
    pub errors: Vec<SyntaxError>,
}

/// Reads all documents of a text, YAML or JSON. It never fails as a whole: the errors stand beside what could be read.
pub fn documents(text: &str) -> Documents {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut read = json_or_yaml(text);
    template::hint_by_line(text, &mut read.errors);
    read
}

fn json_or_yaml(text: &str) -> Documents {
    let no_json = match text.trim_start().starts_with(['{', '[']).then(|| json::documents(text)) {
        Some(Ok(documents)) => return documents,
        Some(Err(no_json)) => Some(no_json),
        None => None,
    };
    let (mut read, no_yaml) = yaml_documents(text);
    if let Some(no_yaml) = no_yaml {
        // YAML in flow style begins as JSON does. The grammar that came further is the one that was meant.
        let further = no_json.filter(|no_json| no_json.position >= no_yaml.position);
        read.errors.push(further.unwrap_or(no_yaml));
    }
    read
}

/// What can be read as YAML, and the error that ended the reading, if one did.
fn yaml_documents(text: &str) -> (Documents, Option<SyntaxError>) {
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        aliased: 0,
        errors: Vec::new(),
    };
    let mut documents = Vec::new();
    let end = builder.read(&mut documents).err();
    let read = Documents {
        documents,
        errors: builder.errors,
    };
    (read, end)
}

/// The complaint about a key that is given twice.
pub(super) fn duplicate(key: &str, first: Position, second: Position) -> SyntaxError {
    // Two objects in one document, mostly because files were joined without a separator.
    let separate = match key {
        "apiVersion" => ", or a line --- between two objects",
        _ => "",
    };
    SyntaxError {
        position: second,
        message: format!(
            "\"{key}\" is already there in line {}: write it once{separate}",
            first.line
        ),
    }
}

impl Node {
    /// The entries of a mapping; none of any other value.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The value of a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| &*e.key == key).map(|e| &e.value)
    }

    /// The value as a string, when it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where a field stands, or the nearest thing around it that is there: a scalar itself, else its key.
    pub fn locate(&self, path: &FieldPath) -> Position {
        let (mut node, mut position) = (self, self.position);
        for segment in path.segments() {
            match (segment, &node.value) {
                (Segment::Index(index), Value::List(items)) => {
                    let Some(item) = items.get(*index) else {
                        return position;
                    };
                    (node, position) = (item, item.position);
                }
                (Segment::Field(key) | Segment::Key(key), Value::Map(entries)) => {
                    let Some(entry) = entries.iter().find(|e| *e.key == **key) else {
                        return position;
                    };
                    node = &entry.value;
                    position = match node.value {
                        Value::List(_) | Value::Map(_) => entry.position,
                        _ => node.position,
                    };
                }
                _ => return position,
            }
        }
        position
    }

    /// How many values it holds, itself included.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|e| 1 + e.value.size()).sum(),
            // A long string that is repeated is a bomb as well.
            Value::String(text) => text.len() / 64,
            _ => 0,
        }
    }
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    errors: Vec<SyntaxError>,
}

impl<'t> Builder<'t> {
    fn read(&mut self, documents: &mut Vec<Node>) -> Result<(), SyntaxError> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(_), _) => {
                    self.anchors.clear();
                    let (event, span) = self.next()?;
                    let node = self.node(event, span, 0)?;
                    if node.value != Value::Null {
                        documents.push(node);
                    }
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(SyntaxError {
                position: place(error.marker()),
                message: format!("malformed YAML: {}", error.info()),
            }),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        let position = start(span);
        if depth > MAX_DEPTH {
            return Err(SyntaxError {
                position,
                message: format!("nested more than {MAX_DEPTH} levels deep: no manifest is"),
            });
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (scalar_node(&text, style, tag.as_deref(), position), anchor),
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                items.shrink_to_fit();
                (plain(position, Value::List(items)), anchor)
            }
            Event::MappingStart(anchor, _) => (self.mapping(position, depth)?, anchor),
            Event::Alias(anchor) => return self.alias(anchor, position),
            _ => (plain(position, Value::Null), 0),
        };
        if anchor > 0 {
            self.charge(&node, position)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, position: Position) -> Result<Node, SyntaxError> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            return Err(SyntaxError {
                position,
                message: "the alias stands within its own anchor, or in another document: write the value out"
                    .to_owned(),
            });
        };
        self.charge(&node, position)?;
        Ok(node)
    }

    /// Counts a copy that an anchor or an alias makes.
    fn charge(&mut self, node: &Node, position: Position) -> Result<(), SyntaxError> {
        self.aliased += node.size();
        if self.aliased > MAX_ALIASED {
            return Err(SyntaxError {
                position,
                message: format!("the aliases of this file repeat more than {MAX_ALIASED} values: write fewer"),
            });
        }
        Ok(())
    }

    fn mapping(&mut self, position: Position, depth: usize) -> Result<Node, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<Box<str>, Position> = HashMap::new();
        let mut merged: Option<Vec<Entry>> = None;
        let mut before_merge = 0;
        loop {
            let (event, span) = match self.next()? {
                (Event::MappingEnd, _) => break,
                next => next,
            };
            let key_position = start(span);
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let mut value = self.node(event, span, depth + 1)?;
            if value.source.as_deref() == Some("") {
                // Nothing stands where nothing is written; its key is the place to look at.
                value.position = key_position;
            }
            let key = match key_text(key) {
                Ok(key) => key,
                Err(message) => {
                    self.report(key_position, message);
                    continue;
                }
            };
            if let Some(first) = places.get(&key) {
                self.errors.push(duplicate(&key, *first, key_position));
                continue;
            }
            places.insert(key.clone(), key_position);
            if is_merge {
                before_merge = entries.len();
                match merge_entries(value) {
                    Ok(entries) => merged = Some(entries),
                    Err(message) => self.report(key_position, message),
                }
                continue;
            }
            entries.push(Entry {
                key,
                position: key_position,
                value,
            });
        }
        let Some(merged) = merged else {
            // Most mappings are small, and there are many of them.
            entries.shrink_to_fit();
            return Ok(plain(position, Value::Map(entries)));
        };
        // kubectl overwrites what stands before the merge key, YAML keeps it: only one order means the same to both.
        for entry in &entries[..before_merge] {
            if merged.iter().any(|m| m.key == entry.key) {
                let message = format!(
                    "\"{}\" stands before the << that also gives it: write << first",
                    entry.key
                );
                self.report(entry.position, message);
            }
        }
        for entry in merged {
            if !places.contains_key(&entry.key) {
                entries.push(entry);
            }
        }
        Ok(plain(position, Value::Map(entries)))
    }

    fn report(&mut self, position: Position, message: impl Into<String>) {
        self.errors.push(SyntaxError {
            position,
            message: message.into(),
        });
    }
}

fn start(span: Span) -> Position {
    place(&span.start)
}

fn place(marker: &Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position {
        line: number(marker.line()),
        column: number(marker.col() + 1),
    }
}

fn plain(position: Position, value: Value) -> Node {
    Node {
        position,
        value,
        source: None,
    }
}

fn scalar_node(text: &str, style: ScalarStyle, tag: Option<&Tag>, position: Position) -> Node {
    let core = tag.filter(|t| t.is_yaml_core_schema()).map(|t| t.suffix.as_str());
    let value = match (core, style) {
        (Some("str" | "binary" | "timestamp"), _) => Value::String(text.to_owned()),
        (Some("int" | "float" | "bool" | "null"), _) | (None, ScalarStyle::Plain) => scalar::resolve(text),
        _ => Value::String(text.to_owned()),
    };
    let source = (!matches!(value, Value::String(_))).then(|| text.into());
    Node {
        position,
        value,
        source,
    }
}

/// A key as JSON has it: a string.
fn key_text(key: Node) -> Result<Box<str>, &'static str> {
    match key.value {
        Value::String(text) => Ok(text.into()),
        Value::Bool(value) => Ok(value.to_string().into()),
        Value::Integer(value) => Ok(value.to_string().into()),
        Value::Float(value) => Ok(value.to_string().into()),
        Value::Null => Err("the key is empty: write a key, in quotes if it is to be the word null"),
        Value::List(_) => Err("a list cannot be a key: write a string"),
        Value::Map(_) => Err("a mapping cannot be a key: write a string"),
    }
}

/// What `<<` merges in: the entries of a mapping, or of a list of mappings, of which the earlier ones win.
fn merge_entries(value: Node) -> Result<Vec<Entry>, &'static str> {
    let maps = match value.value {
        Value::Map(entries) => return Ok(entries),
        Value::List(items) => items,
        _ => return Err("<< merges a mapping or a list of mappings: write an alias of one"),
    };
    let mut out: Vec<Entry> = Vec::new();
    for map in maps {
        let Value::Map(entries) = map.value else {
            return Err("<< merges a mapping or a list of mappings: write an alias of one");
        };
        for entry in entries {
            if !out.iter().any(|e| e.key == entry.key) {
                out.push(entry);
            }
        }
    }
    Ok(out)
}
