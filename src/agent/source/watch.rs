//! One watch, for ever: a client goes in, the changes of one kind go to [`Shared`].
//!
//! kube's client makes the requests; its `runtime::watcher` is not used, for in its version 5.0 a watch that is refused with
//! HTTP status 410 is tried again with the same version for ever, a streaming list is asked for at version 0 (which may be
//! older than what is held already), a page with one object that has no readable metadata is lost as a whole, and neither
//! answers nor lines have bounds of time and size.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use kube::core::Status;
use policy_compiler::compile::Event;
use policy_compiler::labels::Name;
use serde_json::value::RawValue;
use tracing::{debug, info, warn};

use super::Timing;
use super::access::Access;
use super::complaints::{Complaints, tell};
use super::kinds::{Bare, Key, Read, Watched, read};
use super::limits;
use super::page;
use super::shared::Shared;
use super::store::{Complaint, Listing, Store};
use super::transport::{self, Failure, Next, Scope};
use super::wire::{self, Line, ListMeta, What, nonsense};
use crate::agent::backoff::Backoff;

/// After so many streaming lists in a row that came to nothing, one is made the old way.
const STREAMS: u32 = 2;

/// How many reasons of one failure are logged, from when it begins until it is over: a connection that breaks is often followed
/// by the reason why there is no other.
const REASONS: usize = 5;

/// How long the API server can ask to be left alone.
const LONGEST_WISH: Duration = Duration::from_secs(120);

/// How old credentials must be to be read again when they are refused.
pub(super) const REFUSED_AGE: Duration = Duration::from_secs(1);

/// One watch and what it holds.
pub(super) struct Watch<K: Watched> {
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
    /// What has been logged of failures since the watch last went well.
    told: Vec<String>,
}

/// How a request ended, when nothing failed.
enum End {
    /// A list is complete.
    Listed,
    /// The API server has closed the watch.
    Closed,
}

