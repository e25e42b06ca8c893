//! The syntax of names, labels and ports, as the API server checks it. Every check says what to write instead.

use crate::ports::Protocol;

/// A DNS label (RFC 1123), such as the name of a namespace.
pub(super) fn dns_label(value: &str) -> Result<(), String> {
    if value.len() > 63 {
        return Err(format!("\"{value:.80}\" is too long: write at most 63 characters"));
    }
    if is_dns_label(value) {
        return Ok(());
    }
    Err(format!(
        "\"{value:.80}\" is not a DNS label: write lower-case letters, digits and '-', beginning and ending with a letter \
         or digit"
    ))
}

/// A DNS subdomain (RFC 1123), such as the name of a pod or of a policy.
pub(super) fn dns_subdomain(value: &str) -> Result<(), String> {
    if value.len() > 253 {
        return Err(format!("\"{value:.80}\" is too long: write at most 253 characters"));
    }
    if is_dns_subdomain(value) {
        return Ok(());
    }
    Err(format!(
        "\"{value:.80}\" is not a DNS subdomain: write lower-case letters, digits, '-' and '.', each part between dots \
         beginning and ending with a letter or digit"
    ))
}

/// The key of a label: a name, with a DNS subdomain and a slash before it if need be.
pub(super) fn label_key(key: &str) -> Result<(), String> {
    qualified_name(key, "a label key")
}

/// The key of an annotation: the same, whatever the case.
pub(super) fn annotation_key(key: &str) -> Result<(), String> {
    qualified_name(&key.to_ascii_lowercase(), "an annotation key")
}

fn qualified_name(key: &str, what: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && (prefix.len() > 253 || !is_dns_subdomain(prefix))
    {
        return Err(format!(
            "\"{key:.80}\" is not {what}: write a DNS subdomain before the '/', such as example.com/name"
        ));
    }
    if name.contains('/') {
        return Err(format!("\"{key:.80}\" is not {what}: write at most one '/'"));
    }
    if name.len() > 63 {
        return Err(format!(
            "\"{key:.80}\" is too long for {what}: write at most 63 characters as its name"
        ));
    }
    if is_qualified(name) {
        return Ok(());
    }
    Err(format!(
        "\"{key:.80}\" is not {what}: write letters, digits, '-', '_' and '.', beginning and ending with a letter or \
         digit"
    ))
}

/// The value of a label; it may be empty.
pub(super) fn label_value(value: &str) -> Result<(), String> {
    if value.len() > 63 {
        return Err(format!(
            "\"{value:.80}\" is too long for a label value: write at most 63 characters"
        ));
    }
    if value.is_empty() || is_qualified(value) {
        return Ok(());
    }
    Err(format!(
        "\"{value:.80}\" is not a label value: write letters, digits, '-', '_' and '.', beginning and ending with a letter \
         or digit, or nothing"
    ))
}

/// The name of a port (`IANA_SVC_NAME`): at most 15 of a-z, 0-9 and single inner hyphens, with a letter among them.
///
/// # Errors
/// What is wrong with it, and what to write instead.
pub fn port_name(name: &str) -> Result<(), String> {
    let well_formed = (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if well_formed {
        return Ok(());
    }
    if name.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() {
        return Err(format!(
            "\"{name:.80}\" is a string, not a number: write {name} without quotes"
        ));
    }
    Err(format!(
        "\"{name:.80}\" is not a port name: write at most 15 lower-case letters, digits and single '-' with at least one \
         letter, not beginning or ending with '-'"
    ))
}

/// The number of a port.
pub(super) fn port_number(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is not a port: write a number from 1 to 65535")),
    }
}

/// A protocol; TCP when there is none.
pub(super) fn protocol(value: Option<&str>) -> Result<Protocol, String> {
    match value {
        None => Ok(Protocol::Tcp),
        Some(value) => value.parse().map_err(|()| {
            let suggestion = value.to_ascii_uppercase();
            if suggestion.parse::<Protocol>().is_ok() {
                format!("\"{value:.80}\" is not a protocol: write {suggestion}")
            } else {
                format!("\"{value:.80}\" is not a protocol that a port can have: write TCP, UDP or SCTP")
            }
        }),
    }
}

fn is_dns_label(value: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !value.is_empty() && value.bytes().all(inner) && !value.starts_with('-') && !value.ends_with('-')
}

fn is_dns_subdomain(value: &str) -> bool {
    value.split('.').all(is_dns_label)
}

fn is_qualified(value: &str) -> bool {
    let bytes = value.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
