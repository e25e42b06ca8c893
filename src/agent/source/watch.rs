//! One watch, for ever: a client goes in, the changes of one kind go to [`Shared`].
//!
//! kube's client makes the requests; its `runtime::watcher` is not used, for in its version 5.0 a watch that is refused with
//! HTTP status 410 is tried again with the same version for ever, a streaming list is asked for at version 0 (which may be
//! older than what is held already), a page with one object that has no readable metadata is lost as a whole, and neither
//! answers nor lines have bounds of time and size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::Status;
use policy_compiler::compile::Event;
use policy_compiler::labels::Name;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::{debug, info, warn};

use super::Timing;
use super::access::Access;
use super::complaints::{Complaints, tell};
use super::kinds::{Identity, Key, Kind, Read, read, unreadable};
use super::partial::Meta;
use super::shared::Shared;
use super::store::{Listing, Store};
use super::transport::{self, Failure, Next, Scope};
use crate::agent::backoff::Backoff;

/// Objects on one page of a list.
const PAGE: u32 = 500;

/// After so many streaming lists in a row that came to nothing, one is made the old way.
const STREAMS: u32 = 2;

/// How long the API server can ask to be left alone.
const LONGEST_WISH: Duration = Duration::from_secs(120);

/// How old credentials must be to be read again when they are refused, and when there is no connection.
const REFUSED_AGE: Duration = Duration::from_secs(1);
const UNCONNECTED_AGE: Duration = Duration::from_secs(30);

/// The annotation of the bookmark that ends the objects that were there at the start.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One watch and what it holds.
pub(super) struct Watch<K: Kind> {
    access: Arc<Access>,
    shared: Arc<Shared>,
    timing: Timing,
    scope: Scope,
    store: Store<K>,
    /// Up to which version the store is; none when a list is due.
    version: Option<String>,
    /// Whether the API server knows streaming lists, as far as is known.
    streaming: bool,
    broken_streams: u32,
    page: u32,
    backoff: Backoff,
}

/// How a request ended, when nothing failed.
enum End {
    /// A list is complete.
    Listed,
    /// The API server has closed the watch.
    Closed,
}

impl<K: Kind> Watch<K> {
    /// Of all objects of the kind, or of the one of this name.
    pub(super) fn new(access: Arc<Access>, shared: Arc<Shared>, timing: Timing, only: Option<Name>) -> Self {
        Watch {
            access,
            shared,
            timing,
            scope: Scope {
                resource: K::RESOURCE,
                only,
            },
            store: Store::default(),
            version: None,
            streaming: true,
            broken_streams: 0,
            page: PAGE,
            backoff: Backoff::new(timing.first_delay, timing.longest_delay),
        }
    }

