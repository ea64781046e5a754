//! Checks of an operation's operands, for backends whose buffers are host vectors: the reference, and examples.
//!
//! A backend may be called with sizes beyond its buffers and with indices out of range: each is an error that names the
//! operand, never a panic. Device kernels have to check for themselves what the host cannot see.

use super::layout::{HeadLayout, KvSpec, PAD_SLOT, StepKey};
use super::{Backend, StepInputs};
use crate::error::{Error, Result};
use crate::numerics::size;

/// The operands of one operation on one device. Its errors are [`Error::Device`] with both names.
///
/// ```
/// use qwen_core::backend::host::Operands;
/// let operands = Operands { device: "mine", op: "linear" };
/// operands.need("x", 12, &[3, 4])?;
/// let error = operands.need("x", 12, &[4, 4]).unwrap_err().to_string();
/// assert_eq!(error, "mine: linear: `x` holds 12 values, [4, 4] are needed");
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// The device's name.
    pub device: &'a str,
    /// The operation.
    pub op: &'a str,
}

impl Operands<'_> {
    /// Check that the operand `name`, of `len` values, has at least the product of `dimensions`.
    ///
    /// # Errors
    /// When it has fewer, or their number overflows.
    pub fn need(&self, name: &str, len: usize, dimensions: &[usize]) -> Result<()> {
        match size::product(dimensions) {
            Some(needed) if needed <= len => Ok(()),
            _ => Err(self.error(format!("`{name}` holds {len} values, {dimensions:?} are needed"))),
        }
    }

    /// Check that `heads` are valid, and match a layer of the K/V store if one is given.
    ///
    /// # Errors
    /// When they are not.
    pub fn heads(&self, heads: &HeadLayout, kv: Option<(&KvSpec, usize)>) -> Result<()> {
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
        let sound = num_key_value_heads > 0
            && head_dim > 0
            && num_attention_heads.is_multiple_of(num_key_value_heads)
            && size::values("heads", &[num_attention_heads, 3, head_dim]).is_ok();
        match sound && kv.is_none_or(|(spec, layer)| spec.serves(layer, heads)) {
            true => Ok(()),
            false => Err(self.error(format!("{heads:?} do not fit {kv:?}"))),
        }
    }

    /// Check that `slot_mapping` has a slot for each of `rows` tokens, each within the store or [`PAD_SLOT`].
    ///
    /// # Errors
    /// When one is missing or out of range.
    pub fn slots(&self, slot_mapping: &[u32], rows: usize, spec: &KvSpec) -> Result<()> {
        self.need("slot_mapping", slot_mapping.len(), &[rows])?;
        let used = slot_mapping.iter().take(rows).filter(|slot| **slot != PAD_SLOT);
        match used.max() {
            Some(&last) => self.need("kv", spec.num_slots()?, &[(last as usize).saturating_add(1)]),
            None => Ok(()),
        }
    }

    /// Check a call that moves whole K/V blocks as `len` bytes. `stored` is the store with the encodings of its bytes.
    ///
    /// # Errors
    /// As [`KvSpec::check_blocks`].
    pub fn blocks(&self, stored: &KvSpec, blocks: &[u32], len: usize) -> Result<()> {
        stored.check_blocks(blocks, len).map_err(|reason| self.error(reason))
    }

    /// Check the lengths and the block tables of a step's sequences against a store.
    ///
    /// # Errors
    /// When a sequence has tokens outside the step, more tokens than positions, or positions without a block.
    pub fn sequences<B: Backend<Indices = Vec<u32>>>(
        &self,
        inputs: &StepInputs<B>,
        spec: &KvSpec,
        key: StepKey,
    ) -> Result<()> {
        let width = inputs.max_blocks_per_seq;
        self.need("cu_seqlens_q", inputs.cu_seqlens_q.len(), &[key.num_seqs.saturating_add(1)])?;
        self.need("context_lens", inputs.context_lens.len(), &[key.num_seqs])?;
        self.need("block_tables", inputs.block_tables.len(), &[key.num_seqs, width])?;
        for seq in 0..key.num_seqs {
            let tokens = inputs.cu_seqlens_q[seq] as usize..inputs.cu_seqlens_q[seq + 1] as usize;
            let context_len = inputs.context_lens[seq] as usize;
            let num_blocks = context_len.div_ceil(spec.block_size.max(1));
            self.need("cu_seqlens_q", key.num_tokens.min(tokens.end), &[tokens.start.max(tokens.end)])?;
            self.need("context_lens", context_len, &[tokens.len()])?;
            self.need("block_tables", width, &[num_blocks])?;
            let blocks = &inputs.block_tables[seq * width..][..num_blocks];
            let held = blocks.iter().max().map_or(0, |block| (*block as usize).saturating_add(1));
            self.need("kv", spec.num_blocks, &[held])?;
        }
        Ok(())
    }

    fn error(&self, reason: String) -> Error {
        Error::Device { device: self.device.into(), op: self.op.into(), reason }
    }
}
