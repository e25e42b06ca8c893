//! One look at a cluster, for commands that answer a question and end: a client goes in, the whole cluster or an error comes
//! out, never a part of it.

mod error;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use policy_compiler::cluster::Cluster;
use policy_compiler::convert::FieldPath;
use policy_compiler::diagnostics::{Code, ObjectName};
use policy_compiler::labels::Name;

use super::Timing;
use super::access::Access;
use super::intern::Pool;
use super::kinds::{Kind, Namespaces, Nodes, Oddity, Pods, Policies, Read, Resource, Services};
use super::page;
use super::transport::{self, Failure, Scope};
use super::watch::REFUSED_AGE;
use super::wire::ListMeta;
use crate::agent::backoff::Backoff;

pub use error::SnapshotError;

/// How often a page is asked for while the API server is too busy for it, or broken.
const TRIES: u32 = 4;

/// How often a page is asked for while there is no connection: somebody waits for the answer.
const CONNECTIONS: u32 = 2;

/// How often it is asked for with credentials that it does not know.
const CREDENTIALS: u32 = 2;

/// How often a list begins anew because the API server has forgotten how it stood.
const BEGINNINGS: u32 = 3;

/// How long the API server can ask to be left alone.
const LONGEST_WISH: Duration = Duration::from_secs(30);

/// How many remarks there are on the objects of a kind; the rest is counted.
const REMARKS: usize = 20;

/// What to read beside what policy is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Pods, namespaces, nodes and NetworkPolicies.
    Policy,
    /// And Services, which may be forbidden.
    Services,
}

/// A cluster as it was read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// All of it.
    pub cluster: Cluster,
    /// What is wrong with objects, or odd about them, by kind.
    pub remarks: Vec<Remark>,
    /// What the annotation [`LINT_IGNORE_ANNOTATION`](crate::manifests::LINT_IGNORE_ANNOTATION) of an object says.
    pub lint_ignore: BTreeMap<ObjectName, String>,
    /// Why there are no Services in it, when they are forbidden.
    pub no_services: Option<String>,
}

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// What sort of finding it is.
    pub code: Code,
    /// The object; without a name when the remark is not about a single one.
    pub object: ObjectName,
    /// The field; none when the object as a whole is meant.
    pub path: Option<FieldPath>,
    /// A lower-case sentence.
    pub message: String,
}

/// How far the reading is, for whoever waits: of each kind what has been read, and what remains as far as is known.
#[derive(Debug, Default)]
pub struct Count(RefCell<BTreeMap<Resource, (usize, usize)>>);

impl Count {
    /// Objects that have been read.
    pub fn read(&self) -> usize {
        self.0.borrow().values().map(|(read, _)| read).sum()
    }

    /// Objects that there are, as far as the API server has said.
    pub fn all(&self) -> usize {
        let kinds = self.0.borrow();
        kinds.values().fold(0, |all, (read, remaining)| {
            all.saturating_add(*read).saturating_add(*remaining)
        })
    }
}

/// Reads a cluster: every kind by one list, page by page, with calls of the verb `list` and no others. What fails for a
/// moment is tried again a few times.
///
/// # Errors
/// Which kinds cannot be listed, why, and what to do about it.
pub async fn snapshot(
    access: &Access,
    timing: &Timing,
    wanted: Wanted,
    count: &Count,
) -> Result<Snapshot, SnapshotError> {
    let services = async {
        match wanted {
            Wanted::Policy => Ok(Listed::default()),
            Wanted::Services => list::<Services>(access, timing, count).await,
        }
    };
    // All at once, so that they are of nearly one moment, and all to the end, so that all that is forbidden is told.
    let (namespaces, nodes, policies, pods, services) = tokio::join!(
        list::<Namespaces>(access, timing, count),
        list::<Nodes>(access, timing, count),
        list::<Policies>(access, timing, count),
        list::<Pods>(access, timing, count),
        services,
    );
    let mut failures = Vec::new();
    let mut snapshot = Snapshot::default();
    snapshot.take::<Namespaces>(namespaces, &mut failures);
    snapshot.take::<Nodes>(nodes, &mut failures);
    snapshot.take::<Policies>(policies, &mut failures);
    snapshot.take::<Pods>(pods, &mut failures);
    match services {
        Err(failure @ Failure::Refused { code: 403, .. }) => snapshot.no_services = Some(failure.to_string()),
        services => snapshot.take::<Services>(services, &mut failures),
    }
    match failures.is_empty() {
        true => Ok(snapshot),
        false => Err(SnapshotError::new(access, failures)),
    }
}

impl Snapshot {
    fn take<K: Kind>(&mut self, listed: Result<Listed<K>, Failure>, failures: &mut Vec<(Resource, Failure)>) {
        match listed {
            Ok(listed) => {
                listed.objects.into_iter().for_each(|o| K::add(&mut self.cluster, o));
                self.remarks.extend(listed.remarks.finish(K::RESOURCE.kind()));
                self.lint_ignore.extend(listed.lint_ignore);
            }
            Err(failure) => failures.push((K::RESOURCE, failure)),
        }
    }
}

/// A list that is coming in.
struct Listed<K: Kind> {
    objects: Vec<K::Object>,
    remarks: Remarks,
    lint_ignore: Vec<(ObjectName, String)>,
}

