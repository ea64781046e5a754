//! A template's source as tokens, in one pass.
//!
//! White space is treated as transformers sets Jinja up: `trim_blocks` and `lstrip_blocks` are on, the last line break
//! of the source is dropped, and every line break is `\n`.

use super::python::is_space;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token<'a> {
    /// Text outside of tags.
    Data(&'a str),
    VariableStart,
    VariableEnd,
    BlockStart,
    BlockEnd,
    Name(&'a str),
    Str(String),
    Int(i128),
    /// Digits of an integer beyond 128 bits.
    LongInt(String),
    Float(f64),
    Operator(&'static str),
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(_) => f.write_str("text"),
            Self::VariableStart => f.write_str("`{{`"),
            Self::VariableEnd => f.write_str("`}}`"),
            Self::BlockStart => f.write_str("`{%`"),
            Self::BlockEnd => f.write_str("`%}`"),
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Str(_) => f.write_str("a string"),
            Self::Int(_) | Self::LongInt(_) => f.write_str("an integer"),
            Self::Float(_) => f.write_str("a number"),
            Self::Operator(operator) => write!(f, "`{operator}`"),
        }
    }
}

/// What the lexer could not read.
#[derive(Debug)]
pub(super) struct LexError {
    pub(super) line: usize,
    pub(super) problem: String,
}

type Result<T> = std::result::Result<T, LexError>;

/// The source with `\n` for every line break, without the last one.
pub(super) fn normalize(source: &str) -> String {
    let mut source =
        if source.contains('\r') { source.replace("\r\n", "\n").replace('\r', "\n") } else { source.to_owned() };
    if source.ends_with('\n') {
        source.pop();
    }
    source
}

/// The tokens of a normalised source, each with its line.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token<'_>, usize)>> {
    let mut lexer = Lexer { source, at: 0, line: 1, tokens: Vec::new() };
    lexer.run()?;
    Ok(lexer.tokens)
}

