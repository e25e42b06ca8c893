//! From a YAML tree to a typed value, strictly: a field that the type does not know is an error.
//!
//! Every unknown field is found, and the first value of a wrong type; each with its place and its field path.

use std::cell::RefCell;
use std::fmt;

use policy_compiler::convert::{FieldPath, Path};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};

use super::yaml::{Entry, Node, Position, Value};

/// A value that a type does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Where it stands.
    pub position: Position,
    /// The field.
    pub path: FieldPath,
    /// What is wrong, in a lower-case sentence without a full stop.
    pub message: String,
}

/// Decodes a value; all of its fields must be known to the type.
///
/// Unknown fields are seen where the type asks for a struct. Types with `flatten`, and `untagged` or internally tagged
/// enums, read into a buffer first: they need `deny_unknown_fields` of their own.
///
/// # Errors
/// All unknown fields, and the first value of a wrong type, in the order of the text.
pub fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, Vec<DecodeError>> {
    let unknown = RefCell::new(Vec::new());
    let outcome = T::deserialize(Decoder {
        node,
        path: &Path::Root,
        unknown: &unknown,
    });
    let mut errors = unknown.into_inner();
    match outcome {
        Ok(value) if errors.is_empty() => Ok(value),
        Ok(_) => {
            errors.sort_by_key(|e| e.position);
            Err(errors)
        }
        Err(failure) => {
            let (position, path) = failure.place.unwrap_or_default();
            errors.push(DecodeError {
                position,
                path,
                message: failure.message,
            });
            errors.sort_by_key(|e| e.position);
            Err(errors)
        }
    }
}

#[derive(Clone, Copy)]
struct Decoder<'n, 'p> {
    node: &'n Node,
    path: &'p Path<'p>,
    unknown: &'p RefCell<Vec<DecodeError>>,
}

/// Why decoding stopped; the innermost decoder that sees it adds the place.
#[derive(Debug)]
struct Failure {
    place: Option<(Position, FieldPath)>,
    message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Failure {
            place: None,
            message: message.to_string(),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Failure::custom(format_args!("the field {field} is missing: write it"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Failure::custom(format_args!(
            "\"{variant:.80}\" is not known here: write {}",
            one_of(expected)
        ))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Failure::custom(unknown_field(field, expected))
    }
}

impl<'n> Decoder<'n, '_> {
    fn fail<T>(&self, failure: Failure) -> Result<T, Failure> {
        Err(Failure {
            place: failure
                .place
                .or_else(|| Some((self.node.position, self.path.to_field_path()))),
            message: failure.message,
        })
    }

    fn located<T>(&self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        outcome.or_else(|failure| self.fail(failure))
    }

    fn mismatch<T>(&self, expected: &str) -> Result<T, Failure> {
        let found = match &self.node.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(_) => format!("the boolean {}", self.written()),
            Value::Integer(_) | Value::Float(_) => format!("the number {}", self.written()),
            Value::String(text) => format!("the string \"{}\"", shortened(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        let hint = match (&self.node.value, expected) {
            (Value::Null, "a string") => ": write \"\" if it is to be empty".to_owned(),
            (Value::Bool(_) | Value::Integer(_) | Value::Float(_), "a string") => {
                format!(": write it in quotes, \"{}\"", self.written())
            }
            (Value::String(text), "a number" | "a whole number") if text.parse::<f64>().is_ok() => {
                format!(": write {text} without quotes")
            }
            (Value::String(text), "a boolean") if text.parse::<bool>().is_ok() => {
                format!(": write {text} without quotes")
            }
            _ => String::new(),
        };
        self.fail(de::Error::custom(format_args!(
            "expected {expected}, found {found}{hint}"
        )))
    }

    fn written(&self) -> &str {
        self.node.source.as_deref().unwrap_or_default()
    }

    fn number<V: Visitor<'n>>(self, visitor: V, expected: &str) -> Result<V::Value, Failure> {
        match self.node.value {
            Value::Integer(_) => de::Deserializer::deserialize_any(self, visitor),
            Value::Float(_) if expected == "a number" => de::Deserializer::deserialize_any(self, visitor),
            _ => self.mismatch(expected),
        }
    }

    fn map<V: Visitor<'n>>(self, visitor: V, fields: Option<&'static [&'static str]>) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Map(entries) => {
                let access = Entries {
                    decoder: self,
                    rest: entries,
                    value: None,
                    fields,
                };
                self.located(visitor.visit_map(access))
            }
            _ => self.mismatch("a mapping"),
        }
    }
}

macro_rules! numbers {
    ($expected:literal: $($method:ident)*) => {
        $(fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.number(visitor, $expected)
        })*
    };
}

