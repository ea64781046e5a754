//! The parameters of every kernel: the counterparts of the structures in kernels/params.cuh, field by field. Tests
//! compare both.

/// An address of the GPU; 0 is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    pub(crate) const NULL: Address = Address(0);

    fn to_le_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

/// The largest size of a structure.
const MAX_BYTES: usize = 144;

/// The bytes of a structure, as passed to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packed {
    words: [u64; MAX_BYTES / 8],
    len: usize,
}

impl Packed {
    fn new() -> Self {
        Packed { words: [0; MAX_BYTES / 8], len: 0 }
    }

    /// The first byte, aligned to 8.
    pub(crate) fn as_ptr(&self) -> *const u64 {
        self.words.as_ptr()
    }

    /// Bytes of the structure.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The addresses among its fields.
    #[cfg(test)]
    pub(crate) fn addresses(&self, fields: &[Field]) -> Vec<(&'static str, u64)> {
        let mut at = 0;
        let mut found = Vec::new();
        for field in fields {
            if field.kind == "Address" {
                found.push((field.name, self.words[at / 8]));
            }
            at += field.bytes;
        }
        found
    }

    fn push(&mut self, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = self.len + i;
            self.words[at / 8] |= u64::from(byte) << (8 * (at % 8));
        }
        self.len += bytes.len();
    }
}

/// A field of a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// `Address`, `u32`, `u64` or `f32`.
    pub(crate) kind: &'static str,
    pub(crate) bytes: usize,
}

/// A structure of kernels/params.cuh.
pub(crate) trait Params {
    /// Its fields in order.
    const FIELDS: &'static [Field];

    /// Its bytes.
    fn pack(&self) -> Packed;
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ident,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, Default)]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $kind,)* }

            impl Params for $name {
                const FIELDS: &'static [Field] = &[
                    $(Field { name: stringify!($field), kind: stringify!($kind), bytes: size_of::<$kind>() }),*
                ];

                fn pack(&self) -> Packed {
                    // No field is padded: the structure is the concatenation of its fields.
                    const { assert!(size_of::<$name>() == 0 $(+ size_of::<$kind>())* && size_of::<$name>() <= MAX_BYTES) };
                    let mut packed = Packed::new();
                    $(packed.push(&self.$field.to_le_bytes());)*
                    packed
                }
            }
        )*

        /// All structures, by their names in kernels/params.cuh.
        #[cfg(test)]
        pub(crate) const ALL: &[(&str, &[Field], usize)] =
            &[$((stringify!($name), $name::FIELDS, size_of::<$name>())),*];
    };
}

