//! One file into the cache: what is there already is kept, a broken connection goes on where it broke, and the contents get
//! their name only after their length and their checksum are right.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::cache::{Repository, create_parent, io_error};
use super::client::{Announced, Client, MAX_TRIES};
use super::digest::Digest;
use super::error::Error;
use super::ranges;
use crate::error::Result;

const BUFFER_BYTES: usize = 128 << 10;
/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 1 << 20;
/// How often a connection may break although each brings something.
const MAX_BREAKS: u32 = 1000;

/// Is told how many bytes of the file there are.
type Report<'a> = &'a dyn Fn(u64) -> Result<()>;

/// Bring the contents that `file` of the repository announces into the cache, over so many connections if it is large.
pub(super) fn fetch(
    client: &Client<'_>,
    repository: &Repository,
    file: &str,
    announced: &Announced,
    connections: u64,
    report: Report<'_>,
) -> Result<()> {
    let blob = repository.blob(&announced.etag);
    let is_here = || blob.metadata().is_ok_and(|metadata| metadata.len() == announced.size);
    if is_here() {
        return report(announced.size);
    }
    create_parent(&blob)?;
    let _lock = lock(client, &repository.lock(&announced.etag))?;
    // Another process may have brought it while this one waited.
    if is_here() {
        return report(announced.size);
    }
    let path = repository.incomplete(&announced.etag);
    let mut partial = Partial::open(&path, announced)?;
    let mut began_with = partial.len;
    if connections > 1 && announced.size - partial.len >= ranges::MIN_BYTES {
        let start = partial.len;
        ranges::fetch(client, announced, start, connections, |piece| {
            partial.write(piece, announced)?;
            report(partial.len)
        })?;
    }
    loop {
        partial.complete(client, announced, report)?;
        let Some(found) = partial.digest.finish().filter(|found| *found != announced.etag) else { break };
        if began_with == 0 {
            fs::remove_file(&path).map_err(|error| io_error(&path, error))?;
            let reason = format!("the hub announces the checksum {}, what arrived has {found}", announced.etag);
            return Err(Error::Damaged { file: file.into(), reason }.into());
        }
        // What an earlier process left may be what is wrong.
        partial = Partial::open(&path, announced)?;
        partial.restart(announced)?;
        began_with = 0;
    }
    partial.file.sync_all().map_err(|error| io_error(&path, error))?;
    drop(partial.file);
    Ok(fs::rename(&path, &blob).map_err(|error| io_error(&blob, error))?)
}

/// A file that is not whole yet, with the checksum of what there is.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    digest: Digest,
}

impl<'a> Partial<'a> {
    fn open(path: &'a Path, announced: &Announced) -> Result<Self, Error> {
        let io = |error| io_error(path, error);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let mut partial = Partial { path, file, len, digest: Digest::of(&announced.etag, announced.size) };
        if len > announced.size {
            partial.restart(announced)?;
            return Ok(partial);
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut left = len;
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = buffer.get_mut(..wanted).unwrap_or_default();
            partial.file.read_exact(bytes).map_err(io)?;
            partial.digest.update(bytes);
            left -= wanted as u64;
        }
        Ok(partial)
    }

    /// Forget what there is.
    fn restart(&mut self, announced: &Announced) -> Result<(), Error> {
        let io = |error| io_error(self.path, error);
        self.file.set_len(0).map_err(io)?;
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        self.len = 0;
        self.digest = Digest::of(&announced.etag, announced.size);
        Ok(())
    }

    /// Ask for the rest until it is there.
    fn complete(&mut self, client: &Client<'_>, announced: &Announced, report: Report<'_>) -> Result<()> {
        let (mut tries, mut breaks) = (0, 0);
        while self.len < announced.size {
            let before = self.len;
            let reason = match self.request(client, announced, report) {
                Ok(()) => "the connection ended early".to_owned(),
                Err(crate::Error::Hub(Error::Network { reason, .. })) => reason,
                Err(error) => return Err(error),
            };
            if self.len == announced.size {
                break;
            }
            breaks += 1;
            tries = if self.len > before { 0 } else { tries + 1 };
            if tries == MAX_TRIES || breaks == MAX_BREAKS {
                let reason = format!("{reason}, with {} of {} bytes", self.len, announced.size);
                return Err(Error::Network { url: announced.url.clone(), reason }.into());
            }
            if tries > 0 {
                client.wait(client.backoff(tries))?;
            }
        }
        Ok(())
    }

    /// One request for the rest, read as far as it comes.
    fn request(&mut self, client: &Client<'_>, announced: &Announced, report: Report<'_>) -> Result<()> {
        let from = (self.len > 0).then_some(self.len);
        let response = client.get(&announced.url, from.map(|from| (from, None)))?;
        let status = response.status();
        let is_rest = status == StatusCode::PARTIAL_CONTENT && from.is_some();
        let total = if is_rest { content_range(&response, self.len) } else { content_length(&response) };
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (is_rest && total.is_none()) {
            // The server has another file, or another idea of ranges.
            return Ok(self.restart(announced)?);
        }
        if let Some(total) = total.filter(|total| *total != announced.size) {
            let reason = format!("the hub announces {} bytes and sends a file of {total}", announced.size);
            self.restart(announced)?;
            return Err(Error::Damaged { file: announced.url.clone(), reason }.into());
        }
        if !is_rest && self.len > 0 {
            self.restart(announced)?;
        }
        self.read(response.into_body(), announced, report)
    }

    fn read(&mut self, body: Body, announced: &Announced, report: Report<'_>) -> Result<()> {
        let mut body = body.into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut reported = 0;
        loop {
            if self.len - reported >= REPORT_BYTES || reported == 0 {
                reported = self.len;
                report(self.len)?;
            }
            let count = match body.read(&mut buffer) {
                Ok(0) => return report(self.len),
                Ok(count) => count,
                Err(error) => {
                    return Err(Error::Network { url: announced.url.clone(), reason: error.to_string() }.into());
                }
            };
            self.write(buffer.get(..count).unwrap_or_default(), announced)?;
        }
    }

    fn write(&mut self, bytes: &[u8], announced: &Announced) -> Result<(), Error> {
        if bytes.len() as u64 > announced.size - self.len {
            self.restart(announced)?;
            let reason = format!("the hub announces {} bytes and sends more", announced.size);
            return Err(Error::Damaged { file: announced.url.clone(), reason });
        }
        self.file.write_all(bytes).map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Error::NoSpace { path: self.path.to_path_buf(), needed: announced.size - self.len }
            }
            _ => io_error(self.path, error),
        })?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    response.headers().get("content-length")?.to_str().ok()?.parse().ok()
}

/// The size of the whole file, in an answer that begins at `from`.
fn content_range(response: &Response<Body>, from: u64) -> Option<u64> {
    let text = response.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    (start.parse() == Ok(from)).then(|| total.parse().ok())?
}

/// Wait until no other process downloads the same. The lock ends with its process, however that ends.
fn lock(client: &Client<'_>, path: &Path) -> Result<File> {
    const BETWEEN: Duration = Duration::from_millis(50);
    create_parent(path)?;
    let io = |error| io_error(path, error);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(io)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => client.wait(BETWEEN)?,
            // File systems without locks: two processes may disturb each other, which the checksum finds.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(io(error).into()),
        }
    }
}
