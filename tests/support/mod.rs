//! The main of test binaries that send packets: privileges first, threads after.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use palisade::sandbox::become_root_in_user_namespace;

/// A test by name.
pub(crate) type Test = (&'static str, fn() -> Result<(), Failed>);

/// Runs the tests as root, or in a user namespace where the kernel permits it; otherwise says that they did not run.
#[allow(dead_code, reason = "not every test binary has tests without settings")]
pub(crate) fn run(name: &str, tests: Vec<Test>) -> ExitCode {
    let trials = tests.into_iter().map(|(name, test)| Trial::test(name, test));
    run_trials(name, trials.collect())
}

/// The same for tests that are more than a function.
pub(crate) fn run_trials(name: &str, trials: Vec<Trial>) -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = become_root_in_user_namespace() {
        println!("\nNOT RUN: {} tests of {name}: {error}\n", trials.len());
        return ExitCode::SUCCESS;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
