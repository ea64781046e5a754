//! AVX2 with FMA and F16C: two registers are a vector.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

type Two = [__m256; 2];

/// Run a piece of `kernel` compiled for AVX2.
///
/// # Safety
/// As [`Kernel::piece`], and the CPU has the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: passed on to the caller.
    unsafe { kernel.piece(Avx2(()), piece, scratch) }
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

impl Simd for Avx2 {
    type F = Two;
    type Pairs = [__m256i; 2];

    // Twelve sums, two weights and a broadcast value fill the 16 registers.
    const GROUPS: usize = 1;
    const TOKENS: usize = 6;

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Two {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, v: Two, p: *mut f32) {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Two {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: Two, p: *mut u16) {
        let v = self.min(self.splat(65504.0), self.max(self.splat(-65504.0), v));
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [__m256i; 2] {
        // SAFETY: the token vouches for the features, the caller for the pointer.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())] }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Two, w: [__m256i; 2], x: u32) -> Two {
        let [w0, w1] = self.widen(w);
        let odd = self.mul_add(w1, self.splat(f32::from_bits(x & 0xffff_0000)), acc);
        self.mul_add(w0, self.splat(f32::from_bits(x << 16)), odd)
    }

    methods! {
        fn splat(v: f32) -> Two { [_mm256_set1_ps(v); 2] }
        fn widen(pairs: [__m256i; 2]) -> [Two; 2] {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let [a, b] = pairs;
            [
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
                ],
                [
                    _mm256_castsi256_ps(_mm256_and_si256(a, upper)),
                    _mm256_castsi256_ps(_mm256_and_si256(b, upper)),
                ],
            ]
        }
        fn add(a: Two, b: Two) -> Two { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn sub(a: Two, b: Two) -> Two { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        fn mul(a: Two, b: Two) -> Two { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn div(a: Two, b: Two) -> Two { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        fn max(a: Two, b: Two) -> Two { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        fn min(a: Two, b: Two) -> Two { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        fn mul_add(a: Two, b: Two, c: Two) -> Two {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        fn zero_below(v: Two, x: Two, bound: f32) -> Two {
            let bound = _mm256_set1_ps(bound);
            [
                _mm256_and_ps(v[0], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], bound)),
                _mm256_and_ps(v[1], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], bound)),
            ]
        }
        fn first(n: usize, a: Two, b: Two) -> Two {
            let n = _mm256_set1_epi32(n.min(16) as i32);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, lanes));
            let high = _mm256_cmpgt_epi32(n, _mm256_add_epi32(lanes, _mm256_set1_epi32(8)));
            [
                _mm256_blendv_ps(b[0], a[0], low),
                _mm256_blendv_ps(b[1], a[1], _mm256_castsi256_ps(high)),
            ]
        }
        fn pow2(t: Two) -> Two {
            let one = _mm256_set1_epi32(0x3f80_0000);
            let a = _mm256_slli_epi32::<23>(_mm256_castps_si256(t[0]));
            let b = _mm256_slli_epi32::<23>(_mm256_castps_si256(t[1]));
            [_mm256_castsi256_ps(_mm256_add_epi32(a, one)), _mm256_castsi256_ps(_mm256_add_epi32(b, one))]
        }
        fn sum(v: Two) -> f32 {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
        fn hmax(v: Two) -> f32 {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
        fn prefetch(p: *const u8) -> () { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
