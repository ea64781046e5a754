//! Requests for answers. The streams that answers arrive in are in `stream.rs`.

mod options;
mod request;

use std::time::Instant;

use qwen_core::numerics::float_env::FloatEnv;

use crate::engine::Engine;
use crate::error::Result;
pub use crate::generate::options::{Dry, GenerateOptions};
pub(crate) use crate::generate::request::{max_new_tokens, stop_token_ids};
use crate::stats::Stats;
use crate::stop_strings::StopWatch;
use crate::stream::{TextStream, TokenStream};

/// Tokens of an answer that are computed and not read at most. It pauses then, so that it holds nobody else up and takes
/// no more memory.
const MAX_UNREAD: usize = 4096;

impl Engine {
    /// Continue `prompt`, without a chat template. Control tokens in it take effect, and the tokenizer adds what it
    /// adds to every text, such as a BOS, as in transformers
    /// ([`encode_prompt`](qwen_tokenizer::Tokenizer::encode_prompt)).
    ///
    /// # Errors
    /// Without a tokenizer; for an empty prompt; for one longer than the context, which is detected cheaply, however
    /// long it is.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<TextStream> {
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode_prompt(prompt, self.prompt_room())?;
        self.generate_text(ids, options)
    }

    /// Continue a prompt of token ids. With [stop strings](GenerateOptions::stop), for which the model needs a tokenizer,
    /// the ids end with the one that completes a stop string.
    ///
    /// # Errors
    /// For parameters out of range; for an empty prompt, ids outside the vocabulary, or a prompt longer than the
    /// context; and [`qwen_core::Error::QueueFull`] when too many requests are waiting
    /// ([`crate::EngineOptions::max_waiting`]).
    pub fn generate_ids(&self, prompt: impl Into<Vec<u32>>, options: &GenerateOptions) -> Result<TokenStream> {
        let _float_env = FloatEnv::enter();
        let started = Instant::now();
        let prompt = prompt.into();
        let prompt_tokens = prompt.len();
        let (request, seed) = options.request(prompt, self)?;
        let watch = match options.stop.as_slice() {
            [] => None,
            strings => Some(StopWatch::new(self.tokenizer()?.decode_stream(true), strings)),
        };
        let window = self.worker().intake().window(MAX_UNREAD);
        let (events, canceller) = self.worker().submit(request.window(window.clone()), watch)?;
        let stats = Stats { prompt_tokens, seed, ..Stats::default() };
        Ok(TokenStream::new(self.worker().clone(), events, canceller, window, stats, started))
    }

    /// Continue a prompt of token ids, and give the answer as text: for programs that encode prompts themselves.
    ///
    /// ```
    /// let engine = qwen::Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let ids = engine.tokenizer()?.encode_prompt("What is 3 + 4?", engine.context())?;
    /// let options = qwen::GenerateOptions::new().greedy().max_new_tokens(8);
    /// let text = engine.generate_text(ids, &options)?.text()?;
    /// assert_eq!(text, engine.generate("What is 3 + 4?", &options)?.text()?);
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::generate_ids`], and without a tokenizer.
    pub fn generate_text(&self, ids: impl Into<Vec<u32>>, options: &GenerateOptions) -> Result<TextStream> {
        let decoder = self.tokenizer()?.decode_stream(true);
        Ok(TextStream::new(self.generate_ids(ids, options)?, decoder, &options.stop))
    }
}
