//! The context of a case: the backend under test, the reference beside it, and the list of failures.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::compare;
use super::op::{self, Allowed, Op, Values};
use qwen_core::Precision;
use qwen_core::backend::Backend;
use qwen_core::backend::reference::Reference;
use qwen_core::error::Result;

/// The most failures to show; there may be thousands.
const SHOWN: usize = 20;

/// A backend under test and the findings so far.
pub struct Rig<'a, B> {
    /// The backend.
    pub b: B,
    /// What its kernels may round.
    pub precision: Precision,
    batch_invariant: bool,
    make: &'a dyn Fn() -> Result<B>,
    checks: usize,
    skipped: bool,
    failures: Vec<String>,
}

impl<B: Backend> std::fmt::Debug for Rig<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig").field("info", &self.b.info()).field("failures", &self.failures).finish_non_exhaustive()
    }
}

impl<'a, B: Backend> Rig<'a, B> {
    /// A rig for the backend that `make` creates. `batch_invariant` is what the backend guarantees in its precision.
    ///
    /// # Errors
    /// What `make` reports.
    pub(super) fn new(make: &'a dyn Fn() -> Result<B>, batch_invariant_fast: bool) -> Result<Self> {
        let b = make()?;
        let precision = b.info().precision;
        let batch_invariant = precision == Precision::Exact || batch_invariant_fast;
        Ok(Rig { b, precision, batch_invariant, make, checks: 0, skipped: false, failures: Vec::new() })
    }

    /// Another backend of the same kind.
    ///
    /// # Errors
    /// Errors of its constructor.
    pub fn another(&self) -> Result<B> {
        (self.make)()
    }

    /// Whether a row's bits must not depend on the rows beside it.
    pub fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// The failures, one per line.
    ///
    /// A case that compared nothing counts as failed.
    pub(super) fn finish(self) -> std::result::Result<usize, String> {
        if self.checks == 0 && !self.skipped {
            return Err("compared nothing".into());
        }
        if self.failures.is_empty() {
            return Ok(self.checks);
        }
        let mut lines = self.failures[..self.failures.len().min(SHOWN)].join("\n");
        if self.failures.len() > SHOWN {
            lines += &format!("\n... and {} more", self.failures.len() - SHOWN);
        }
        Err(lines)
    }

    /// Record that this case does not apply to the backend.
    ///
    /// # Errors
    /// None; it returns a result so that a case can end with it.
    pub fn skip(&mut self, reason: &str) -> Result<()> {
        self.skipped = true;
        eprintln!("{}: skipped: {reason}", self.b.info().name);
        Ok(())
    }

    /// Count a comparison, and record its failure.
    pub fn note(&mut self, what: impl FnOnce() -> String, outcome: std::result::Result<(), String>) {
        self.checks += 1;
        if let Err(failure) = outcome {
            self.failures.push(format!("{}: {failure}", what()));
        }
    }

    /// Run `op` on the backend twice: with the same bits, close to the reference, and within its buffers.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn check(&mut self, op: &impl Op) -> Result<()> {
        let got = self.run(op)?;
        let again = self.run(op)?;
        let expected = reference(op)?;
        for ((got, again), expected) in got.iter().zip(&again).zip(expected.iter()) {
            let (name, allowed) = (got.name, op.allowed(self.precision, got.name));
            self.note(|| format!("{op:?}, `{name}`"), compare::values(got, expected, allowed));
            self.note(|| format!("{op:?}, `{name}`, second run"), compare::values(again, got, Allowed::Bits));
        }
        Ok(())
    }

    /// Run `op` on the backend and check its guard words.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn run(&mut self, op: &impl Op) -> Result<Vec<Values>> {
        let outputs = op::run(&mut self.b, op)?;
        for output in &outputs {
            let overrun = match output.overrun {
                Some(index) => Err(format!("wrote to index {index}, behind its output")),
                None => Ok(()),
            };
            self.note(|| format!("{op:?}, `{}`", output.name), overrun);
        }
        Ok(outputs)
    }

    /// Two outputs have the same bits.
    pub fn check_bits(&mut self, what: impl FnOnce() -> String, got: &Values, expected: &Values) {
        self.note(what, compare::values(got, expected, Allowed::Bits));
    }

    /// The rows `part_rows` of `part` have the bits of the rows `whole_rows` of `whole`.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn check_same_rows<O: Op>(
        &mut self,
        (part, part_rows): (&O, Range<usize>),
        (whole, whole_rows): (&[Values], Range<usize>),
    ) -> Result<()> {
        for (part_output, whole) in self.run(part)?.iter().zip(whole) {
            let outcome =
                compare::values(&part_output.rows(part_rows.clone()), &whole.rows(whole_rows.clone()), Allowed::Bits);
            self.note(|| format!("{part:?}, `{}`, against rows {whole_rows:?} of the whole", whole.name), outcome);
        }
        Ok(())
    }
}

/// The reference's outputs for `op`. Cached per process, since all suites compare with it.
///
/// # Errors
/// What the reference reports.
pub(super) fn reference(op: &impl Op) -> Result<Arc<Vec<Values>>> {
    static COMPUTED: Mutex<Option<HashMap<String, Arc<Vec<Values>>>>> = Mutex::new(None);
    let name = format!("{op:?}");
    let lock = || COMPUTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(values) = lock().get_or_insert_default().get(&name) {
        return Ok(values.clone());
    }
    let values = Arc::new(op::run(&mut Reference::new(), op)?);
    lock().get_or_insert_default().insert(name, values.clone());
    Ok(values)
}
