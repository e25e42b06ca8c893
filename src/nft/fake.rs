//! A kernel in memory. It holds a table to the rules that the real one has (nothing refers to what is not there, nothing is
//! removed while something refers to it, a step is all or nothing), and can dump itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nftables::expr::Expression;
use nftables::stmt::Statement;

use super::RECORD_SIZE;
use super::conntrack::Clearing;
use super::denials::{self, Count, Denial};
use super::expressions::name_of_number;
use super::kernel::{Kernel, KernelError};
use super::listing::Listing;
use super::marks::MarkMask;
use super::names::{ChainName, SetName, Side};
use super::ruleset::{Elements, Key, Rule, Ruleset};
use super::tracer::{Packet, Recorded, Trace, TraceError, Tracer};
use super::transaction::{Operation, Transaction};

/// The in-memory kernel.
#[derive(Debug, Default)]
pub struct Fake {
    table: Mutex<Option<Ruleset>>,
    seen: Mutex<Seen>,
    refused: Mutex<Option<Refused>>,
}

/// Which operations are refused although they are sound.
pub type Refused = fn(&Operation) -> bool;

/// What packets have left behind.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// By set and element.
    counts: BTreeMap<(SetName, Key), u64>,
    record: BTreeMap<Recorded, u64>,
    unknown: u64,
}

impl Fake {
    /// The content of the table; none when there is no table.
    pub fn content(&self) -> Option<Ruleset> {
        self.table().clone()
    }

    /// Lets a packet meet the table, which counts and records it: what becomes of it, none without a table.
    pub fn send(&self, packet: &Packet) -> Result<Option<Trace>, TraceError> {
        let table = self.table();
        let trace = table.as_ref().map(|t| Tracer::new(t).trace(packet)).transpose()?;
        if let Some(trace) = &trace {
            let mut seen = self.seen();
            for (set, address) in &trace.counted {
                *seen.counts.entry((*set, Key::Address(*address))).or_default() += 1;
            }
            seen.unknown += trace.unknown;
            for entry in &trace.recorded {
                seen.record(*entry);
            }
        }
        Ok(trace)
    }

