//! When a cancel may end the running step early: the accounting that bounds what this costs other requests.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One sequence of the running step.
#[derive(Debug)]
pub(super) struct Member {
    /// The flag of its request.
    pub(super) cancelled: Arc<AtomicBool>,
    /// Its number of tokens in the step.
    pub(super) num_tokens: usize,
}

/// How much an engine computed for requests that were not cancelled, and how much of it was discarded because others
/// were.
///
/// At any time `lost_steps` is at most a tenth of `steps`, and `lost_tokens` at most a tenth of `tokens`; and between
/// two steps that are lost at least ten are completed. A step that computes only cancelled requests costs others
/// nothing, and is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Work {
    /// Completed steps.
    pub steps: u64,
    /// Tokens of the completed steps.
    pub tokens: u64,
    /// Steps that ended early.
    pub lost_steps: u64,
    /// Tokens of steps that ended early, to be computed again.
    pub lost_tokens: u64,
}

/// How many completed steps or tokens pay for one that is lost.
const PRICE: u64 = 10;

/// The running step, and the credit from which interrupted steps are paid.
///
/// Tokens and steps are accounted separately: the time of a step is roughly a constant plus a time per token, so a
/// tenth of both is a tenth of the time. The credit is capped at the price of one full step, so that a long period
/// without cancels does not pay for a long burst of them.
#[derive(Debug, Default)]
pub(super) struct Interruption {
    members: Vec<Member>,
    max_step_tokens: u64,
    step_credit: u64,
    token_credit: u64,
    work: Work,
}

impl Interruption {
    pub(super) fn work(&self) -> Work {
        self.work
    }

    pub(super) fn set_max_step_tokens(&mut self, tokens: usize) {
        self.max_step_tokens = tokens as u64;
    }

    /// A step begins. Returns whether it may end at once.
    pub(super) fn begin(&mut self, members: impl Iterator<Item = Member>) -> bool {
        self.members.clear();
        self.members.extend(members);
        self.may_end()
    }

    /// Whether the running step computes the request of this flag.
    pub(super) fn holds(&self, cancelled: &Arc<AtomicBool>) -> bool {
        self.members.iter().any(|member| Arc::ptr_eq(&member.cancelled, cancelled))
    }

    /// Whether the running step may end early: one of its requests was cancelled, and the credit pays for the others.
    pub(super) fn may_end(&self) -> bool {
        let cancelled = self.members.iter().any(|member| member.cancelled.load(Ordering::SeqCst));
        let lost = self.tokens_of_others();
        cancelled && (lost == 0 || (self.step_credit >= PRICE && self.token_credit >= PRICE * lost))
    }

    /// The step has ended: early, or with its results.
    pub(super) fn end(&mut self, early: bool) {
        let tokens = self.tokens_of_others();
        self.members.clear();
        let Work { steps, tokens: completed, lost_steps, lost_tokens } = &mut self.work;
        if tokens == 0 {
            return;
        }
        if early {
            *lost_steps += 1;
            *lost_tokens += tokens;
            self.step_credit = self.step_credit.saturating_sub(PRICE);
            self.token_credit = self.token_credit.saturating_sub(PRICE * tokens);
        } else {
            *steps += 1;
            *completed += tokens;
            self.step_credit = (self.step_credit + 1).min(PRICE);
            self.token_credit = (self.token_credit + tokens).min(PRICE * self.max_step_tokens);
        }
    }

    /// Tokens of the running step that belong to requests which are not cancelled.
    fn tokens_of_others(&self) -> u64 {
        let alive = self.members.iter().filter(|member| !member.cancelled.load(Ordering::SeqCst));
        alive.map(|member| member.num_tokens as u64).sum()
    }
}
