//! The channel on which an engine's events reach a reader: a queue that a reader can wait for as a thread, as a task of
//! any async runtime, or not at all.
//!
//! Sending never waits. What bounds the queue is what is sent: see `worker/`.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How a reader waits for what has not arrived.
pub(crate) enum Wait<'a, 'b> {
    /// Its thread sleeps.
    Block,
    /// Its task is woken.
    Wake(&'a mut Context<'b>),
    /// It asks again later.
    Not,
}

impl Wait<'_, '_> {
    /// The item for which a thread has waited.
    pub(crate) fn block<T>(advance: impl FnOnce(&mut Wait<'_, '_>) -> Poll<Option<T>>) -> Option<T> {
        match advance(&mut Wait::Block) {
            Poll::Ready(item) => item,
            // Nobody who blocks gets this.
            Poll::Pending => None,
        }
    }
}

/// A channel for one reader.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { items: VecDeque::new(), waker: None, is_closed: false });
    let shared = Arc::new(Shared { state, arrived: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

struct Shared<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    waker: Option<Waker>,
    /// The sender is gone.
    is_closed: bool,
}

impl<T> Shared<T> {
    // Nothing that holds the lock can panic halfway through a change.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Change the state and wake the reader. False if its waker panicked.
    fn change(&self, change: impl FnOnce(&mut State<T>)) -> bool {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_one();
        // A waker is code of the program: its panic may end its own answer, but not the engine.
        waker.is_none_or(|waker| catch_unwind(AssertUnwindSafe(|| waker.wake())).is_ok())
    }
}

/// The end that the engine holds. Dropping it closes the channel.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Send an item. False if nobody will read it.
    pub(crate) fn send(&self, item: T) -> bool {
        // The reader's end is gone if this is the only one. It is dropped without taking the lock, which the thread of a
        // parent may have held when this process was forked.
        Arc::strong_count(&self.0) > 1 && self.0.change(|state| state.items.push_back(item))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.change(|state| state.is_closed = true);
    }
}

/// The reader's end.
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

impl<T> Receiver<T> {
    /// The next item, or `None` at the end. Pending only if `wait` allows it.
    pub(crate) fn receive(&mut self, wait: &mut Wait<'_, '_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                return Poll::Ready(Some(item));
            }
            if state.is_closed {
                return Poll::Ready(None);
            }
            match wait {
                Wait::Block => state = self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Wait::Wake(context) => {
                    match &mut state.waker {
                        Some(waker) => waker.clone_from(context.waker()),
                        none => *none = Some(context.waker().clone()),
                    }
                    return Poll::Pending;
                }
                Wait::Not => return Poll::Pending,
            }
        }
    }

    /// Items that have arrived and were not read.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().items.len()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a broken executor");
        }
    }

    #[test]
    fn a_waiting_task_is_woken_once_for_each_time_it_waited() {
        let (sender, mut receiver) = channel();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut poll = || receiver.receive(&mut Wait::Wake(&mut Context::from_waker(&waker)));
        assert_eq!((poll(), poll()), (Poll::Pending, Poll::Pending));
        assert!(sender.send(1) && sender.send(2));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!((poll(), poll(), poll()), (Poll::Ready(Some(1)), Poll::Ready(Some(2)), Poll::Pending));
        drop(sender);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert_eq!(poll(), Poll::Ready(None));
    }

    #[test]
    fn threads_wait_for_items_and_for_the_end() {
        let (sender, mut receiver) = channel();
        let reader = std::thread::spawn(move || {
            std::iter::from_fn(|| Wait::block(|wait| receiver.receive(wait))).collect::<Vec<u32>>()
        });
        assert!((0..1000).all(|n| sender.send(n)));
        drop(sender);
        assert_eq!(reader.join().unwrap(), (0..1000).collect::<Vec<u32>>());
    }

    #[test]
    fn a_sender_learns_that_nobody_reads() {
        let (sender, mut receiver) = channel();
        assert_eq!(receiver.receive(&mut Wait::Not), Poll::Pending);
        assert!(sender.send(1));
        assert_eq!(receiver.len(), 1);
        drop(receiver);
        assert!(!sender.send(2));
        // As if it were gone: a reader whose executor panics.
        let (sender, mut receiver) = channel();
        let waker = Waker::from(Arc::new(Panics));
        assert_eq!(receiver.receive(&mut Wait::Wake(&mut Context::from_waker(&waker))), Poll::Pending);
        assert!(!sender.send(3));
        assert_eq!(receiver.receive(&mut Wait::Not), Poll::Ready(Some(3)));
    }
}
