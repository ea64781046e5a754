//! What Python holds of single characters: letters, digits, and their cases.
//!
//! Python goes by Unicode's general categories where Rust's `char` goes by derived properties (`is_alphabetic` takes in
//! vowel signs, which are no letters in Python), so the categories are asked here.

use std::sync::OnceLock;

use regex_automata::meta::Regex;

/// Whether `c` is in the category that `pattern` names; ASCII is known without asking.
fn is_in(cell: &'static OnceLock<Option<Regex>>, pattern: &str, c: char) -> bool {
    let regex = cell.get_or_init(|| Regex::new(pattern).ok());
    regex.as_ref().is_some_and(|regex| regex.is_match(c.encode_utf8(&mut [0; 4]) as &str))
}

/// A letter: the categories L.
pub(super) fn is_alpha(c: char) -> bool {
    static LETTERS: OnceLock<Option<Regex>> = OnceLock::new();
    if c.is_ascii() { c.is_ascii_alphabetic() } else { c.is_alphabetic() && is_in(&LETTERS, r"\p{L}", c) }
}

/// A decimal digit: the category Nd.
pub(super) fn is_decimal(c: char) -> bool {
    static DIGITS: OnceLock<Option<Regex>> = OnceLock::new();
    if c.is_ascii() { c.is_ascii_digit() } else { c.is_numeric() && is_in(&DIGITS, r"\p{Nd}", c) }
}

/// A decimal digit, or one raised, lowered or in a circle.
pub(super) fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐' | '⓪'
            | '⓵'..='⓽' | '⓿' | '❶'..='❾' | '➀'..='➈' | '➊'..='➒' | '\u{1369}'..='\u{1371}' | '\u{19da}'
            | '\u{10a40}'..='\u{10a43}' | '\u{10e60}'..='\u{10e68}' | '\u{11052}'..='\u{1105a}'
            | '\u{1f100}'..='\u{1f10a}')
}

/// A number of any kind: the categories N, and the Chinese numerals.
pub(super) fn is_numeric(c: char) -> bool {
    const NUMERALS: &str = "一二三四五六七八九十百千万亿億兆零〇壱壹弌弐弍貳贰叁參叄肆伍陆陸柒捌玖拾佰仟萬廿卅卌";
    c.is_numeric() || NUMERALS.contains(c)
}

pub(in crate::jinja) fn is_alnum(c: char) -> bool {
    is_alpha(c) || is_numeric(c)
}

/// The letters with a case of their own for titles.
pub(super) fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}')
        || matches!(c, '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// Whether `c` has a case, as title case sees it.
pub(super) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// Appends the first letter of a word in title case.
pub(super) fn push_title(out: &mut String, c: char) {
    let single = match c {
        'Ǆ'..='ǆ' => 'ǅ',
        'Ǉ'..='ǉ' => 'ǈ',
        'Ǌ'..='ǌ' => 'ǋ',
        'Ǳ'..='ǳ' => 'ǲ',
        // Georgian has capitals, but no titles.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => c,
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => {
            char::from_u32(u32::from(c) + 8).unwrap_or(c)
        }
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(u32::from(c) + 9).unwrap_or(c),
        c if is_title(c) => c,
        c => {
            // What becomes several letters begins with a capital alone: `ß` is `Ss`.
            let mut all = c.to_uppercase();
            out.extend(all.next());
            out.extend(all.flat_map(char::to_lowercase));
            return;
        }
    };
    out.push(single);
}

/// A text for comparison without case.
pub(super) fn casefold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ı' => out.push(c),
            // Cherokee folds to its capitals.
            '\u{13a0}'..='\u{13f5}' => out.push(c),
            '\u{13f8}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' => out.extend(c.to_uppercase()),
            c => {
                out.extend(c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase));
            }
        }
    }
    out
}