/// Longer operators before their beginnings.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";", "!",
];

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    tokens: Vec<(Token<'a>, usize)>,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) -> Result<()> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let Some(start) = find_start(rest) else {
                self.data(rest);
                self.advance(rest.len());
                break;
            };
            let (before, tag) = rest.split_at(start);
            let sign = tag.as_bytes().get(2).copied();
            let kind = tag.as_bytes().get(1).copied();
            self.data(self.stripped(before, sign, kind != Some(b'{')));
            self.advance(start);
            match kind {
                Some(b'#') => self.comment()?,
                Some(b'{') => self.tag(Token::VariableStart, Token::VariableEnd)?,
                _ => match raw_start(tag) {
                    Some(length) => self.raw(length)?,
                    None => self.tag(Token::BlockStart, Token::BlockEnd)?,
                },
            }
        }
        Ok(())
    }

    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        let skipped = self.rest().as_bytes().get(..bytes).unwrap_or_default();
        self.line += skipped.iter().filter(|&&byte| byte == b'\n').count();
        self.at += bytes;
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn push(&mut self, token: Token<'a>) {
        self.tokens.push((token, self.line));
    }

    fn error<T>(&self, problem: impl Into<String>) -> Result<T> {
        Err(LexError { line: self.line, problem: problem.into() })
    }

    fn data(&mut self, text: &'a str) {
        if !text.is_empty() {
            self.push(Token::Data(text));
        }
    }

    /// The text before a tag without the white space that the tag takes away.
    fn stripped(&self, text: &'a str, sign: Option<u8>, is_block: bool) -> &'a str {
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(b'+') => text,
            _ if is_block => {
                let line = text.rfind('\n').map(|at| at + 1);
                let starts_line = self.at == 0 || self.source.as_bytes().get(self.at - 1) == Some(&b'\n');
                let (kept, last) = text.split_at(line.unwrap_or(0));
                if (line.is_some() || starts_line) && last.chars().all(is_space) { kept } else { text }
            }
            _ => text,
        }
    }

    fn comment(&mut self) -> Result<()> {
        self.advance(2);
        let Some(end) = self.rest().find("#}") else { return self.error("a comment has no end, `#}`") };
        let sign = end.checked_sub(1).and_then(|at| self.rest().as_bytes().get(at).copied());
        self.advance(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// Takes away what a block's end takes from the text after it.
    fn after_block(&mut self, sign: Option<u8>) {
        match sign {
            Some(b'-') => self.skip_spaces(),
            Some(b'+') => {}
            _ if self.rest().starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    fn raw(&mut self, start: usize) -> Result<()> {
        self.advance(start);
        let rest = self.rest();
        let mut from = 0;
        while let Some(at) = rest.get(from..).and_then(|rest| rest.find("{%")).map(|at| at + from) {
            let (before, tag) = rest.split_at(at);
            let sign = tag.as_bytes().get(2).copied();
            let name = tag.get(2..).unwrap_or_default();
            let name = name.strip_prefix(['-', '+']).unwrap_or(name).trim_start_matches(is_space);
            if let Some(end) = name.strip_prefix("endraw") {
                let end = end.trim_start_matches(is_space);
                let end_sign = end.as_bytes().first().copied();
                if let Some(after) = end.strip_prefix(['-', '+']).unwrap_or(end).strip_prefix("%}") {
                    self.data(self.stripped(before, sign, true));
                    self.advance(rest.len() - after.len());
                    self.after_block(end_sign);
                    return Ok(());
                }
            }
            from = at + 2;
        }
        self.error("`raw` has no end, `{% endraw %}`")
    }

    fn tag(&mut self, start: Token<'a>, end: Token<'a>) -> Result<()> {
        let is_block = start == Token::BlockStart;
        let close = if is_block { "%}" } else { "}}" };
        self.push(start);
        self.advance(2);
        if self.rest().starts_with('-') || (self.rest().starts_with('+')) {
            self.advance(1);
        }
        let mut open: Vec<char> = Vec::new();
        loop {
            self.skip_spaces();
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return self.error(format!("a tag has no end, `{close}`")) };
            if open.is_empty() {
                let unsigned = match first {
                    '-' => rest.get(1..).unwrap_or_default(),
                    '+' if is_block => rest.get(1..).unwrap_or_default(),
                    _ => rest,
                };
                if let Some(after) = unsigned.strip_prefix(close) {
                    self.push(end);
                    self.advance(rest.len() - after.len());
                    match (is_block, first) {
                        (true, first) => self.after_block(Some(first as u8)),
                        (false, '-') => self.skip_spaces(),
                        _ => {}
                    }
                    return Ok(());
                }
            }
            match first {
                '0'..='9' => self.number()?,
                '"' | '\'' => self.string(first)?,
                c if c == '_' || c.is_alphanumeric() => {
                    let length = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                    self.push(Token::Name(rest.get(..length).unwrap_or_default()));
                    self.advance(length);
                }
                _ => self.operator(&mut open)?,
            }
        }
    }

    fn operator(&mut self, open: &mut Vec<char>) -> Result<()> {
        let rest = self.rest();
        let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) else {
            return self.error(format!("unexpected character {:?}", rest.chars().next().unwrap_or_default()));
        };
        match operator {
            "(" => open.push(')'),
            "[" => open.push(']'),
            "{" => open.push('}'),
            ")" | "]" | "}" if !open.pop().is_some_and(|close| operator.starts_with(close)) => {
                return self.error(format!("unexpected `{operator}`"));
            }
            _ => {}
        }
        self.push(Token::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let mut escaped = false;
        let mut has_escapes = false;
        for (at, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => (escaped, has_escapes) = (true, true),
                c if c == quote => {
                    let inside = rest.get(1..at).unwrap_or_default();
                    let text = match has_escapes {
                        true => unescape(inside).or_else(|problem| self.error(problem))?,
                        false => inside.to_owned(),
                    };
                    self.push(Token::Str(text));
                    self.advance(at + 1);
                    return Ok(());
                }
                _ => {}
            }
        }
        self.error("a string has no end")
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let digits = |from: usize, is_digit: &dyn Fn(u8) -> bool| {
            let mut end = from;
            while bytes.get(end).is_some_and(|&b| is_digit(b))
                || (bytes.get(end) == Some(&b'_') && bytes.get(end + 1).is_some_and(|&b| is_digit(b)) && end > from)
            {
                end += 1;
            }
            end
        };
        let decimal = |b: u8| b.is_ascii_digit();
        let radix = match bytes.get(..2) {
            Some(b"0x" | b"0X") => 16,
            Some(b"0o" | b"0O") => 8,
            Some(b"0b" | b"0B") => 2,
            _ => 10,
        };
        if radix != 10 {
            let end = digits(2, &|b| char::from(b).is_digit(radix));
            let text = rest.get(2..end).unwrap_or_default().replace('_', "");
            let Ok(number) = i128::from_str_radix(&text, radix) else {
                return self.error("a number of more than 127 bits");
            };
            self.push(Token::Int(number));
            self.advance(end);
            return Ok(());
        }
        let mut end = digits(0, &decimal);
        let whole = end;
        // After a dot stands an index: `x.1.0` is `x[1][0]`.
        let after_dot = matches!(self.tokens.last(), Some((Token::Operator("."), _)));
        if !after_dot {
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1, &decimal);
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let signed = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                if bytes.get(signed).is_some_and(u8::is_ascii_digit) {
                    end = digits(signed, &decimal);
                }
            }
        }
        let text = rest.get(..end).unwrap_or_default().replace('_', "");
        let token = match text.parse::<f64>() {
            Ok(float) if end > whole => Token::Float(float),
            _ => text.parse().map_or_else(|_| Token::LongInt(text), Token::Int),
        };
        self.push(token);
        self.advance(end);
        Ok(())
    }
}

