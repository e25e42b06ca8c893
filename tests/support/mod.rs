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
pub(crate) fn run(name: &str, tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They spend most of their time listening to silence.
    arguments.test_threads.get_or_insert(THREADS);
    if let Err(error) = become_root_in_user_namespace() {
        println!("\nNOT RUN: {} tests of {name}: {error}\n", tests.len());
        return ExitCode::SUCCESS;
    }
    let trials = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
