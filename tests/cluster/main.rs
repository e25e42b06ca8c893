//! A cluster as far as policy is concerned: an API server, two nodes with the real agent on each, a network namespace for each
//! pod. Objects change through the API, and packets follow. On the scripted API server always; on a real one, with the rights
//! that `deploy/base` gives, where `KUBEBUILDER_ASSETS` names it.

#![allow(clippy::unwrap_used, reason = "a test may panic on what it did not expect")]

#[path = "../support/api/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod api;
#[path = "../support/environment.rs"]
mod environment;
mod packets;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/real.rs"]
mod real;
#[path = "../support/rendered.rs"]
mod rendered;
#[path = "../support/server.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod server;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Failed, Trial};

use api::Api;
use real::Real;
use world::Result;

fn main() -> ExitCode {
    let mut trials = vec![Trial::test("packets_follow_the_scripted_api_server", || {
        failed(scripted())
    })];
    if Real::is_named() {
        trials.push(Trial::test("packets_follow_a_real_api_server", || failed(real())));
    }
    support::run_trials("the agents of a cluster", trials)
}

fn scripted() -> Result {
    let runtime = world::runtime()?;
    let api = runtime.block_on(Api::start());
    packets::follow(&runtime, api)
}

fn real() -> Result {
    let runtime = world::runtime()?;
    let real = runtime.block_on(Real::named()).ok_or("no server is named")?;
    packets::follow(&runtime, &real)
}

fn failed(result: Result) -> Result<(), Failed> {
    result.map_err(|error| error.to_string().into())
}
