//! JSON text in, the same trees out as `yaml` makes.
//!
//! YAML's grammar includes JSON's, but a YAML parser holds a whole JSON document in tokens before it knows what it
//! begins with, refuses tabs and knows no surrogate pairs; and a dump of a cluster is one large JSON document.

use std::collections::HashMap;

use super::scalar;
use super::yaml::{Documents, Entry, MAX_DEPTH, Node, Position, SyntaxError, Value, duplicate};

/// Reads a text as JSON values, one after another; the error says where it is no longer JSON.
pub(super) fn documents(text: &str) -> Result<Documents, SyntaxError> {
    let mut reader = Reader {
        rest: text,
        position: Position { line: 1, column: 1 },
        errors: Vec::new(),
    };
    let mut documents = Vec::new();
    loop {
        reader.blanks();
        if reader.rest.is_empty() {
            break;
        }
        documents.push(reader.value(0)?);
    }
    Ok(Documents {
        documents,
        errors: reader.errors,
    })
}

struct Reader<'t> {
    rest: &'t str,
    position: Position,
    errors: Vec<SyntaxError>,
}

impl<'t> Reader<'t> {
    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let position = self.position;
        let (value, source) = match self.rest.as_bytes().first() {
            _ if depth > MAX_DEPTH => return self.fail("less nesting"),
            Some(b'{') => (self.object(depth)?, None),
            Some(b'[') => (self.list(depth)?, None),
            Some(b'"') => (Value::String(self.string()?), None),
            _ => {
                let end = self
                    .rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'));
                let word = &self.rest[..end.unwrap_or(self.rest.len())];
                if !matches!(word, "null" | "true" | "false") && !is_number(word) {
                    return self.fail("a value");
                }
                self.skip(word.len());
                (scalar::resolve(word), Some(word.into()))
            }
        };
        Ok(Node {
            position,
            value,
            source,
        })
    }

    fn object(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<Box<str>, Position> = HashMap::new();
        self.skip(1);
        self.blanks();
        while !self.taken("}") {
            if !places.is_empty() {
                self.expect(",", "a comma or a closing brace")?;
                self.blanks();
            }
            let position = self.position;
            if !self.rest.starts_with('"') {
                return self.fail("a key in quotes");
            }
            let key: Box<str> = self.string()?.into();
            self.blanks();
            self.expect(":", "a colon")?;
            self.blanks();
            let value = self.value(depth + 1)?;
            self.blanks();
            match places.get(&key) {
                Some(first) => self.errors.push(duplicate(&key, *first, position)),
                None => {
                    places.insert(key.clone(), position);
                    entries.push(Entry { key, position, value });
                }
            }
        }
        entries.shrink_to_fit();
        Ok(Value::Map(entries))
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        self.skip(1);
        self.blanks();
        while !self.taken("]") {
            if !items.is_empty() {
                self.expect(",", "a comma or a closing bracket")?;
                self.blanks();
            }
            items.push(self.value(depth + 1)?);
            self.blanks();
        }
        items.shrink_to_fit();
        Ok(Value::List(items))
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let mut out = String::new();
        self.skip(1);
        loop {
            let Some(end) = self.rest.find(|c: char| matches!(c, '"' | '\\') || c < ' ') else {
                return self.fail("a closing quotation mark");
            };
            out.push_str(&self.rest[..end]);
            self.skip(end);
            if self.taken("\"") {
                return Ok(out);
            }
            let Some((c, length)) = escape(self.rest) else {
                return self.fail("an escape of JSON");
            };
            out.push(c);
            self.skip(length);
        }
    }

    fn blanks(&mut self) {
        let end = self.rest.find(|c| !matches!(c, ' ' | '\t' | '\r' | '\n'));
        self.skip(end.unwrap_or(self.rest.len()));
    }

    fn taken(&mut self, token: &str) -> bool {
        let there = self.rest.starts_with(token);
        if there {
            self.skip(token.len());
        }
        there
    }

    fn expect(&mut self, token: &str, name: &str) -> Result<(), SyntaxError> {
        if self.taken(token) { Ok(()) } else { self.fail(name) }
    }

    fn skip(&mut self, length: usize) {
        let (passed, rest) = self.rest.split_at(length);
        for c in passed.chars() {
            match c {
                '\n' => {
                    self.position.line = self.position.line.saturating_add(1);
                    self.position.column = 1;
                }
                _ => self.position.column = self.position.column.saturating_add(1),
            }
        }
        self.rest = rest;
    }

    fn fail<T>(&self, expected: &str) -> Result<T, SyntaxError> {
        Err(SyntaxError {
            position: self.position,
            message: format!("malformed JSON: expected {expected}"),
        })
    }
}

/// The character that an escape at the beginning of a text stands for, and how long it is in bytes.
fn escape(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        let hexadecimal = digits.bytes().all(|b| b.is_ascii_hexdigit());
        u16::from_str_radix(digits, 16).ok().filter(|_| hexadecimal)
    };
    let simple = |c| Some((c, 2));
    match text.strip_prefix('\\')?.chars().next()? {
        c @ ('"' | '\\' | '/') => simple(c),
        'b' => simple('\u{8}'),
        'f' => simple('\u{c}'),
        'n' => simple('\n'),
        'r' => simple('\r'),
        't' => simple('\t'),
        'u' => {
            let first = unit(0)?;
            let pair = unit(6).and_then(|second| char::decode_utf16([first, second]).next()?.ok());
            match pair {
                Some(c) if u32::from(c) > 0xffff => Some((c, 12)),
                // Half a pair stands for no character; Go's decoder puts this one there.
                _ => Some((char::from_u32(first.into()).unwrap_or(char::REPLACEMENT_CHARACTER), 6)),
            }
        }
        _ => None,
    }
}

fn is_number(word: &str) -> bool {
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let whole = unsigned.split(['.', 'e', 'E']).next().unwrap_or_default();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let fraction_is_full = unsigned
        .split_once('.')
        .is_none_or(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    digits(whole) && (whole == "0" || !whole.starts_with('0')) && fraction_is_full && word.parse::<f64>().is_ok()
}
