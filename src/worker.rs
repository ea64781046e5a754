//! The engine's own thread: it owns the runner, takes commands and sends events.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Instant;

use qwen_core::engine::{Canceller, EngineCore, Event, Request, SeqId};

/// An event and when it happened: a reader may be slower than the engine.
pub(crate) type Stamped = (Event, Instant);

/// What a handle asks of the thread.
pub(crate) enum Command {
    Generate { request: Request, canceller: Canceller, events: Sender<Stamped> },
    Logits { ids: Vec<u32>, reply: Sender<qwen_core::Result<Vec<f32>>> },
}

/// Serve commands until all handles are gone. Without work the thread sleeps.
pub(crate) fn run(mut core: EngineCore, commands: &Receiver<Command>) {
    let mut receivers: HashMap<SeqId, (Sender<Stamped>, Canceller)> = HashMap::new();
    loop {
        loop {
            let command = match core.is_idle() {
                true => commands.recv().map_err(|_| TryRecvError::Disconnected),
                false => commands.try_recv(),
            };
            match command {
                Ok(command) => handle(&mut core, &mut receivers, command),
                Err(TryRecvError::Empty) => break,
                // The last handle is gone, and with it all that could read an answer: streams hold a handle.
                Err(TryRecvError::Disconnected) => return,
            }
        }
        core.step(|id, event| {
            let last = matches!(event, Event::Finished(_) | Event::Failed(_));
            let Some((events, canceller)) = receivers.get(&id) else { return };
            if events.send((event, Instant::now())).is_err() {
                // The stream was dropped: nobody waits for the rest.
                canceller.cancel();
            }
            if last {
                receivers.remove(&id);
            }
        });
    }
}

fn handle(core: &mut EngineCore, receivers: &mut HashMap<SeqId, (Sender<Stamped>, Canceller)>, command: Command) {
    match command {
        Command::Generate { request, canceller, events } => match core.add(request, &canceller) {
            Ok(id) => {
                receivers.insert(id, (events, canceller));
            }
            // A receiver that is gone does not need to know.
            Err(error) => drop(events.send((Event::Failed(error), Instant::now()))),
        },
        Command::Logits { ids, reply } => drop(reply.send(core.logits(&ids))),
    }
}
