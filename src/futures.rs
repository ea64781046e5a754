//! Answers as streams of the `futures` crates: `poll_next` under the name that any async runtime knows. Behind the
//! feature `stream`.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use qwen_tokenizer::Delta;

use crate::chat::{Deltas, Reply};
use crate::error::Result;
use crate::logits::LogitsRows;
use crate::stream::{TextStream, TokenStream};

/// Only the items of an answer, for programs that use the methods of `StreamExt`: on an answer itself names such as
/// `next` and `map` stand for those of [`Iterator`], too, and the compiler asks which is meant. Made by `into_stream`.
#[derive(Debug)]
#[must_use = "dropping a stream cancels it"]
pub struct AnswerStream<S>(S);

impl<S> AnswerStream<S> {
    /// The answer itself: for its statistics and the reason why it ended.
    pub fn get_ref(&self) -> &S {
        &self.0
    }

    /// The answer itself: for its handlers.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.0
    }

    /// The answer itself, with what was not read of it.
    pub fn into_inner(self) -> S {
        self.0
    }
}

impl<S: Stream + Unpin> Stream for AnswerStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        Pin::new(&mut self.0).poll_next(context)
    }
}

macro_rules! streams {
    ($($answer:ty: $item:ty;)*) => {
        $(
            impl Stream for $answer {
                type Item = Result<$item>;

                fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<$item>>> {
                    Self::poll_next(self.get_mut(), context)
                }
            }

            impl $answer {
                /// This answer without its methods of an [`Iterator`], so that those of `StreamExt` have their names.
                pub fn into_stream(self) -> AnswerStream<Self> {
                    AnswerStream(self)
                }
            }
        )*
    };
}

streams! {
    TokenStream: u32;
    TextStream: String;
    Reply: String;
    Deltas: Delta;
    LogitsRows: Vec<f32>;
}
