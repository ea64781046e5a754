//! Many answers at once: a list of prompts or conversations in, their whole answers out, in the same order.
//!
//! Requests that run together share each read of the weights, so a list takes far less time than its prompts one by one.
//! Each answer is the same as alone. One thread reads all of them: it sleeps until any of them goes on.

use std::ops::ControlFlow;
use std::task::{Poll, ready};

use qwen_core::engine::FinishReason;
use qwen_core::engine::sampling::Logprobs;
use qwen_tokenizer::{ChatInput, Message};
use serde::{Deserialize, Serialize};

use crate::channel::Wait;
use crate::engine::Engine;
use crate::error::Result;
use crate::generate::GenerateOptions;
use crate::requests;
use crate::stats::Stats;
use crate::stream::{StoppedBy, TextStream};

/// A whole answer: see [`Engine::generate_batch`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Answer {
    /// What the model wrote.
    pub text: String,
    /// Its ids; see [`TextStream::ids`].
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The token or the string that ended it, if one did.
    pub stopped_by: Option<StoppedBy>,
    /// The log-probabilities of its tokens, where the options ask for them; see [`TextStream::logprobs`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<Logprobs>,
    /// Tokens and times.
    pub stats: Stats,
}

impl Answer {
    /// The mean of the log-probabilities of its tokens. `None` without tokens, and where the options did not ask for them.
    #[must_use]
    pub fn mean_logprob(&self) -> Option<f64> {
        let sum: f64 = self.logprobs.iter().map(|token| token.logprob).sum();
        (!self.logprobs.is_empty()).then(|| sum / self.logprobs.len() as f64)
    }
}

impl Engine {
    /// Continue each of these prompts, as [`Engine::generate`] does, and wait for all answers, which come in the order of
    /// the prompts. A prompt that fails, for example since it is too long, has its error in its place; the others have
    /// their answers.
    ///
    /// There may be more prompts than the engine lets wait: only about twice as many as it computes side by side are sent
    /// to it at a time, so that other users of the engine find room. A prompt fails as
    /// [`Busy`](crate::ErrorKind::Busy) only if those of others fill the waiting list.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = GenerateOptions::new().greedy().max_new_tokens(20);
    /// for answer in engine.generate_batch(["The sky is", "The sea is"], &options) {
    ///     let answer = answer?;
    ///     println!("{} ({}, {} tokens)", answer.text, answer.finish_reason, answer.ids.len());
    /// }
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn generate_batch<T: AsRef<str>>(
        &self,
        prompts: impl IntoIterator<Item = T>,
        options: &GenerateOptions,
    ) -> Vec<Result<Answer>> {
        self.answer_all(prompts.into_iter().map(|prompt| move || self.generate(prompt.as_ref(), options)))
    }

    /// As [`Engine::generate_batch`], for conversations: an answer to the messages of each. A [`Chat`](crate::Chat) with
    /// tools, or one that goes on, is asked by itself.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions, Message};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let questions = ["What is 3 + 4?", "What is the capital of Peru?"];
    /// let chats = questions.map(|question| [Message::system("You are terse."), Message::user(question)]);
    /// for answer in engine.chat_batch(chats, &GenerateOptions::new().greedy()) {
    ///     println!("{}", answer?.text);
    /// }
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn chat_batch<T: AsRef<[Message]>>(
        &self,
        conversations: impl IntoIterator<Item = T>,
        options: &GenerateOptions,
    ) -> Vec<Result<Answer>> {
        self.answer_all(conversations.into_iter().map(|messages| {
            move || {
                let input = ChatInput::new(messages.as_ref()).add_generation_prompt(true);
                let prompt = self.tokenizer()?.encode_chat_within(&input, self.prompt_room())?;
                self.generate_text(prompt.ids, options)
            }
        }))
    }

    /// Several answers to one prompt, to choose from. With a seed, answer `i` is that of the seed `seed + i`; without,
    /// each draws its own ([`Stats::seed`]). Greedy decoding gives the same answer each time.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = GenerateOptions::new().temperature(1.0).seed(7).max_new_tokens(20);
    /// let answers = engine.generate_n("Once upon a time", 3, &options);
    /// assert_eq!(answers.len(), 3);
    /// let third = engine.generate("Once upon a time", &options.seed(9))?.text()?;
    /// assert_eq!(answers[2].as_ref().map(|answer| answer.text.as_str()).ok(), Some(third.as_str()));
    /// # Ok::<(), qwen::Error>(())
    /// ```
    pub fn generate_n(&self, prompt: &str, n: usize, options: &GenerateOptions) -> Vec<Result<Answer>> {
        self.answer_all((0..n as u64).map(|i| {
            let mut options = options.clone();
            options.seed = options.seed.map(|seed| seed.wrapping_add(i));
            move || self.generate(prompt, &options)
        }))
    }

    /// The `n` best of `best_of` answers to one prompt, the best first: those whose tokens the model finds most likely
    /// on average ([`Answer::mean_logprob`]). The answers are those of [`Engine::generate_n`]; among equals the earlier one
    /// comes first.
    ///
    /// ```
    /// use qwen::{Engine, GenerateOptions};
    /// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
    /// let options = GenerateOptions::new().temperature(1.0).max_new_tokens(20);
    /// let best = engine.generate_best_of("Once upon a time", 1, 4, &options)?;
    /// println!("{} ({:?} a token)", best[0].text, best[0].mean_logprob());
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// The first error of any of the answers.
    pub fn generate_best_of(
        &self,
        prompt: &str,
        n: usize,
        best_of: usize,
        options: &GenerateOptions,
    ) -> Result<Vec<Answer>> {
        let options = GenerateOptions { logprobs: Some(options.logprobs.unwrap_or(0)), ..options.clone() };
        let mut answers = self.generate_n(prompt, best_of, &options).into_iter().collect::<Result<Vec<Answer>>>()?;
        // An empty answer says nothing: it comes last.
        let mean = |answer: &Answer| answer.mean_logprob().unwrap_or(f64::NEG_INFINITY);
        answers.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        answers.truncate(n);
        Ok(answers)
    }

    /// Send these requests, as room frees, and read all their answers.
    fn answer_all(&self, requests: impl Iterator<Item = impl Fn() -> Result<TextStream>>) -> Vec<Result<Answer>> {
        let mut answers: Vec<(usize, Result<Answer>)> = Vec::new();
        let requests = requests.map(|request| move || Ok((request()?, String::new())));
        requests::run_all(
            self.worker(),
            requests,
            |_, (stream, text), wait| read(stream, text, wait),
            |place, answer| {
                answers.push((place, answer));
                ControlFlow::Continue(())
            },
        );
        answers.sort_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// Read what has arrived of an answer, of which `text` has been read.
fn read(stream: &mut TextStream, text: &mut String, wait: &mut Wait<'_, '_>) -> Poll<Result<Answer>> {
    while let Some(piece) = ready!(stream.advance(wait)) {
        text.push_str(&piece?);
    }
    Poll::Ready(Ok(Answer {
        text: std::mem::take(text),
        ids: stream.ids().into(),
        // A stream without an error has one.
        finish_reason: stream.finish_reason().unwrap_or(FinishReason::Cancelled),
        stopped_by: stream.stopped_by().cloned(),
        logprobs: stream.logprobs().into(),
        stats: stream.stats(),
    }))
}
