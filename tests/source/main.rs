//! The API server as the agent's source: whatever goes wrong on the way, what the source holds becomes what the API server
//! holds, and nothing half-read is ever given out.

#![allow(clippy::unwrap_used, reason = "a test may panic on what it did not expect")]

#[path = "../support/api/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod api;
mod converge;
mod credentials;
mod faults;
mod hostile;
mod malformed;
mod objects;
mod soak;
mod start;
mod tls;
mod wire;
mod world;
