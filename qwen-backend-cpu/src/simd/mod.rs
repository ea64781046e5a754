//! Vectors of sixteen f32 lanes, the same on every instruction set, and the run-time choice among them.
//!
//! A kernel is written once, generic over [`Simd`], and its body is forced inline into an entry compiled with the
//! features of one instruction set ([`run`]); if it is not inlined, it runs many times slower, since each vector then
//! goes through memory. Sixteen lanes are one AVX-512 register, two of AVX2, four of NEON and an array in plain Rust:
//! the fixed number of lanes fixes the order of all additions, and instruction sets with a fused multiply-add agree bit
//! for bit wherever no special dot product is used.
//!
//! The set of operations is small: only what the kernels of this crate use.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub use isa::Isa;
pub(crate) use scalar::Scalar;

/// An array of the values of an expression for each index.
///
/// Used instead of `array::map` and closures: those are separate functions, compiled without the features of the entry
/// point, and each intrinsic in them becomes a call that passes vectors through memory.
macro_rules! array {
    ($i:ident < $n:expr => $value:expr) => {{
        let $i = 0;
        let mut array = [$value; $n];
        for $i in 1..$n {
            array[$i] = $value;
        }
        array
    }};
}
pub(crate) use array;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A token for an instruction set; values exist only if the CPU has it, which makes the methods sound.
///
/// Methods that take pointers are `unsafe` only because the pointer must be valid for the lanes accessed. It needs no
/// alignment.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen pairs of bf16, as in the packed weights: the lower half of each 32 bits comes first.
    type Pairs: Copy;

    /// Sixteen rows by four columns of bytes: the four bytes of a row side by side.
    type Bytes: Copy;
    /// Sixteen i32.
    type Ints: Copy;
    /// Partial integer dot products: sixteen i32, or pairs of i16 that [`Simd::fold`] adds up.
    type Partial: Copy;

    /// Groups of sixteen rows in a register tile.
    const GROUPS: usize;
    /// The most tokens in a register tile.
    const TOKENS: usize;
    /// The most tokens in a register tile of integer dot products.
    const INT8_TOKENS: usize;
    /// Whether partial dot products are as wide as sums (i32). Otherwise they are pairs of i16.
    const WIDE_PARTIAL: bool;
    /// The offset that [`Simd::prepare_signed`] adds to each byte.
    const SIGNED_OFFSET: i32;

    /// Compute a part in a separate function.
    ///
    /// # Safety
    /// As [`Part::run`].
    unsafe fn call<P: Part>(self, part: &P);

    /// All lanes `v`.
    fn splat(self, v: f32) -> Self::F;
    /// Sixteen f32 from memory.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Sixteen f32 to memory.
    unsafe fn store(self, v: Self::F, p: *mut f32);
    /// Sixteen f16 from memory, decoded.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Sixteen lanes rounded to the nearest f16, ties to even; magnitudes beyond the largest f16 are clamped to it.
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
    /// 64 bytes from memory.
    unsafe fn load_bytes(self, p: *const u8) -> Self::Bytes;
    /// 64 bytes to memory.
    unsafe fn store_bytes(self, v: Self::Bytes, p: *mut u8);
    /// `(v >> n) & mask` in each byte, for a mask that clears bits shifted in from the byte above.
    fn shift_right(self, v: Self::Bytes, n: u32, mask: u8) -> Self::Bytes;
    /// `(v << n) & mask` in each byte, for a mask that clears bits shifted in from the byte below.
    fn shift_left(self, v: Self::Bytes, n: u32, mask: u8) -> Self::Bytes;
    /// `a | b`
    fn or_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The entries of `table` at the indices in the bytes, which are below 16.
    fn lookup(self, table: &[i8; 16], v: Self::Bytes) -> Self::Bytes;
    /// Signed bytes in the form for [`Simd::dot_signed`]: each plus [`Simd::SIGNED_OFFSET`].
    fn prepare_signed(self, v: Self::Bytes) -> Self::Bytes;
    /// Bytes from [`Simd::prepare_signed`], as unsigned bytes that are 128 larger than the signed ones.
    fn flip_sign(self, v: Self::Bytes) -> Self::Bytes;
    /// The four columns as f32, from unsigned bytes.
    fn bytes_to_f(self, v: Self::Bytes) -> [Self::F; 4];

    /// All lanes `v`.
    fn splat_ints(self, v: i32) -> Self::Ints;
    /// Sixteen u32 from memory.
    unsafe fn load_ints(self, p: *const u8) -> Self::Ints;
    /// Sixteen unsigned bytes from memory.
    unsafe fn load_u8(self, p: *const u8) -> Self::Ints;
    /// Sixteen signed bytes from memory.
    unsafe fn load_i8(self, p: *const u8) -> Self::Ints;
    /// Sixteen u16 from memory.
    unsafe fn load_u16(self, p: *const u8) -> Self::Ints;
    /// `(v >> n) & mask`
    fn bits(self, v: Self::Ints, n: u32, mask: i32) -> Self::Ints;
    /// `low | high << 4`
    fn join(self, low: Self::Ints, high: Self::Ints) -> Self::Ints;
    /// `a + b`
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The nearest f32.
    fn ints_to_f(self, v: Self::Ints) -> Self::F;

    /// The initial value of partial dot products that [`Simd::fold`] adds to `sums`.
    fn partial(self, sums: Self::Ints) -> Self::Partial;
    /// `acc` plus, in each row, the products of its four unsigned bytes with the four signed bytes of `x`. Exact as
    /// long as a partial does not overflow: see [`partial_lines`].
    fn dot(self, acc: Self::Partial, w: Self::Bytes, x: u32) -> Self::Partial;
    /// As [`Simd::dot`] for bytes from [`Simd::prepare_signed`], as if each were [`Simd::SIGNED_OFFSET`] larger than
    /// its signed byte. A partial has room for one line.
    fn dot_signed(self, acc: Self::Partial, w: Self::Bytes, x: u32) -> Self::Partial;
    /// The sums of dot products that started from `sums`.
    fn fold(self, sums: Self::Ints, partial: Self::Partial) -> Self::Ints;

    /// Prefetch the cache line at `p`, which may be any address.
    fn prefetch(self, p: *const u8);
}

