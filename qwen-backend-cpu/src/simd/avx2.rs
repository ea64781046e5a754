//! AVX2 with FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;

use super::{Kernel, Part, Simd, array};

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
    // SAFETY: guaranteed by the caller.
    unsafe { kernel.piece(Avx2(()), piece, scratch) }
}

/// Compute `part` compiled for AVX2.
///
/// # Safety
/// As [`Part::run`], and the CPU has the features.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter_part<P: Part>(part: &P) {
    // SAFETY: guaranteed by the caller.
    unsafe { part.run(Avx2(())) }
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

    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Partial = [__m256i; 2];

    // Twelve sums, two weights and a broadcast value fill the 16 registers.
    const GROUPS: usize = 1;
    const TOKENS: usize = 6;
    // Eight partials, a line of two registers, a broadcast value and its product.
    const INT8_TOKENS: usize = 4;
    const WIDE_PARTIAL: bool = false;
    const SIGNED_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn call<P: Part>(self, part: &P) {
        // SAFETY: the token guarantees the features, the caller the part.
        unsafe { enter_part(part) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Two {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, v: Two, p: *mut f32) {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Two {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: Two, p: *mut u16) {
        let v = self.min(self.splat(65504.0), self.max(self.splat(-65504.0), v));
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> [__m256i; 2] {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())] }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Two, w: [__m256i; 2], x: u32) -> Two {
        let [w0, w1] = self.widen(w);
        let odd = self.mul_add(w1, self.splat(f32::from_bits(x & 0xffff_0000)), acc);
        self.mul_add(w0, self.splat(f32::from_bits(x << 16)), odd)
    }

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, v: [__m256i; 2], p: *mut u8) {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_ints(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: guaranteed by the caller.
        unsafe { self.load_bytes(p) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe {
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(v, v))]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe {
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v))]
        }
    }

    #[inline(always)]
    unsafe fn load_u16(self, p: *const u8) -> [__m256i; 2] {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe {
            let [low, high] = [_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(16).cast())];
            [_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high)]
        }
    }

    #[inline(always)]
    fn prepare_signed(self, v: [__m256i; 2]) -> [__m256i; 2] {
        v
    }

    methods! {
        fn shift_right(v: [__m256i; 2], n: u32, mask: u8) -> [__m256i; 2] {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8(mask as i8));
            [_mm256_and_si256(_mm256_srl_epi32(v[0], n), mask), _mm256_and_si256(_mm256_srl_epi32(v[1], n), mask)]
        }
        fn shift_left(v: [__m256i; 2], n: u32, mask: u8) -> [__m256i; 2] {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8(mask as i8));
            [_mm256_and_si256(_mm256_sll_epi32(v[0], n), mask), _mm256_and_si256(_mm256_sll_epi32(v[1], n), mask)]
        }
        fn or_bytes(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
        }
        fn lookup(table: &[i8; 16], v: [__m256i; 2]) -> [__m256i; 2] {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, v[0]), _mm256_shuffle_epi8(table, v[1])]
        }
        fn flip_sign(v: [__m256i; 2]) -> [__m256i; 2] {
            array!(i < 2 => _mm256_xor_si256(v[i], _mm256_set1_epi8(i8::MIN)))
        }
        fn bytes_to_f(v: [__m256i; 2]) -> [Two; 4] {
            let byte = _mm256_set1_epi32(0xff);
            array!(column < 4 => {
                let n = _mm256_set1_epi32(8 * column as i32);
                array!(i < 2 => _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(v[i], n), byte)))
            })
        }
        fn splat_ints(v: i32) -> [__m256i; 2] { [_mm256_set1_epi32(v); 2] }
        fn bits(v: [__m256i; 2], n: u32, mask: i32) -> [__m256i; 2] {
            // Shift all lanes by one count: per-lane counts take four times as long on some CPUs.
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi32(mask));
            [_mm256_and_si256(_mm256_srl_epi32(v[0], n), mask), _mm256_and_si256(_mm256_srl_epi32(v[1], n), mask)]
        }
        fn join(low: [__m256i; 2], high: [__m256i; 2]) -> [__m256i; 2] {
            [
                _mm256_or_si256(low[0], _mm256_slli_epi32::<4>(high[0])),
                _mm256_or_si256(low[1], _mm256_slli_epi32::<4>(high[1])),
            ]
        }
        fn add_ints(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
        }
        fn ints_to_f(v: [__m256i; 2]) -> Two { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
        fn partial(_sums: [__m256i; 2]) -> [__m256i; 2] { [_mm256_setzero_si256(); 2] }
        fn dot(acc: [__m256i; 2], w: [__m256i; 2], x: u32) -> [__m256i; 2] {
            let x = _mm256_set1_epi32(x as i32);
            [
                _mm256_add_epi16(acc[0], _mm256_maddubs_epi16(w[0], x)),
                _mm256_add_epi16(acc[1], _mm256_maddubs_epi16(w[1], x)),
            ]
        }
        fn dot_signed(acc: [__m256i; 2], w: [__m256i; 2], x: u32) -> [__m256i; 2] {
            // The sign of each weight moves to its factor; -128 becomes 128, which fits in an unsigned byte.
            let x = _mm256_set1_epi32(x as i32);
            array!(i < 2 => {
                let product = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(x, w[i]));
                _mm256_add_epi16(acc[i], product)
            })
        }
        fn fold(sums: [__m256i; 2], partial: [__m256i; 2]) -> [__m256i; 2] {
            let one = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(partial[0], one)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(partial[1], one)),
            ]
        }
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
