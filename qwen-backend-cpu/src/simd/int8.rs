//! The int8 dot product of AVX-512 VNNI in a loop by itself, for the ceiling. Products are in `kernels/linear`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Multiplications and additions of a round of [`int8_rounds`].
pub(crate) const INT8_OPS: u64 = 16 * 64 * 2;

/// Run `rounds` rounds of independent int8 dot products in registers. `None` where there is no instruction for them.
pub(crate) fn int8_rounds(rounds: u64) -> Option<i32> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the CPU has the features.
        return Some(unsafe { avx512_rounds(rounds) });
    }
    let _ = rounds;
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512_rounds(rounds: u64) -> i32 {
    let (w, x) = (_mm512_set1_epi8(3), _mm512_set1_epi8(5));
    let mut acc = [_mm512_setzero_si512(); 16];
    for _ in 0..rounds {
        // Told nothing of the operands, the compiler has to multiply in every round.
        let (w, x) = (std::hint::black_box(w), x);
        for acc in &mut acc {
            *acc = _mm512_dpbusd_epi32(*acc, w, x);
        }
    }
    let mut sum = acc[0];
    for acc in &acc[1..] {
        sum = _mm512_add_epi32(sum, *acc);
    }
    _mm512_reduce_add_epi32(sum)
}
