//! The API server as the agent's source: whatever goes wrong on the way, what the source holds becomes what the API server
//! holds, and nothing half-read is ever given out.

#![allow(clippy::unwrap_used, reason = "a test may panic on what it did not expect")]

mod announce;
#[path = "../support/api/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod api;
#[path = "../support/chaos.rs"]
mod chaos;
mod converge;
mod credentials;
mod faults;
mod hostile;
mod malformed;
#[path = "../support/objects.rs"]
mod objects;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/real.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod real;
#[path = "../support/rendered.rs"]
mod rendered;
#[path = "../support/server.rs"]
mod server;
mod soak;
mod start;
mod tls;
mod wire;
mod world;
