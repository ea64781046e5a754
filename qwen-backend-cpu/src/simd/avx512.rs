//! AVX-512: one register is a vector. With `BF16` the dot product of bf16 pairs is the instruction, else its emulation.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// AVX-512 F, BW, DQ, VL (and AVX2, FMA, F16C); with `BF16` also the bf16 dot product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

/// Run a piece of `kernel` compiled for AVX-512.
///
/// # Safety
/// As [`Kernel::piece`], and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: passed on to the caller.
    unsafe { kernel.piece(Avx512::<false>(()), piece, scratch) }
}

/// Run a piece of `kernel` compiled for AVX-512 with the bf16 dot product.
///
/// # Safety
/// As [`Kernel::piece`], and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn enter_bf16<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: passed on to the caller.
    unsafe { kernel.piece(Avx512::<true>(()), piece, scratch) }
}

/// Methods made of intrinsics.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $($body:tt)* })*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $ret {
            // SAFETY: the token exists only where the CPU has the features.
            unsafe { $($body)* }
        }
    )*};
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type Pairs = __m512i;

    // 24 sums, two weights and a broadcast value leave a few of the 32 registers.
    const GROUPS: usize = 2;
    const TOKENS: usize = 12;

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, v: __m512, p: *mut f32) {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: __m512, p: *mut u16) {
        let v = self.min(self.splat(65504.0), self.max(self.splat(-65504.0), v));
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> __m512i {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, x: u32) -> __m512 {
        if BF16 {
            // SAFETY: the token vouches for the features; both operands are 512 bits without an invalid pattern.
            unsafe {
                let x = _mm512_set1_epi32(x as i32);
                _mm512_dpbf16_ps(
                    acc,
                    std::mem::transmute::<__m512i, __m512bh>(w),
                    std::mem::transmute::<__m512i, __m512bh>(x),
                )
            }
        } else {
            let [w0, w1] = self.widen(w);
            let odd = self.mul_add(w1, self.splat(f32::from_bits(x & 0xffff_0000)), acc);
            self.mul_add(w0, self.splat(f32::from_bits(x << 16)), odd)
        }
    }

    methods! {
        fn splat(v: f32) -> __m512 { _mm512_set1_ps(v) }
        fn widen(pairs: __m512i) -> [__m512; 2] {
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
                _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32))),
            ]
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn zero_below(v: __m512, x: __m512, bound: f32) -> __m512 {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(bound)), v)
        }
        fn first(n: usize, a: __m512, b: __m512) -> __m512 {
            _mm512_mask_mov_ps(b, ((1u32 << n.min(16)) - 1) as __mmask16, a)
        }
        fn pow2(t: __m512) -> __m512 {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f80_0000)))
        }
        fn sum(v: __m512) -> f32 {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
        fn hmax(v: __m512) -> f32 {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
        fn prefetch(p: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
