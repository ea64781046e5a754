//! Log-probabilities as completions have them: four lists side by side.

use qwen::{Logprobs, Tokenizer};
use serde_json::{Map, Value, json};

use crate::wire::finite;

/// The lists so far.
#[derive(Debug, Clone, Default)]
pub(super) struct LogprobsList {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// Characters of all tokens so far.
    characters: usize,
}

impl LogprobsList {
    /// The first token of a prompt, before which nothing stands that could predict it.
    pub(super) fn first(&mut self, id: Option<u32>, tokenizer: &Tokenizer) {
        if let Some(id) = id {
            self.add(id, Value::Null, Value::Null, tokenizer);
        }
    }

    pub(super) fn extend(&mut self, tokens: &[Logprobs], tokenizer: &Tokenizer) {
        for token in tokens {
            // The token itself is among them, as in OpenAI's API.
            let all = token.top.iter().map(|top| (top.id, top.logprob)).chain([(token.id, token.logprob)]);
            let top: Map<String, Value> =
                all.map(|(id, logprob)| (name(id, tokenizer), json!(finite(logprob)))).collect();
            self.add(token.id, json!(finite(token.logprob)), Value::Object(top), tokenizer);
        }
    }

    fn add(&mut self, id: u32, logprob: Value, top: Value, tokenizer: &Tokenizer) {
        self.tokens.push(name(id, tokenizer));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top);
        self.text_offset.push(self.characters);
        // A character counts with its first byte.
        self.characters += tokenizer.token_bytes(id).iter().filter(|byte| **byte & 0xC0 != 0x80).count();
    }

    /// What came since the last time.
    pub(super) fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}

/// The text of a token; its bytes where it is no text, so that two of them have two names.
fn name(id: u32, tokenizer: &Tokenizer) -> String {
    match String::from_utf8(tokenizer.token_bytes(id)) {
        Ok(text) => text,
        Err(error) => {
            let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
            bytes.fold("bytes:".into(), |name, byte| name + &byte)
        }
    }
}
