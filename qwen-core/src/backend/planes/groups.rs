//! Groups of columns with a scale and a zero point, as in GPTQ and AWQ: a plane of codes, and a word for each group.

use super::PlaneFormat;

pub(super) static INT4: PlaneFormat = PlaneFormat::new("int4", &[16, 4], |block, out| {
    if let Some((head, packed)) = block.split_at_checked(4) {
        let codes: Vec<u8> = packed.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
        out.four_bits(0, &codes);
        out.put(1, head);
    }
});

pub(super) static INT8: PlaneFormat = PlaneFormat::new("int8", &[32, 4], |block, out| {
    if let Some((head, codes)) = block.split_at_checked(4) {
        out.put(0, codes);
        out.put(1, head);
    }
});
