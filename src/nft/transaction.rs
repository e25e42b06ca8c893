//! A transaction is a value: a list of operations, each validated when it is added, printable as nft text, applied in one
//! go. Operations speak of the one table only; there is no way to name another.

use std::fmt;

use thiserror::Error;

use super::denials::{self, Denial};
use super::names::{ChainName, SetName, TABLE, TABLE_FAMILY};
use super::ruleset::{COMMENT_LIMIT, Element, Key, Rule};
use super::schema::Document;
use super::text::{self, Line};

/// One operation on the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes the table, unless it is there.
    AddTable,
    /// Removes the table with everything in it.
    DeleteTable,
    /// Makes a chain.
    AddChain(ChainName),
    /// Removes the rules of a chain.
    FlushChain(ChainName),
    /// Removes an empty chain to which nothing refers.
    DeleteChain(ChainName),
    /// Appends a rule.
    AddRule(ChainName, Rule),
    /// Makes a set or map.
    AddSet(SetName),
    /// Removes a set or map to which no rule refers, with its elements.
    DeleteSet(SetName),
    /// Adds elements.
    AddElements(SetName, Vec<(Key, Element)>),
    /// Removes elements.
    DeleteElements(SetName, Vec<Key>),
    /// Removes entries of the record, which only rules fill.
    Forget(SetName, Vec<Denial>),
}

impl Operation {
    /// The chain whose rules it changes, if any.
    pub fn chain(&self) -> Option<ChainName> {
        match self {
            Operation::AddChain(chain)
            | Operation::FlushChain(chain)
            | Operation::DeleteChain(chain)
            | Operation::AddRule(chain, _) => Some(*chain),
            _ => None,
        }
    }
}

/// Why an operation was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OperationError {
    /// nft would refuse an empty list.
    #[error("no elements are given for set {0}; leave the operation out")]
    NoElements(SetName),
    /// The set holds elements of another type or family.
    #[error("element {key} is not of the type of set {set}")]
    WrongType {
        /// The set.
        set: SetName,
        /// The element.
        key: Key,
    },
    /// A map's elements have verdicts, a set's have none.
    #[error("element {key} of {set}: a map's element needs a chain to go to, and a set's has none")]
    WrongVerdict {
        /// The set.
        set: SetName,
        /// The element.
        key: Key,
    },
    /// Only rules fill this set.
    #[error("set {0} is filled by rules, not by transactions")]
    Dynamic(SetName),
    /// A comment that nft would refuse, or list wrongly.
    #[error("comment {0:?} is too long or has characters that nft cannot list; use ruleset::comment")]
    Comment(String),
    /// A rule with a part that this program can neither print nor trace.
    #[error("chain {chain}: a rule has a part that is not known: {rule}")]
    UnknownRule {
        /// The chain.
        chain: ChainName,
        /// The rule as text.
        rule: String,
    },
}

/// Operations to be applied in order. A step is applied all or nothing; what a later step does to rules in use, an earlier
/// one has only prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    steps: Vec<Vec<Operation>>,
}

impl Transaction {
    /// Appends an operation to the last step.
    pub fn add(&mut self, operation: Operation) -> Result<(), OperationError> {
        validate(&operation)?;
        match self.steps.last_mut() {
            Some(step) => step.push(operation),
            None => self.steps.push(vec![operation]),
        }
        Ok(())
    }

    /// Appends an operation to the first step.
    pub fn add_to_first_step(&mut self, operation: Operation) -> Result<(), OperationError> {
        validate(&operation)?;
        match self.steps.first_mut() {
            Some(step) => step.push(operation),
            None => self.steps.push(vec![operation]),
        }
        Ok(())
    }

    /// Begins another step, when the last one has any operation.
    pub fn next_step(&mut self) {
        if self.steps.last().is_some_and(|step| !step.is_empty()) {
            self.steps.push(Vec::new());
        }
    }

    /// The steps, each a list of operations.
    pub fn steps(&self) -> impl Iterator<Item = &[Operation]> {
        self.steps.iter().map(Vec::as_slice).filter(|step| !step.is_empty())
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps().next().is_none()
    }

    /// The number of operations, counting each element.
    pub fn size(&self) -> usize {
        let size = |operation: &Operation| match operation {
            Operation::AddElements(_, elements) => elements.len(),
            Operation::DeleteElements(_, keys) => keys.len(),
            Operation::Forget(_, entries) => entries.len(),
            _ => 1,
        };
        self.steps.iter().flatten().map(size).sum()
    }

