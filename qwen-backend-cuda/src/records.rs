//! Records of attention: what blocks that share a row leave for the merge, one for each head and span. Of how many
//! sequences they are held, and how large they are, without a device.

use crate::geometry::ATTENTION_SPAN;

/// Bytes of records at most: some 70 sequences of 131,072 positions on 7B. What would take more is not split, since so
/// many sequences nearly fill a card without.
const MOST_RECORD_BYTES: usize = 1 << 30;

/// Spans of the longest sequence.
pub(crate) fn span_count(max_blocks_per_seq: usize, block_size: usize) -> usize {
    (max_blocks_per_seq * block_size).div_ceil(ATTENTION_SPAN)
}

/// Bytes of a token's records: for each head and span the sums, the largest score and the total weight.
pub(crate) fn token_records(num_attention_heads: usize, max_spans: usize, head_dim: usize) -> usize {
    4 * num_attention_heads * max_spans * (head_dim + 2)
}

/// Sequences whose records are held, of so many that a step may have.
pub(crate) fn records_held(max_num_seqs: usize, token_bytes: usize) -> usize {
    max_num_seqs.min(MOST_RECORD_BYTES / token_bytes.max(1))
}
