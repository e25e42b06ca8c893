//! The agent's HTTP endpoint: `/healthz`, `/readyz`, `/status` and `/metrics`. It reads shared state and never touches the kernel.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::metrics::{CONTENT_TYPE, Metrics};
use super::readiness::Readiness;
use super::status::{Noted, Status};

/// A loop that has not turned for so long hangs: its slowest step is nft, which has a time-out far below.
const HANGS_AFTER: Duration = Duration::from_secs(180);

/// Tells that the loop still turns.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    since: Instant,
    millis: Arc<AtomicU64>,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Heartbeat {
            since: Instant::now(),
            millis: Arc::default(),
        }
    }
}

impl Heartbeat {
    /// The loop has turned just now.
    pub fn beat(&self) {
        self.millis.store(self.now(), Ordering::Relaxed);
    }

    /// How long ago it last turned.
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.millis.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the endpoint answers from.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// Why the agent is not ready, if so.
    pub readiness: Readiness,
    /// What it counts.
    pub metrics: Metrics,
    /// Whether it lives.
    pub heartbeat: Heartbeat,
    /// What it enforces.
    pub noted: Noted,
}

/// Serves until `shutdown` is done.
pub async fn serve(
    listener: TcpListener,
    shared: Shared,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(shared))
        .with_graceful_shutdown(shutdown)
        .await
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(shared)
}

async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.heartbeat.age() {
        age if age > HANGS_AFTER => {
            let text = format!("the agent's loop has not turned for {} s\n", age.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        _ => "ok\n".into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.readiness.report() {
        Ok(text) => text.into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

async fn status(State(shared): State<Shared>) -> Response {
    match serde_json::to_string_pretty(&Status::of(&shared)) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    shared.metrics.ready.set(shared.readiness.is_ready().into());
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::agent::readiness::Cause;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receive");
        answer
    }

    #[tokio::test]
    async fn it_answers_what_the_agent_says() {
        let shared = Shared::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, shared.clone(), async { drop(stopped.await) }));

        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
        let starting = ask(address, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503 "), "{starting}");
        assert!(starting.contains("starting: "), "{starting}");
        assert!(ask(address, "/metrics").await.contains("palisade_ready 0\n"));

        shared.readiness.clear(Cause::Starting);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        let metrics = ask(address, "/metrics").await;
        assert!(
            metrics.contains("content-type: application/openmetrics-text"),
            "{metrics}"
        );
        assert!(metrics.contains("palisade_ready 1\n"), "{metrics}");
        assert!(ask(address, "/elsewhere").await.starts_with("HTTP/1.1 404 "));

        stop.send(()).expect("still served");
        server.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn a_loop_that_hangs_is_not_healthy() {
        let mut shared = Shared::default();
        shared.heartbeat.since = Instant::now()
            .checked_sub(HANGS_AFTER + Duration::from_secs(1))
            .expect("the machine is up for longer");
        assert_eq!(
            healthz(State(shared.clone())).await.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        shared.heartbeat.beat();
        assert_eq!(healthz(State(shared)).await.status(), StatusCode::OK);
    }
}
