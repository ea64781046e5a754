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
