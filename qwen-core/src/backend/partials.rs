//! Split-KV attention (Flash-Decoding): how the positions of a sequence are partitioned, and how much memory the
//! partial results take. Integers only; each device has its own kernels.
//!
//! In a step of one token per sequence, partitions of the stored positions are attended in parallel. Each yields a
//! partial result for every query head, and a merge combines them in order of position.

use super::{HeadLayout, StepKey};

/// The partial results of split-KV attention for steps of one token per sequence.
///
/// ```
/// use qwen_core::backend::HeadLayout;
/// use qwen_core::backend::partials::Partials;
/// let heads = HeadLayout { num_attention_heads: 14, num_key_value_heads: 2, head_dim: 64 };
/// // Sequences of up to 1,024 blocks of 32 positions, in partitions of 128.
/// let partials = Partials::new(heads, 1024, 32, 128, 8, 1 << 30);
/// assert_eq!((partials.num_partitions, partials.num_tokens), (256, 8));
/// assert_eq!(partials.bytes(), 8 * 4 * 14 * 256 * (64 + 2));
/// // Where all positions are in one partition, nothing is split.
/// assert_eq!(Partials::new(heads, 4, 32, 128, 8, 1 << 30).bytes(), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partials {
    /// Partitions of the longest sequence.
    pub num_partitions: usize,
    /// Bytes of the partials of a token: for each query head and partition `head_dim` sums, the largest score and the
    /// sum of the weights, in f32. `u64::MAX` if that overflows.
    pub bytes_per_token: u64,
    /// Tokens whose partials are held. Steps of more tokens are not split.
    pub num_tokens: usize,
}

impl Partials {
    /// The partials of sequences of up to `max_blocks_per_seq` blocks, partitioned every `partition_size` positions,
    /// for `max_num_seqs` tokens or as many as fit in `max_bytes`.
    ///
    /// Sizes that overflow saturate: they exceed any `max_bytes`, and nothing is split.
    pub fn new(
        heads: HeadLayout,
        max_blocks_per_seq: usize,
        block_size: usize,
        partition_size: usize,
        max_num_seqs: usize,
        max_bytes: u64,
    ) -> Self {
        let num_partitions = max_blocks_per_seq.saturating_mul(block_size).div_ceil(partition_size.max(1));
        let bytes_per_token = [heads.num_attention_heads, num_partitions, heads.head_dim.saturating_add(2)]
            .into_iter()
            .fold(4_u64, |bytes, factor| bytes.saturating_mul(factor as u64));
        let num_tokens = match num_partitions {
            0 | 1 => 0,
            _ => usize::try_from(max_bytes / bytes_per_token.max(1)).unwrap_or(usize::MAX).min(max_num_seqs),
        };
        Partials { num_partitions, bytes_per_token, num_tokens }
    }

    /// Bytes of all partials that are held.
    pub fn bytes(&self) -> u64 {
        self.bytes_per_token.saturating_mul(self.num_tokens as u64)
    }

    /// Whether the positions of a step of this shape are split.
    pub fn split(&self, key: StepKey) -> bool {
        self.num_partitions > 1 && key.max_seqlen_q <= 1 && key.num_tokens <= self.num_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: HeadLayout = HeadLayout { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 62 };
    /// Bytes of a token's partials in one partition.
    const PARTITION: u64 = 4 * 4 * 64;

    fn key(num_tokens: usize, max_seqlen_q: usize) -> StepKey {
        StepKey { num_tokens, num_seqs: 1, num_logits: 1, max_seqlen_q, hidden: false, adapters: false }
    }

    #[test]
    fn as_many_tokens_are_held_as_the_bytes_allow() {
        let of = |seqs, bytes| Partials::new(HEADS, 10, 16, 128, seqs, bytes);
        assert_eq!(of(8, 1 << 30), Partials { num_partitions: 2, bytes_per_token: 2 * PARTITION, num_tokens: 8 });
        assert_eq!(of(8, 6 * PARTITION).num_tokens, 3);
        assert_eq!(of(8, 6 * PARTITION).bytes(), 6 * PARTITION);
        assert_eq!(of(8, PARTITION).bytes(), 0);
    }

    #[test]
    fn steps_of_single_tokens_are_split_as_far_as_partials_are_held() {
        let partials = Partials::new(HEADS, 10, 16, 128, 8, 6 * PARTITION);
        assert!(partials.split(key(3, 1)) && !partials.split(key(4, 1)) && !partials.split(key(3, 2)));
        let one = Partials::new(HEADS, 8, 16, 128, 8, u64::MAX);
        assert!(one.num_partitions == 1 && !one.split(key(1, 1)) && one.bytes() == 0);
        let none = Partials::new(HEADS, 0, 16, 128, 8, u64::MAX);
        assert!(none.num_partitions == 0 && !none.split(key(1, 1)));
    }

    #[test]
    fn sizes_without_a_number_are_never_held() {
        for huge in [1 << (usize::BITS - 11), 1 << (usize::BITS - 4), usize::MAX] {
            let heads = HeadLayout { num_attention_heads: huge, num_key_value_heads: 1, head_dim: huge };
            let partials = Partials::new(heads, huge, huge, 128, huge, 1 << 30);
            assert_eq!((partials.num_tokens, partials.bytes()), (0, 0), "{huge}");
            let partials = Partials::new(HEADS, huge, 16, 0, 8, 1 << 30);
            assert_eq!((partials.num_tokens, partials.split(key(1, 1))), (0, false), "{huge}");
        }
    }
}
