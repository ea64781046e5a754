//! What to do when a conversation no longer fits the context: which of its oldest turns have to go.

use qwen::{ChatInput, Engine, Error, Message, Role, Tool};

/// Whether the error says that the conversation does not fit.
pub(crate) fn is_full(error: &Error) -> bool {
    matches!(
        error,
        Error::Model(qwen::core::Error::ContextLength { .. })
            | Error::Text(qwen::tokenizer::Error::TooManyTokens { .. })
    )
}

/// Tokens of the prompt that these messages make.
///
/// # Errors
/// When the template refuses them, and when they do not fit ([`is_full`]).
pub(crate) fn tokens(engine: &Engine, messages: &[Message], tools: &[Tool]) -> qwen::Result<usize> {
    let input = ChatInput::new(messages).tools(tools).add_generation_prompt(true);
    Ok(engine.tokenizer()?.encode_chat_within(&input, engine.context().saturating_sub(1))?.ids.len())
}

/// How many of the oldest turns go, so that a quarter of the context is free for the answer, and the messages that stay.
/// The system message does, and `asked` is not among the messages yet. `fits` has the tokens of messages, if they fit at all.
/// `None` where the rest is too long as well.
pub(crate) fn shortened(
    mut messages: Vec<Message>,
    asked: Option<&Message>,
    context: usize,
    fits: impl Fn(&[Message]) -> Option<usize>,
) -> Option<(usize, Vec<Message>)> {
    let first = messages.iter().position(|message| message.role != Role::System)?;
    for dropped in 1.. {
        // A turn is a question and all up to the next one.
        let next = messages.iter().skip(first + 1).position(|message| message.role == Role::User);
        let end = match (next, asked) {
            (Some(offset), _) => first + 1 + offset,
            (None, Some(_)) => messages.len(),
            (None, None) => return None,
        };
        messages.drain(first..end);
        let is_last = messages.len() == first;
        let rest: Vec<Message> = messages.iter().chain(asked).cloned().collect();
        match fits(&rest) {
            Some(tokens) if is_last || tokens <= context / 4 * 3 => return Some((dropped, messages)),
            None if is_last => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for each character, in a context of 40.
    fn kept(messages: &[Message], asked: Option<&Message>) -> Option<(usize, Vec<Message>)> {
        shortened(messages.to_vec(), asked, 40, |messages| {
            let tokens = messages.iter().filter_map(Message::text).map(|text| text.len()).sum();
            (tokens < 40).then_some(tokens)
        })
    }

    #[test]
    fn the_oldest_turns_go_until_an_answer_has_room() {
        let long = |message: fn(String) -> Message| message("x".repeat(8));
        let (user, model) = (|| long(Message::user), || long(Message::assistant));
        let messages = [Message::system("12345678"), user(), model(), user(), model(), user(), model()];
        // 56 tokens: without one turn 40, without two 24.
        let (dropped, rest) = kept(&messages, None).unwrap();
        assert_eq!((dropped, rest), (2, [&messages[..1], &messages[5..]].concat()));
        let (dropped, rest) = kept(&messages, Some(&Message::user("12345678"))).unwrap();
        assert_eq!((dropped, rest), (3, messages[..1].to_vec()));
        // What is asked has 28 tokens: with the system message that fits, if only just.
        assert_eq!(kept(&messages, Some(&Message::user("x".repeat(28)))).map(|(dropped, _)| dropped), Some(3));
    }

    #[test]
    fn a_question_that_is_too_long_by_itself_drops_nothing() {
        let messages = [Message::user("Hello"), Message::assistant("Hi")];
        assert_eq!(kept(&messages, Some(&Message::user("x".repeat(50)))), None);
        assert_eq!(kept(&messages, None), None);
        assert_eq!(kept(&[], Some(&Message::user("x".repeat(50)))), None);
    }
}