/// The next `{{`, `{%` or `{#`.
fn find_start(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    bytes.windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// The length of `{% raw %}` at the beginning of a tag.
fn raw_start(tag: &str) -> Option<usize> {
    let name = tag.get(2..)?;
    let name = name.strip_prefix(['-', '+']).unwrap_or(name).trim_start_matches(is_space);
    let end = name.strip_prefix("raw")?.trim_start_matches(is_space);
    let after = match end.strip_prefix("-%}") {
        Some(after) => after.trim_start_matches(is_space),
        None => end.strip_prefix("%}")?,
    };
    Some(tag.len() - after.len())
}

/// What Python makes of the escapes in a string literal.
fn unescape(text: &str) -> std::result::Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let hex = |rest: &mut std::str::Chars<'_>, digits: usize| {
            let text: String = rest.by_ref().take(digits).collect();
            let code = (text.len() == digits).then(|| u32::from_str_radix(&text, 16).ok()).flatten();
            code.and_then(char::from_u32).ok_or_else(|| format!("the escape with `{text}` is no character"))
        };
        match rest.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('v') => out.push('\u{b}'),
            Some('\n') => {}
            Some(c @ ('\\' | '\'' | '"')) => out.push(c),
            Some('x') => out.push(hex(&mut rest, 2)?),
            Some('u') => out.push(hex(&mut rest, 4)?),
            Some('U') => out.push(hex(&mut rest, 8)?),
            Some(c @ '0'..='7') => {
                let mut code = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = rest.clone().next().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    rest.next();
                }
                out.extend(char::from_u32(code));
            }
            Some(c) => out.extend(['\\', c]),
            None => out.push('\\'),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(source: &str) -> Vec<String> {
        let source = normalize(source);
        let tokens = tokens(&source).unwrap().into_iter();
        tokens
            .filter_map(|(token, _)| if let Token::Data(text) = token { Some(text.to_owned()) } else { None })
            .collect()
    }

    #[test]
    fn white_space_is_trimmed_as_in_jinja() {
        assert_eq!(data("a\n  {% if x %}\nb\n"), ["a\n", "b"]);
        assert_eq!(data("a {% if x %} b"), ["a ", " b"]);
        assert_eq!(data("a \n{%- if x -%} \n b"), ["a", "b"]);
        assert_eq!(data("  {%+ if x +%}\nb"), ["  ", "\nb"]);
        assert_eq!(data("  {{ x }}\nb"), ["  ", "\nb"]);
        assert_eq!(data("  {# x #}\n  {#- y -#}  b"), ["b"]);
        assert_eq!(data("{% raw %}{{ x }}\n {% endraw %}\nb"), ["{{ x }}\n", "b"]);
        assert_eq!(data("a\r\nb\rc\r\n"), ["a\nb\nc"]);
        assert_eq!(data("{{ '}}' }}x{{ {'a': {}} }}"), ["x"]);
    }

    #[test]
    fn unfinished_tags_are_errors() {
        for source in ["{{ 'a", "{% if", "{#", "{{", "{{ \"\\", "{{ (] }}", "{% raw %}x"] {
            assert!(tokens(source).is_err(), "{source}");
        }
        assert!(tokens("{").is_ok());
    }

    #[test]
    fn escapes_are_python_s() {
        assert_eq!(unescape(r"\x41\u00e9\n\\\101\q").unwrap(), "Aé\n\\A\\q");
        assert!(unescape(r"\ud800").is_err());
    }
}