/// How many lines of four products can be added in a partial before it has to be folded, for weights up to `most` and
/// `x` in -127..=127, so that sums of pairs of products stay within an i16.
pub(crate) const fn partial_lines<S: Simd>(most: i32) -> usize {
    if S::WIDE_PARTIAL {
        return 8;
    }
    match i16::MAX as i32 / (2 * 127 * most) {
        8.. => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Part of a kernel's body that is compiled as a separate function: a body with many of them, one for each format,
/// would otherwise be a single function too large for compilers to handle well.
pub(crate) trait Part {
    /// The dot product that it can use: it is also compiled for CPUs with that.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    const DOT: Dot;

    /// Compute it. Implementations are `#[inline(always)]`, and so is everything they call with vectors.
    ///
    /// # Safety
    /// As [`Kernel::piece`].
    unsafe fn run<S: Simd>(&self, s: S);
}

/// Dot products that some instruction sets have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) enum Dot {
    None,
    Bf16,
    Int8,
}

/// A kernel's body: pieces of one operation.
pub(crate) trait Kernel {
    /// Whether the body can use dot products of bf16 and of bytes, so that it is also compiled for those.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    const DOTS: bool = false;
    /// Per-thread memory that the body writes in addition to its operands.
    type Scratch;

    /// Compute piece `piece`. Implementations are `#[inline(always)]`, and so is everything they call with vectors.
    ///
    /// # Safety
    /// No two threads compute the same piece at the same time, and nothing else accesses the operands.
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Self::Scratch);
}

/// Compute a piece with the kernels of `isa`.
///
/// One branch per piece selects the entry point; a table of function pointers would cost the same and lose the types.
///
/// # Safety
/// As [`Kernel::piece`]; and the CPU has `isa`, which is checked for all values of [`Isa`] outside of this module.
pub(crate) unsafe fn run<K: Kernel>(isa: Isa, kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: the caller guarantees the piece and `isa`, so the CPU has the features of the selected entry point.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if K::DOTS => avx512::enter_bf16(kernel, piece, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni if K::DOTS => avx512::enter_vnni(kernel, piece, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => avx512::enter(kernel, piece, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::enter(kernel, piece, scratch),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::enter(kernel, piece, scratch),
            _ => kernel.piece(Scalar, piece, scratch),
        }
    }
}
