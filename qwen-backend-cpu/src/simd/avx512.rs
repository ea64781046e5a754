//! AVX-512: a vector is one register. With `BF16` the dot product of bf16 pairs is the instruction, otherwise emulated.

use std::arch::x86_64::*;

use super::{Dot, Kernel, Part, Simd, array};

/// AVX-512 F, BW, DQ, VL (and AVX2, FMA, F16C); with `BF16` also the bf16 dot product, with `VNNI` also that of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const VNNI: bool>(());

/// Run a piece of `kernel` compiled for AVX-512.
///
/// # Safety
/// As [`Kernel::piece`], and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: guaranteed by the caller.
    unsafe { kernel.piece(Avx512::<false, false>(()), piece, scratch) }
}

/// Run a piece of `kernel` compiled for AVX-512 with the dot products of bf16 and of bytes.
///
/// # Safety
/// As [`Kernel::piece`], and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn enter_bf16<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: guaranteed by the caller.
    unsafe { kernel.piece(Avx512::<true, true>(()), piece, scratch) }
}

/// Run a piece of `kernel` compiled for AVX-512 with the dot product of bytes.
///
/// # Safety
/// As [`Kernel::piece`], and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn enter_vnni<K: Kernel>(kernel: &K, piece: usize, scratch: &mut K::Scratch) {
    // SAFETY: guaranteed by the caller.
    unsafe { kernel.piece(Avx512::<false, true>(()), piece, scratch) }
}

/// Compute `part` compiled for AVX-512.
///
/// # Safety
/// As [`Part::run`], and the CPU has the features.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn part_plain<P: Part>(part: &P) {
    // SAFETY: guaranteed by the caller.
    unsafe { part.run(Avx512::<false, false>(())) }
}

/// Compute `part` compiled for AVX-512 with the dot product of bf16.
///
/// # Safety
/// As [`Part::run`], and the CPU has the features.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn part_bf16<P: Part>(part: &P) {
    // SAFETY: guaranteed by the caller.
    unsafe { part.run(Avx512::<true, false>(())) }
}

/// Compute `part` compiled for AVX-512 with the dot product of bytes.
///
/// # Safety
/// As [`Part::run`], and the CPU has the features.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn part_vnni<P: Part>(part: &P) {
    // SAFETY: guaranteed by the caller.
    unsafe { part.run(Avx512::<false, true>(())) }
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

impl<const BF16: bool, const VNNI: bool> Simd for Avx512<BF16, VNNI> {
    type F = __m512;
    type Pairs = __m512i;

    type Bytes = __m512i;
    type Ints = __m512i;
    type Partial = __m512i;

    // 24 sums, two weights and a broadcast value leave a few of the 32 registers.
    const GROUPS: usize = 2;
    const TOKENS: usize = 12;
    // Twelve sums of integers and as many of floats, two lines and a few more.
    const INT8_TOKENS: usize = 6;
    const WIDE_PARTIAL: bool = VNNI;
    const SIGNED_OFFSET: i32 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    unsafe fn call<P: Part>(self, part: &P) {
        // SAFETY: the token guarantees the features, the caller the part.
        unsafe {
            match P::DOT {
                Dot::Bf16 if BF16 => part_bf16(part),
                Dot::Int8 if VNNI => part_vnni(part),
                // Without the instruction, wider registers gain little over AVX2, whose kernel is used.
                Dot::Int8 => super::avx2::enter_part(part),
                _ => part_plain(part),
            }
        }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, v: __m512, p: *mut f32) {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, v: __m512, p: *mut u16) {
        let v = self.min(self.splat(65504.0), self.max(self.splat(-65504.0), v));
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, p: *const u16) -> __m512i {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, x: u32) -> __m512 {
        if BF16 {
            // SAFETY: the token guarantees the features; both operands are 512 bits without an invalid pattern.
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

    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, v: __m512i, p: *mut u8) {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }

    #[inline(always)]
    unsafe fn load_ints(self, p: *const u8) -> __m512i {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512i {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m512i {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u16(self, p: *const u8) -> __m512i {
        // SAFETY: the token guarantees the features, the caller the pointer.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    fn prepare_signed(self, v: __m512i) -> __m512i {
        // SAFETY: the token guarantees the features.
        if VNNI { unsafe { _mm512_xor_si512(v, _mm512_set1_epi8(i8::MIN)) } } else { v }
    }

    #[inline(always)]
    fn partial(self, sums: __m512i) -> __m512i {
        // SAFETY: the token guarantees the features.
        if VNNI { sums } else { unsafe { _mm512_setzero_si512() } }
    }

    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, x: u32) -> __m512i {
        // SAFETY: the token guarantees the features.
        unsafe {
            let x = _mm512_set1_epi32(x as i32);
            if VNNI { _mm512_dpbusd_epi32(acc, w, x) } else { _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, x)) }
        }
    }

    #[inline(always)]
    fn dot_signed(self, acc: __m512i, w: __m512i, x: u32) -> __m512i {
        if VNNI {
            return self.dot(acc, w, x);
        }
        // SAFETY: the token guarantees the features.
        unsafe {
            // The sign of each weight moves to its factor; -128 becomes 128, which fits in an unsigned byte.
            let x = _mm512_set1_epi32(x as i32);
            let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
            _mm512_add_epi16(acc, _mm512_maddubs_epi16(_mm512_abs_epi8(w), x))
        }
    }

    #[inline(always)]
    fn fold(self, sums: __m512i, partial: __m512i) -> __m512i {
        if VNNI {
            return partial;
        }
        // SAFETY: the token guarantees the features.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(partial, _mm512_set1_epi16(1))) }
    }

    methods! {
        fn shift_right(v: __m512i, n: u32, mask: u8) -> __m512i {
            _mm512_and_si512(_mm512_srlv_epi32(v, _mm512_set1_epi32(n as i32)), _mm512_set1_epi8(mask as i8))
        }
        fn shift_left(v: __m512i, n: u32, mask: u8) -> __m512i {
            _mm512_and_si512(_mm512_sllv_epi32(v, _mm512_set1_epi32(n as i32)), _mm512_set1_epi8(mask as i8))
        }
        fn or_bytes(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn lookup(table: &[i8; 16], v: __m512i) -> __m512i {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v)
        }
        fn flip_sign(v: __m512i) -> __m512i {
            if VNNI { v } else { _mm512_xor_si512(v, _mm512_set1_epi8(i8::MIN)) }
        }
        fn bytes_to_f(v: __m512i) -> [__m512; 4] {
            let byte = _mm512_set1_epi32(0xff);
            array!(column < 4 => {
                let n = _mm512_set1_epi32(8 * column as i32);
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(v, n), byte))
            })
        }
        fn splat_ints(v: i32) -> __m512i { _mm512_set1_epi32(v) }
        fn bits(v: __m512i, n: u32, mask: i32) -> __m512i {
            _mm512_and_si512(_mm512_srlv_epi32(v, _mm512_set1_epi32(n as i32)), _mm512_set1_epi32(mask))
        }
        fn join(low: __m512i, high: __m512i) -> __m512i { _mm512_or_si512(low, _mm512_slli_epi32::<4>(high)) }
        fn add_ints(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn ints_to_f(v: __m512i) -> __m512 { _mm512_cvtepi32_ps(v) }
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
