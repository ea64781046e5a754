//! Formats of strings as patterns, so narrow that every reader takes what they allow: no second 60, no 30th of February, no
//! names of hosts that are too long.

/// The pattern of a format that is kept by one. Others are the compiler's.
pub(super) fn pattern(format: &str) -> Option<String> {
    const YEAR: &str = "[0-9]{4}";
    const LEAP_YEAR: &str = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)";
    const TIME: &str = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
    const LABEL: &str = "[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20}){0,2}";
    const ATOM: &str = "[A-Za-z0-9_+-]{1,20}";
    const SEGMENT: &str = "[A-Za-z0-9._~-]{1,40}";
    let days = format!(
        "({YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))\
         |{LEAP_YEAR}-02-29)"
    );
    let pattern = match format {
        "date" => days,
        "time" => TIME.into(),
        "date-time" => format!("{days}T{TIME}"),
        "duration" => {
            let number = "[0-9]{1,6}";
            let time = format!("T({number}H({number}M({number}S)?)?|{number}M({number}S)?|{number}S)");
            let date = format!("({number}Y({number}M({number}D)?)?|{number}M({number}D)?|{number}D)");
            format!("P({date}({time})?|{time}|{number}W)")
        }
        "email" => format!("{ATOM}(\\.{ATOM}){{0,2}}@({LABEL}\\.){{1,3}}[A-Za-z]{{2,10}}"),
        "hostname" => format!("{LABEL}(\\.{LABEL}){{0,3}}"),
        "uri" => format!(
            "[a-z][a-z0-9]{{1,9}}://{LABEL}(\\.{LABEL}){{0,3}}(:[1-9][0-9]{{0,3}})?(/({SEGMENT})?){{0,8}}\
             (\\?{SEGMENT}(=({SEGMENT})?)?(&{SEGMENT}(=({SEGMENT})?)?){{0,8}})?(#{SEGMENT})?"
        ),
        _ => return None,
    };
    Some(format!("^({pattern})$"))
}

/// A pattern that means here what it means to readers of JSON Schema, or less. White space there has no U+0085, and has U+FEFF.
/// In a negated class the compiler would allow escaped quotes and backslashes even where these are ruled out, unless a
/// control character is, too: so the least useful one is.
pub(super) fn portable(pattern: &str) -> String {
    const SPACES: &str = r" \t\n\r\f\x0B";
    let (mut portable, mut chars) = (String::with_capacity(pattern.len()), pattern.chars());
    // Whether it is within a class, and whether that one is negated.
    let mut class = None;
    while let Some(next) = chars.next() {
        match (next, class) {
            ('\\', class) => match (chars.next(), class) {
                (Some('s'), None) => portable += &format!("[{SPACES}]"),
                (Some('s'), Some(false)) => portable += SPACES,
                (Some('s'), Some(true)) => portable += r"\s\x{FEFF}",
                (Some('S'), None) => portable += r"[^\s\x{FEFF}]",
                (Some(other), _) => portable.extend(['\\', other]),
                (None, _) => portable.push('\\'),
            },
            ('[', None) => {
                let is_negated = chars.as_str().starts_with('^');
                class = Some(is_negated);
                portable.push('[');
                if is_negated {
                    chars.next();
                    portable += r"^\x00";
                }
                // The first one does not end a class.
                if chars.as_str().starts_with(']') {
                    chars.next();
                    portable += r"\]";
                }
            }
            (']', Some(_)) => {
                class = None;
                portable.push(']');
            }
            (other, _) => portable.push(other),
        }
    }
    portable
}

#[cfg(test)]
mod tests {
    use super::portable;

    #[test]
    fn white_space_is_that_of_other_readers() {
        assert_eq!(portable(r"^a\sb\\s$"), r"^a[ \t\n\r\f\x0B]b\\s$");
        assert_eq!(portable(r"[\s\]x][^\s]\S"), r"[ \t\n\r\f\x0B\]x][^\x00\s\x{FEFF}][^\s\x{FEFF}]");
        assert_eq!(portable("\\"), "\\");
        assert_eq!(portable(r#"[^"\\][]a]"#), r#"[^\x00"\\][\]a]"#);
    }
}
