//! What a plain YAML scalar means: the rules of YAML 1.1 as kubectl's YAML library applies them on the way to JSON.

use super::yaml::Value;

/// Resolves a scalar that is not quoted and has no tag.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let number = match text.as_bytes()[0] {
        b'0'..=b'9' | b'+' | b'-' => {
            let digits = text.replace('_', "");
            integer(&digits).or_else(|| float(&digits))
        }
        b'.' => float(text),
        _ => None,
    };
    number.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// A number with an optional sign in base 10, or 16, 8 or 2 after `0x`, `0o` or `0`, or `0b`.
fn integer(text: &str) -> Option<Value> {
    let (negative, unsigned) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let prefixed = |lower: &str, upper: &str| unsigned.strip_prefix(lower).or_else(|| unsigned.strip_prefix(upper));
    let (digits, radix) = if let Some(digits) = prefixed("0x", "0X") {
        (digits, 16)
    } else if let Some(digits) = prefixed("0o", "0O") {
        (digits, 8)
    } else if let Some(digits) = prefixed("0b", "0B") {
        (digits, 2)
    } else if unsigned.len() > 1 && unsigned.starts_with('0') {
        (&unsigned[1..], 8)
    } else {
        (unsigned, 10)
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    let number = if negative { -number } else { number };
    i64::try_from(number).ok().map(Value::Integer)
}

/// A decimal fraction; one without a fractional part is an integer, as in JSON.
fn float(text: &str) -> Option<Value> {
    let decimal = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-');
    if !text.bytes().all(decimal) || !text.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    if !number.is_finite() {
        return None;
    }
    // Up to here every integer has exactly one spelling as a float.
    let exact = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    Some(if exact {
        Value::Integer(number as i64)
    } else {
        Value::Float(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        assert_eq!(resolve(text), expected, "{text}");
    }

    #[test]
    fn plain_scalars_resolve_as_in_kubectl() {
        for text in ["", "~", "null", "Null", "NULL"] {
            check(text, Value::Null);
        }
        for text in ["y", "Yes", "on", "ON", "true", "TRUE"] {
            check(text, Value::Bool(true));
        }
        for text in ["n", "No", "off", "OFF", "false", "FALSE"] {
            check(text, Value::Bool(false));
        }
        for text in [
            "tRUE",
            "nULL",
            "0x",
            "1.2.3",
            "08x",
            "-",
            "+",
            ".",
            "1:30",
            "2001-01-01",
            "e5",
            "1e",
            "0xg",
            "--1",
        ] {
            check(text, Value::String(text.to_owned()));
        }
        for (text, number) in [
            ("80", 80),
            ("+80", 80),
            ("-1", -1),
            ("010", 8),
            ("0o10", 8),
            ("0x1F", 31),
            ("0b11", 3),
            ("1_000", 1000),
            ("08", 8),
            ("80.0", 80),
            ("1e2", 100),
            ("9223372036854775807", i64::MAX),
        ] {
            check(text, Value::Integer(number));
        }
        check("1.5", Value::Float(1.5));
        check(".5", Value::Float(0.5));
        check("18446744073709551616", Value::Float(18446744073709551616.0));
    }
}