params! {
    /// Rows of a table.
    Embed {
        ids: Address,
        table: Address,
        out: Address,
        column_order: Address,
        rows: u32,
        cols: u32,
        stride: u32,
        vocab: u32,
        encoding: u32,
        group_units: u32,
    }

    /// A matrix product and its epilogue.
    Product {
        x: Address,
        w: Address,
        out: Address,
        bias: Address,
        rounded: Address,
        scales: Address,
        cos_sin: Address,
        slot_mapping: Address,
        keys: Address,
        values: Address,
        column_order: Address,
        tokens: u32,
        rows: u32,
        cols: u32,
        stride: u32,
        num_attention_heads: u32,
        num_key_value_heads: u32,
        head_dim: u32,
        num_slots: u32,
        key_encoding: u32,
        value_encoding: u32,
        first_row: u32,
        out_rows: u32,
        epilogue: u32,
        group_units: u32,
    }

    /// Activations scaled and rounded to 16 bits.
    ScaleAndRound {
        x: Address,
        rounded: Address,
        scales: Address,
        column_order: Address,
        tokens: u32,
        cols: u32,
        stride: u32,
        unused: u32,
    }

    /// Activations rounded to signed bytes.
    RoundToBytes {
        x: Address,
        bytes: Address,
        column_order: Address,
        tokens: u32,
        cols: u32,
    }

    /// A norm.
    RmsNorm {
        x: Address,
        weight: Address,
        out: Address,
        bytes: Address,
        hidden_size: u32,
        rows: u32,
        eps: f32,
        unused: u32,
    }

    /// Heads to rotate or to store.
    Heads {
        qkv: Address,
        cos_sin: Address,
        slot_mapping: Address,
        keys: Address,
        values: Address,
        rows: u32,
        num_attention_heads: u32,
        num_key_value_heads: u32,
        head_dim: u32,
        num_slots: u32,
        key_encoding: u32,
        value_encoding: u32,
        unused: u32,
    }

    /// Attention over the paged store.
    Attention {
        qkv: Address,
        keys: Address,
        values: Address,
        cu_seqlens_q: Address,
        context_lens: Address,
        block_tables: Address,
        out: Address,
        partials: Address,
        num_tokens: u32,
        num_seqs: u32,
        num_attention_heads: u32,
        num_key_value_heads: u32,
        head_dim: u32,
        block_size: u32,
        max_blocks_per_seq: u32,
        num_slots: u32,
        max_partitions: u32,
        by_token: u32,
        key_encoding: u32,
        value_encoding: u32,
        unused: u32,
        scale: f32,
    }

    /// Rows of activations.
    Rows {
        x: Address,
        indices: Address,
        out: Address,
        rows: u32,
        width: u32,
        x_rows: u32,
        unused: u32,
    }

    /// Rows added to rows.
    AddRows {
        x: Address,
        indices: Address,
        out: Address,
        rows: u32,
        width: u32,
        out_rows: u32,
        scale: f32,
    }

    /// The largest value of each row.
    Argmax {
        x: Address,
        out: Address,
        rows: u32,
        width: u32,
        valid: u32,
        unused: u32,
    }

    /// Blocks of one array of the K/V store.
    CopyBlocks {
        array: Address,
        pairs: Address,
        first: u64,
        num_pairs: u32,
        num_blocks: u32,
        block_bytes: u32,
        unused: u32,
    }

    /// A measurement of the GPU's limits.
    Ceiling {
        from: Address,
        out: Address,
        bytes: u64,
        rounds: u32,
        unused: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry;

    const CONTRACT: &str = include_str!("../kernels/params.cuh");

    /// kernels/params.cuh without its comments.
    fn code() -> String {
        let line = |line: &'static str| line.split_once("//").map_or(line, |(code, _)| code);
        CONTRACT.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn geometry_is_that_of_the_kernels() {
        let code = code();
        let mut defined: Vec<(&str, usize)> = code
            .lines()
            .filter_map(|line| line.strip_prefix("#define "))
            .filter_map(|rest| rest.split_once(' '))
            .map(|(name, value)| (name, value.trim().parse().unwrap()))
            .collect();
        let mut known = geometry::ALL.to_vec();
        defined.sort();
        known.sort();
        assert_eq!(defined, known);
    }

    #[test]
    fn structures_are_those_of_the_kernels() {
        let code = code();
        let mut names = Vec::new();
        for structure in code.split("struct ").skip(1) {
            let (name, rest) = structure.split_once('{').unwrap();
            let body = rest.split_once('}').unwrap().0;
            let mut fields = Vec::new();
            for declaration in body.split(';').map(str::trim).filter(|declaration| !declaration.is_empty()) {
                let declaration = declaration.replace("const ", "");
                let (kind, list) = declaration.split_once(' ').unwrap();
                let (kind, bytes) = match kind {
                    _ if kind.ends_with('*') => ("Address", 8),
                    "u32" => ("u32", 4),
                    "u64" => ("u64", 8),
                    "float" => ("f32", 4),
                    other => panic!("{other} in {name}"),
                };
                fields.extend(list.split(',').map(|field| (field.trim().to_string(), kind, bytes)));
            }
            let (_, known, size) = ALL.iter().find(|(known, ..)| *known == name.trim()).expect(name);
            let known: Vec<_> = known.iter().map(|field| (field.name.to_string(), field.kind, field.bytes)).collect();
            assert_eq!(fields, known, "{name}");
            assert_eq!(*size, fields.iter().map(|field| field.2).sum::<usize>(), "{name}");
            names.push(name.trim().to_string());
        }
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn fields_are_packed_in_order() {
        let params =
            Argmax { x: Address(0x1122_3344_5566_7788), out: Address(2), rows: 3, width: 4, valid: 5, unused: 0 };
        let packed = params.pack();
        assert_eq!((packed.len(), packed.words[0], packed.words[1]), (32, 0x1122_3344_5566_7788, 2));
        assert_eq!((packed.words[2], packed.words[3]), (3 | 4 << 32, 5));
        assert_eq!(packed.addresses(Argmax::FIELDS), [("x", 0x1122_3344_5566_7788), ("out", 2)]);
    }
}
