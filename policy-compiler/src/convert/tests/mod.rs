//! YAML of one object in; its errors, or what it became, out.

mod network_policy;
mod objects;

use serde::de::DeserializeOwned;

use super::FieldError;

fn read<K: DeserializeOwned>(yaml: &str) -> K {
    serde_saphyr::from_str(yaml).expect("the test's YAML is of its kind")
}

fn lines(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}
