//! Where in an object a value stands, and what is wrong with it there.

use std::fmt;

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// A field of an object.
    Field(String),
    /// An item of a list, from 0.
    Index(usize),
    /// An entry of a map, such as a label.
    Key(String),
}

/// A field path as the API server writes it: `spec.ingress[0].ports[1].endPort`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<Segment>);

impl FieldPath {
    /// The steps from the object to the field; none for the object itself.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Whether the object itself is meant.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Field(name) if at == 0 => write!(f, "{name:.320}")?,
                Segment::Field(name) => write!(f, ".{name:.320}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
                // The longest key that is one, with its prefix, has 317 characters.
                Segment::Key(key) => write!(f, "[{key:.320}]")?,
            }
        }
        Ok(())
    }
}

/// A path under construction, borrowed from its parent: it costs nothing until an error needs it.
#[derive(Clone, Copy, Debug)]
pub enum Path<'a> {
    /// The object itself.
    Root,
    /// A field of an object.
    Field(&'a Path<'a>, &'a str),
    /// An item of a list, from 0.
    Index(&'a Path<'a>, usize),
    /// An entry of a map.
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    /// The path of a field of this object.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    /// The path of an item of this list.
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    /// The path of an entry of this map.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    /// The path as a value of its own.
    pub fn to_field_path(&self) -> FieldPath {
        let mut segments = Vec::new();
        let mut at = self;
        loop {
            let (parent, segment) = match *at {
                Path::Root => break,
                Path::Field(parent, name) => (parent, Segment::Field(name.to_owned())),
                Path::Index(parent, index) => (parent, Segment::Index(index)),
                Path::Key(parent, key) => (parent, Segment::Key(key.to_owned())),
            };
            segments.push(segment);
            at = parent;
        }
        segments.reverse();
        FieldPath(segments)
    }
}

/// What is wrong with a field, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldError {
    /// Where.
    pub path: FieldPath,
    /// What, in a lower-case sentence without a full stop.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_root() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for FieldError {}

/// The errors of an object, as they are found.
#[derive(Default)]
pub(super) struct Errors(Vec<FieldError>);

impl Errors {
    pub(super) fn add(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.0.push(FieldError {
            path: path.to_field_path(),
            message: message.into(),
        });
    }

    /// Reports the complaint of a check, if it has one.
    pub(super) fn check(&mut self, path: &Path<'_>, outcome: Result<(), String>) {
        if let Err(message) = outcome {
            self.add(path, message);
        }
    }

    /// The value when nothing is wrong with it.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}
