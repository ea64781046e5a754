//! Causal attention of query heads over the paged K/V store.
//!
//! ```text
//! out = sum_p softmax_p(q . k[p] / sqrt(dim)) * v[p]            over the positions p that the token sees
//! ```
//!
//! Positions are divided into fixed spans of [`SPAN`]. Each span is reduced separately: its scores, their maximum `m`,
//! the exponentials and their sum `l`, the weighted values `o`; then it is merged into the result of the spans before
//! it (online softmax, Milakov and Gimelshein 2018; Dao et al. 2022). A row's spans are merged in order, so that it
//! makes no difference whether its token came in one prompt, in chunks or alone, where blocks are, or which thread
//! computed which span.
//!
//! A task is a K/V head, a few tokens of a sequence and all query heads that share the K/V head, in tiles of
//! [`Simd::TOKENS`] rows; or, if there are too few of those for the threads (a token with a long context), one span of
//! that, whose results [`merge`] then joins. Scores and weighted sums are products of the register tile of
//! [`super::tile`]: a block of keys is a weight matrix whose rows are positions, one of values has channels for rows.
//!
//! Positions that a row does not see get weight zero, and those that no row of a tile sees are not used at all: the
//! contents of unused parts of a block have no influence.

pub(crate) mod geometry;
pub(crate) mod merge;
pub(crate) mod schedule;
mod stored;

use std::sync::Arc;

use qwen_core::Encoding;
use qwen_core::backend::HeadLayout;

use super::math::exp;
use super::panel::Tiles;
use super::scratch::{SUMS, Scratch};
use super::tile::{self, by_tokens};
use crate::kv::{Store, padded_dim};
use crate::memory::Array;
use crate::simd::{Kernel, LANES, Simd};

use geometry::{SPAN, partial_len};
use merge::{finish, merge};
use schedule::{Schedule, Task};
use stored::{Blocks, Plain, Stored};

/// Prefetch distance for keys and values, in bytes.
const AHEAD: usize = 1024;

/// Attention of one layer; a piece is a task of the schedule.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) qkv: Array<f32>,
    pub(crate) kv: Store,
    pub(crate) layer: usize,
    pub(crate) heads: HeadLayout,
    pub(crate) block_tables: Array<u32>,
    pub(crate) schedule: Arc<Schedule>,
    /// Results of spans for [`merge::Merge`].
    pub(crate) partials: Array<f32>,
    pub(crate) out: Array<f32>,
}

impl Attention {
    pub(crate) fn pieces(&self) -> usize {
        self.schedule.tasks.len()
    }
}

impl Kernel for Attention {
    type Scratch = Scratch;

    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.task(s, piece, scratch) }
    }
}

/// The working set of a task: rows of queries and their running results, and space for a tile and a span.
struct Rows<'a> {
    q: &'a mut [f32],
    o: &'a mut [f32],
    m: &'a mut [f32],
    l: &'a mut [f32],
    /// `[row of the tile][SPAN]` scores, then weights.
    scores: &'a mut [f32],
    /// `[row of the tile][channel]` of this span.
    part: &'a mut [f32],
}

