//! Limits on templates, and the faults that end a rendering.
//!
//! A template comes with a checkpoint and may be hostile. Its source, its nesting, the work and the memory of one
//! rendering are bounded here; every other file of this folder asks before it allocates or recurses.

use std::cell::Cell;

/// The longest source in bytes. Templates of known checkpoints stay below 30 KB.
pub(crate) const MAX_SOURCE_BYTES: usize = 1 << 20;
/// How deep brackets, tags and conditions may nest in a source.
pub(super) const MAX_SOURCE_NESTING: usize = 100;
/// How deep lists and mappings may nest; JSON of messages nests up to 128.
pub(super) const MAX_VALUE_NESTING: usize = 192;
/// How deep tags, brackets and macro calls may nest while they run. Each level takes less than 2 KB of stack.
pub(super) const MAX_RUN_NESTING: usize = 160;
/// Steps of one rendering; a message takes about a hundred. The input adds one a byte.
const MAX_STEPS: u64 = 20_000_000;
/// Bytes that one rendering may allocate, freed or not. The input adds 64 a byte.
const MAX_BYTES: u64 = 128 << 20;
/// Bytes of one text, the result included. The input adds 16 a byte.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// The longest `range`, as in the sandbox of transformers.
pub(super) const MAX_RANGE: u64 = 100_000;

/// Why a template stopped.
#[derive(Debug)]
pub(crate) struct Fault(Box<FaultKind>);

#[derive(Debug)]
pub(crate) enum FaultKind {
    /// The template does what Jinja does not have.
    Problem(String),
    /// The template called `raise_exception`.
    Raised(String),
    /// The text is longer than the caller has room for.
    TooLong,
    /// The template passed a limit of this file.
    Limit {
        /// What is limited, in the plural.
        what: &'static str,
        /// How many there would have been, or the first number beyond the limit.
        found: u64,
        /// The most there may be.
        limit: u64,
    },
}

pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

impl From<FaultKind> for Fault {
    fn from(kind: FaultKind) -> Self {
        Self(Box::new(kind))
    }
}

impl Fault {
    pub(crate) fn kind(self) -> FaultKind {
        *self.0
    }

    pub(super) fn raised(message: String) -> Self {
        Self(Box::new(FaultKind::Raised(message)))
    }

    pub(super) fn too_long() -> Self {
        Self(Box::new(FaultKind::TooLong))
    }

    pub(super) fn limit(what: &'static str, found: u64, limit: u64) -> Self {
        Self(Box::new(FaultKind::Limit { what, found, limit }))
    }
}

/// A fault that says what is wrong.
pub(super) fn problem(text: impl Into<String>) -> Fault {
    Fault(Box::new(FaultKind::Problem(text.into())))
}

/// An error with this text.
pub(super) fn fail<T>(text: impl Into<String>) -> Result<T> {
    Err(problem(text))
}

/// What is left of one rendering's work and memory.
#[derive(Debug)]
pub(crate) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    max_steps: u64,
    max_bytes: u64,
    max_text: u64,
    /// Characters and their guards; see `guards`.
    pub(super) guards: Box<[(char, char)]>,
}

impl Budget {
    /// The budget of a rendering of an input of this size.
    pub(crate) fn of_rendering(input_bytes: u64) -> Self {
        Self {
            steps: Cell::new(0),
            bytes: Cell::new(0),
            max_steps: MAX_STEPS.saturating_add(input_bytes),
            max_bytes: MAX_BYTES.saturating_add(input_bytes.saturating_mul(64)),
            max_text: MAX_TEXT_BYTES.saturating_add(input_bytes.saturating_mul(16)),
            guards: Box::default(),
        }
    }

    /// For the conversion of the caller's own input, which is only counted.
    pub(crate) fn of_input() -> Self {
        let unlimited = u64::MAX;
        Self {
            steps: Cell::new(0),
            bytes: Cell::new(0),
            max_steps: unlimited,
            max_bytes: unlimited,
            max_text: unlimited,
            guards: Box::default(),
        }
    }

    /// The bytes that were asked for so far.
    pub(crate) fn bytes_used(&self) -> u64 {
        self.bytes.get()
    }

    /// Takes steps of work.
    #[inline]
    pub(super) fn steps(&self, count: usize) -> Result<()> {
        let steps = self.steps.get().saturating_add(count as u64);
        self.steps.set(steps);
        if steps > self.max_steps {
            return Err(Fault::limit("steps of work", steps, self.max_steps));
        }
        Ok(())
    }

    /// Takes the work of reading `bytes`.
    #[inline]
    pub(super) fn scan(&self, bytes: usize) -> Result<()> {
        self.steps(1 + bytes / 64)
    }

    /// Takes memory, before it is allocated.
    #[inline]
    pub(super) fn bytes(&self, count: usize) -> Result<()> {
        let bytes = self.bytes.get().saturating_add(count as u64);
        if bytes > self.max_bytes {
            return Err(Fault::limit("bytes of memory", bytes, self.max_bytes));
        }
        self.bytes.set(bytes);
        Ok(())
    }

    /// Takes memory for a text that grows from `length` by `more` bytes.
    #[inline]
    pub(super) fn text(&self, length: usize, more: usize) -> Result<()> {
        let total = (length as u64).saturating_add(more as u64);
        if total > self.max_text {
            return Err(Fault::limit("bytes of one text", total, self.max_text));
        }
        self.bytes(more)
    }
}

/// A text that asks the budget before it grows.
pub(super) struct Writer<'a> {
    pub(super) text: String,
    pub(super) budget: &'a Budget,
}

impl<'a> Writer<'a> {
    pub(super) fn new(budget: &'a Budget) -> Self {
        Self { text: String::new(), budget }
    }

    pub(super) fn push(&mut self, piece: &str) -> Result<()> {
        self.budget.text(self.text.len(), piece.len())?;
        self.text.push_str(piece);
        Ok(())
    }

    pub(super) fn push_char(&mut self, c: char) -> Result<()> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// Appends `piece` `count` times.
    pub(super) fn repeat(&mut self, piece: &str, count: usize) -> Result<()> {
        self.budget.text(self.text.len(), piece.len().saturating_mul(count))?;
        for _ in 0..count {
            self.text.push_str(piece);
        }
        Ok(())
    }
}
