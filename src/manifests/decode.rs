//! From a YAML tree to a typed value, strictly: a field that the type does not know is an error.
//!
//! Every unknown field and every value of a wrong type is found, each with its place and its field path.

mod failure;

use policy_compiler::convert::{FieldPath, Path};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};

pub(crate) use failure::nearest;
use failure::{Failure, Notes, one_of, shortened, unknown_field};

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
/// All unknown fields and all values of a wrong type, in the order of the text.
pub fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, Vec<DecodeError>> {
    match decode_known(node) {
        (Some(value), errors) if errors.is_empty() => Ok(value),
        (_, errors) => Err(errors),
    }
}

/// As [`decode`], but with the value beside the errors when nothing worse than unknown fields is wrong: it is what the
/// known fields say.
pub(super) fn decode_known<T: DeserializeOwned>(node: &Node) -> (Option<T>, Vec<DecodeError>) {
    let notes = Notes::default();
    let mut failures = Vec::new();
    let value = loop {
        let outcome = T::deserialize(Decoder {
            node,
            path: &Path::Root,
            notes: &notes,
        });
        let failure = match outcome {
            Ok(value) => break Some(value),
            Err(failure) => failure,
        };
        // Decoding ends at the first wrong value, so it is left out and decoding begins again, until all are found.
        let (position, path) = failure.place.unwrap_or_default();
        let left_out = notes.leave_out(&path);
        // What misses something because its wrong value was left out follows from what has been reported.
        if !notes.left_out_of(&path) {
            failures.push(DecodeError {
                position,
                path,
                message: failure.message,
            });
        }
        if !left_out || failures.len() >= MOST_FAILURES {
            break None;
        }
    };
    let value = value.filter(|_| failures.is_empty());
    let mut errors = notes.unknown.into_inner();
    errors.append(&mut failures);
    errors.sort_by(|a, b| (a.position, &a.path).cmp(&(b.position, &b.path)));
    errors.dedup();
    (value, errors)
}

/// Each wrong value costs one more round over the object, and nobody reads more of them than this.
const MOST_FAILURES: usize = 50;

#[derive(Clone, Copy)]
struct Decoder<'n, 'p> {
    node: &'n Node,
    path: &'p Path<'p>,
    notes: &'p Notes,
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
                    notes: self.notes,
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
        let (node, path) = loop {
            let index = self.next;
            let Some(node) = self.items.get(index) else {
                return Ok(None);
            };
            self.next += 1;
            let path = self.decoder.path.index(index);
            if !self.decoder.notes.is_left_out(&path) {
                break (node, path);
            }
        };
        let decoder = Decoder {
            node,
            path: &path,
            notes: self.decoder.notes,
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
                    self.decoder.notes.unknown.borrow_mut().push(DecodeError {
                        position: entry.position,
                        path: self.path_of(&entry.key).to_field_path(),
                        message: unknown_field(&entry.key, fields),
                    });
                }
                _ if self.decoder.notes.is_left_out(&self.path_of(&entry.key)) => {}
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
            notes: self.decoder.notes,
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
