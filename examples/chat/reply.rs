//! One answer on stdout: as text while it arrives, or as JSON when it is complete.

use std::io::{self, Write};

use qwen::{Engine, Error, FinishReason, Reply, Stats, ToolCall};
use serde_json::{Value, json};

use super::answer::{AnswerWriter, THINK};
use super::screen::Screen;

/// Why an answer was not printed to its end.
pub(crate) enum Stop {
    Engine(Error),
    Output(io::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Engine(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Output(error)
    }
}

/// Print the text while it arrives.
pub(crate) fn print(engine: &Engine, reply: &mut Reply, screen: Screen) -> Result<(), Stop> {
    // Some templates begin the thinking for the model.
    let prompt = reply.prompt_ids();
    let end = engine.tokenizer()?.decode(&prompt[prompt.len().saturating_sub(8)..], false);
    let mut writer = AnswerWriter::new(io::stdout().lock(), screen, end.trim_end().ends_with(THINK[0]))?;
    for piece in reply {
        match piece {
            Ok(piece) => writer.push(&piece)?,
            Err(error) => {
                writer.finish()?;
                return Err(error.into());
            }
        }
    }
    Ok(writer.finish()?)
}

/// Print one object. Its keys are what `--help` promises.
pub(crate) fn print_json(
    text: &str,
    reason: Option<FinishReason>,
    stats: &Stats,
    calls: &[ToolCall],
) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", object(text, reason, stats, calls))
}

fn object(text: &str, reason: Option<FinishReason>, stats: &Stats, calls: &[ToolCall]) -> Value {
    // `None` only where the stream was left before its end.
    let reason = reason.unwrap_or(FinishReason::Cancelled);
    let mut answer = json!({
        "text": text,
        "finish_reason": reason.as_str(),
        "stats": stats,
    });
    answer["stats"]["tokens_per_second"] = json!(stats.tokens_per_second());
    if !calls.is_empty() {
        answer["tool_calls"] = json!(calls);
    }
    answer
}

/// Tokens and speeds, in a line.
pub(crate) fn speed(stats: &Stats) -> String {
    let mut text = format!("{} tokens of prompt", stats.prompt_tokens);
    if let Some(first) = stats.first_token.filter(|time| !time.is_zero()) {
        text += &format!(", {:.0} tokens/s", stats.prompt_tokens as f64 / first.as_secs_f64());
    }
    text += &format!("; {} of answer", stats.new_tokens);
    if let Some(speed) = stats.tokens_per_second() {
        text += &format!(", {speed:.1} tokens/s");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_calls_only_if_there_are_any() {
        let plain = object("Hi", Some(FinishReason::Stop), &Stats::default(), &[]);
        assert_eq!((&plain["text"], &plain["finish_reason"]), (&json!("Hi"), &json!("stop")));
        assert_eq!(plain["stats"]["tokens_per_second"], Value::Null);
        assert_eq!(plain.get("tool_calls"), None);
        let call = ToolCall::new("now", json!({"zone": "UTC"}));
        let called = object("", Some(FinishReason::Cancelled), &Stats::default(), &[call]);
        assert_eq!(called["tool_calls"][0]["function"]["name"], "now");
        assert_eq!(called["finish_reason"], "cancelled");
    }
}
