//! The ways to read an answer: as a thread, as a task, without waiting; and engines that their host steps.
#![cfg(feature = "cpu")]

mod common;

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use common::{demo, demo_engine, options};
use qwen::{Engine, ErrorKind, FinishReason, GenerateOptions, TextStream};

/// An executor for one task: its thread sleeps until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// All of these, side by side.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(found) = future.as_mut().poll(context) {
                *output = Some(found);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

fn sampled(seed: u64) -> GenerateOptions {
    GenerateOptions::new().temperature(2.0).seed(seed).max_new_tokens(30).ignore_eos(true)
}

fn ask(engine: &Engine, seed: u64) -> TextStream {
    engine.generate("Hello", &sampled(seed)).unwrap()
}

async fn read(mut stream: TextStream) -> String {
    let mut text = String::new();
    while let Some(piece) = poll_fn(|context| stream.poll_next(context)).await {
        text += &piece.unwrap();
    }
    text
}

fn manual() -> Engine {
    options().batch(4).manual().load(demo()).unwrap()
}

fn expected() -> Vec<String> {
    let engine = demo_engine();
    (0..6).map(|seed| ask(&engine, seed).text().unwrap()).collect()
}

#[test]
fn tasks_read_the_same_answers_as_threads() {
    let engine = demo_engine();
    let tasks = (0..6).map(|seed| read(ask(&engine, seed))).collect();
    assert_eq!(block_on(join_all(tasks)), expected());
    // A chat's reply joins the conversation, and rows of logits arrive.
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(64));
    let mut reply = chat.send("What is 3 + 4?").unwrap();
    while block_on(poll_fn(|context| reply.poll_next(context))).is_some() {}
    assert_eq!(chat.messages().len(), 2);
    let mut rows = engine.logits_rows([1, 2, 3]).unwrap();
    let row = |rows: &mut qwen::LogitsRows| block_on(poll_fn(|context| rows.poll_next(context)));
    let read: Vec<f32> = std::iter::from_fn(|| row(&mut rows)).flat_map(Result::unwrap).collect();
    assert_eq!(read, engine.logits(&[1, 2, 3]).unwrap());
}

#[test]
fn a_dropped_task_leaves_the_engine_to_others() {
    let engine = options().max_waiting(1).load(demo()).unwrap();
    let endless = GenerateOptions::new().ignore_eos(true);
    for _ in 0..20 {
        let mut stream = engine.generate("Hello", &endless).unwrap();
        block_on(poll_fn(|context| stream.poll_next(context))).unwrap().unwrap();
        // A task that waits for its next piece goes away.
        let mut task = Box::pin(read(stream));
        let _ = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    assert_eq!(block_on(read(ask(&engine, 0))), expected()[0]);
}

#[test]
fn what_arrived_is_there_without_waiting_and_is_counted() {
    let engine = manual();
    let mut stream = engine.generate_ids([1, 2, 3], &sampled(1)).unwrap();
    assert!(stream.try_next().is_pending());
    for unread in 1..=3 {
        assert!(engine.step().unwrap());
        // With the progress of the prompt.
        assert_eq!(stream.unread(), unread + 1);
    }
    let tokens = std::iter::from_fn(|| match stream.try_next() {
        Poll::Ready(token) => token,
        Poll::Pending => None,
    });
    assert_eq!(tokens.count(), 3);
    assert_eq!((stream.unread(), stream.finish_reason()), (0, None));
}

#[test]
fn a_panic_in_a_callback_ends_its_own_answer() {
    for engine in [demo_engine(), manual()] {
        let mut others: Vec<_> = (0..3).map(|seed| ask(&engine, seed)).collect();
        let mut broken = ask(&engine, 5);
        let canceller = broken.canceller();
        broken.on_prompt_progress(|_| panic!("a mistake of the program"));
        assert!(catch_unwind(AssertUnwindSafe(move || broken.next())).is_err());
        let texts: Vec<String> = others.drain(..).map(|stream| stream.text().unwrap()).collect();
        assert_eq!(texts, expected()[..3]);
        canceller.cancel();
        assert_eq!(ask(&engine, 5).text().unwrap(), expected()[5]);
    }
}

#[test]
fn a_host_steps_an_engine_and_gets_the_same_answers() {
    let engine = manual();
    assert!(!engine.step().unwrap(), "nobody asks for anything");
    let mut streams: Vec<_> = (0..6).map(|seed| (ask(&engine, seed), String::new())).collect();
    let mut steps = 0;
    while streams.iter().any(|(stream, _)| stream.finish_reason().is_none()) {
        assert!(engine.step().unwrap());
        steps += 1;
        for (stream, text) in &mut streams {
            while let Poll::Ready(Some(piece)) = stream.try_next() {
                *text += &piece.unwrap();
            }
        }
    }
    assert!(!engine.step().unwrap());
    assert_eq!(streams.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), expected());
    assert!((30..=60).contains(&steps), "{steps} steps: one for each token, all answers together");
}

#[test]
fn readers_that_block_step_a_manual_engine_themselves() {
    let engine = manual();
    let mut chat = engine.chat().options(GenerateOptions::new().greedy().max_new_tokens(64));
    let text = chat.send("What is 3 + 4?").unwrap().text().unwrap();
    let mut expected_chat = demo_engine().chat().options(GenerateOptions::new().greedy().max_new_tokens(64));
    assert_eq!(text, expected_chat.send("What is 3 + 4?").unwrap().text().unwrap());
    // Several threads at once, beside a host that steps, and after the last handle is gone.
    let streams: Vec<_> = (0..6).map(|seed| ask(&engine, seed)).collect();
    let threads: Vec<_> = streams.into_iter().map(|stream| thread::spawn(move || stream.text().unwrap())).collect();
    while engine.step().unwrap() {}
    drop((engine, chat));
    let texts: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(texts, expected());
}

#[test]
fn a_manual_engine_takes_cancels_and_drops_at_its_next_step() {
    let engine = manual();
    let endless = GenerateOptions::new().ignore_eos(true);
    let mut cancelled = engine.generate("Hello", &endless).unwrap();
    let dropped = engine.generate("Hello", &endless).unwrap();
    assert!(engine.step().unwrap());
    cancelled.canceller().cancel();
    drop(dropped);
    assert!(!engine.step().unwrap(), "nobody is left");
    while let Poll::Ready(Some(piece)) = cancelled.try_next() {
        piece.unwrap();
    }
    assert_eq!(cancelled.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(ask(&engine, 0).text().unwrap(), expected()[0]);
    // One with a thread of its own is not stepped by others.
    let error = demo_engine().step().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("EngineOptions::manual"), "{error}");
}

#[cfg(feature = "stream")]
#[test]
fn answers_are_streams_of_the_futures_crates() {
    use std::pin::Pin;

    use futures_core::Stream;

    async fn collect<S: Stream<Item = qwen::Result<String>> + Unpin>(mut stream: S) -> String {
        let mut text = String::new();
        while let Some(piece) = poll_fn(|context| Pin::new(&mut stream).poll_next(context)).await {
            text += &piece.unwrap();
        }
        text
    }
    let engine = demo_engine();
    assert_eq!(block_on(collect(ask(&engine, 0))), expected()[0]);
    let mut stream = ask(&engine, 1).into_stream();
    let text = block_on(collect(Pin::new(&mut stream)));
    assert_eq!((text.as_str(), stream.get_ref().finish_reason()), (&*expected()[1], Some(FinishReason::Length)));
}