impl<'n> de::Deserializer<'n> for Decoder<'n, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        let outcome = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items {
                decoder: self,
                items,
                next: 0,
            }),
            Value::Map(_) => return self.map(visitor, None),
        };
        self.located(outcome)
    }

    fn deserialize_bool<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.value {
            Value::Bool(_) => self.deserialize_any(visitor),
            _ => self.mismatch("a boolean"),
        }
    }

    numbers!("a whole number": deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    numbers!("a number": deserialize_f32 deserialize_f64);

    fn deserialize_str<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.value {
            Value::String(_) => self.deserialize_any(visitor),
            _ => self.mismatch("a string"),
        }
    }

    fn deserialize_string<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.value {
            Value::Null => self.located(visitor.visit_none()),
            _ => self.located(visitor.visit_some(self)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Failure> {
        self.located(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node.value {
            Value::List(_) => self.deserialize_any(visitor),
            _ => self.mismatch("a list"),
        }
    }

    fn deserialize_map<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.map(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'n>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.map(visitor, Some(fields))
    }

    fn deserialize_enum<V: Visitor<'n>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::String(text) => self.located(visitor.visit_enum(text.as_str().into_deserializer())),
            Value::Map(entries) if entries.len() == 1 => {
                let path = self.path.field(&entries[0].key);
                let value = Decoder {
                    node: &entries[0].value,
                    path: &path,
                    unknown: self.unknown,
                };
                self.located(visitor.visit_enum(Variant(value, &entries[0].key)))
            }
            _ => self.mismatch(&one_of(variants)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.located(visitor.visit_unit())
    }

    serde::forward_to_deserialize_any! {
        <V: Visitor<'n>>
        bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct Items<'n, 'p> {
    decoder: Decoder<'n, 'p>,
    items: &'n [Node],
    next: usize,
}

impl<'n> de::SeqAccess<'n> for Items<'n, '_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let index = self.next;
        let Some(node) = self.items.get(index) else {
            return Ok(None);
        };
        self.next += 1;
        let path = self.decoder.path.index(index);
        let decoder = Decoder {
            node,
            path: &path,
            unknown: self.decoder.unknown,
        };
        decoder.located(seed.deserialize(decoder)).map(Some)
    }
}

struct Entries<'n, 'p> {
    decoder: Decoder<'n, 'p>,
    rest: &'n [Entry],
    value: Option<&'n Entry>,
    /// The fields of a struct; none for a map, which takes any key.
    fields: Option<&'static [&'static str]>,
}

impl Entries<'_, '_> {
    fn path_of<'a>(&'a self, key: &'a str) -> Path<'a> {
        match self.fields {
            Some(_) => self.decoder.path.field(key),
            None => self.decoder.path.key(key),
        }
    }
}

impl<'n> de::MapAccess<'n> for Entries<'n, '_> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        loop {
            let Some((entry, rest)) = self.rest.split_first() else {
                return Ok(None);
            };
            self.rest = rest;
            match self.fields {
                Some(fields) if !fields.contains(&&*entry.key) => {
                    self.decoder.unknown.borrow_mut().push(DecodeError {
                        position: entry.position,
                        path: self.path_of(&entry.key).to_field_path(),
                        message: unknown_field(&entry.key, fields),
                    });
                }
                _ => {
                    self.value = Some(entry);
                    return seed.deserialize((*entry.key).into_deserializer()).map(Some);
                }
            }
        }
    }

    fn next_value_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::invalid_type(Unexpected::Map, &"a key before its value"));
        };
        let path = self.path_of(&entry.key);
        let decoder = Decoder {
            node: &entry.value,
            path: &path,
            unknown: self.decoder.unknown,
        };
        decoder.located(seed.deserialize(decoder))
    }
}

/// A variant that is written as a mapping of its name to its content.
struct Variant<'n, 'p>(Decoder<'n, 'p>, &'n str);

impl<'n, 'p> de::EnumAccess<'n> for Variant<'n, 'p> {
    type Error = Failure;
    type Variant = Decoder<'n, 'p>;

    fn variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<(S::Value, Self::Variant), Failure> {
        Ok((seed.deserialize(self.1.into_deserializer())?, self.0))
    }
}

impl<'n> de::VariantAccess<'n> for Decoder<'n, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.node.value {
            Value::Null => Ok(()),
            _ => self.mismatch("nothing"),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<S::Value, Failure> {
        self.located(seed.deserialize(self))
    }

    fn tuple_variant<V: Visitor<'n>>(self, _len: usize, visitor: V) -> Result<V::Value, Failure> {
        de::Deserializer::deserialize_seq(self, visitor)
    }

    fn struct_variant<V: Visitor<'n>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        self.map(visitor, Some(fields))
    }
}

fn unknown_field(field: &str, known: &[&str]) -> String {
    match nearest(field, known.iter().copied()) {
        Some(near) => format!("\"{field:.80}\" is not a field here: did you mean {near}?"),
        None => format!("\"{field:.80}\" is not a field here: remove it"),
    }
}

/// The known word that a mistyped one was meant to be, when one is close enough to be evident.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    let distance = |k: &str| strsim::damerau_levenshtein(&lower, &k.to_ascii_lowercase());
    let limit = (word.chars().count() / 4).clamp(1, 3);
    // It takes at least as many changes as the lengths differ by; and a word can be very long.
    let length = lower.chars().count();
    let known = known.filter(|k| k.chars().count().abs_diff(length) <= limit);
    let (distance, near) = known.map(|k| (distance(k), k)).min()?;
    (distance <= limit).then_some(near)
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    text.chars().take(57).chain("...".chars()).collect()
}
