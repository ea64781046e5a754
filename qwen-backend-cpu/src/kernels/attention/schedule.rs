//! How the attention of a step is divided into tasks: integers, computed from the step's inputs once for all layers.

use qwen_core::backend::{HeadLayout, KvSpec};
use qwen_core::{Error, Result};

use super::geometry::{SPAN, partial_len, task_tokens};
use crate::simd::LANES;

/// The tasks of a step.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    pub(crate) tasks: Vec<Task>,
    pub(crate) joins: Vec<Join>,
    /// Partial results of spans to join.
    pub(crate) partials: usize,
}

/// Some tokens of a sequence, the query heads of one K/V head, a range of spans.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    /// The start of the sequence's blocks in the tables.
    pub(crate) table: usize,
    pub(crate) head: usize,
    pub(crate) first_token: usize,
    pub(crate) tokens: usize,
    /// Positions that the first token sees; each following one sees one more.
    pub(crate) visible: usize,
    /// First span and the one after the last.
    pub(crate) spans: (usize, usize),
    /// The partial result of the first row, if the task is a single span that is joined with others later.
    pub(crate) partial: Option<usize>,
}

/// A token and a K/V head whose spans were reduced by several tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Join {
    pub(crate) token: usize,
    pub(crate) head: usize,
    /// The partial result of the first span's first row.
    pub(crate) partial: usize,
    /// The stride, in partial results, to the same row of the next span.
    pub(crate) stride: usize,
    /// Spans that the token sees.
    pub(crate) spans: usize,
}

/// The inputs of a step that determine its attention.
pub(crate) struct Shape<'a> {
    pub(crate) cu_seqlens_q: &'a [u32],
    pub(crate) context_lens: &'a [u32],
    pub(crate) block_tables: &'a [u32],
    pub(crate) max_blocks_per_seq: usize,
    pub(crate) num_tokens: usize,
}

impl Schedule {
    /// The maximum number of floats of partial results. In a step that would need more, a task has all spans of its
    /// rows.
    pub(crate) const MOST_PARTIAL: usize = 1 << 20;

    /// Rebuild the schedule in place.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for sequences that overlap, end after the step's tokens or lack blocks.
    pub(crate) fn build(&mut self, shape: &Shape<'_>, heads: &HeadLayout, kv: &KvSpec, threads: usize) -> Result<()> {
        self.tasks.clear();
        self.joins.clear();
        self.partials = 0;
        let group = heads.num_attention_heads / heads.num_key_value_heads;
        let most = task_tokens(group);
        let partial = partial_len(heads.head_dim.next_multiple_of(LANES));
        let (mut whole, mut partials) = (0, 0usize);
        for (s, (n, context)) in sequences(shape).enumerate() {
            check(shape, s, n, context, kv)?;
            whole += n.div_ceil(most) * heads.num_key_value_heads;
            let row = heads.num_attention_heads.saturating_mul(context.div_ceil(SPAN)).saturating_mul(partial);
            partials = partials.saturating_add(n.saturating_mul(row));
        }
        let few = whole < 4 * threads && partials <= Self::MOST_PARTIAL;
        for (s, (n, context)) in sequences(shape).enumerate() {
            let start = shape.cu_seqlens_q[s] as usize;
            let table = s * shape.max_blocks_per_seq;
            // The last tokens see the most positions: they come first, so that the last tasks are short.
            for first in (0..n).step_by(most).rev() {
                let visible = context - n + first + 1;
                let tokens = most.min(n - first);
                let spans = (visible + tokens - 1).div_ceil(SPAN);
                for head in 0..heads.num_key_value_heads {
                    let task = Task {
                        table,
                        head,
                        first_token: start + first,
                        tokens,
                        visible,
                        spans: (0, spans),
                        partial: None,
                    };
                    if !few || spans == 1 {
                        self.tasks.push(task);
                        continue;
                    }
                    // If there are few tasks for the threads, each span becomes one.
                    for i in 0..tokens {
                        self.joins.push(Join {
                            token: start + first + i,
                            head,
                            partial: self.partials + i * group,
                            stride: tokens * group,
                            spans: (visible + i).div_ceil(SPAN),
                        });
                    }
                    for span in 0..spans {
                        self.tasks.push(Task { spans: (span, span + 1), partial: Some(self.partials), ..task });
                        self.partials += tokens * group;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Tokens in this step and context of each sequence.
fn sequences(shape: &Shape<'_>) -> impl Iterator<Item = (usize, usize)> {
    shape
        .cu_seqlens_q
        .windows(2)
        .zip(shape.context_lens)
        .map(|(cu, &context)| (cu[1].saturating_sub(cu[0]) as usize, context as usize))
}

fn check(shape: &Shape<'_>, s: usize, n: usize, context: usize, kv: &KvSpec) -> Result<()> {
    let (start, end) = (shape.cu_seqlens_q[s] as usize, shape.cu_seqlens_q[s + 1] as usize);
    let bad = |reason: String| Err(Error::argument("paged_attention", format!("sequence {s}: {reason}")));
    // A token of two sequences would be written by two threads.
    if end < start {
        return bad(format!("its tokens begin at {start} and end at {end}"));
    }
    if n == 0 {
        return Ok(());
    }
    if end > shape.num_tokens {
        return bad(format!("its tokens end at {end}, the step has {}", shape.num_tokens));
    }
    if context < n {
        return bad(format!("{n} tokens in a context of {context}"));
    }
    let blocks = context.div_ceil(kv.block_size);
    if blocks > shape.max_blocks_per_seq {
        return bad(format!("{blocks} blocks, the tables hold {}", shape.max_blocks_per_seq));
    }
    let table = &shape.block_tables[s * shape.max_blocks_per_seq..][..blocks];
    match table.iter().find(|&&block| block as usize >= kv.num_blocks) {
        Some(block) => bad(format!("block {block} of {}", kv.num_blocks)),
        None => Ok(()),
    }
}
