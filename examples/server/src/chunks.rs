//! Answers that arrive piece by piece, as server-sent events: the loop that all endpoints share.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use crate::answers::{Answers, Piece};
use crate::error::ApiError;
use crate::sse::{self, Events};

/// Events that wait to be sent, and whether no more will come.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) ready: VecDeque<String>,
    is_done: bool,
}

/// What an endpoint makes of the pieces of its answers. Events go to its queue.
pub(crate) trait Chunks: Send + Unpin + 'static {
    fn answers(&mut self) -> &mut Answers;

    fn queue(&mut self) -> &mut Queue;

    /// A piece of answer `index` has come.
    fn piece(&mut self, index: usize, piece: Piece);

    /// An answer has failed, and nothing more comes.
    fn fail(&mut self, error: &ApiError) {
        self.queue().ready.push_back(sse::data(error.json()));
    }

    /// All answers are complete.
    fn end(&mut self);
}

impl<T: Chunks> Events for T {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            if let Some(text) = self.queue().ready.pop_front() {
                return Poll::Ready(Some(text));
            }
            if self.queue().is_done {
                return Poll::Ready(None);
            }
            let next = ready!(self.answers().poll_next(context));
            self.queue().is_done = !matches!(next, Some(Ok(_)));
            match next {
                Some(Ok((index, piece))) => self.piece(index, piece),
                Some(Err(error)) => self.fail(&error),
                None => self.end(),
            }
        }
    }
}
