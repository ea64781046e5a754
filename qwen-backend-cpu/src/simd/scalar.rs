//! Sixteen lanes in plain Rust: available on every target, and the reference that the others are tested against.
//!
//! Products and sums are rounded separately, since without an instruction a fused multiply-add is a library call.

use half::f16;

use super::{LANES, Part, Simd};

/// Plain Rust; every CPU has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

type Lanes = [f32; LANES];

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

/// How the bf16 dot instruction treats inputs and outputs that are too small for a normal f32.
fn flush(v: f32) -> f32 {
    if v.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(v) } else { v }
}

impl Simd for Scalar {
    type F = Lanes;
    type Pairs = [u32; LANES];

    type Bytes = [u8; 4 * LANES];
    type Ints = [i32; LANES];
    type Partial = [i32; LANES];

    const GROUPS: usize = 1;
    const TOKENS: usize = 4;
    const INT8_TOKENS: usize = 2;
    const WIDE_PARTIAL: bool = true;
    const SIGNED_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn call<P: Part>(self, part: &P) {
        #[inline(never)]
        unsafe fn enter<P: Part>(part: &P) {
            // SAFETY: guaranteed by the caller.
            unsafe { part.run(Scalar) }
        }
        // SAFETY: guaranteed by the caller.
        unsafe { enter(part) }
    }

