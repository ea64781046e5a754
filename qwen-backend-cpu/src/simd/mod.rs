//! Vectors of sixteen f32 lanes, the same on every instruction set, and the run-time choice among them.
//!
//! A kernel is written once, generic over [`Simd`], and its body is forced inline into an entry compiled with the
//! features of one instruction set ([`run`]); out of line, a body runs many times slower, as each vector then passes
//! through memory. Sixteen lanes are one AVX-512 register, two of AVX2, four of NEON and an array for plain Rust: with
//! the number of lanes fixed, the order of all additions is fixed too, and instruction sets with a fused multiply-add
//! agree bit for bit wherever no special dot product is used.
//!
//! The vocabulary is closed and small: what the kernels of this crate use and nothing else.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod int8;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub(crate) use int8::{INT8_OPS, int8_rounds};
pub use isa::Isa;
pub(crate) use scalar::Scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A token for an instruction set; values exist only where the CPU has it, which is what makes the methods sound.
///
/// Methods that take pointers are `unsafe` for the usual reason alone: the pointer must be good for the lanes accessed.
/// They need no alignment.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen pairs of bf16, as the weights have them: the lower half of each 32 bits comes first.
    type Pairs: Copy;

    /// Groups of sixteen rows in a register tile.
    const GROUPS: usize;
    /// The most tokens in a register tile.
    const TOKENS: usize;

    /// All lanes `v`.
    fn splat(self, v: f32) -> Self::F;
    /// Sixteen f32 from memory.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Sixteen f32 to memory.
    unsafe fn store(self, v: Self::F, p: *mut f32);
    /// Sixteen f16 from memory, decoded.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Sixteen lanes rounded to the nearest f16, ties to even; magnitudes beyond the largest f16 become that.
    unsafe fn store_f16(self, v: Self::F, p: *mut u16);
    /// Sixteen pairs of bf16 from memory.
    unsafe fn load_pairs(self, p: *const u16) -> Self::Pairs;
    /// The first and the second of each pair, decoded.
    fn widen(self, pairs: Self::Pairs) -> [Self::F; 2];
    /// `acc + w[1] * x[1] + w[0] * x[0]` in each lane, where `x` is one pair: the instruction's order and rounding, or
    /// its emulation.
    fn dot_bf16(self, acc: Self::F, w: Self::Pairs, x: u32) -> Self::F;

    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`, so that a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`, so that a NaN in `b` stays.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused except in plain Rust.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `x < bound ? 0 : v`
    fn zero_below(self, v: Self::F, x: Self::F, bound: f32) -> Self::F;
    /// The first `n` lanes of `a`, then those of `b`.
    fn first(self, n: usize, a: Self::F, b: Self::F) -> Self::F;
    /// `2^n` where `t` holds `n + 1.5 * 2^23`.
    fn pow2(self, t: Self::F) -> Self::F;
    /// The sum of all lanes: halves folded until one is left.
    fn sum(self, v: Self::F) -> f32;
    /// The largest lane.
    fn hmax(self, v: Self::F) -> f32;
    /// Ask for the cache line at `p`, which may be any address.
    fn prefetch(self, p: *const u8);
}

/// A kernel's body: pieces of one operation.
pub(crate) trait Kernel {
    /// Whether the body profits from a bf16 dot product, so that it is compiled for that too.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    const BF16_DOT: bool = false;
    /// What the body writes beside its operands: a thread's own memory.
    type Scratch;

    /// Compute piece `piece`. Implementations are `#[inline(always)]`, and so is all they call with vectors.
    ///
    /// # Safety
    /// No two threads compute the same piece at the same time, and nothing else touches the operands.
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Self::Scratch);
}

/// Compute a piece with the kernels of `isa`.
///
/// One branch a piece chooses the entry; a table of function pointers would cost the same and lose the types.
///
/// # Safety
/// As [`Kernel::piece`]; and the CPU has `isa`, as all values of [`Isa`] outside of this module are checked to.
pub(crate) unsafe fn run<K: Kernel>(isa: Isa, kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: the caller vouches for the piece and for `isa`, so the CPU has the features of the entry taken.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if K::BF16_DOT => avx512::enter_bf16(kernel, piece, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512 => avx512::enter(kernel, piece, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::enter(kernel, piece, scratch),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::enter(kernel, piece, scratch),
            _ => kernel.piece(Scalar, piece, scratch),
        }
    }
}