impl Attention {
    /// # Safety
    /// As [`Kernel::piece`].
    #[inline(always)]
    unsafe fn task<S: Simd>(&self, s: S, piece: usize, scratch: &mut Scratch) {
        let (keys, values) = (self.kv.spec.key_encodings[self.layer], self.kv.spec.value_encoding);
        let task = &self.schedule.tasks[piece];
        let (dim, padded) = (self.heads.head_dim, padded_dim(&self.kv.spec));
        let group = self.heads.num_attention_heads / self.heads.num_key_value_heads;
        let count = task.tokens * group;
        let memory = scratch.floats(SUMS);
        let (q, memory) = memory.split_at_mut((count * dim).next_multiple_of(LANES));
        let (o, memory) = memory.split_at_mut(count * padded);
        let (scores, memory) = memory.split_at_mut(S::TOKENS * SPAN);
        let (part, memory) = memory.split_at_mut(S::TOKENS * padded);
        let (m, memory) = memory.split_at_mut(count);
        let rows = Rows { q, o, m, l: &mut memory[..count], scores, part };
        rows.o.fill(0.0);
        rows.m.fill(f32::NEG_INFINITY);
        rows.l.fill(0.0);
        for (r, q) in rows.q.chunks_exact_mut(dim).take(count).enumerate() {
            let head = task.head * group + r % group;
            // SAFETY: operations that write the queries are done.
            q.copy_from_slice(unsafe {
                self.qkv.slice((task.first_token + r / group) * self.heads.qkv_size() + head * dim, dim)
            });
        }
        let tiles = Tiles::new(count, S::TOKENS);
        for span in task.spans.0..task.spans.1 {
            for i in 0..tiles.count {
                let (first, end) = (tiles.start(i), tiles.start(i + 1));
                let visible = |r: usize| (task.visible + r / group).saturating_sub(span * SPAN).min(SPAN);
                let most = visible(end - 1);
                if most == 0 {
                    continue;
                }
                let q = &rows.q[first * dim..];
                // SAFETY: guaranteed by the caller; the encoding names the elements.
                unsafe {
                    by_tokens!(end - first, S::TOKENS, T => match keys {
                        Encoding::Q8_0 => self.scores::<S, Blocks, T>(s, task, span, most, q, rows.scores),
                        Encoding::F16 => self.scores::<S, Plain<tile::F16>, T>(s, task, span, most, q, rows.scores),
                        _ => self.scores::<S, Plain<tile::F32>, T>(s, task, span, most, q, rows.scores),
                    });
                }
                let mut reduced = [(0.0, 0.0); 12];
                for r in first..end {
                    let scores = &mut rows.scores[(r - first) * SPAN..][..SPAN];
                    reduced[r - first] = softmax(s, scores, visible(r), most, 1.0 / (dim as f32).sqrt());
                }
                let (weights, part) = (&*rows.scores, &mut *rows.part);
                // SAFETY: guaranteed by the caller; the encoding names the elements.
                unsafe {
                    by_tokens!(end - first, S::TOKENS, T => match values {
                        Encoding::Q8_0 => self.weigh::<S, Blocks, T>(s, task, span, most, weights, part),
                        Encoding::F16 => self.weigh::<S, Plain<tile::F16>, T>(s, task, span, most, weights, part),
                        _ => self.weigh::<S, Plain<tile::F32>, T>(s, task, span, most, weights, part),
                    });
                }
                for r in first..end {
                    let (m, l) = reduced[r - first];
                    let part = &rows.part[(r - first) * padded..][..padded];
                    if let Some(first) = task.partial {
                        let len = partial_len(padded);
                        // SAFETY: only this task writes it.
                        let partial = unsafe { self.partials.slice_mut((first + r) * len, len) };
                        partial[..padded].copy_from_slice(part);
                        partial[padded] = m;
                        partial[padded + 1] = l;
                    } else if visible(r) > 0 {
                        merge(s, &mut rows.m[r], &mut rows.l[r], &mut rows.o[r * padded..][..padded], m, l, part);
                    }
                }
            }
        }
        if task.partial.is_some() {
            return;
        }
        for r in 0..count {
            let head = task.head * group + r % group;
            let at = (task.first_token + r / group) * self.heads.q_size() + head * dim;
            // SAFETY: only this task writes these heads of the token.
            unsafe { finish(s, &rows.o[r * padded..][..padded], rows.l[r], self.out.slice_mut(at, dim)) };
        }
    }

    /// The products of `T` queries with the keys of a span.
    ///
    /// # Safety
    /// As [`Kernel::piece`].
    #[inline(always)]
    unsafe fn scores<S: Simd, K: Stored<S>, const T: usize>(
        &self,
        s: S,
        task: &Task,
        span: usize,
        most: usize,
        q: &[f32],
        scores: &mut [f32],
    ) {
        let dim = self.heads.head_dim;
        let keys = |i: usize| {
            let position = span * SPAN + i * LANES;
            let (block, within) = self.block(task, position);
            self.kv.keys(self.layer, block, task.head).wrapping_add(within / LANES * K::group_bytes(dim)).cast_const()
        };
        let groups = most.div_ceil(LANES);
        let (q, scores) = (q[..T * dim].as_ptr(), scores[..T * SPAN].as_mut_ptr());
        let mut i = 0;
        // SAFETY: the blocks of visible positions belong to the sequence, and operations that write them are done.
        unsafe {
            while S::GROUPS == 2 && i + 1 < groups {
                for (t, acc) in K::score::<2, T>(s, [keys(i), keys(i + 1)], q, dim).into_iter().enumerate() {
                    s.store(acc[0], scores.add(t * SPAN + i * LANES));
                    s.store(acc[1], scores.add(t * SPAN + (i + 1) * LANES));
                }
                i += 2;
            }
            while i < groups {
                for (t, acc) in K::score::<1, T>(s, [keys(i)], q, dim).into_iter().enumerate() {
                    s.store(acc[0], scores.add(t * SPAN + i * LANES));
                }
                i += 1;
            }
        }
    }

