//! Short values that tell contents apart: the same in every process and on every machine. They find accidents, such as
//! another model's files, and no attacks.

use qwen_tokenizer::Tokenizer;

/// The 64-bit hash FNV-1a.
pub(crate) fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes = bytes.into_iter();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the ids of a tokenizer stand for: where it is the same, ids that were saved mean the same.
pub(crate) fn of_vocabulary(tokenizer: &Tokenizer) -> String {
    let tokens = (0..tokenizer.num_ids() as u32).flat_map(|id| {
        let bytes = tokenizer.token_bytes(id);
        let length = (bytes.len() as u32).to_le_bytes();
        [u8::from(tokenizer.is_special(id))].into_iter().chain(length).chain(bytes)
    });
    format!("{:016x}", fnv1a(tokens))
}
