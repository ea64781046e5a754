//! A large file over several connections: pieces are asked for ahead, and handed over in the order of the file. What is on
//! disk is so always the beginning of the file, from which one connection, another process or another program goes on.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::client::{Announced, Client};
use crate::error::Result;

/// Bytes of a piece. Each connection keeps two: one that waits for its turn, and one that arrives.
const PIECE_BYTES: u64 = 8 << 20;
/// The least that is worth several connections.
pub(super) const MIN_BYTES: u64 = 4 * PIECE_BYTES;

/// Hand the file from `start` on to `write`, piece by piece, over so many connections. Whatever is wrong with a piece ends
/// this early and without an error: the pieces before it have been written, and asking for the rest over one connection
/// finds out what is wrong.
///
/// # Errors
/// Those of `write`.
pub(super) fn fetch(
    client: &Client<'_>,
    announced: &Announced,
    start: u64,
    connections: u64,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when `write` panics.
        let _over = SetOnDrop(&is_over);
        let is_over = &is_over;
        let receivers: Vec<Receiver<Vec<u8>>> = (0..connections)
            .map(|connection| {
                let (sender, receiver) = sync_channel(1);
                let start = start + connection * PIECE_BYTES;
                scope.spawn(move || ask(client, announced, start, connections, is_over, &sender));
                receiver
            })
            .collect();
        for receiver in receivers.iter().cycle() {
            // A connection ends when its last piece is sent, or in the middle of one that is not complete. Those that still
            // send then notice that nobody listens.
            let Ok(piece) = receiver.recv() else { return Ok(()) };
            write(&piece)?;
        }
        Ok(())
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Send the piece at `start`, and every further one that is this connection's turn.
fn ask(
    client: &Client<'_>,
    announced: &Announced,
    start: u64,
    connections: u64,
    is_over: &AtomicBool,
    sender: &SyncSender<Vec<u8>>,
) {
    let mut start = start;
    while start < announced.size {
        let end = announced.size.min(start + PIECE_BYTES);
        let Some(piece) = piece(client, announced, start, end, is_over) else { return };
        if sender.send(piece).is_err() {
            return;
        }
        start += connections * PIECE_BYTES;
    }
}

/// The bytes from `start` to `end`, if exactly these come.
fn piece(client: &Client<'_>, announced: &Announced, start: u64, end: u64, is_over: &AtomicBool) -> Option<Vec<u8>> {
    let response = client.get(&announced.contents, Some((start, Some(end)))).ok()?;
    let range = response.headers().get("content-range")?.to_str().ok()?;
    if range != format!("bytes {start}-{}/{}", end - 1, announced.size) {
        return None;
    }
    let mut piece = Vec::new();
    let mut body = response.into_body().into_reader().take(end - start + 1);
    let mut buffer = vec![0; 128 << 10];
    loop {
        client.check().ok().filter(|()| !is_over.load(Ordering::Relaxed))?;
        match body.read(&mut buffer).ok()? {
            0 => return (piece.len() as u64 == end - start).then_some(piece),
            count => piece.extend_from_slice(buffer.get(..count)?),
        }
    }
}
