//! Many requests that are waited for, such as texts to score or to embed: a few at a time, so that the requests of
//! others wait no longer than behind those.

use std::collections::VecDeque;
use std::task::Poll;

use qwen_core::engine::{Canceller, Event, Request};

use crate::channel::{Receiver, Wait};
use crate::error::{Error, Result};
use crate::worker::{Output, Stamped, Worker};

/// A request that runs. Dropping it cancels it.
struct Running<'a> {
    worker: &'a Worker,
    index: usize,
    events: Receiver<Stamped>,
    canceller: Canceller,
    has_ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended && self.worker.is_here() {
            self.canceller.cancel();
        }
    }
}

impl Running<'_> {
    /// Wait for all events of the request.
    fn finish(mut self, take: &mut impl FnMut(usize, Event)) -> Result<()> {
        loop {
            let Poll::Ready(output) = self.worker.receive(&mut self.events, &mut Wait::Block) else { continue };
            match output?.0 {
                Output::Step(Event::Finished(_)) => {
                    self.has_ended = true;
                    return Ok(());
                }
                Output::Step(Event::Failed(error)) => {
                    self.has_ended = true;
                    return Err(error.into());
                }
                Output::Step(event) => take(self.index, event),
                // Only answers have stop strings.
                Output::StopString(_) => {}
            }
        }
    }
}

/// Run `requests`, and call `take` with what each gives, by its index: in order. The first error ends all.
pub(crate) fn run(
    worker: &Worker,
    requests: impl IntoIterator<Item = Request>,
    mut take: impl FnMut(usize, Event),
) -> Result<()> {
    let most = worker.limits().max_num_seqs.max(1);
    let mut running: VecDeque<Running<'_>> = VecDeque::new();
    for (index, request) in requests.into_iter().enumerate() {
        if running.len() >= most
            && let Some(oldest) = running.pop_front()
        {
            oldest.finish(&mut take)?;
        }
        let (events, canceller) = loop {
            match (worker.submit(request.clone(), None), running.pop_front()) {
                // With a full waiting list, room comes when one of ours has ended.
                (Err(Error::Model(qwen_core::Error::QueueFull { .. })), Some(oldest)) => oldest.finish(&mut take)?,
                (submitted, oldest) => {
                    oldest.into_iter().for_each(|oldest| running.push_front(oldest));
                    break submitted?;
                }
            }
        };
        running.push_back(Running { worker, index, events, canceller, has_ended: false });
    }
    running.into_iter().try_for_each(|running| running.finish(&mut take))
}
