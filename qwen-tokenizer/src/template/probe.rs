//! What a template does with a chat, found by rendering small ones: which forms it takes, which it writes, and whether a
//! user's text comes out as it went in.

use super::input::{ArgumentForms, ChatInput, Takes};
use super::{ChatTemplate, Variables};
use crate::answer;
use crate::jinja::Budget;
use crate::message::Message;

/// A text with every sign that a language of markup or of formats may escape, between numbers that no template writes.
const SIGNS: &str = "20481024 \"q\" 'a' <b> & &amp; \\ \\n {x} {{y}} {%z%} [k](l) $1 %s #h *i* _u_ ~t ^c `d` | é e\u{301} 中 👋\n\t \
                     two  spaces\r\n40962048";
/// The first of these numbers.
const FIRST: &str = "20481024";

impl ChatTemplate {
    /// Whether the template writes calls of tools as Qwen2.5 does, so that an answer's calls can be taken apart and be
    /// written again.
    pub(crate) fn writes_calls(&self) -> bool {
        *self.writes_calls.get_or_init(|| {
            let text = self.probe_call(r#"{"k": "4f9c"}"#);
            answer::has_call(&text, "call9c4f")
        })
    }

    /// How the template changes what a user writes, if it does.
    pub(crate) fn changes_texts(&self) -> Option<String> {
        let messages = [Message::user(SIGNS)];
        let text = self.render(&ChatInput::new(&messages)).ok()?;
        let written = text.get(text.find(FIRST)?..)?;
        if written.starts_with(SIGNS) {
            return None;
        }
        let (wanted, found): (Vec<char>, Vec<char>) = (SIGNS.chars().collect(), written.chars().collect());
        let same = wanted.iter().zip(&found).take_while(|(a, b)| a == b).count();
        let readable = |c: &char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        let shown = |chars: &[char]| chars.iter().skip(same).take(8).map(readable).collect::<String>();
        let (wanted, found) = (shown(&wanted), shown(&found));
        Some(format!("chat template `{}` changes what users write: `{wanted}` becomes `{found}`", self.name))
    }

    /// Whether the template takes contents that are lists of parts: does it write the text of a part, and not the
    /// list itself?
    fn probe_parts(&self) -> bool {
        let text = self.probe(r#"[{"role": "user", "content": [{"type": "text", "text": "4f9c"}]}]"#);
        text.contains("4f9c") && !text.contains("'4f9c'") && !text.contains("\"4f9c\"")
    }

    /// How the template takes arguments: does it write a text as it is, and does it write a value at all?
    fn probe_arguments(&self) -> ArgumentForms {
        ArgumentForms {
            as_text: self.probe_call(r#""{\"k\": \"4f9c\"}""#).contains(r#"{"k": "4f9c"}"#),
            as_value: self.probe_call(r#"{"k": "4f9c"}"#).contains("4f9c"),
        }
    }

    /// What the template makes of a chat with a call of these arguments.
    fn probe_call(&self, arguments: &str) -> String {
        let call = format!(r#"{{"name": "call9c4f", "arguments": {arguments}}}"#);
        let calls = format!(r#"[{{"id": "call00000", "type": "function", "function": {call}}}]"#);
        let asked = r#"{"role": "user", "content": "q"}"#;
        let called = format!(r#"{{"role": "assistant", "content": "", "tool_calls": {calls}}}"#);
        let answered = r#"{"role": "tool", "name": "call9c4f", "content": "r", "tool_call_id": "call00000"}"#;
        // Some templates want the answer, some no more than the call.
        let whole = self.probe(&format!("[{asked}, {called}, {answered}]"));
        if whole.is_empty() { self.probe(&format!("[{asked}, {called}]")) } else { whole }
    }

    /// What the template makes of messages; nothing where it refuses them.
    fn probe(&self, messages: &str) -> String {
        let values = ChatInput::from_json(messages).to_variables(self, &Budget::of_input());
        let variables = values.map(|values| Variables { values, now: Some(0), bytes: 0, guards: Vec::new() });
        variables.and_then(|variables| self.render_variables(&variables)).unwrap_or_default()
    }
}

impl Takes for ChatTemplate {
    fn parts(&self) -> bool {
        *self.takes_parts.get_or_init(|| self.probe_parts())
    }

    fn arguments(&self) -> ArgumentForms {
        *self.takes_arguments.get_or_init(|| self.probe_arguments())
    }
}
