//! The floating-point state of a thread: how it rounds, whether it flushes subnormal numbers, which exceptions trap.
//!
//! A host program may have changed that state for its own arithmetic, and threads inherit it from the thread that
//! starts them. Compiled Rust code assumes the default state, and bit-identical results depend on it: with another
//! rounding mode they differ, and with an unmasked exception the first inexact result ends the process. So every entry
//! point of this library that computes holds a [`FloatEnv`].
//!
//! Not here: what kernels round deliberately (see [`crate::Precision`]).

use std::marker::PhantomData;

/// The default floating-point state, for as long as this value lives; then the caller's state again.
///
/// Rounding is to nearest with ties to even, subnormal numbers are not flushed, and no exception traps. On a thread
/// that is already in the default state this costs one register read, and nothing when the value is dropped. It affects
/// only the thread that created the value; others need their own.
///
/// x86 (SSE) and 64-bit Arm have such a state; elsewhere the value does nothing.
///
/// ```
/// use qwen_core::numerics::float_env::FloatEnv;
/// let third = {
///     let _float_env = FloatEnv::enter();
///     std::hint::black_box(1.0f32) / std::hint::black_box(3.0f32)
/// };
/// assert_eq!(third.to_bits(), 0x3eaa_aaab);
/// ```
#[derive(Debug)]
#[must_use = "the state is the caller's again as soon as the value is dropped"]
pub struct FloatEnv {
    /// The caller's state, if it was another one.
    saved: Option<control::Register>,
    /// Not `Send`: belongs to the thread that created it.
    thread: PhantomData<*const ()>,
}

impl FloatEnv {
    /// Set this thread to the default state.
    #[inline]
    pub fn enter() -> FloatEnv {
        let current = control::read();
        let saved = (current & control::MASK != control::DEFAULT).then_some(current);
        if saved.is_some() {
            control::write(control::DEFAULT);
        }
        FloatEnv { saved, thread: PhantomData }
    }
}

impl Drop for FloatEnv {
    #[inline]
    fn drop(&mut self) {
        if let Some(saved) = self.saved {
            control::write(saved);
        }
    }
}

/// MXCSR. Assembly, and without `nomem`, so that no access to memory moves across it.
#[cfg(all(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse")), not(miri)))]
mod control {
    use std::arch::asm;

    pub(super) type Register = u32;
    /// All exceptions masked, to nearest, no flushing.
    pub(super) const DEFAULT: Register = 0x1f80;
    /// All bits except the flags of exceptions that occurred.
    pub(super) const MASK: Register = !0x3f;

    #[inline]
    pub(super) fn read() -> Register {
        let mut register: Register = 0;
        // SAFETY: stores four bytes at the address given.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
        register
    }

    #[inline]
    pub(super) fn write(register: Register) {
        // SAFETY: reads four bytes at the address given, which hold the default or what was read on this thread.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
    }
}

/// FPCR, all zeros by default.
#[cfg(all(target_arch = "aarch64", not(miri)))]
mod control {
    use std::arch::asm;

    pub(super) type Register = u64;
    pub(super) const DEFAULT: Register = 0;
    pub(super) const MASK: Register = !0;

    #[inline]
    pub(super) fn read() -> Register {
        let register;
        // SAFETY: reads a register that every thread may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) register, options(nostack, preserves_flags)) };
        register
    }

    #[inline]
    pub(super) fn write(register: Register) {
        // SAFETY: writes a register of this thread: the default or what was read on this thread.
        unsafe { asm!("msr fpcr, {}", in(reg) register, options(nostack)) };
    }
}

#[cfg(not(all(
    any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse"), target_arch = "aarch64"),
    not(miri)
)))]
mod control {
    pub(super) type Register = u32;
    pub(super) const DEFAULT: Register = 0;
    pub(super) const MASK: Register = !0;

    #[inline]
    pub(super) fn read() -> Register {
        DEFAULT
    }

    #[inline]
    pub(super) fn write(_: Register) {}
}

#[cfg(all(test, target_arch = "x86_64", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_callers_state_is_put_aside_and_restored() {
        // Rounding in each direction, flushing both ways, and all of it with each exception unmasked.
        for host in [0x1f80 | 1 << 13, 0x1f80 | 2 << 13, 0x1f80 | 3 << 13, 0x1f80 | 0x8040, 0x0000, 0x1f80 | 0x11] {
            control::write(host);
            let env = FloatEnv::enter();
            let inside = control::read();
            let nested = FloatEnv::enter();
            drop(nested);
            let after_nested = control::read();
            drop(env);
            let after = control::read();
            control::write(control::DEFAULT);
            assert_eq!(inside & control::MASK, control::DEFAULT, "{host:#x}");
            assert_eq!(after_nested & control::MASK, control::DEFAULT, "{host:#x}");
            assert_eq!(after, host);
        }
    }
}
