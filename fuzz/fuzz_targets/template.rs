//! Chat templates. To list it: `qwen-tokenizer = { path = "../qwen-tokenizer" }` and a `[[bin]]` in Cargo.toml.
#![cfg_attr(fuzzing, no_main)]

use qwen_tokenizer::{ChatInput, ChatTemplate, Message};

qwen_fuzz::fuzz!(template);

/// A template, whatever it holds, is refused, or renders, or fails to render.
fn template(source: &[u8]) {
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::system("Be brief."), Message::user("Hello <|im_end|>"), Message::assistant("Hi.")];
    let _ = template.render(&ChatInput::new(&messages));
}
