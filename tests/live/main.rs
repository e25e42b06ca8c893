//! Commands with `--live`: the real program on an API server inside the test.

#![allow(clippy::unwrap_used, reason = "a test may panic on what it did not expect")]

#[path = "../support/api/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod api;
mod diff;
mod docs;
#[path = "../support/environment.rs"]
mod environment;
mod lint;
mod refused;
mod same;
mod world;
