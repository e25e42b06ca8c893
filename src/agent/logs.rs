//! Where the agent's log goes: standard error, as text on a terminal and as JSON anywhere else.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// What is logged unless `RUST_LOG` says otherwise. The client of the API server would log each failure of each attempt as an
/// error; the watches tell them once.
const DEFAULT: &str = "warn,palisade=info,kube_client::client::builder=off";

/// Starts logging. `RUST_LOG` chooses levels, as usual.
pub(super) fn start() {
    let filter = EnvFilter::builder()
        .try_from_env()
        .unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = if stderr().is_terminal() {
        log.with_target(false).try_init()
    } else {
        log.json().flatten_event(true).try_init()
    };
    // A program around this one has its own log already, and the agent's lines go there.
    drop(started);
}
