//! The source of a template: which of its control tokens it writes itself, and tags that only training uses.
//!
//! A rendered chat is one text, in which a control token that a user typed looks like one that the template wrote.
//! To tell them apart the template is rendered a second time from a source in which every control token that it
//! writes is a *mark*, one private-use character. Whatever is a mark in that text was written by the template, by
//! construction; all else is text, whatever it looks like. Contents are never changed.
//!
//! A control token in the source that is compared with contents or searched for in them
//! (`content.split('</think>')`) stays as it is, since as a mark it would no longer be found there.

/// Methods and filters whose arguments are looked for, not written.
const SEARCHES: [&str; 16] = [
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "replace",
    "find",
    "rfind",
    "index",
    "count",
    "strip",
    "lstrip",
    "rstrip",
    "removeprefix",
    "removesuffix",
];

/// `source` with each control token that it writes replaced by its mark.
pub(crate) fn mark(source: &str, marks: &[(String, char)]) -> String {
    let replace = |text: &str, out: &mut String| push_marked(text, marks, out);
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    loop {
        let Some(at) = rest
            .find("{{")
            .into_iter()
            .chain(rest.find("{%"))
            .chain(rest.find("{#"))
            .min()
        else {
            replace(rest, &mut out);
            return out;
        };
        let (text, tag) = rest.split_at(at);
        replace(text, &mut out);
        let length = if tag.starts_with("{#") {
            comment_length(tag)
        } else {
            tag_length(tag)
        };
        let (tag, after) = tag.split_at(length);
        if tag.starts_with("{#") {
            out.push_str(tag)
        } else {
            mark_tag(tag, &replace, &mut out)
        }
        rest = after;
    }
}

/// `source` without `{% generation %}` and its end, with which training finds what the assistant said.
///
/// Each becomes an `if` that is always true, so that white space around it is trimmed as before.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let (tag, after) = tag.split_at(tag_length(tag));
        out.push_str(before);
        match tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_matches(['-', '+'])
            .trim()
        {
            name @ ("generation" | "endgeneration") => {
                out.push_str(&tag.replace(
                    name,
                    if name == "generation" {
                        "if true"
                    } else {
                        "endif"
                    },
                ));
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

fn push_marked(text: &str, marks: &[(String, char)], out: &mut String) {
    let mut rest = text;
    // The longest at the leftmost place, as the tokenizer finds them.
    while let Some((at, token, mark)) = marks
        .iter()
        .filter_map(|(token, mark)| rest.find(token.as_str()).map(|at| (at, token, mark)))
        .min_by_key(|(at, token, _)| (*at, std::cmp::Reverse(token.len())))
    {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        out.push(*mark);
        rest = found.get(token.len()..).unwrap_or_default();
    }
    out.push_str(rest);
}

fn comment_length(tag: &str) -> usize {
    tag.find("#}").map_or(tag.len(), |at| at + 2)
}

/// The length of a tag from its opening braces to its closing ones, which do not count inside a string.
fn tag_length(tag: &str) -> usize {
    let close = if tag.starts_with("{{") { "}}" } else { "%}" };
    let mut at = 2;
    while let Some(rest) = tag.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(close) {
            return at + 2;
        }
        at += literal_length(rest).unwrap_or_else(|| rest.chars().next().map_or(1, char::len_utf8));
    }
    tag.len()
}

/// The length of the string literal at the start of `text`, with its quotes.
fn literal_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// Copies a tag, with marks in those of its string literals that it writes.
fn mark_tag(tag: &str, replace: &impl Fn(&str, &mut String), out: &mut String) {
    // For every open bracket, whether it holds the arguments of a search.
    let mut searches = Vec::new();
    let mut at = 0;
    while let Some(rest) = tag.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some(length) = literal_length(rest) {
            let (literal, after) = rest.split_at(length);
            let before = tag.get(..at).unwrap_or_default();
            if searches.last() == Some(&true) || is_compared(before, after) {
                out.push_str(literal);
            } else {
                replace(literal, out);
            }
            at += length;
            continue;
        }
        let Some(c) = rest.chars().next() else { return };
        match c {
            '(' => searches.push(
                last_word(tag.get(..at).unwrap_or_default()).is_some_and(|w| SEARCHES.contains(&w)),
            ),
            '[' | '{' => searches.push(false),
            ')' | ']' | '}' => drop(searches.pop()),
            _ => {}
        }
        out.push(c);
        at += c.len_utf8();
    }
}

/// Whether the literal between `before` and `after` is an operand of a comparison.
fn is_compared(before: &str, after: &str) -> bool {
    let (before, after) = (before.trim_end(), after.trim_start());
    let next_word = after
        .split(|c: char| !is_word(c))
        .next()
        .unwrap_or_default();
    before.ends_with("==")
        || before.ends_with("!=")
        || last_word(before) == Some("in")
        || after.starts_with("==")
        || after.starts_with("!=")
        || matches!(next_word, "in" | "not")
}

fn last_word(text: &str) -> Option<&str> {
    let text = text.trim_end();
    let start = text
        .char_indices()
        .rev()
        .take_while(|(_, c)| is_word(*c))
        .last()?
        .0;
    text.get(start..)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(source: &str) -> String {
        mark(
            source,
            &[
                ("<e>".into(), '1'),
                ("<e>>".into(), '2'),
                ("</t>".into(), '3'),
            ],
        )
    }

    #[test]
    fn what_is_written_is_marked() {
        for (source, want) in [
            ("<e>a<e>>b</t>", "1a2b3"),
            (
                "{{ '<e>' + x + \"\\n</t>\" }}<e>",
                "{{ '1' + x + \"\\n3\" }}1",
            ),
            ("{%- set a = '<e>' %}", "{%- set a = '1' %}"),
            ("{{ f('<e>', ['</t>']) }}", "{{ f('1', ['3']) }}"),
            ("{{ '}}<e>' }}", "{{ '}}1' }}"),
            ("{{ '\\'<e>' }}", "{{ '\\'1' }}"),
            ("{# '<e>' #}<e>", "{# '<e>' #}1"),
        ] {
            assert_eq!(marked(source), want);
        }
    }

    #[test]
    fn what_is_looked_for_is_not_marked() {
        for source in [
            "{{ x.split('</t>')[-1] }}",
            "{% if '</t>' in x %}",
            "{% if '</t>' not in x %}",
            "{% if x == '<e>' %}",
            "{% if '<e>' != x %}",
            "{{ x | replace('<e>', '') }}",
            "{{ x.startswith( ('<e>') ) }}"
                .replace("( (", "(")
                .replace(") )", ")")
                .as_str(),
        ] {
            assert_eq!(marked(source), source);
        }
        assert_eq!(
            marked("{{ x.split('<e>')[0] + '<e>' }}"),
            "{{ x.split('<e>')[0] + '1' }}"
        );
    }

    #[test]
    fn unfinished_tags_are_copied() {
        for source in ["{{ 'a", "{% if", "{#", "{{", "{", "{{ \"\\"] {
            assert_eq!(marked(source), source);
            assert_eq!(without_generation_tags(source), source);
        }
    }

    #[test]
    fn generation_tags_go_and_their_white_space_control_stays() {
        assert_eq!(
            without_generation_tags("a{%- generation -%}b{% endgeneration %}c{{ generation }}"),
            "a{%- if true -%}b{% endif %}c{{ generation }}"
        );
    }
}
