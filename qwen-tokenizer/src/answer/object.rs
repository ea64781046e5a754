//! The JSON object of a call, character by character, in the forms that models write: JSON, and Python's dictionaries.
//!
//! What comes out is JSON with the same digits: `True` becomes `true`, a text in single quotes one in double quotes, a line
//! break within a text its escape. What no reader could take for either is an error where it stands.

/// As deep as other readers of JSON go.
const MOST_DEPTH: usize = 120;

/// Reads one object.
#[derive(Debug, Clone, Default)]
pub(super) struct ObjectScanner {
    /// The JSON so far.
    json: String,
    open: Vec<Container>,
    expected: Expected,
    token: Token,
    /// A comma, and the space behind it, that are written once a value follows: some write one after the last.
    comma: String,
    /// Whether the object began with one brace too many.
    pub(super) is_doubled: bool,
    /// Where the latest key of an object begins.
    key_at: usize,
    /// Where the function's name and its arguments stand in `json`, as far as they are known.
    pub(super) name: Span,
    pub(super) arguments: Span,
    /// The depth of the object that has the name: the object itself, or the one of its key `function`.
    depth: usize,
}

/// A value's place; its end is not known while it is being written.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Span {
    pub(super) begin: Option<usize>,
    pub(super) end: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Container {
    Object,
    Array,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Expected {
    /// The brace that begins the object.
    #[default]
    Begin,
    Key,
    Colon,
    Value,
    /// A comma or the end of the container.
    Next,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Token {
    #[default]
    None,
    Text {
        quote: char,
        is_key: bool,
        escape: Escape,
    },
    /// A number or a name such as `true`.
    Word(String),
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Escape {
    #[default]
    None,
    /// Behind a backslash.
    Begun,
    /// So many digits of `\u` are missing.
    Hex(u8),
}

/// What is wrong with the object.
pub(super) type Broken = &'static str;

impl ObjectScanner {
    /// The JSON so far.
    pub(super) fn json(&self) -> &str {
        &self.json
    }

    /// The part of the JSON so far that a span covers.
    pub(super) fn part(&self, span: Span) -> &str {
        let range = span.begin.map(|begin| begin..span.end.unwrap_or(self.json.len()));
        range.and_then(|range| self.json.get(range)).unwrap_or_default()
    }

    /// The next character. Whether the object is complete with it.
    pub(super) fn push(&mut self, c: char) -> Result<bool, Broken> {
        match &mut self.token {
            Token::Text { .. } => return self.in_text(c).map(|()| false),
            Token::Word(word) if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') => {
                word.push(c);
                return Ok(false);
            }
            Token::Word(_) => self.end_word()?,
            Token::None => {}
        }
        if c.is_whitespace() {
            // Outside of texts it means nothing, but arguments are passed on as they were written.
            let space = if matches!(c, '\t' | '\n' | '\r') { c } else { ' ' };
            match (self.comma.is_empty(), self.expected) {
                (_, Expected::Begin) => {}
                (true, _) => self.json.push(space),
                (false, _) => self.comma.push(space),
            }
            return Ok(false);
        }
        match (self.expected, c) {
            (Expected::Begin, '{') => self.begin(Container::Object, c)?,
            (Expected::Key, '{') if self.json.trim_end() == "{" && !self.is_doubled => self.is_doubled = true,
            (Expected::Key | Expected::Value, '}' | ']') if !self.comma.is_empty() || self.is_empty() => {
                return self.end(c);
            }
            (Expected::Key, '"' | '\'') => {
                self.write_comma();
                self.key_at = self.json.len();
                self.begin_text(c, true);
            }
            (Expected::Colon, ':') => {
                self.json.push(c);
                self.expected = Expected::Value;
            }
            (Expected::Value, _) => self.begin_value(c)?,
            (Expected::Next, ',') => {
                self.comma.push(c);
                let in_object = self.open.last() == Some(&Container::Object);
                self.expected = if in_object { Expected::Key } else { Expected::Value };
            }
            (Expected::Next, '}' | ']') => return self.end(c),
            (Expected::Begin, _) => return Err("no JSON object follows"),
            (Expected::Key, _) => return Err("a key is missing in its JSON"),
            (Expected::Colon, _) => return Err("a colon is missing in its JSON"),
            (Expected::Next, _) => return Err("a comma is missing in its JSON"),
        }
        Ok(false)
    }

    /// Whether the innermost container has nothing in it yet.
    fn is_empty(&self) -> bool {
        self.json.trim_end().ends_with(['{', '['])
    }

    fn write_comma(&mut self) {
        self.json.push_str(&std::mem::take(&mut self.comma));
    }

    fn begin(&mut self, container: Container, c: char) -> Result<(), Broken> {
        if self.open.len() >= MOST_DEPTH {
            return Err("its JSON is nested too deeply");
        }
        self.open.push(container);
        self.json.push(c);
        self.depth = self.depth.max(1);
        self.expected = if container == Container::Object { Expected::Key } else { Expected::Value };
        Ok(())
    }

    fn begin_text(&mut self, quote: char, is_key: bool) {
        self.json.push('"');
        self.token = Token::Text { quote, is_key, escape: Escape::None };
    }

    fn begin_value(&mut self, c: char) -> Result<(), Broken> {
        self.write_comma();
        let is_own = self.open.len() == self.depth && self.open.last() == Some(&Container::Object);
        if is_own {
            let key = self.json.get(self.key_at..).and_then(|key| key.split('"').nth(1));
            let here = Span { begin: Some(self.json.len()), end: None };
            match key {
                Some("name") if self.name.begin.is_none() => self.name = here,
                // Some say `parameters`, as the description of a tool does.
                Some("arguments" | "parameters") if self.arguments.begin.is_none() => self.arguments = here,
                Some("function") if c == '{' && self.depth == 1 => self.depth = 2,
                _ => {}
            }
        }
        match c {
            '{' => self.begin(Container::Object, c),
            '[' => self.begin(Container::Array, c),
            '"' | '\'' => {
                self.begin_text(c, false);
                Ok(())
            }
            c if c.is_ascii_alphanumeric() || c == '-' => {
                self.token = Token::Word(c.into());
                Ok(())
            }
            _ => Err("a value is missing in its JSON"),
        }
    }

    /// A value is complete. Whether that was the object itself.
    fn end_value(&mut self) -> bool {
        self.expected = Expected::Next;
        if self.open.len() == self.depth {
            for span in [&mut self.name, &mut self.arguments] {
                if span.begin.is_some() && span.end.is_none() {
                    span.end = Some(self.json.len());
                }
            }
        }
        self.open.is_empty()
    }

    fn end(&mut self, c: char) -> Result<bool, Broken> {
        let container = if c == '}' { Container::Object } else { Container::Array };
        if self.open.pop() != Some(container) {
            return Err("the brackets of its JSON do not match");
        }
        self.comma.clear();
        self.json.push(c);
        if self.open.len() + 1 == self.depth && self.depth > 1 {
            // What follows is no part of the function.
            self.depth = usize::MAX;
        }
        Ok(self.end_value())
    }

    fn end_word(&mut self) -> Result<(), Broken> {
        let Token::Word(word) = std::mem::take(&mut self.token) else { return Ok(()) };
        let json = match word.as_str() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            word => word,
        };
        if serde_json::from_str::<serde::de::IgnoredAny>(json).is_err() {
            return Err("a value of its JSON is neither a number nor true, false or null");
        }
        self.json.push_str(json);
        self.end_value();
        Ok(())
    }

    fn in_text(&mut self, c: char) -> Result<(), Broken> {
        let Token::Text { quote, is_key, escape } = &mut self.token else { return Ok(()) };
        match (*escape, c) {
            (Escape::None, '\\') => *escape = Escape::Begun,
            (Escape::None, c) if c == *quote => {
                let is_key = *is_key;
                self.json.push('"');
                self.token = Token::None;
                match is_key {
                    true => self.expected = Expected::Colon,
                    false => drop(self.end_value()),
                }
            }
            (Escape::None, '"') => self.json.push_str("\\\""),
            (Escape::None, c) => self.push_plain(c),
            (Escape::Begun, 'u') => {
                *escape = Escape::Hex(4);
                self.json.push_str("\\u");
            }
            (Escape::Begun, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                *escape = Escape::None;
                self.json.extend(['\\', c]);
            }
            (Escape::Begun, '\'') => {
                *escape = Escape::None;
                self.json.push(c);
            }
            (Escape::Begun, c) => {
                // No escape: models forget to double the backslash of `\d`.
                *escape = Escape::None;
                self.json.push_str("\\\\");
                self.push_plain(c);
            }
            (Escape::Hex(left), c) if c.is_ascii_hexdigit() => {
                *escape = if left > 1 { Escape::Hex(left - 1) } else { Escape::None };
                self.json.push(c);
            }
            (Escape::Hex(_), _) => return Err("an escape in its JSON has too few digits"),
        }
        Ok(())
    }

    fn push_plain(&mut self, c: char) {
        match c {
            '\n' => self.json.push_str("\\n"),
            '\r' => self.json.push_str("\\r"),
            '\t' => self.json.push_str("\\t"),
            c if c < ' ' => self.json.push_str(&format!("\\u{:04x}", c as u32)),
            c => self.json.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The object with which `text` begins, and what follows it.
    fn scan(text: &str) -> Result<(ObjectScanner, &str), Broken> {
        let mut scanner = ObjectScanner::default();
        for (at, c) in text.char_indices() {
            if scanner.push(c)? {
                return Ok((scanner, &text[at + c.len_utf8()..]));
            }
        }
        Err("it ends early")
    }

    #[test]
    fn what_python_writes_becomes_json() {
        for (text, json) in [
            (r#"{'a': True, 'b': [None, False], }"#, r#"{"a": true, "b": [null, false]}"#),
            (r#"{"it's": 'a "word"', 'b': 'it\'s'}"#, r#"{"it's": "a \"word\"", "b": "it's"}"#),
            ("{\"a\": \"two\nlines\\d\"}", r#"{"a": "two\nlines\\d"}"#),
            (r#"{{"a": -1.50e+3}"#, r#"{"a": -1.50e+3}"#),
            ("{\u{a0}}", "{ }"),
            (r#"{"a": [], "b": {}, "c": "\u00e9\\"}"#, r#"{"a": [], "b": {}, "c": "\u00e9\\"}"#),
        ] {
            assert_eq!(scan(text).unwrap().0.json(), json, "{text}");
        }
    }

    #[test]
    fn what_nobody_can_read_is_refused_where_it_stands() {
        for text in [
            "",
            "x",
            "[1]",
            "{a: 1}",
            "{\"a\" 1}",
            "{\"a\": }",
            "{\"a\": 1 2}",
            "{\"a\": tru}",
            "{\"a\": 1]",
            "{,}",
            "{\"a\": [,]}",
            "{\"a\": 01}",
            "{\"a\": NaN}",
            "{\"a\": \"\\u12x4\"}",
            "{\"a\": \"",
            "{{{\"a\": 1}}}",
            "{\"a\":: 1}",
            "{\"a\": 1,, \"b\": 2}",
        ] {
            assert!(scan(text).is_err(), "{text}");
        }
        assert!(scan(&"{\"a\":".repeat(MOST_DEPTH + 1)).is_err());
    }

    #[test]
    fn name_and_arguments_are_found_in_any_order_but_not_within_other_values() {
        for text in [
            r#"{"name": "f", "arguments": {"name": "g", "arguments": 1}}"#,
            r#"{"arguments": {"name": "g", "arguments": 1}, "x": {"name": "h"}, "name": "f"}"#,
            r#"{"parameters": {"name": "g", "arguments": 1}, "name": "f"}"#,
            r#"{"id": "1", "function": {"name": "f", "arguments": {"name": "g", "arguments": 1}}, "name": "h"}"#,
            r#"{"x": [{"name": "h"}], "name": "f", "arguments": {"name": "g", "arguments": 1} , "y": "name"}"#,
        ] {
            let (found, rest) = scan(text).unwrap();
            assert_eq!(found.part(found.name), r#""f""#, "{text}");
            assert_eq!(found.part(found.arguments), r#"{"name": "g", "arguments": 1}"#, "{text}");
            assert_eq!(rest, "");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map(".*", inner, 0..4).prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_comes_back(map in proptest::collection::hash_map(".*", values(), 0..4), pretty: bool, rest in ".*") {
            let value = Value::from_iter(map);
            let json = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let text = json.clone() + &rest;
            let (found, after) = scan(&text).unwrap();
            prop_assert_eq!(found.json(), json);
            prop_assert_eq!(after, rest);
        }

        #[test]
        fn what_is_accepted_is_json(text in r#"\{[\[\]{}:,'"a1\\ nu.-]{0,24}\}"#) {
            if let Ok((found, _)) = scan(&text) {
                let json = serde_json::from_str::<serde::de::IgnoredAny>(found.json());
                prop_assert!(json.is_ok(), "{} from {}", found.json(), text);
            }
        }
    }
}