impl<K: Kind> Default for Listed<K> {
    fn default() -> Self {
        Listed {
            objects: Vec::new(),
            remarks: Remarks::default(),
            lint_ignore: Vec::new(),
        }
    }
}

impl<K: Kind> Listed<K> {
    fn add(&mut self, read: Option<Read<K::Object>>) {
        let Some(Read {
            key,
            outcome,
            doubts,
            lint_ignore,
            ..
        }) = read
        else {
            self.remarks.nameless += 1;
            return;
        };
        let object = key.object(K::RESOURCE.kind());
        self.lint_ignore
            .extend(lint_ignore.map(|rules| (object.clone(), rules)));
        for (code, doubt) in doubts {
            self.remarks.add(code, &object, Some(doubt.path), doubt.message);
        }
        match outcome {
            Ok((found, odd)) => {
                self.objects.push(found);
                if let Some(Oddity { message, remedy }) = odd {
                    let message = format!("{message}; {remedy}");
                    self.remarks.add(Code::UnknownMode, &object, None, message);
                }
            }
            Err(unreadable) => {
                let message = format!("{}; {}", unreadable.message, unreadable.remedy());
                self.remarks.add(Code::UnreadObject, &object, None, message);
                self.objects.extend(unreadable.salvaged);
            }
        }
    }
}

#[derive(Default)]
struct Remarks {
    told: Vec<Remark>,
    more: usize,
    nameless: usize,
}

impl Remarks {
    fn add(&mut self, code: Code, object: &ObjectName, path: Option<FieldPath>, message: String) {
        if self.told.len() == REMARKS {
            self.more += 1;
            return;
        }
        self.told.push(Remark {
            code,
            object: object.clone(),
            path,
            message,
        });
    }

    fn finish(mut self, kind: &'static str) -> Vec<Remark> {
        let mut rest = |number: usize, message: &str| {
            if number > 0 {
                self.told.push(Remark {
                    code: Code::UnreadObject,
                    object: ObjectName {
                        kind: kind.into(),
                        namespace: None,
                        name: Name::default(),
                    },
                    path: None,
                    message: format!("{number} {message}"),
                });
            }
        };
        rest(self.more, "more remarks of this sort");
        rest(self.nameless, "without a name: left out");
        self.told
    }
}

/// A whole list, begun anew when the API server has forgotten how it stood.
async fn list<K: Kind>(access: &Access, timing: &Timing, count: &Count) -> Result<Listed<K>, Failure> {
    let mut beginnings = 1;
    loop {
        match pages::<K>(access, timing, count).await {
            Err(failure) if failure.is_gone() && beginnings < BEGINNINGS => beginnings += 1,
            result => return result,
        }
    }
}

async fn pages<K: Kind>(access: &Access, timing: &Timing, count: &Count) -> Result<Listed<K>, Failure> {
    let mut pool = Pool::default();
    let mut listed = Listed::default();
    let mut size = page::OBJECTS;
    let mut token: Option<String> = None;
    let mut read = 0;
    loop {
        let text = match patiently::<K>(access, timing, size, token.as_deref()).await {
            Err(Failure::TooLarge) if size > 1 => {
                size = (size / 4).max(1);
                continue;
            }
            text => text?,
        };
        let (objects, metadata) = page::read::<K>(&text, &mut pool)?;
        read += objects.len();
        let remaining = metadata.remaining_item_count.unwrap_or_default();
        let remaining = usize::try_from(remaining).unwrap_or_default();
        count.0.borrow_mut().insert(K::RESOURCE, (read, remaining));
        objects.into_iter().for_each(|object| listed.add(object));
        match metadata {
            ListMeta {
                continue_token: Some(next),
                ..
            } if !next.is_empty() => {
                if token.as_ref() == Some(&next) {
                    return Err(Failure::Nonsense(
                        "the list does not go on after a page of it".to_owned(),
                    ));
                }
                token = Some(next);
            }
            ListMeta {
                resource_version: Some(version),
                ..
            } if !version.is_empty() => return Ok(listed),
            ListMeta { .. } => return Err(Failure::Nonsense("a list without a resourceVersion".to_owned())),
        }
    }
}

/// One page, asked for again after what may pass.
async fn patiently<K: Kind>(
    access: &Access,
    timing: &Timing,
    size: u32,
    token: Option<&str>,
) -> Result<Vec<u8>, Failure> {
    let mut backoff = Backoff::new(timing.first_delay, timing.longest_delay);
    let (mut busy, mut unknown, mut cut) = (0, 0, 0);
    loop {
        let client = access.client();
        let token = token.map(str::to_owned);
        let failure = match transport::page(&client, &Scope::all(K::RESOURCE), size, token, timing).await {
            Ok(text) => return Ok(text),
            Err(failure) => failure,
        };
        let (tries, most) = match &failure {
            Failure::Refused { code: 429 | 500.., .. } => (&mut busy, TRIES),
            Failure::Refused { code: 401, .. } => (&mut unknown, CREDENTIALS),
            Failure::Connection(_) => (&mut cut, CONNECTIONS),
            _ => return Err(failure),
        };
        *tries += 1;
        if *tries >= most {
            return Err(failure);
        }
        let wish = failure.retry_after().unwrap_or_default().min(LONGEST_WISH);
        if failure.is_unauthorized() {
            // They may have expired while the list came in.
            access.renew(REFUSED_AGE).await;
        }
        tokio::time::sleep(backoff.delay().max(wish)).await;
    }
}
