//! Watches: what has happened and what happens, line by line.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Response, header};
use http_body_util::channel::{Channel, Sender};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Inner;
use super::faults::{Fault, Verb};
use super::serve::{only, refusal};
use super::state::Kind;

/// A line that no object needs.
const TOO_LONG: usize = 9 << 20;

/// Nobody listens any more, or the connection is cut.
struct Over;

struct Watch {
    inner: Inner,
    kind: Kind,
    /// The one name that is asked for, if so.
    only: Option<String>,
    sender: Option<Sender<Bytes, io::Error>>,
    /// Up to which version all has been told.
    version: u64,
    /// What it began with.
    began: u64,
    generation: u64,
    cut_at: Option<usize>,
}

/// Starts to serve a watch.
pub(super) fn answer(
    inner: Inner,
    kind: Kind,
    verb: Verb,
    query: &HashMap<String, String>,
    fault: Option<Fault>,
) -> Response<Body> {
    let (streaming, generation) = {
        let state = inner.state();
        (state.streaming, state.generation)
    };
    if verb == Verb::StreamingList && !streaming {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList \
                       feature gate is enabled";
        return refusal(422, "Invalid", message);
    }
    let seconds = query.get("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(300);
    let version = query.get("resourceVersion").and_then(|v| v.parse().ok());
    let (sender, body) = Channel::new(64);
    let watch = Watch {
        inner,
        kind,
        only: only(query).map(str::to_owned),
        sender: Some(sender),
        version: version.unwrap_or_default(),
        began: version.unwrap_or_default(),
        generation,
        cut_at: None,
    };
    tokio::spawn(watch.run(verb, fault, Instant::now() + Duration::from_secs(seconds)));
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    response.body(Body::new(body)).unwrap()
}

impl Watch {
    async fn run(mut self, verb: Verb, fault: Option<Fault>, until: Instant) {
        let result = self.serve(verb, fault, until).await;
        // To fall silent in good order is to end the body; a cut is an error within it.
        if let (Err(Over), Some(sender)) = (result, self.sender.take()) {
            sender.abort(io::Error::other("cut"));
        }
    }

    async fn serve(&mut self, verb: Verb, fault: Option<Fault>, until: Instant) -> Result<(), Over> {
        match fault {
            Some(Fault::GoneEvent) => return self.gone().await,
            Some(Fault::CloseAtOnce) => return Ok(()),
            Some(Fault::CutWithinEvent) => self.cut_at = Some(usize::from(verb == Verb::StreamingList)),
            Some(Fault::SilenceAfterHead) => std::future::pending().await,
            Some(Fault::Garbage) => self.line("<html>not the API server</html>").await?,
            Some(Fault::TooLongLine) => self.line(&" ".repeat(TOO_LONG)).await?,
            _ => {}
        }
        if verb == Verb::StreamingList {
            self.initial().await?;
        } else if !self.inner.state().knows(self.kind, self.version) {
            return self.gone().await;
        }
        let mut changed = self.inner.changed.subscribe();
        let mut bookmark_at = Instant::now() + self.inner.state().bookmark_every;
        loop {
            let (mute, changes, duplicates) = {
                let state = self.inner.state();
                if state.generation != self.generation {
                    return Err(Over);
                }
                let mute = state.silent || state.held.contains(&self.kind);
                (mute, state.since(self.kind, self.version), state.duplicates)
            };
            if !mute {
                let Some(changes) = changes else {
                    return self.gone().await;
                };
                for change in changes {
                    if self.only.as_deref().is_some_and(|only| only != &*change.name) {
                        self.version = change.version;
                        continue;
                    }
                    for _ in 0..=usize::from(duplicates) {
                        self.event(change.what, &change.object).await?;
                    }
                    self.version = change.version;
                }
                if Instant::now() >= bookmark_at {
                    self.progress().await?;
                    bookmark_at = Instant::now() + self.inner.state().bookmark_every;
                }
            }
            let wake = if mute { until } else { until.min(bookmark_at) };
            match timeout_at(wake, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Over),
                Err(_) if Instant::now() < until => {}
                // A silent server does not even end.
                Err(_) if self.inner.state().silent => sleep_until(until + Duration::from_secs(3600)).await,
                Err(_) => return Ok(()),
            }
        }
    }

    /// All objects, and the bookmark that ends them.
    async fn initial(&mut self) -> Result<(), Over> {
        let (version, objects) = {
            let state = self.inner.state();
            (state.version(), state.select(self.kind, self.only.as_deref()))
        };
        self.version = version;
        self.began = version;
        for object in objects {
            self.event("ADDED", &object).await?;
        }
        self.bookmark(json!({"k8s.io/initial-events-end": "true"})).await
    }

    /// The newest version of all, when nothing of this kind has happened since; as in the API server, nothing is said while that
    /// is what the watch began with.
    async fn progress(&mut self) -> Result<(), Over> {
        {
            let state = self.inner.state();
            if state
                .since(self.kind, self.version)
                .is_some_and(|changes| changes.is_empty())
            {
                self.version = state.version();
            }
        }
        match self.version > self.began {
            true => self.bookmark(json!({})).await,
            false => Ok(()),
        }
    }

    async fn bookmark(&mut self, annotations: Value) -> Result<(), Over> {
        let object = json!({
            "kind": format!("{:?}", self.kind), "apiVersion": self.kind.api_version(),
            "metadata": {"resourceVersion": self.version.to_string(), "creationTimestamp": null, "annotations": annotations},
        });
        self.event("BOOKMARK", &object.to_string()).await
    }

    async fn gone(&mut self) -> Result<(), Over> {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("too old resource version: {}", self.version), "reason": "Expired", "code": 410,
        });
        self.event("ERROR", &status.to_string()).await
    }

    async fn event(&mut self, what: &str, object: &str) -> Result<(), Over> {
        let line = format!(r#"{{"type":"{what}","object":{object}}}"#);
        match &mut self.cut_at {
            Some(0) => {
                self.send(line[..line.len() / 2].to_owned()).await?;
                // What has been sent must be seen before the connection goes.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Err(Over);
            }
            Some(events) => *events -= 1,
            None => {}
        }
        self.line(&line).await
    }

    async fn line(&mut self, line: &str) -> Result<(), Over> {
        self.send(format!("{line}\n")).await
    }

    async fn send(&mut self, text: String) -> Result<(), Over> {
        let sender = self.sender.as_mut().ok_or(Over)?;
        sender.send_data(text.into()).await.map_err(|_| Over)
    }
}