    #[inline(always)]
    fn splat(self, v: f32) -> Lanes {
        [v; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Lanes {
        // SAFETY: the caller gives a pointer to sixteen f32.
        unsafe { p.cast::<Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, v: Lanes, p: *mut f32) {
        // SAFETY: the caller gives a pointer to sixteen f32.
        unsafe { p.cast::<Lanes>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Lanes {
        // SAFETY: the caller gives a pointer to sixteen f16.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: Lanes, p: *mut u16) {
        let max = f16::MAX.to_f32();
        let bits = v.map(|v| f16::from_f32(if v.is_nan() { v } else { v.clamp(-max, max) }).to_bits());
        // SAFETY: the caller gives a pointer to sixteen f16.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [u32; LANES] {
        // SAFETY: the caller gives a pointer to sixteen pairs of bf16.
        unsafe { p.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn widen(self, pairs: [u32; LANES]) -> [Lanes; 2] {
        [pairs.map(|p| f32::from_bits(p << 16)), pairs.map(|p| f32::from_bits(p & 0xffff_0000))]
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Lanes, w: [u32; LANES], x: u32) -> Lanes {
        let [w0, w1] = self.widen(w);
        let (x0, x1) = (flush(f32::from_bits(x << 16)), flush(f32::from_bits(x & 0xffff_0000)));
        let mut out = acc;
        for (i, out) in out.iter_mut().enumerate() {
            // The product of two bf16 has sixteen bits and is exact, so a fused multiply-add would give the same.
            let odd = flush(flush(w1[i]) * x1 + flush(*out));
            *out = flush(flush(w0[i]) * x0 + odd);
        }
        out
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn zero_below(self, v: Lanes, x: Lanes, bound: f32) -> Lanes {
        zip(v, x, |v, x| if x < bound { 0.0 } else { v })
    }

    #[inline(always)]
    fn first(self, n: usize, a: Lanes, b: Lanes) -> Lanes {
        let mut out = b;
        for (i, (out, a)) in out.iter_mut().zip(a).enumerate() {
            *out = if i < n { a } else { *out };
        }
        out
    }

    #[inline(always)]
    fn pow2(self, t: Lanes) -> Lanes {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        fold(v, |a, b| a + b)
    }

    #[inline(always)]
    fn hmax(self, v: Lanes) -> f32 {
        fold(v, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> [u8; 64] {
        // SAFETY: the caller gives a pointer to 64 bytes.
        unsafe { p.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, v: [u8; 64], p: *mut u8) {
        // SAFETY: the caller gives a pointer to 64 bytes.
        unsafe { p.cast::<[u8; 64]>().write(v) }
    }

    #[inline(always)]
    fn shift_right(self, v: [u8; 64], n: u32, mask: u8) -> [u8; 64] {
        v.map(|v| v.wrapping_shr(n) & mask)
    }

    #[inline(always)]
    fn shift_left(self, v: [u8; 64], n: u32, mask: u8) -> [u8; 64] {
        v.map(|v| v.wrapping_shl(n) & mask)
    }

    #[inline(always)]
    fn or_bytes(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        let mut out = a;
        out.iter_mut().zip(b).for_each(|(out, b)| *out |= b);
        out
    }

    #[inline(always)]
    fn lookup(self, table: &[i8; 16], v: [u8; 64]) -> [u8; 64] {
        v.map(|v| table[usize::from(v & 15)] as u8)
    }

    #[inline(always)]
    fn prepare_signed(self, v: [u8; 64]) -> [u8; 64] {
        v
    }

    #[inline(always)]
    fn flip_sign(self, v: [u8; 64]) -> [u8; 64] {
        v.map(|v| v ^ 0x80)
    }

    #[inline(always)]
    fn bytes_to_f(self, v: [u8; 64]) -> [Lanes; 4] {
        [0, 1, 2, 3].map(|column| lanes(|lane| f32::from(v[4 * lane + column])))
    }

    #[inline(always)]
    fn splat_ints(self, v: i32) -> [i32; LANES] {
        [v; LANES]
    }

    #[inline(always)]
    unsafe fn load_ints(self, p: *const u8) -> [i32; LANES] {
        // SAFETY: the caller gives a pointer to sixteen u32.
        unsafe { p.cast::<[i32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> [i32; LANES] {
        // SAFETY: the caller gives a pointer to sixteen bytes.
        unsafe { p.cast::<[u8; LANES]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> [i32; LANES] {
        // SAFETY: the caller gives a pointer to sixteen bytes.
        unsafe { p.cast::<[i8; LANES]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn load_u16(self, p: *const u8) -> [i32; LANES] {
        // SAFETY: the caller gives a pointer to sixteen u16.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(i32::from)
    }

    #[inline(always)]
    fn bits(self, v: [i32; LANES], n: u32, mask: i32) -> [i32; LANES] {
        v.map(|v| (v as u32).wrapping_shr(n) as i32 & mask)
    }

    #[inline(always)]
    fn join(self, low: [i32; LANES], high: [i32; LANES]) -> [i32; LANES] {
        lanes(|lane| low[lane] | high[lane] << 4)
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        lanes(|lane| a[lane].wrapping_add(b[lane]))
    }

    #[inline(always)]
    fn ints_to_f(self, v: [i32; LANES]) -> Lanes {
        v.map(|v| v as f32)
    }

    #[inline(always)]
    fn partial(self, sums: [i32; LANES]) -> [i32; LANES] {
        sums
    }

    #[inline(always)]
    fn dot(self, acc: [i32; LANES], w: [u8; 64], x: u32) -> [i32; LANES] {
        let x = x.to_le_bytes();
        lanes(|lane| (0..4).fold(acc[lane], |sum, i| sum + i32::from(w[4 * lane + i]) * i32::from(x[i] as i8)))
    }

    #[inline(always)]
    fn dot_signed(self, acc: [i32; LANES], w: [u8; 64], x: u32) -> [i32; LANES] {
        let x = x.to_le_bytes();
        lanes(|lane| (0..4).fold(acc[lane], |sum, i| sum + i32::from(w[4 * lane + i] as i8) * i32::from(x[i] as i8)))
    }

    #[inline(always)]
    fn fold(self, _: [i32; LANES], partial: [i32; LANES]) -> [i32; LANES] {
        partial
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}

/// A value for each lane.
#[inline(always)]
fn lanes<T: Copy + Default>(value: impl Fn(usize) -> T) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    out.iter_mut().enumerate().for_each(|(lane, out)| *out = value(lane));
    out
}

#[inline(always)]
fn fold(mut v: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] = f(v[i], v[i + half]);
        }
    }
    v[0]
}
