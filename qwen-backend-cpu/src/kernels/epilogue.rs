//! What is done with the sums of a matrix product.
//!
//! The sums of a piece are `[unit][token][32]`. Each form writes rows of its output that no other piece writes.

use qwen_core::backend::HeadLayout;

use super::math::{load_first, silu_mul, store_first};
use super::rope::rotate;
use super::scratch::SUMS;
use super::store_kv;
use super::tile::MOST_TOKENS;
use crate::kv::Store;
use crate::matrix::{Group, Layout, UNIT};
use crate::memory::Array;
use crate::simd::{LANES, Simd};

/// The last step of a product.
#[derive(Debug)]
pub(crate) enum Epilogue {
    /// `out = sums + bias`
    Write { bias: Option<Array<f32>>, out: Array<f32> },
    /// `residual += sums`
    Add { residual: Array<f32> },
    /// `out = silu(gate) * up` of a matrix whose units have both.
    SiluMul { out: Array<f32> },
    /// Bias, rotation, and storing keys and values.
    Heads(Heads),
}

/// The last step of the q|k|v projections; pieces are whole heads.
#[derive(Debug)]
pub(crate) struct Heads {
    pub(crate) bias: Array<f32>,
    pub(crate) cos_sin: Array<f32>,
    pub(crate) slots: Array<u32>,
    pub(crate) heads: HeadLayout,
    pub(crate) qkv: Array<f32>,
    pub(crate) kv: Store,
    pub(crate) layer: usize,
}

impl Epilogue {
    /// # Safety
    /// Nothing else accesses the outputs of these units and tokens; operations that write the inputs are done.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn apply<S: Simd>(
        &self,
        s: S,
        layout: &Layout,
        first_unit: usize,
        units: usize,
        start: usize,
        tokens: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match self {
                Epilogue::Write { bias, out } => {
                    for token in 0..tokens {
                        for g in 0..2 * units {
                            let Group { row, lanes, .. } = layout.groups[2 * first_unit + g];
                            let p = sums[((g / 2) * tokens + token) * UNIT + g % 2 * LANES..][..LANES].as_ptr();
                            let out = out.slice_mut((start + token) * layout.rows + row, lanes).as_mut_ptr();
                            let bias = bias.as_ref().map(|bias| bias.slice(row, lanes).as_ptr());
                            write(s, s.load(p), bias, out, lanes);
                        }
                    }
                }
                Epilogue::Add { residual } => {
                    for token in 0..tokens {
                        for g in 0..2 * units {
                            let Group { row, lanes, .. } = layout.groups[2 * first_unit + g];
                            let p = sums[((g / 2) * tokens + token) * UNIT + g % 2 * LANES..][..LANES].as_ptr();
                            let out = residual.slice_mut((start + token) * layout.rows + row, lanes).as_mut_ptr();
                            write(s, s.load(p), Some(out.cast_const()), out, lanes);
                        }
                    }
                }
                Epilogue::SiluMul { out } => {
                    let width = layout.rows / 2;
                    for token in 0..tokens {
                        for unit in 0..units {
                            let Group { row, lanes, .. } = layout.groups[2 * (first_unit + unit)];
                            let p = sums[(unit * tokens + token) * UNIT..][..UNIT].as_ptr();
                            let out = out.slice_mut((start + token) * width + row, lanes).as_mut_ptr();
                            write(s, silu_mul(s, s.load(p), s.load(p.add(LANES))), None, out, lanes);
                        }
                    }
                }
                Epilogue::Heads(heads) => heads.apply(s, first_unit, units, start, tokens, sums),
            }
        }
    }
}

/// `out = v + addend` for the first `lanes` lanes.
///
/// # Safety
/// That many values can be read and written.
#[inline(always)]
unsafe fn write<S: Simd>(s: S, v: S::F, addend: Option<*const f32>, out: *mut f32, lanes: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if lanes == LANES {
            s.store(addend.map_or(v, |p| s.add(v, s.load(p))), out);
        } else {
            store_first(s, addend.map_or(v, |p| s.add(v, load_first(s, p, lanes))), out, lanes);
        }
    }
}

impl Heads {
    /// Whether heads of this layout are whole units, and a tile of them fits in a thread's scratch.
    pub(crate) fn suits(heads: &HeadLayout) -> bool {
        heads.head_dim.is_multiple_of(UNIT) && heads.head_dim > 0 && heads.head_dim <= SUMS / MOST_TOKENS
    }

    /// # Safety
    /// As [`Epilogue::apply`].
    #[inline(always)]
    unsafe fn apply<S: Simd>(
        &self,
        s: S,
        first_unit: usize,
        units: usize,
        start: usize,
        tokens: usize,
        sums: &mut [f32],
    ) {
        // One pointer for all accesses: a slice of the sums would invalidate the others.
        let (base, len) = (sums.as_mut_ptr(), sums.len());
        let dim = self.heads.head_dim;
        let per_head = dim / UNIT;
        let (queries, keys) = (self.heads.num_attention_heads, self.heads.num_key_value_heads);
        for h in 0..units / per_head {
            let head = first_unit / per_head + h;
            for token in 0..tokens {
                let row = start + token;
                // Sixteen channels of the head among the sums, from channel `i` on.
                let at = |i: usize| {
                    let first = ((h * per_head + i / UNIT) * tokens + token) * UNIT + i % UNIT;
                    assert!(first + LANES <= len, "channel {i} of head {head}");
                    base.wrapping_add(first)
                };
                // SAFETY: guaranteed by the caller; sixteen channels from a multiple of 16 on are contiguous.
                unsafe {
                    let bias = self.bias.slice(head * dim, dim).as_ptr();
                    for i in (0..dim).step_by(LANES) {
                        let p = at(i);
                        s.store(s.add(s.load(p), s.load(bias.add(i))), p);
                    }
                    if head < queries + keys {
                        let cos = self.cos_sin.slice(row * dim, dim).as_ptr();
                        for i in (0..dim / 2).step_by(LANES) {
                            let a = at(i);
                            let b = at(i + dim / 2);
                            rotate(s, a, b, cos.add(i), cos.add(dim / 2 + i));
                        }
                    }
                    if head < queries {
                        let out = self.qkv.slice_mut(row * self.heads.qkv_size() + head * dim, dim).as_mut_ptr();
                        for i in (0..dim).step_by(LANES) {
                            s.store(s.load(at(i)), out.add(i));
                        }
                        continue;
                    }
                    let slot = self.slots.slice(row, 1)[0] as usize;
                    if slot >= self.kv.spec.num_blocks * self.kv.spec.block_size {
                        continue;
                    }
                    // A unit of the sums has as many channels as a block.
                    let from = |i: usize| at(i).cast_const();
                    if head < queries + keys {
                        store_kv::store_key(s, &self.kv, self.layer, head - queries, slot, from);
                    } else {
                        store_kv::store_value(s, &self.kv, self.layer, head - queries - keys, slot, from);
                    }
                }
            }
        }
    }
}
