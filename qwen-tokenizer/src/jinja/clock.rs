//! The time of day for templates that ask for it (`strftime_now`).
//!
//! The directives of `strftime` but those of the ISO week, in English, without time zones: what templates use to tell a
//! model the date.

/// Formats seconds since 1970 like Python's `strftime`; `Err` names a directive that is not known.
pub(super) fn format(format: &str, seconds: i64) -> Result<String, char> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

    // The years 1 to 9999, which is as far as Python goes.
    let seconds = seconds.clamp(-62_135_596_800, 253_402_300_799);
    let days = seconds.div_euclid(86_400);
    let second_of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let (year, month, day) = civil(days);
    let name =
        |names: &[&'static str], i: i64| usize::try_from(i).ok().and_then(|i| names.get(i).copied()).unwrap_or("");
    let month_name = name(&MONTHS, month - 1);
    let weekday = (days + 4).rem_euclid(7);
    let day_name = name(&DAYS, weekday);
    let day_of_year = days - days_before(year, 1, 1) + 1;
    let short = |name: &'static str| name.get(..3).unwrap_or(name);

    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = rest.next().ok_or('%')?;
        let (directive, pad) = match directive {
            '-' => (rest.next().ok_or('-')?, false),
            directive => (directive, true),
        };
        let two = |n: i64| {
            if pad { format!("{n:02}") } else { n.to_string() }
        };
        text.push_str(&match directive {
            'Y' => year.to_string(),
            'y' => two(year.rem_euclid(100)),
            'm' => two(month),
            'd' => two(day),
            'H' => two(hour),
            'I' => two(hour12),
            'M' => two(minute),
            'S' => two(second),
            'j' if pad => format!("{day_of_year:03}"),
            'j' => day_of_year.to_string(),
            'B' => month_name.into(),
            'b' => short(month_name).into(),
            'A' => day_name.into(),
            'a' => short(day_name).into(),
            'p' => if hour < 12 { "AM" } else { "PM" }.into(),
            'e' => {
                if pad {
                    format!("{day:2}")
                } else {
                    day.to_string()
                }
            }
            'k' => {
                if pad {
                    format!("{hour:2}")
                } else {
                    hour.to_string()
                }
            }
            'l' => {
                if pad {
                    format!("{hour12:2}")
                } else {
                    hour12.to_string()
                }
            }
            'C' => two(year / 100),
            'D' | 'x' => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            'R' => format!("{hour:02}:{minute:02}"),
            'X' => format!("{hour:02}:{minute:02}:{second:02}"),
            'r' => format!("{hour12:02}:{minute:02}:{second:02} {}", if hour < 12 { "AM" } else { "PM" }),
            'c' => {
                format!("{} {} {day:2} {hour:02}:{minute:02}:{second:02} {year}", short(day_name), short(month_name))
            }
            'h' => short(month_name).into(),
            'u' => if weekday == 0 { 7 } else { weekday }.to_string(),
            'w' => weekday.to_string(),
            'U' => two((day_of_year + 6 - weekday) / 7),
            'W' => two((day_of_year + 6 - (weekday + 6) % 7) / 7),
            'f' => "000000".into(),
            's' => seconds.to_string(),
            // `datetime.now()`, which transformers takes, has no zone.
            'z' | 'Z' => String::new(),
            'n' => "\n".into(),
            't' => "\t".into(),
            'P' => if hour < 12 { "am" } else { "pm" }.into(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            '%' => "%".into(),
            unknown => return Err(unknown),
        });
    }
    Ok(text)
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // The mean year guesses right, or off by one.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while days_before(year, 1, 1) > days {
        year -= 1;
    }
    while days_before(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|&month| days_before(year, month, 1) <= days).unwrap_or(1);
    (year, month, days - days_before(year, month, 1) + 1)
}

/// Days from 1970-01-01 to a date.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    // Count years from March, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (seconds, date) in [
            (0, "Thursday 01 January 1970 00:00:00 001"),
            (951_827_696, "Tuesday 29 February 2000 12:34:56 060"),
            (-1, "Wednesday 31 December 1969 23:59:59 365"),
            (4_102_444_799, "Thursday 31 December 2099 23:59:59 365"),
        ] {
            assert_eq!(format("%A %d %B %Y %H:%M:%S %j", seconds).unwrap(), date);
        }
        assert_eq!(format("%-d %b %y, %I %p 100%%", 951_827_696).unwrap(), "29 Feb 00, 12 PM 100%");
        assert_eq!(format("%F %T", 1_700_000_000).unwrap(), "2023-11-14 22:13:20");
        let all = format("%e|%k|%l|%C|%D|%R|%r|%c|%h|%u|%w|%U|%W|%f|%s|%Z|%x|%X|%-e", 951_827_696).unwrap();
        let expected = "29|12|12|20|02/29/00|12:34|12:34:56 PM|Tue Feb 29 12:34:56 2000|Feb|2|2|09|09|000000|951827696||\
                        02/29/00|12:34:56|29";
        assert_eq!(all, expected);
        assert_eq!(format("%Q", 0), Err('Q'));
        assert_eq!(format("%", 0), Err('%'));
    }

    #[test]
    fn every_day_follows_the_one_before() {
        for days in -200_000..200_000 {
            let (year, month, day) = civil(days);
            assert_eq!(days_before(year, month, day), days);
            assert!((1..=12).contains(&month) && (1..=31).contains(&day));
        }
    }
}