    /// The same operations, all or nothing.
    #[must_use]
    pub fn in_one_step(&self) -> Transaction {
        Transaction {
            steps: vec![self.steps.concat()],
        }
    }

    /// One document for `nft -j -f -` for each step.
    pub fn to_json(&self) -> Result<Vec<String>, serde_json::Error> {
        self.steps()
            .map(|step| serde_json::to_string(&Document::new(step)))
            .collect()
    }
}

impl fmt::Display for Transaction {
    /// As nft text; an empty line stands between steps.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            for operation in step {
                writeln!(f, "{operation}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("{TABLE_FAMILY} {TABLE}");
        match self {
            Operation::AddTable => write!(f, "add table {table}"),
            Operation::DeleteTable => write!(f, "delete table {table}"),
            Operation::AddChain(name) => match text::hook(*name) {
                Some(hook) => write!(f, "add chain {table} {name} {{ {hook} }}"),
                None => write!(f, "add chain {table} {name}"),
            },
            Operation::FlushChain(name) => write!(f, "flush chain {table} {name}"),
            Operation::DeleteChain(name) => write!(f, "delete chain {table} {name}"),
            Operation::AddRule(name, rule) => write!(f, "add rule {table} {name} {}", Line(rule)),
            Operation::AddSet(name) => {
                write!(
                    f,
                    "add {} {table} {name} {{ {} }}",
                    text::set_word(*name),
                    text::set_spec(*name)
                )
            }
            Operation::DeleteSet(name) => write!(f, "delete {} {table} {name}", text::set_word(*name)),
            Operation::AddElements(name, elements) => {
                let elements: Vec<String> = elements.iter().map(|(key, e)| text::element(key, e)).collect();
                write!(f, "add element {table} {name} {{ {} }}", elements.join(", "))
            }
            Operation::DeleteElements(name, keys) => {
                let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
                write!(f, "delete element {table} {name} {{ {} }}", keys.join(", "))
            }
            Operation::Forget(name, entries) => {
                let entries: Vec<String> = entries.iter().map(denials::element).collect();
                write!(f, "delete element {table} {name} {{ {} }}", entries.join(", "))
            }
        }
    }
}

fn validate(operation: &Operation) -> Result<(), OperationError> {
    match operation {
        Operation::AddRule(chain, rule) => {
            if !rule.is_known() {
                return Err(OperationError::UnknownRule {
                    chain: *chain,
                    rule: format!("{:?}", rule.statements),
                });
            }
            validate_comment(rule.comment.as_deref())
        }
        Operation::AddElements(set, elements) => {
            validate_keys(*set, elements.iter().map(|(key, _)| key))?;
            for (key, element) in elements {
                if element.goto.is_some() != set.is_map() {
                    return Err(OperationError::WrongVerdict { set: *set, key: *key });
                }
                validate_comment(element.comment.as_deref())?;
            }
            Ok(())
        }
        Operation::DeleteElements(set, keys) => validate_keys(*set, keys.iter()),
        Operation::Forget(set, entries) => match entries.iter().find(|entry| entry.set() != *set) {
            Some(Denial { from, to, .. }) => Err(OperationError::WrongType {
                set: *set,
                key: Key::Pair(*from, *to),
            }),
            None if entries.is_empty() => Err(OperationError::NoElements(*set)),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn validate_keys<'a>(set: SetName, mut keys: impl Iterator<Item = &'a Key>) -> Result<(), OperationError> {
    if set.is_dynamic() {
        return Err(OperationError::Dynamic(set));
    }
    let mut keys = keys.by_ref().peekable();
    if keys.peek().is_none() {
        return Err(OperationError::NoElements(set));
    }
    match keys.find(|key| !key.fits(&set)) {
        Some(key) => Err(OperationError::WrongType { set, key: *key }),
        None => Ok(()),
    }
}

fn validate_comment(comment: Option<&str>) -> Result<(), OperationError> {
    let listable = |c: char| (c.is_ascii_graphic() || c == ' ') && c != '"' && c != '\\';
    match comment {
        Some(text) if text.len() > COMMENT_LIMIT || !text.chars().all(listable) => {
            Err(OperationError::Comment(text.to_owned()))
        }
        _ => Ok(()),
    }
}
