//! The main of test binaries that send packets: privileges first, threads after.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use palisade::sandbox::become_root_in_user_namespace;

/// How many tests run at once when nobody says otherwise. Not more: all namespaces of a machine share its table of
/// neighbours, which holds about a thousand (`net.ipv4.neigh.default.gc_thresh3`).
const THREADS: usize = 4;

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
    let mut arguments = Arguments::from_args();
    // They spend most of their time listening to silence.
    arguments.test_threads.get_or_insert(THREADS);
    if let Err(error) = become_root_in_user_namespace() {
        println!("\nNOT RUN: {} tests of {name}: {error}\n", trials.len());
        return ExitCode::SUCCESS;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
