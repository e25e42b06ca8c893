//! Real packets against the agent's own enforcer: the kernel must do what the reference evaluator says, and connections
//! must behave as policy promises, whatever becomes of them on the way.

mod conformance;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::process::ExitCode;

use libtest_mimic::Failed;

fn main() -> ExitCode {
    support::run(
        "packets",
        vec![
            ("scenarios_of_the_upstream_suite", || failed(conformance::group("e2e"))),
            ("recipes", || failed(conformance::group("recipes"))),
            ("traps", || failed(conformance::group("traps"))),
        ],
    )
}

fn failed(result: world::Result) -> Result<(), Failed> {
    result.map_err(|error| Failed::from(error.to_string()))
}
