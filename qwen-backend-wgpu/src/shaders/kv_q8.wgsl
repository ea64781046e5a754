// Heads of the K/V store in Q8_0: a block of 32 channels is a scale and 32 signed bytes. A head is a plane of codes,
// [slot][channel / 4] words, and a plane of scales, [slot][channel / 64] words of two f16 each.

// Words of the codes and of the scales of one position.
fn code_words(head_dim: u32) -> u32 {
    return head_dim / 4u;
}

fn scale_words(head_dim: u32) -> u32 {
    return (head_dim + 63u) / 64u;
}

// Words of a head: whole vectors of four.
fn q8_head_words(head_dim: u32, num_slots: u32) -> u32 {
    return (num_slots * (code_words(head_dim) + scale_words(head_dim)) + 3u) / 4u * 4u;
}

// The first word of the codes of a position, and of its scales.
fn codes_at(head_dim: u32, num_slots: u32, head: u32, slot: u32) -> u32 {
    return head * q8_head_words(head_dim, num_slots) + slot * code_words(head_dim);
}

fn scales_at(head_dim: u32, num_slots: u32, head: u32, slot: u32) -> u32 {
    return head * q8_head_words(head_dim, num_slots) + num_slots * code_words(head_dim) + slot * scale_words(head_dim);
}
