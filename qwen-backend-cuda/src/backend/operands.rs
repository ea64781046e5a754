//! The operands of operations: arrays of 32-bit values, and the checks that several operations share.

use qwen_core::backend::HeadLayout;
use qwen_core::{Error, Result};

use super::CudaBackend;
use crate::driver::Array;
use crate::kv::Store;

/// The most heads of a model: the blocks of a grid along y.
const MAX_HEADS: usize = 65_535;

/// An array of 32-bit values.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) array: Array,
    pub(super) len: usize,
}

impl CudaBackend {
    /// An array of `len` values, all zero.
    pub(super) fn words(&mut self, what: &str, len: usize) -> Result<Words> {
        Ok(Words { array: self.gpu.words(what, len)?, len })
    }

    /// The error of arguments that do not fit each other.
    pub(super) fn mismatch(&self, op: &str, reason: impl Into<String>) -> Error {
        self.gpu.error(op, reason)
    }

    pub(super) fn check_len(&self, op: &str, name: &str, words: &Words, needed: usize) -> Result<()> {
        match words.len < needed {
            true => Err(self.mismatch(op, format!("`{name}` holds {} values, {needed} are needed", words.len))),
            false => Ok(()),
        }
    }

    pub(super) fn check_heads(&self, op: &str, heads: &HeadLayout) -> Result<()> {
        let HeadLayout { num_attention_heads, num_key_value_heads, head_dim } = *heads;
        let divides = num_key_value_heads > 0 && num_attention_heads.is_multiple_of(num_key_value_heads);
        let widths = head_dim > 0 && head_dim.is_multiple_of(8) && head_dim <= 256;
        match divides && widths && num_attention_heads <= MAX_HEADS {
            true => Ok(()),
            false => {
                let expected = format!("expected up to {MAX_HEADS} heads of 8, 16, ... 256 values");
                Err(self.mismatch(op, format!("{heads:?}: {expected}, and a divisor of their number as K/V heads")))
            }
        }
    }

    pub(super) fn check_store(&self, op: &str, store: &Store, layer: usize, heads: &HeadLayout) -> Result<()> {
        self.check_heads(op, heads)?;
        let spec = &store.spec;
        match spec.serves(layer, heads) {
            true => Ok(()),
            false => Err(self.mismatch(op, format!("layer {layer} and {heads:?} do not fit a store of {spec:?}"))),
        }
    }
}
