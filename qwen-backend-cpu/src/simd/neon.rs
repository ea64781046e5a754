//! NEON: a vector is four registers. Every 64-bit Arm CPU has it.

use std::arch::aarch64::*;

use super::{Kernel, Part, Simd};

/// NEON with f16 conversions, both part of the baseline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

type Four = [float32x4_t; 4];

impl Neon {
    #[inline(always)]
    fn ints(self, lanes: [i32; 16]) -> [int32x4_t; 4] {
        // SAFETY: `lanes` has sixteen i32.
        [0, 4, 8, 12].map(|i| unsafe { vld1q_s32(lanes.as_ptr().add(i)) })
    }
}

/// Run a piece of `kernel`; the target always has the features.
///
/// # Safety
/// As [`Kernel::piece`].
pub(super) unsafe fn enter<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: guaranteed by the caller.
    unsafe { kernel.piece(Neon(()), piece, scratch) }
}

/// Methods that are one expression of intrinsics for each of the four registers `i`.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $ty:ty),*), $i:ident => $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> Four {
            // SAFETY: NEON is part of the target.
            [0, 1, 2, 3].map(|$i: usize| unsafe { $body })
        }
    )*};
}

impl Simd for Neon {
    type F = Four;
    type Pairs = [uint32x4_t; 4];

    type Bytes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Partial = [int32x4_t; 4];