    /// Lists and watches, and never ends.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let streams = self.version.is_none() && self.streaming && self.broken_streams < STREAMS;
            let result = self.once(streams).await;
            if began.elapsed() >= self.timing.long {
                self.backoff.reset();
            }
            match result {
                Ok(End::Listed) => {}
                Ok(End::Closed) if began.elapsed() >= self.timing.long => {}
                // Closed at once: asking again at once would go on like this.
                Ok(End::Closed) => tokio::time::sleep(self.backoff.delay()).await,
                Err(failure) if streams && failure.is_unsupported() => {
                    info!(resource = %K::RESOURCE, "the API server has no streaming lists: {failure}");
                    self.streaming = false;
                }
                Err(failure) => {
                    if streams && self.version.is_none() {
                        self.broken_streams += 1;
                    }
                    self.recover(failure).await;
                }
            }
        }
    }

    async fn once(&mut self, streams: bool) -> Result<End, Failure> {
        match self.version.clone() {
            Some(version) => self.follow(Some(&version)).await,
            None if streams => self.follow(None).await,
            None => self.list().await,
        }
    }

    async fn recover(&mut self, failure: Failure) {
        if failure.is_gone() {
            debug!(resource = %K::RESOURCE, "the watch is too old: it starts anew");
            self.version = None;
        } else if matches!(failure, Failure::Nonsense(_)) {
            // Whatever was missed stands in a list.
            self.version = None;
        }
        if matches!(failure, Failure::TooLarge) {
            self.page = (self.page / 4).max(1);
        }
        let delay = self.backoff.delay();
        let wish = failure.retry_after().unwrap_or_default().min(LONGEST_WISH);
        self.fail(&failure);
        if failure.is_unauthorized() {
            self.access.renew(REFUSED_AGE).await;
        } else if matches!(failure, Failure::Connection(_)) {
            // It may be the certificates.
            self.access.renew(UNCONNECTED_AGE).await;
        }
        tokio::time::sleep(delay.max(wish)).await;
    }

    /// A list, page by page.
    async fn list(&mut self) -> Result<End, Failure> {
        let mut listing = Listing::default();
        let mut token = None;
        let mut complaints = Complaints::default();
        loop {
            let client = self.access.client();
            let text = transport::page(&client, &self.scope, self.page, token, &self.timing).await?;
            let page = self.read_page(&text, &mut listing, &mut complaints)?;
            self.shared
                .note(K::RESOURCE, |health| health.heard = Some(Instant::now()));
            match page {
                ListMeta {
                    continue_token: Some(next),
                    ..
                } if !next.is_empty() => token = Some(next),
                ListMeta {
                    resource_version: Some(version),
                    ..
                } if !version.is_empty() => {
                    self.finish(listing, complaints, version);
                    return Ok(End::Listed);
                }
                ListMeta { .. } => return Err(Failure::Nonsense("a list without a resourceVersion".to_owned())),
            }
        }
    }

    fn read_page(
        &mut self,
        text: &[u8],
        listing: &mut Listing<K>,
        complaints: &mut Complaints,
    ) -> Result<ListMeta, Failure> {
        let raw = || serde_json::from_slice::<Page<&RawValue>>(text);
        // Nearly always all of them can be decoded in one go.
        if let Ok(page) = serde_json::from_slice::<Page<K::Wire>>(text) {
            for (at, wire) in page.items.into_iter().flatten().enumerate() {
                let object = || {
                    let page = raw().ok();
                    let item = page.and_then(|page| page.items?.get(at).copied());
                    item.map_or_else(Vec::new, |item| item.get().as_bytes().to_vec())
                };
                let read = read::<K>(wire, object, &mut self.store.pool);
                complaints.extend(read.and_then(|read| self.store.list(listing, read)));
            }
            return Ok(page.metadata);
        }
        let page = raw().map_err(|error| Failure::Nonsense(error.to_string()))?;
        for item in page.items.into_iter().flatten() {
            let text = item.get().as_bytes();
            match self.decode(text) {
                Some(read) => complaints.extend(self.store.list(listing, read)),
                None => complaints.nameless += 1,
            }
        }
        Ok(page.metadata)
    }

    /// A watch: from a version on, or with all objects first.
    async fn follow(&mut self, from: Option<&str>) -> Result<End, Failure> {
        let client = self.access.client();
        let mut lines = transport::watch(&client, &self.scope, from, &self.timing).await?;
        let mut listing = from.is_none().then(Listing::default);
        if from.is_some() {
            // Taken up where it was: nothing is missing, however quiet it is.
            self.report();
        }
        let mut complaints = Complaints::default();
        loop {
            let line = match lines.next(self.timing.idle).await? {
                Next::Line(line) => line,
                Next::TooLong => {
                    self.oversize();
                    continue;
                }
                Next::End if listing.is_some() => {
                    let text = "the connection was closed in the middle of a streaming list";
                    return Err(Failure::Connection(text.to_owned()));
                }
                Next::End => return Ok(End::Closed),
            };
            let change = self.read_line(line)?;
            if let Change::Bookmark(version) = &change
                && listing.is_some()
                && is_end_of_list(line)
            {
                self.finish(
                    listing.take().unwrap_or_default(),
                    std::mem::take(&mut complaints),
                    version.clone(),
                );
                continue;
            }
            match &mut listing {
                None => self.apply(change),
                Some(listing) => match change {
                    Change::Put(Some(read), _) => complaints.extend(self.store.list(listing, read)),
                    Change::Put(None, _) => complaints.nameless += 1,
                    Change::Gone(Some(key), _) => Store::<K>::unlist(listing, &key),
                    Change::Gone(None, _) | Change::Bookmark(_) => {}
                },
            }
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<Change<K>, Failure> {
        let raw = || serde_json::from_slice::<Line<&RawValue>>(line);
        let nonsense = |error: serde_json::Error| Failure::Nonsense(error.to_string());
        if let Ok(Line { what, object }) = serde_json::from_slice::<Line<K::Wire>>(line) {
            let version = K::meta(&object).resource_version.clone();
            match what {
                What::Added | What::Modified => {
                    let text = || raw().map_or_else(|_| Vec::new(), |line| line.object.get().as_bytes().to_vec());
                    return Ok(Change::Put(read::<K>(object, text, &mut self.store.pool), version));
                }
                What::Bookmark => return Ok(Change::Bookmark(version.unwrap_or_default())),
                What::Deleted | What::Error => {}
            }
        }
        let Line { what, object } = raw().map_err(nonsense)?;
        let text = object.get().as_bytes();
        let identity = || serde_json::from_str::<Identity>(object.get());
        let version = || identity().ok().and_then(|i| i.meta().resource_version);
        match what {
            What::Added | What::Modified => Ok(Change::Put(self.decode(text), version())),
            What::Deleted => Ok(Change::Gone(identity().ok().and_then(|i| i.key()), version())),
            What::Bookmark => Ok(Change::Bookmark(version().unwrap_or_default())),
            What::Error => {
                let status: Status = serde_json::from_slice(text).map_err(nonsense)?;
                Err(Failure::told(&status))
            }
        }
    }

    /// An object on its own.
    fn decode(&mut self, text: &[u8]) -> Option<Read<K::Object>> {
        match serde_json::from_slice::<K::Wire>(text) {
            Ok(wire) => read::<K>(wire, || text.to_vec(), &mut self.store.pool),
            Err(error) => unreadable::<K>(text, &error),
        }
    }

    fn apply(&mut self, change: Change<K>) {
        let (event, complaint, version): (Option<Event>, _, _) = match change {
            Change::Put(Some(read), version) => {
                let (event, complaint) = self.store.put(read);
                (event, complaint, version)
            }
            Change::Put(None, version) => {
                warn!(
                    "the API server tells of a {} without a name: it is left out",
                    K::RESOURCE.kind()
                );
                (None, None, version)
            }
            Change::Gone(key, version) => (key.and_then(|key| self.store.remove(&key)), None, version),
            Change::Bookmark(version) => (None, None, Some(version)),
        };
        if let Some(version) = version.filter(|v| !v.is_empty()) {
            self.version = Some(version);
        }
        if let Some(complaint) = complaint {
            tell(K::RESOURCE.kind(), &complaint);
        }
        self.heard();
        self.shared.add(K::RESOURCE, event);
    }

    fn finish(&mut self, listing: Listing<K>, complaints: Complaints, version: String) {
        let events = self.store.finish(listing);
        complaints.tell(K::RESOURCE.kind());
        debug!(resource = %K::RESOURCE, objects = self.store.len(), changes = events.len(), "listed");
        self.version = Some(version);
        self.broken_streams = 0;
        self.report();
        self.shared.synced(K::RESOURCE, events);
    }

    /// An event has come: all is well.
    fn heard(&mut self) {
        self.backoff.reset();
        self.report();
        self.shared.note(K::RESOURCE, |health| health.events += 1);
    }

    fn report(&self) {
        let failed = self.shared.note(K::RESOURCE, |health| {
            health.heard = Some(Instant::now());
            health.objects = self.store.len();
            health.failing_since.take()
        });
        if let Some(since) = failed {
            info!(resource = %K::RESOURCE, "watching again after {} s", since.elapsed().as_secs());
        }
        if self.shared.note(K::RESOURCE, |health| health.invalid) + self.store.invalid().len() > 0 {
            self.shared.complain(K::RESOURCE, self.store.invalid().iter());
        }
    }

    fn fail(&self, failure: &Failure) {
        // A watch that is too old is no failure of anybody: the list that follows may be one.
        let fails = !failure.is_gone();
        let first = self.shared.note(K::RESOURCE, |health| {
            health.failures += 1;
            health.error = Some(failure.to_string());
            let first = fails && health.failing_since.is_none();
            if first {
                health.failing_since = Some(Instant::now());
            }
            first
        });
        if first {
            let kept = if self.version.is_some() || self.store.len() > 0 {
                "; what is known stays in force"
            } else {
                ""
            };
            warn!(resource = %K::RESOURCE, "cannot watch: {failure}{kept}");
        } else {
            debug!(resource = %K::RESOURCE, "cannot watch: {failure}");
        }
    }

    fn oversize(&self) {
        warn!(
            resource = %K::RESOURCE,
            "the API server tells of an object of more than {} bytes: it is left out",
            super::limits::LINE
        );
        self.shared
            .note(K::RESOURCE, |health| health.heard = Some(Instant::now()));
    }
}

/// What a line of a watch says.
enum Change<K: Kind> {
    /// Added or changed; none when the object has no name.
    Put(Option<Read<K::Object>>, Option<String>),
    Gone(Option<Key>, Option<String>),
    Bookmark(String),
}

#[derive(Deserialize)]
struct Line<T> {
    #[serde(rename = "type")]
    what: What,
    object: T,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum What {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: ListMeta,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct ListMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

fn is_end_of_list(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: Meta,
    }
    let bookmark = serde_json::from_slice::<Line<Bookmark>>(line).ok();
    bookmark
        .and_then(|line| line.object.metadata.annotations)
        .is_some_and(|a| a.contains_key(INITIAL_EVENTS_END))
}
