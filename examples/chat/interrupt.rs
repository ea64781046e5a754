//! Ctrl-C: the first stops the answer that is arriving, any other ends the program.

use std::sync::{Arc, Mutex, PoisonError};

use qwen::Canceller;

use super::args::exit;
use super::screen::Screen;

/// The answer that Ctrl-C stops, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<Mutex<Option<Canceller>>>);

impl Interrupt {
    /// # Errors
    /// When the system refuses, or something else in the process handles Ctrl-C.
    pub(crate) fn install(screen: Screen) -> Result<Self, ctrlc::Error> {
        let interrupt = Interrupt::default();
        let current = interrupt.clone();
        ctrlc::set_handler(move || match current.set(None) {
            Some(canceller) => canceller.cancel(),
            None => {
                // The terminal is left as it was, also in the middle of dimmed text.
                screen.reset();
                std::process::exit(exit::INTERRUPTED.into());
            }
        })?;
        Ok(interrupt)
    }

    /// The answer is stopped by Ctrl-C for as long as the guard lives.
    pub(crate) fn watch(&self, canceller: Canceller) -> Watched {
        self.set(Some(canceller));
        Watched(self.clone())
    }

    fn set(&self, canceller: Option<Canceller>) -> Option<Canceller> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), canceller)
    }
}

/// An answer that Ctrl-C stops. Made by [`Interrupt::watch`].
pub(crate) struct Watched(Interrupt);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