impl<K: Watched> Watch<K> {
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
            page: page::OBJECTS,
            backoff: Backoff::new(timing.first_delay, timing.longest_delay),
            told: Vec::new(),
        }
    }

    /// Lists and watches, and never ends.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let streams = self.version.is_none() && self.streaming && self.broken_streams < STREAMS;
            let result = match caught(self.once(streams)).await {
                Ok(result) => result,
                Err(panic) => {
                    // Nobody knows what has been told: a list tells everything again.
                    self.store.distrust();
                    self.version = None;
                    Err(Failure::Defect(panic))
                }
            };
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
        self.access.keep_fresh().await;
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
        let trouble = if failure.is_unauthorized() {
            self.access.renew(REFUSED_AGE).await
        } else if matches!(failure, Failure::Connection(_)) {
            // It may be the certificates.
            self.access.renew(self.timing.renew).await
        } else {
            None
        };
        if let Some(trouble) = trouble {
            let told = format!("{failure}; {trouble}");
            self.shared.note(K::RESOURCE, |health| health.error = Some(told));
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
        let (objects, metadata) = page::read::<K>(text, &mut self.store.pool)?;
        for object in objects {
            match object {
                Some(read) => complaints.extend(self.take_in(listing, read)),
                None => complaints.nameless += 1,
            }
        }
        Ok(metadata)
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
        // Whether anything newer has come than what the watch began with: the API server sends a watch no bookmarks before.
        let mut moved = false;
        loop {
            let line = match lines.next(self.timing.idle).await {
                Err(Failure::Silent(_)) if listing.is_none() && !moved => {
                    debug!(resource = %K::RESOURCE, "nothing happens, or nobody is there: asking again tells");
                    return Ok(End::Closed);
                }
                next => next?,
            };
            let line = match line {
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
                && wire::is_end_of_list(line)
            {
                if version.is_empty() {
                    return Err(Failure::Nonsense(
                        "a streaming list without a resourceVersion".to_owned(),
                    ));
                }
                self.finish(
                    listing.take().unwrap_or_default(),
                    std::mem::take(&mut complaints),
                    version.clone(),
                );
                continue;
            }
            match &mut listing {
                None => {
                    moved = true;
                    self.apply(change);
                }
                Some(listing) => match change {
                    Change::Put(Some(read), _) => complaints.extend(self.take_in(listing, read)),
                    Change::Put(None, _) => complaints.nameless += 1,
                    Change::Gone(Some(key), _) => Store::<K>::unlist(listing, &key),
                    Change::Gone(None, _) | Change::Bookmark(_) => {}
                },
            }
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<Change<K>, Failure> {
        if let Ok(Line { what, object }) = serde_json::from_slice::<Line<K::Wire>>(line) {
            let version = K::meta(&object).resource_version.clone();
            match what {
                What::Added | What::Modified => {
                    let text = || {
                        let line = serde_json::from_slice::<Line<&RawValue>>(line);
                        line.map_or_else(|_| Vec::new(), |line| line.object.get().as_bytes().to_vec())
                    };
                    return Ok(Change::Put(read::<K>(object, text, &mut self.store.pool), version));
                }
                What::Bookmark => return Ok(Change::Bookmark(version.unwrap_or_default())),
                What::Deleted | What::Error => {}
            }
        }
        let line = limits::utf8(line);
        let Line::<&RawValue> { what, object } = serde_json::from_str(&line).map_err(nonsense)?;
        let text = object.get().as_bytes();
        let bare = || serde_json::from_str::<Bare>(object.get());
        let version = || bare().ok().and_then(|b| b.meta().resource_version);
        match what {
            What::Added | What::Modified => Ok(Change::Put(page::object::<K>(text, &mut self.store.pool), version())),
            What::Deleted => Ok(Change::Gone(bare().ok().and_then(|b| b.key()), version())),
            What::Bookmark => Ok(Change::Bookmark(version().unwrap_or_default())),
            What::Error => {
                let status: Status = serde_json::from_slice(text).map_err(nonsense)?;
                Err(Failure::told(&status))
            }
        }
    }

    /// An object of a list.
    fn take_in(&self, listing: &mut Listing<K>, read: Read<K::Object>) -> Option<Complaint> {
        self.shared.identify(K::RESOURCE, &read);
        self.store.list(listing, read)
    }

    fn apply(&mut self, change: Change<K>) {
        let (event, complaint, version): (Option<Event>, _, _) = match change {
            Change::Put(Some(read), version) => {
                self.shared.identify(K::RESOURCE, &read);
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
            Change::Gone(Some(key), version) => {
                self.shared.forget(K::RESOURCE, &key);
                (self.store.remove(&key), None, version)
            }
            Change::Gone(None, version) => (None, None, version),
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
        self.shared.keep_only(K::RESOURCE, |key| self.store.knows(key));
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

    fn report(&mut self) {
        self.told.clear();
        let failed = self.shared.note(K::RESOURCE, |health| {
            health.heard = Some(Instant::now());
            health.objects = self.store.len();
            health.failing_since.take()
        });
        if let Some(since) = failed {
            info!(resource = %K::RESOURCE, "watching again after {} s", since.elapsed().as_secs());
        }
        if let Some(invalid) = self.store.invalid() {
            self.shared.complain(K::RESOURCE, invalid);
        }
    }

    fn fail(&mut self, failure: &Failure) {
        // A watch that is too old is no failure of anybody: the list that follows may be one.
        let fails = !failure.is_gone();
        let reason = failure.to_string();
        self.shared.note(K::RESOURCE, |health| {
            health.failures += 1;
            health.error = Some(reason.clone());
            if fails {
                health.failing_since.get_or_insert_with(Instant::now);
            }
        });
        if !fails || self.told.len() >= REASONS || self.told.contains(&reason) {
            debug!(resource = %K::RESOURCE, "cannot watch: {reason}");
            return;
        }
        let kept = if self.version.is_some() || self.store.len() > 0 {
            "; what is known stays in force"
        } else {
            ""
        };
        warn!(resource = %K::RESOURCE, "cannot watch: {reason}{kept}");
        self.told.push(reason);
    }

    fn oversize(&self) {
        warn!(
            resource = %K::RESOURCE,
            "the API server tells of an object of more than {} bytes: it is left out",
            limits::LINE
        );
        self.shared
            .note(K::RESOURCE, |health| health.heard = Some(Instant::now()));
    }
}

/// The future's result, or with what it panicked: a defect of ours must not end a watch.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Poll::Ready(Err(limits::line(text.unwrap_or_default())))
            }
        }
    })
    .await
}

/// What a line of a watch says.
enum Change<K: Watched> {
    /// Added or changed; none when the object has no name.
    Put(Option<Read<K::Object>>, Option<String>),
    Gone(Option<Key>, Option<String>),
    Bookmark(String),
}