    // 24 sums, four weights and the broadcast values fill the 32 registers.
    const GROUPS: usize = 1;
    const TOKENS: usize = 6;
    const INT8_TOKENS: usize = 4;
    const WIDE_PARTIAL: bool = true;
    const SIGNED_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn call<P: Part>(self, part: &P) {
        #[inline(never)]
        unsafe fn enter<P: Part>(part: &P) {
            // SAFETY: guaranteed by the caller.
            unsafe { part.run(Neon(())) }
        }
        // SAFETY: guaranteed by the caller.
        unsafe { enter(part) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Four {
        // SAFETY: the caller guarantees the pointer.
        [0, 4, 8, 12].map(|i| unsafe { vld1q_f32(p.add(i)) })
    }

    #[inline(always)]
    unsafe fn store(self, v: Four, p: *mut f32) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: the caller guarantees the pointer.
            unsafe { vst1q_f32(p.add(4 * i), v) }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Four {
        // The f16 type of the intrinsics is not stable, so the conversion is written out: the exponent is moved to its
        // place and scaled by 2^112, which also normalises f16 subnormals; infinities and NaNs are fixed up.
        [0, 4, 8, 12].map(|i| {
            // SAFETY: the caller guarantees the pointer; NEON is part of the target.
            unsafe {
                let h = vmovl_u16(vld1_u16(p.add(i)));
                let sign = vshlq_n_u32::<16>(vandq_u32(h, vdupq_n_u32(0x8000)));
                let magnitude = vandq_u32(h, vdupq_n_u32(0x7fff));
                let scaled = vmulq_f32(
                    vreinterpretq_f32_u32(vshlq_n_u32::<13>(magnitude)),
                    vdupq_n_f32(f32::from_bits(0x7780_0000)),
                );
                let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00));
                let bits = vorrq_u32(vreinterpretq_u32_f32(scaled), vandq_u32(special, vdupq_n_u32(0x7f80_0000)));
                vreinterpretq_f32_u32(vorrq_u32(bits, sign))
            }
        })
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: Four, p: *mut u16) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `lanes` has sixteen f32.
        unsafe { self.store(v, lanes.as_mut_ptr()) };
        // SAFETY: the caller guarantees the pointer.
        unsafe { super::Scalar.store_f16(lanes, p) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [uint32x4_t; 4] {
        // SAFETY: the caller guarantees the pointer; bytes need no alignment.
        [0, 16, 32, 48].map(|i| unsafe { vreinterpretq_u32_u8(vld1q_u8(p.cast::<u8>().add(i))) })
    }

    #[inline(always)]
    fn widen(self, pairs: [uint32x4_t; 4]) -> [Four; 2] {
        // SAFETY: NEON is part of the target.
        unsafe {
            [
                pairs.map(|p| vreinterpretq_f32_u32(vshlq_n_u32::<16>(p))),
                pairs.map(|p| vreinterpretq_f32_u32(vandq_u32(p, vdupq_n_u32(0xffff_0000)))),
            ]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Four, w: [uint32x4_t; 4], x: u32) -> Four {
        let [w0, w1] = self.widen(w);
        let odd = self.mul_add(w1, self.splat(f32::from_bits(x & 0xffff_0000)), acc);
        self.mul_add(w0, self.splat(f32::from_bits(x << 16)), odd)
    }

    methods! {
        fn splat(v: f32), _i => vdupq_n_f32(v);
        fn add(a: Four, b: Four), i => vaddq_f32(a[i], b[i]);
        fn sub(a: Four, b: Four), i => vsubq_f32(a[i], b[i]);
        fn mul(a: Four, b: Four), i => vmulq_f32(a[i], b[i]);
        fn div(a: Four, b: Four), i => vdivq_f32(a[i], b[i]);
        fn max(a: Four, b: Four), i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]);
        fn min(a: Four, b: Four), i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]);
        fn mul_add(a: Four, b: Four, c: Four), i => vfmaq_f32(c[i], a[i], b[i]);
        fn zero_below(v: Four, x: Four, bound: f32), i =>
            vbslq_f32(vcltq_f32(x[i], vdupq_n_f32(bound)), vdupq_n_f32(0.0), v[i]);
        fn first(n: usize, a: Four, b: Four), i => {
            let lanes = vaddq_u32(vld1q_u32([0, 1, 2, 3].as_ptr()), vdupq_n_u32(4 * i as u32));
            vbslq_f32(vcltq_u32(lanes, vdupq_n_u32(n as u32)), a[i], b[i])
        };
        fn pow2(t: Four), i => vreinterpretq_f32_u32(vaddq_u32(
            vshlq_n_u32::<23>(vreinterpretq_u32_f32(t[i])),
            vdupq_n_u32(0x3f80_0000),
        ));
    }

    #[inline(always)]
    fn sum(self, v: Four) -> f32 {
        // SAFETY: NEON is part of the target.
        unsafe {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }

    #[inline(always)]
    fn hmax(self, v: Four) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `lanes` has sixteen f32.
        unsafe { self.store(v, lanes.as_mut_ptr()) };
        super::Scalar.hmax(lanes)
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> [uint8x16_t; 4] {
        // SAFETY: the caller guarantees the pointer.
        [0, 16, 32, 48].map(|i| unsafe { vld1q_u8(p.add(i)) })
    }

    #[inline(always)]
    unsafe fn store_bytes(self, v: [uint8x16_t; 4], p: *mut u8) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: the caller guarantees the pointer.
            unsafe { vst1q_u8(p.add(16 * i), v) }
        }
    }

    #[inline(always)]
    fn shift_right(self, v: [uint8x16_t; 4], n: u32, mask: u8) -> [uint8x16_t; 4] {
        // SAFETY: NEON is part of the target.
        v.map(|v| unsafe { vandq_u8(vshlq_u8(v, vdupq_n_s8(-(n as i8))), vdupq_n_u8(mask)) })
    }

    #[inline(always)]
    fn shift_left(self, v: [uint8x16_t; 4], n: u32, mask: u8) -> [uint8x16_t; 4] {
        // SAFETY: NEON is part of the target.
        v.map(|v| unsafe { vandq_u8(vshlq_u8(v, vdupq_n_s8(n as i8)), vdupq_n_u8(mask)) })
    }

    #[inline(always)]
    fn or_bytes(self, a: [uint8x16_t; 4], b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: NEON is part of the target.
        [0, 1, 2, 3].map(|i: usize| unsafe { vorrq_u8(a[i], b[i]) })
    }

    #[inline(always)]
    fn lookup(self, table: &[i8; 16], v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: NEON is part of the target; the table has sixteen bytes.
        unsafe {
            let table = vreinterpretq_u8_s8(vld1q_s8(table.as_ptr()));
            v.map(|v| vqtbl1q_u8(table, v))
        }
    }

    #[inline(always)]
    fn prepare_signed(self, v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        v
    }

    #[inline(always)]
    fn flip_sign(self, v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: NEON is part of the target.
        v.map(|v| unsafe { veorq_u8(v, vdupq_n_u8(0x80)) })
    }

    #[inline(always)]
    fn bytes_to_f(self, v: [uint8x16_t; 4]) -> [Four; 4] {
        [0, -8, -16, -24].map(|n| {
            // SAFETY: NEON is part of the target.
            v.map(|v| unsafe {
                let v = vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(n));
                vcvtq_f32_u32(vandq_u32(v, vdupq_n_u32(0xff)))
            })
        })
    }

    #[inline(always)]
    fn splat_ints(self, v: i32) -> [int32x4_t; 4] {
        // SAFETY: NEON is part of the target.
        [unsafe { vdupq_n_s32(v) }; 4]
    }

    #[inline(always)]
    unsafe fn load_ints(self, p: *const u8) -> [int32x4_t; 4] {
        // SAFETY: the caller guarantees the pointer; bytes need no alignment.
        [0, 16, 32, 48].map(|i| unsafe { vreinterpretq_s32_u8(vld1q_u8(p.add(i))) })
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> [int32x4_t; 4] {
        // SAFETY: guaranteed by the caller.
        self.ints(unsafe { super::Scalar.load_u8(p) })
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> [int32x4_t; 4] {
        // SAFETY: guaranteed by the caller.
        self.ints(unsafe { super::Scalar.load_i8(p) })
    }

    #[inline(always)]
    unsafe fn load_u16(self, p: *const u8) -> [int32x4_t; 4] {
        // SAFETY: guaranteed by the caller.
        self.ints(unsafe { super::Scalar.load_u16(p) })
    }

    #[inline(always)]
    fn bits(self, v: [int32x4_t; 4], n: u32, mask: i32) -> [int32x4_t; 4] {
        // SAFETY: NEON is part of the target.
        v.map(|v| unsafe {
            let v = vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-(n as i32)));
            vandq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(mask))
        })
    }

    #[inline(always)]
    fn join(self, low: [int32x4_t; 4], high: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: NEON is part of the target.
        [0, 1, 2, 3].map(|i: usize| unsafe { vorrq_s32(low[i], vshlq_n_s32::<4>(high[i])) })
    }

    #[inline(always)]
    fn add_ints(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: NEON is part of the target.
        [0, 1, 2, 3].map(|i: usize| unsafe { vaddq_s32(a[i], b[i]) })
    }

    #[inline(always)]
    fn ints_to_f(self, v: [int32x4_t; 4]) -> Four {
        // SAFETY: NEON is part of the target.
        v.map(|v| unsafe { vcvtq_f32_s32(v) })
    }

    #[inline(always)]
    fn partial(self, sums: [int32x4_t; 4]) -> [int32x4_t; 4] {
        sums
    }

    #[inline(always)]
    fn dot(self, acc: [int32x4_t; 4], w: [uint8x16_t; 4], x: u32) -> [int32x4_t; 4] {
        // Unsigned codes are below 128, so they are valid signed bytes too.
        self.dot_signed(acc, w, x)
    }

    #[inline(always)]
    fn dot_signed(self, acc: [int32x4_t; 4], w: [uint8x16_t; 4], x: u32) -> [int32x4_t; 4] {
        // The dot product of bytes is not part of the baseline: 16-bit products are added in pairs, twice.
        // SAFETY: NEON is part of the target.
        [0, 1, 2, 3].map(|i: usize| unsafe {
            let (w, x) = (vreinterpretq_s8_u8(w[i]), vreinterpretq_s8_u32(vdupq_n_u32(x)));
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
            let high = vpaddlq_s16(vmull_high_s8(w, x));
            vaddq_s32(acc[i], vpaddq_s32(low, high))
        })
    }

    #[inline(always)]
    fn fold(self, _: [int32x4_t; 4], partial: [int32x4_t; 4]) -> [int32x4_t; 4] {
        partial
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch touches nothing that the program sees, whatever the address.
        unsafe { std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
}
