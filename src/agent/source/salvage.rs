//! A NetworkPolicy that cannot be read as a whole: what can be read of it stays in force, and the rest allows nothing.
//!
//! A policy isolates the pods that it selects, and its rules only add to what they may do. So a rule that nobody
//! understands can be left out without opening anything, whereas leaving out the policy would open its pods.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use policy_compiler::convert;
use policy_compiler::policy::{Direction, Policy};
use serde_json::{Map, Value, json};

/// What remains of a policy whose name and subject can be read: its rules without those that cannot.
pub(super) fn policy(object: &[u8]) -> Option<Policy> {
    let object: Value = serde_json::from_slice(object).ok()?;
    let spec = object.get("spec")?.as_object()?;
    let metadata = object.get("metadata")?;
    let metadata = json!({"name": metadata.get("name")?, "namespace": metadata.get("namespace")?});
    let types = types(spec);
    let subject = spec.get("podSelector")?.clone();
    let mut policy = read(json!({"podSelector": subject, "policyTypes": types}), &metadata)?;
    for (direction, field) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
        let rules = spec.get(field).and_then(Value::as_array);
        let rules = rules.into_iter().flatten().filter_map(|rule| {
            // Without the subject, which may be as long as all rules together.
            let policy = read(
                json!({"podSelector": {}, "policyTypes": types, field: [rule]}),
                &metadata,
            )?;
            policy.rules(direction)?.first().cloned()
        });
        let rules: Vec<_> = rules.collect();
        match direction {
            Direction::Ingress => policy.ingress.as_mut().map(|all| all.extend(rules)),
            Direction::Egress => policy.egress.as_mut().map(|all| all.extend(rules)),
        };
    }
    Some(policy)
}

/// The policy of a spec that has been reduced.
fn read(spec: Value, metadata: &Value) -> Option<Policy> {
    let reduced: NetworkPolicy = serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).ok()?;
    convert::network_policy(&reduced).ok().map(|(policy, _)| policy)
}

/// The policy types: as given, and both when they cannot be read, for more isolation is the safer error.
fn types(spec: &Map<String, Value>) -> Value {
    let both = json!(["Ingress", "Egress"]);
    let known = |value: &Value| matches!(value.as_str(), Some("Ingress" | "Egress"));
    match spec.get("policyTypes") {
        None | Some(Value::Null) if has_rules(spec, "egress") => both,
        None | Some(Value::Null) => json!(["Ingress"]),
        Some(Value::Array(types)) if types.is_empty() && has_rules(spec, "egress") => both,
        Some(Value::Array(types)) if types.is_empty() => json!(["Ingress"]),
        Some(Value::Array(types)) if types.len() <= 2 && types.iter().all(known) => json!(types),
        Some(_) => both,
    }
}

fn has_rules(spec: &Map<String, Value>, field: &str) -> bool {
    match spec.get(field) {
        None | Some(Value::Null) => false,
        Some(Value::Array(rules)) => !rules.is_empty(),
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salvaged(spec: Value) -> Option<(Option<usize>, Option<usize>)> {
        let object = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"": 1}}, "spec": spec});
        let policy = policy(object.to_string().as_bytes())?;
        Some((policy.ingress.map(|r| r.len()), policy.egress.map(|r| r.len())))
    }

    #[test]
    fn what_cannot_be_read_allows_nothing_and_the_pods_stay_isolated() {
        let good = json!({"ports": [{"port": 80}]});
        let bad = json!({"from": [{"serviceSelector": {}}]});
        let spec = json!({"podSelector": {}, "ingress": [good, bad, good]});
        assert_eq!(salvaged(spec), Some((Some(2), None)));
        // A rule that cannot be read still says which direction the policy is about.
        let spec = json!({"podSelector": {}, "egress": [{"ports": "all"}]});
        assert_eq!(salvaged(spec), Some((Some(0), Some(0))));
        let spec = json!({"podSelector": {}, "policyTypes": ["Sideways"]});
        assert_eq!(salvaged(spec), Some((Some(0), Some(0))));
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [good]});
        assert_eq!(salvaged(spec), Some((None, Some(1))));
    }

    #[test]
    fn without_a_subject_there_is_nothing_to_isolate() {
        assert_eq!(salvaged(json!({"podSelector": {"matchLabels": 1}})), None);
        assert_eq!(
            salvaged(json!({"podSelector": {"matchLabels": {"a": "not a value"}}})),
            None
        );
        assert_eq!(salvaged(json!("nothing")), None);
    }
}
