//! The fuzz targets on random bytes, a bounded number of them. `fuzz/README.md` tells how to run them for longer.

#[allow(unreachable_pub, reason = "public for the other driver")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_loaded_or_refused(data in vec(any::<u8>(), 0..300)) {
        targets::manifests(&data);
    }

    /// Random bytes are seldom YAML; random characters of its grammar often are.
    #[test]
    fn any_characters_of_yaml_are_loaded_or_refused(text in "[a-c0:\\-?&*!|>{}\\[\\],'\"#%@~<= \n\t\\\\]{0,200}") {
        targets::manifests(text.as_bytes());
    }

    #[test]
    fn changed_manifests_are_loaded_or_refused(data in vec(any::<u8>(), 4..80)) {
        targets::mutations(&data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn compiled_answer_is_the_evaluators(data in vec(any::<u8>(), 1..50)) {
        targets::compile(&data);
    }

    #[test]
    fn following_events_equals_compiling_from_scratch(data in vec(any::<u8>(), 8..130)) {
        targets::events(&data);
    }
}
