//! A backend under test, what is known about it, and the cases that it runs.

use super::rig::Rig;
use qwen_core::backend::Backend;
use qwen_core::error::{Error, Result};

/// A backend's constructor and what is known about the backend.
pub struct Suite<B> {
    make: Box<dyn Fn() -> Result<B>>,
    batch_invariant_fast: bool,
    known_failures: Vec<(&'static str, &'static str)>,
}

impl<B> std::fmt::Debug for Suite<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite")
            .field("batch_invariant_fast", &self.batch_invariant_fast)
            .field("known_failures", &self.known_failures)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> Suite<B> {
    /// The suite for the backend that `make` creates, which makes all guarantees of the contract.
    pub fn new(make: impl Fn() -> Result<B> + 'static) -> Self {
        Suite { make: Box::new(make), batch_invariant_fast: true, known_failures: Vec::new() }
    }

    /// In [`qwen_core::Precision::Fast`] a row's bits may depend on the rows beside it, as is allowed on a GPU.
    pub fn fast_depends_on_the_batch(mut self) -> Self {
        self.batch_invariant_fast = false;
        self
    }

    /// `case` fails for a known `reason`. It is an error when it passes.
    pub fn expect_fail(mut self, case: &'static str, reason: &'static str) -> Self {
        self.known_failures.push((case, reason));
        self
    }

    /// Run one case.
    pub fn outcome(&self, case: &Case<B>) -> Outcome {
        let mut rig = match Rig::new(&*self.make, self.batch_invariant_fast) {
            Ok(rig) => rig,
            Err(error @ Error::Unsupported { .. }) => return Outcome::Skipped(error.to_string()),
            Err(error) => return Outcome::Failed(format!("the backend could not be made: {error}")),
        };
        let info = rig.b.info();
        let about = format!("{} ({:?}), {}", info.name, info.precision, case.name);
        let ran = (case.run)(&mut rig);
        let found = match (ran, rig.finish()) {
            (Ok(()), outcome) => outcome,
            (Err(error), Ok(_)) => Err(format!("stopped: {error}")),
            (Err(error), Err(failures)) => Err(format!("{failures}\nstopped: {error}")),
        };
        let known = self.known_failures.iter().find(|(name, _)| *name == case.name);
        match (found, known) {
            (Ok(checks), None) => Outcome::Passed { checks },
            (Ok(_), Some((_, reason))) => Outcome::Failed(format!("{about} passed, but should fail: {reason}")),
            (Err(failures), None) => Outcome::Failed(format!("{about}\n{failures}")),
            (Err(_), Some((_, reason))) => Outcome::Skipped(format!("{about} fails as expected: {reason}")),
        }
    }
}

impl<B: Backend, F: Fn() -> Result<B> + 'static> From<F> for Suite<B> {
    fn from(make: F) -> Self {
        Suite::new(make)
    }
}

/// The outcome of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All comparisons held.
    Passed {
        /// How many there were.
        checks: usize,
    },
    /// Some did not, one per line.
    Failed(String),
    /// The backend is not available, or fails as expected.
    Skipped(String),
}

/// One case of the suite.
pub struct Case<B: Backend> {
    /// Its group and name, e.g. `linear/bf16`.
    pub name: &'static str,
    run: fn(&mut Rig<'_, B>) -> Result<()>,
}

impl<B: Backend> std::fmt::Debug for Case<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

mod groups {
    pub(super) use crate::model::{self, parts};
    pub(super) use crate::ops::*;
}

/// All cases.
pub fn cases<B: Backend>() -> Vec<Case<B>> {
    crate::__conformance_cases! { __conformance_list (groups) }
}

/// Run the case called `name` as a test.
///
/// # Panics
/// When it fails.
pub fn run<B: Backend>(suite: impl Into<Suite<B>>, name: &str) {
    let case = cases::<B>().into_iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("there is no case `{name}`"));
    match suite.into().outcome(&case) {
        Outcome::Passed { .. } => {}
        Outcome::Skipped(reason) => eprintln!("skipped {name}: {reason}"),
        Outcome::Failed(failures) => panic!("{failures}"),
    }
}