    /// Refuses these operations from now on, and none that was refused before.
    pub fn refuse(&self, refused: Option<Refused>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    fn permits(&self, operation: &Operation) -> Result<(), &'static str> {
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refused {
            Some(refused) if refused(operation) => Err("as the test says"),
            _ => Ok(()),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Option<Ruleset>> {
        // A step works on a copy, so what a panicking thread left behind is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Fake {
    /// The table as nft text; nothing when there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.content().map_or(Ok(()), |content| content.fmt(f))
    }
}

impl Kernel for Fake {
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError> {
        let mut table = self.table();
        for step in transaction.steps() {
            let mut next = table.clone();
            for operation in step {
                apply(operation, &mut next)
                    .and_then(|()| self.seen().can_forget(operation))
                    .and_then(|()| self.permits(operation))
                    .map_err(|reason| KernelError::Refused(format!("{operation}: {reason}")))?;
            }
            self.seen().forget(step);
            *table = next;
        }
        Ok(())
    }

    fn check(&self, transaction: &Transaction) -> Result<(), KernelError> {
        let trial = Fake {
            table: Mutex::new(self.content()),
            seen: Mutex::new(self.seen().clone()),
            refused: Mutex::new(*self.refused.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        trial.apply(transaction)
    }

    fn read(&self) -> Result<Option<Listing>, KernelError> {
        Ok(self.table().as_ref().map(Listing::of))
    }

    fn delete(&self) -> Result<(), KernelError> {
        *self.table() = None;
        *self.seen() = Seen::default();
        Ok(())
    }

    fn denials(&self) -> Result<Option<Vec<Denial>>, KernelError> {
        let entry = |(entry, packets): (&Recorded, &u64)| Denial {
            packets: *packets,
            ..denial(entry)
        };
        let there = self.table().is_some();
        Ok(there.then(|| self.seen().record.iter().map(entry).collect()))
    }

    fn counts(&self, side: Side) -> Result<Option<Vec<Count>>, KernelError> {
        let name = SetName::Counters(side);
        let table = self.table();
        let Some(elements) = table.as_ref().and_then(|table| table.sets.get(&name)) else {
            return Ok(None);
        };
        let seen = self.seen();
        let count = |key: &Key| match key {
            Key::Address(address) => Some(Count {
                address: *address,
                packets: seen.counts.get(&(name, *key)).copied().unwrap_or_default(),
                bytes: 0,
            }),
            _ => None,
        };
        Ok(Some(elements.keys().filter_map(count).collect()))
    }

    fn unknown(&self) -> Result<Option<u64>, KernelError> {
        let table = self.table();
        let there = table
            .as_ref()
            .is_some_and(|table| table.chains.contains_key(&ChainName::Unknown));
        Ok(there.then(|| self.seen().unknown))
    }

    /// It tracks no connections.
    fn clear_marks(&self, _: MarkMask) -> Clearing {
        Clearing::ended(Ok(0))
    }
}

impl Seen {
    /// Without room, nothing new.
    fn record(&mut self, entry: Recorded) {
        let set = |entry: &Recorded| denials::set_of(entry.from, entry.port);
        let taken = || self.record.keys().filter(|other| set(other) == set(&entry)).count();
        if self.record.contains_key(&entry) || taken() < RECORD_SIZE as usize {
            *self.record.entry(entry).or_default() += 1;
        }
    }

    /// Whether what an operation takes out of the record is there.
    fn can_forget(&self, operation: &Operation) -> Result<(), &'static str> {
        let Operation::Forget(_, entries) = operation else {
            return Ok(());
        };
        let known: BTreeSet<String> = self
            .record
            .keys()
            .map(|entry| denials::element(&denial(entry)))
            .collect();
        match entries.iter().all(|entry| known.contains(&denials::element(entry))) {
            true => Ok(()),
            false => Err(MISSING),
        }
    }

    /// What goes with the elements, sets and tables that a step removes.
    fn forget(&mut self, step: &[Operation]) {
        for operation in step {
            match operation {
                Operation::DeleteTable => *self = Seen::default(),
                Operation::DeleteElements(set, keys) => {
                    self.counts.retain(|(s, key), _| s != set || !keys.contains(key));
                }
                Operation::Forget(_, entries) => {
                    let gone: BTreeSet<String> = entries.iter().map(denials::element).collect();
                    self.record
                        .retain(|entry, _| !gone.contains(&denials::element(&denial(entry))));
                }
                Operation::FlushChain(ChainName::Unknown) => self.unknown = 0,
                Operation::DeleteSet(set) => self.counts.retain(|(s, _), _| s != set),
                _ => {}
            }
        }
    }
}

/// An entry as it is listed, without a packet.
fn denial(entry: &Recorded) -> Denial {
    Denial {
        from: entry.from,
        to: entry.to,
        protocol: name_of_number(entry.protocol.into()).map_or(entry.protocol.to_string(), str::to_owned),
        port: entry.port,
        packets: 0,
        bytes: 0,
        ago: Duration::ZERO,
    }
}

const MISSING: &str = "No such file or directory";

fn apply(operation: &Operation, table: &mut Option<Ruleset>) -> Result<(), &'static str> {
    const BUSY: &str = "Device or resource busy";
    match operation {
        Operation::AddTable => {
            table.get_or_insert_default();
            return Ok(());
        }
        Operation::DeleteTable => return table.take().map(drop).ok_or(MISSING),
        _ => {}
    }
    let table = table.as_mut().ok_or(MISSING)?;
    match operation {
        Operation::AddTable | Operation::DeleteTable => {}
        Operation::AddChain(name) => {
            table.chains.entry(*name).or_default();
        }
        Operation::FlushChain(name) => table.chains.get_mut(name).ok_or(MISSING)?.clear(),
        Operation::DeleteChain(name) => {
            if chain_in_use(table, *name) {
                return Err(BUSY);
            }
            table.chains.remove(name).ok_or(MISSING)?;
        }
        Operation::AddRule(name, rule) => {
            let (sets, chains) = references(rule);
            let have_sets = sets
                .iter()
                .all(|s| table.sets.keys().any(|name| name.to_string() == **s));
            let have_chains = chains
                .iter()
                .all(|c| table.chains.keys().any(|name| name.to_string() == **c));
            if !have_sets || !have_chains {
                return Err(MISSING);
            }
            table.chains.get_mut(name).ok_or(MISSING)?.push(rule.clone());
        }
        Operation::AddSet(name) => {
            table.sets.entry(*name).or_default();
        }
        Operation::DeleteSet(name) => {
            let text = name.to_string();
            if table
                .chains
                .values()
                .flatten()
                .any(|rule| references(rule).0.contains(&text.as_str()))
            {
                return Err(BUSY);
            }
            table.sets.remove(name).ok_or(MISSING)?;
        }
        Operation::AddElements(name, elements) => {
            if elements
                .iter()
                .any(|(_, e)| e.goto.is_some_and(|chain| !table.chains.contains_key(&chain)))
            {
                return Err(MISSING);
            }
            let set = table.sets.get_mut(name).ok_or(MISSING)?;
            for (key, element) in elements {
                let conflict = set.get(key).is_some_and(|before| before != element);
                if conflict || overlaps(set, key) {
                    return Err("File exists");
                }
                set.insert(*key, element.clone());
            }
        }
        Operation::DeleteElements(name, keys) => {
            let set = table.sets.get_mut(name).ok_or(MISSING)?;
            for key in keys {
                set.remove(key).ok_or(MISSING)?;
            }
        }
        Operation::Forget(name, _) => {
            table.sets.get(name).ok_or(MISSING)?;
        }
    }
    Ok(())
}

fn chain_in_use(table: &Ruleset, name: ChainName) -> bool {
    let text = name.to_string();
    let by_rule = |rule: &Rule| references(rule).1.contains(&text.as_str());
    let by_element = |(set, elements): (&SetName, &Elements)| {
        set.is_map() && elements.values().any(|element| element.goto == Some(name))
    };
    table.chains.values().flatten().any(by_rule) || table.sets.iter().any(by_element)
}

fn overlaps(set: &Elements, key: &Key) -> bool {
    let Key::Interval(range) = key else { return false };
    let clash = |other: &Key| matches!(other, Key::Interval(o) if o.intersection(range).is_some());
    set.keys().any(|other| other != key && clash(other))
}

/// The sets and chains that a rule names.
fn references(rule: &Rule) -> (Vec<&str>, Vec<&str>) {
    let (mut sets, mut chains) = (Vec::new(), Vec::new());
    for statement in &rule.statements {
        let named = match statement {
            Statement::Jump(to) | Statement::Goto(to) => {
                chains.push(to.target.as_ref());
                None
            }
            Statement::Match(m) => text_of(&m.right),
            Statement::VerdictMap(v) => text_of(&v.data),
            Statement::Set(s) => Some(s.set.as_ref()),
            _ => None,
        };
        sets.extend(named.and_then(|text| text.strip_prefix('@')));
    }
    (sets, chains)
}

fn text_of<'a>(expression: &'a Expression<'static>) -> Option<&'a str> {
    match expression {
        Expression::String(text) => Some(text),
        _ => None,
    }
}
