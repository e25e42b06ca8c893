//! Requests to the API server and their answers as lines and pages, each within its time and its size.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Status;
use policy_compiler::labels::Name;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::Timing;
use super::kinds::Resource;
use super::limits;
use super::reason::reason;

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The API server refuses.
    #[error("the API server answers {code}{}: {message}", spaced(.reason))]
    Refused {
        code: u16,
        reason: String,
        message: String,
        retry_after: Option<Duration>,
    },
    /// No connection, or a broken one.
    #[error("{0}")]
    Connection(String),
    /// Silence.
    #[error("no answer within {} ms: the connection is taken for dead", .0.as_millis())]
    Silent(Duration),
    /// An answer that is none.
    #[error("the answer makes no sense: {0}")]
    Nonsense(String),
    /// A defect of ours.
    #[error("the watch failed in an unexpected way, and begins anew (please report this): {0}")]
    Defect(String),
    /// A page that is too large.
    #[error("a page of the list has more than {} bytes", limits::PAGE)]
    TooLarge,
}

fn spaced(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" {reason}")
    }
}

impl Failure {
    /// What an error event of a watch says.
    pub(super) fn told(status: &Status) -> Self {
        Failure::Refused {
            code: status.code,
            reason: limits::line(&status.reason),
            message: limits::line(&status.message),
            retry_after: None,
        }
    }

    /// Whether the version that was asked for is forgotten.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Failure::Refused { code, reason, .. }
            if *code == 410 || matches!(reason.as_str(), "Expired" | "Gone"))
    }

    /// Whether the credentials are not good any more.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self, Failure::Refused { code: 401, .. })
    }

    /// Whether the API server does not know streaming lists: it then takes the parameters for errors.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Failure::Refused {
                code: 400 | 405 | 406 | 415 | 422 | 501,
                ..
            }
        )
    }

    /// How long the API server asks to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What is asked for: all objects of a kind, or the one of this name.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) resource: Resource,
    pub(super) only: Option<Name>,
}

impl Scope {
    pub(super) fn all(resource: Resource) -> Self {
        Scope { resource, only: None }
    }

    fn fields(&self) -> Option<String> {
        self.only.as_ref().map(|name| format!("metadata.name={name}"))
    }
}

/// One page of a list.
pub(super) async fn page(
    client: &Client,
    scope: &Scope,
    limit: u32,
    continue_token: Option<String>,
    timing: &Timing,
) -> Result<Vec<u8>, Failure> {
    let params = ListParams {
        limit: Some(limit),
        continue_token,
        field_selector: scope.fields(),
        ..ListParams::default()
    };
    let request = kube::core::Request::new(scope.resource.path()).list(&params);
    let response = send(client, request, timing).await?;
    collect(response, limits::PAGE, timing.page).await
}

/// Opens a watch: from a version on, or with all objects first.
pub(super) async fn watch(
    client: &Client,
    scope: &Scope,
    from: Option<&str>,
    timing: &Timing,
) -> Result<Lines, Failure> {
    let params = WatchParams {
        timeout: Some(timing.watch_seconds()),
        send_initial_events: from.is_none(),
        field_selector: scope.fields(),
        ..WatchParams::default()
    };
    // Without a version the API server answers with its newest state: going on after a gap with an older one, from another
    // API server's cache, would take policy back in time.
    let request = kube::core::Request::new(scope.resource.path()).watch(&params, from.unwrap_or_default());
    let response = send(client, request, timing).await?;
    Ok(Lines {
        body: response.into_body(),
        buffer: Vec::new(),
        read: 0,
        searched: 0,
        skipping: false,
    })
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    timing: &Timing,
) -> Result<Response<Body>, Failure> {
    let request = request.map_err(|error| Failure::Nonsense(error.to_string()))?;
    let answer = tokio::time::timeout(timing.answer, client.send(request.map(Body::from)));
    let response = match answer.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(Failure::Connection(reason(&error))),
        Err(_) => return Err(Failure::Silent(timing.answer)),
    };
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refused(response, timing).await)
}

async fn refused(response: Response<Body>, timing: &Timing) -> Failure {
    let code = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    // The API server gives seconds; a date is not known to come from one.
    let retry_after = retry_after.and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
    let body = collect(response, limits::STATUS, timing.answer)
        .await
        .unwrap_or_default();
    let status: Option<Status> = serde_json::from_slice(&body).ok();
    let (reason, message) = match status {
        Some(status) if !status.message.is_empty() => (limits::line(&status.reason), limits::line(&status.message)),
        // From a proxy or a load balancer: whatever it says.
        _ => (String::new(), said(&body, code)),
    };
    Failure::Refused {
        code: code.as_u16(),
        reason,
        message,
        retry_after,
    }
}

fn said(body: &[u8], code: StatusCode) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.trim().lines().next().unwrap_or_default();
    if line.is_empty() {
        code.canonical_reason().unwrap_or("no reason given").to_owned()
    } else {
        limits::line(line)
    }
}

async fn collect(response: Response<Body>, most: usize, within: Duration) -> Result<Vec<u8>, Failure> {
    let deadline = Instant::now() + within;
    let mut body = response.into_body();
    let mut out = Vec::new();
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(Failure::Silent(within)),
            Ok(None) => return Ok(out),
            Ok(Some(Err(error))) => return Err(Failure::Connection(reason(&error))),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    if out.len() + data.len() > most {
                        return Err(Failure::TooLarge);
                    }
                    out.extend_from_slice(&data);
                }
            }
        }
    }
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Up to where the buffer has been given out.
    read: usize,
    /// Up to where it holds no end of a line.
    searched: usize,
    /// Whether the rest of a line that is too long is being passed over.
    skipping: bool,
}

/// What comes next.
pub(super) enum Next<'a> {
    /// A line, without its end.
    Line(&'a [u8]),
    /// A line that is too long has been passed over.
    TooLong,
    /// The API server has ended the watch, between two lines or within one that is then void.
    End,
}

impl Lines {
    /// The next line, if it comes whole within the time.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Next<'_>, Failure> {
        let deadline = Instant::now() + within;
        loop {
            let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(at) = found {
                let (start, end) = (self.read, self.searched + at);
                self.read = end + 1;
                self.searched = self.read;
                if std::mem::take(&mut self.skipping) {
                    return Ok(Next::TooLong);
                }
                return Ok(Next::Line(&self.buffer[start..end]));
            }
            self.buffer.drain(..self.read);
            self.read = 0;
            if self.buffer.len() > limits::LINE {
                self.skipping = true;
            }
            if self.skipping {
                self.buffer = Vec::new();
            }
            self.searched = self.buffer.len();
            match timeout_at(deadline, self.body.frame()).await {
                Err(_) => return Err(Failure::Silent(within)),
                Ok(None) => return Ok(Next::End),
                Ok(Some(Err(error))) => return Err(Failure::Connection(reason(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
