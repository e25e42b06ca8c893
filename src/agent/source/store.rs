//! The objects of one kind as last seen: what a watch tells goes in, what has really changed comes out.
//!
//! Most events of a real cluster change nothing that policy depends on (a pod's conditions, a node's images); they end here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use policy_compiler::compile::Event;

use super::intern::Pool;
use super::kinds::{Key, Oddity, Outcome, Read, Watched};

/// Objects of one kind.
pub(super) struct Store<K: Watched> {
    held: HashMap<Key, Held<K>>,
    /// What is wrong with those that cannot be read, or not as a whole.
    invalid: BTreeMap<Key, Wrong>,
    /// Whether that may be something else than when it was last asked for.
    invalid_changed: bool,
    pub(super) pool: Pool,
}

struct Held<K: Watched> {
    object: Arc<K::Object>,
    /// Not what the API server holds, but what could be read of it.
    salvaged: bool,
    /// Whether it has been told, for certain.
    told: bool,
}

/// A list that is still coming in. What was held stays as it is until the list is complete.
pub(super) struct Listing<K: Watched> {
    seen: HashSet<Key>,
    changed: HashMap<Key, Held<K>>,
    invalid: BTreeMap<Key, Wrong>,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    /// What is done instead of what the object says.
    pub(super) remedy: &'static str,
}

/// An object that cannot be read, told for the first time.
pub(super) struct Complaint {
    pub(super) key: Key,
    pub(super) wrong: Wrong,
}

impl<K: Watched> Default for Store<K> {
    fn default() -> Self {
        Store {
            held: HashMap::new(),
            invalid: BTreeMap::new(),
            invalid_changed: false,
            pool: Pool::default(),
        }
    }
}

impl<K: Watched> Default for Listing<K> {
    fn default() -> Self {
        Listing {
            seen: HashSet::new(),
            changed: HashMap::new(),
            invalid: BTreeMap::new(),
        }
    }
}

impl<K: Watched> Store<K> {
    /// How many objects are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// What is wrong with the objects that cannot be read, when that may have changed since the last call.
    pub(super) fn invalid(&mut self) -> Option<&BTreeMap<Key, Wrong>> {
        std::mem::take(&mut self.invalid_changed).then_some(&self.invalid)
    }

    /// Whether there is such an object, readable or not.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.held.contains_key(key) || self.invalid.contains_key(key)
    }

    /// Something has gone wrong between here and the loop: all that is held is told again when it comes again.
    pub(super) fn distrust(&mut self) {
        self.held.values_mut().for_each(|held| held.told = false);
    }

    /// An object was added or changed.
    pub(super) fn put(&mut self, read: Read<K::Object>) -> (Option<Event>, Option<Complaint>) {
        let Read { key, outcome, .. } = read;
        let (held, complaint) = self.judge(&key, outcome);
        let before = match &complaint {
            Some(complaint) => self.invalid.insert(key.clone(), complaint.wrong.clone()),
            None => self.invalid.remove(&key),
        };
        self.invalid_changed |= before.is_some() || complaint.is_some();
        let told = |complaint: &Complaint| before.as_ref().is_some_and(|b| b.message == complaint.wrong.message);
        let news = complaint.filter(|complaint| !told(complaint));
        (held.and_then(|held| self.hold(key, held)), news)
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Event> {
        self.invalid_changed |= self.invalid.remove(key).is_some();
        self.held.remove(key).map(|_| K::gone(key))
    }

    /// An object of a list that is coming in.
    pub(super) fn list(&self, listing: &mut Listing<K>, read: Read<K::Object>) -> Option<Complaint> {
        let Read { key, outcome, .. } = read;
        let (held, complaint) = self.judge(&key, outcome);
        listing.seen.insert(key.clone());
        match held {
            Some(held) if self.differs(&key, &held) => listing.changed.insert(key.clone(), held),
            _ => listing.changed.remove(&key),
        };
        let Some(complaint) = complaint else {
            listing.invalid.remove(&key);
            return None;
        };
        let known = self
            .invalid
            .get(&key)
            .is_some_and(|k| k.message == complaint.wrong.message);
        listing.invalid.insert(key, complaint.wrong.clone());
        (!known).then_some(complaint)
    }

    /// An object went while the list came in.
    pub(super) fn unlist(listing: &mut Listing<K>, key: &Key) {
        listing.seen.remove(key);
        listing.changed.remove(key);
        listing.invalid.remove(key);
    }

    /// The list is complete: the differences to what was held.
    pub(super) fn finish(&mut self, listing: Listing<K>) -> Vec<Event> {
        let gone: Vec<Key> = self
            .held
            .keys()
            .filter(|k| !listing.seen.contains(k))
            .cloned()
            .collect();
        let mut events: Vec<Event> = gone.iter().filter_map(|key| self.remove(key)).collect();
        for (key, held) in listing.changed {
            events.extend(self.hold(key, held));
        }
        self.invalid_changed |= !(self.invalid.is_empty() && listing.invalid.is_empty());
        self.invalid = listing.invalid;
        self.held.shrink_to_fit();
        events
    }

    /// What to hold of an object, if anything new, and what is wrong with it.
    fn judge(&self, key: &Key, outcome: Outcome<K::Object>) -> (Option<Held<K>>, Option<Complaint>) {
        let unreadable = match outcome {
            Ok((object, odd)) => {
                let held = Held {
                    object: Arc::new(object),
                    salvaged: false,
                    told: true,
                };
                let complaint = odd.map(|Oddity { message, remedy }| Complaint {
                    key: key.clone(),
                    wrong: Wrong { message, remedy },
                });
                return (Some(held), complaint);
            }
            Err(unreadable) => unreadable,
        };
        let good = self.held.get(key).is_some_and(|held| !held.salvaged);
        let remedy = unreadable.remedy();
        let (held, remedy) = match unreadable.salvaged {
            // What was good once is nearer to what is meant than the readable part of what is not.
            _ if good => (None, "its last good version stays in force"),
            Some(object) => {
                let held = Held {
                    object: Arc::new(object),
                    salvaged: true,
                    told: true,
                };
                (Some(held), remedy)
            }
            None => (None, remedy),
        };
        let complaint = Complaint {
            key: key.clone(),
            wrong: Wrong {
                message: unreadable.message,
                remedy,
            },
        };
        (held, Some(complaint))
    }

    fn differs(&self, key: &Key, new: &Held<K>) -> bool {
        let same = |held: &Held<K>| held.told && held.salvaged == new.salvaged && held.object == new.object;
        !self.held.get(key).is_some_and(same)
    }

    /// Holds an object; the event when it is not what was held.
    fn hold(&mut self, key: Key, new: Held<K>) -> Option<Event> {
        if !self.differs(&key, &new) {
            return None;
        }
        let object = new.object.clone();
        let before = self.held.insert(key, new);
        // Equal but for having been salvaged: nobody else cares.
        if before.is_some_and(|before| before.told && before.object == object) {
            return None;
        }
        Some(K::event(object))
    }
}