    /// The values of a span, weighted for `T` rows.
    ///
    /// # Safety
    /// As [`Kernel::piece`].
    #[inline(always)]
    unsafe fn weigh<S: Simd, V: Stored<S>, const T: usize>(
        &self,
        s: S,
        task: &Task,
        span: usize,
        most: usize,
        weights: &[f32],
        part: &mut [f32],
    ) {
        let padded = padded_dim(&self.kv.spec);
        let size = self.kv.spec.block_size;
        let (weights, part) = (weights[..T * SPAN].as_ptr(), part[..T * padded].as_mut_ptr());
        let mut i = 0;
        // SAFETY: as in `scores`.
        unsafe {
            while i < padded / LANES {
                let pair = S::GROUPS == 2 && i + 1 < padded / LANES;
                let mut two = [[s.splat(0.0); 2]; T];
                let mut one = [[s.splat(0.0); 1]; T];
                let mut done = 0;
                while done < most {
                    let (block, within) = self.block(task, span * SPAN + done);
                    let lines = (size - within).min(most - done);
                    let at = self.kv.values(self.layer, block, task.head).cast_const();
                    let x = weights.add(done);
                    if pair {
                        two = V::weigh::<2, T>(s, two, at, size, i, within, x, lines);
                    } else {
                        one = V::weigh::<1, T>(s, one, at, size, i, within, x, lines);
                    }
                    done += lines;
                }
                for t in 0..T {
                    if pair {
                        s.store(two[t][0], part.add(t * padded + i * LANES));
                        s.store(two[t][1], part.add(t * padded + (i + 1) * LANES));
                    } else {
                        s.store(one[t][0], part.add(t * padded + i * LANES));
                    }
                }
                i += if pair { 2 } else { 1 };
            }
        }
    }

    /// The block that holds a position of the task's sequence, and the offset in it.
    #[inline(always)]
    fn block(&self, task: &Task, position: usize) -> (usize, usize) {
        let size = self.kv.spec.block_size;
        // SAFETY: tables are inputs of the step, constant within it.
        let block = unsafe { self.block_tables.slice(task.table + position / size, 1)[0] };
        (block as usize, position % size)
    }
}

/// Scale the scores of a row and turn the first `visible` of them into weights, the others up to `most` into zeros.
/// Returns the largest score and the sum of the weights.
#[inline(always)]
fn softmax<S: Simd>(s: S, scores: &mut [f32], visible: usize, most: usize, scale: f32) -> (f32, f32) {
    let (scale, lowest) = (s.splat(scale), s.splat(f32::NEG_INFINITY));
    let used = visible.div_ceil(LANES);
    let mut max = lowest;
    let p = scores.as_mut_ptr();
    // SAFETY: a row has `SPAN` scores, and `most` is at most that.
    unsafe {
        for i in 0..used {
            let at = p.add(i * LANES);
            let v = s.first(visible - i * LANES, s.mul(s.load(at), scale), lowest);
            s.store(v, at);
            max = s.max(max, v);
        }
        let m = s.hmax(max);
        let mut sum = s.splat(0.0);
        for i in 0..used {
            let at = p.add(i * LANES);
            let v = exp(s, s.sub(s.load(at), s.splat(m)));
            s.store(v, at);
            sum = s.add(sum, v);
        }
        for i in used..most.div_ceil(LANES) {
            s.store(s.splat(0.0), p.add(i * LANES));
        }
        (m, s.sum(sum))
    }
}
