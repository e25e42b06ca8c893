//! JSON is YAML, nearly: what differs is put in YAML's way, without moving anything to another line.

/// The same in YAML's way, when the text is JSON and has anything to change: tabs become blanks, and a surrogate pair
/// becomes one escaped character.
pub(super) fn as_yaml(text: &str) -> Option<String> {
    let is_json = text.trim_start().starts_with(['{', '[']);
    if !is_json || !(text.contains('\t') || text.contains("\\ud") || text.contains("\\uD")) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(at) = rest.find(['"', '\t', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match rest.as_bytes()[0] {
            b'"' => {
                in_string = !in_string;
                out.push('"');
                1
            }
            b'\t' => {
                out.push(if in_string { '\t' } else { ' ' });
                1
            }
            _ => match surrogate_pair(rest) {
                Some(c) => {
                    out.push_str(&format!("\\U{:08x}", u32::from(c)));
                    12
                }
                None => {
                    // The escaped character goes along, so that \" ends no string.
                    let taken = rest.chars().take(2).map(char::len_utf8).sum();
                    out.push_str(&rest[..taken]);
                    taken
                }
            },
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    Some(out)
}

/// The character of `\ud83d\ude00` at the beginning of a text.
fn surrogate_pair(text: &str) -> Option<char> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    char::decode_utf16([unit(0)?, unit(6)?])
        .next()?
        .ok()
        .filter(|c| u32::from(*c) > 0xffff)
}
