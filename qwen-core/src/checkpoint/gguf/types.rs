//! The element types of GGUF files: their numbers, their names, and which of them are supported.
//!
//! The numbers are those of `ggml_type` in ggml, which define the format; the names are ggml's, too.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::numerics::encoding::Encoding;

/// A type by its number in files, with its encoding if it is supported.
type Type = (u32, &'static str, Option<Encoding>);

const TYPES: &[Type] = &[
    (0, "F32", Some(Encoding::F32)),
    (1, "F16", Some(Encoding::F16)),
    (2, "Q4_0", Some(Encoding::Q4_0)),
    (3, "Q4_1", Some(Encoding::Q4_1)),
    (4, "Q4_2", None),
    (5, "Q4_3", None),
    (6, "Q5_0", Some(Encoding::Q5_0)),
    (7, "Q5_1", Some(Encoding::Q5_1)),
    (8, "Q8_0", Some(Encoding::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(Encoding::Q2K)),
    (11, "Q3_K", Some(Encoding::Q3K)),
    (12, "Q4_K", Some(Encoding::Q4K)),
    (13, "Q5_K", Some(Encoding::Q5K)),
    (14, "Q6_K", Some(Encoding::Q6K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", Some(Encoding::Iq2Xxs)),
    (17, "IQ2_XS", Some(Encoding::Iq2Xs)),
    (18, "IQ3_XXS", Some(Encoding::Iq3Xxs)),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", Some(Encoding::Iq4Nl)),
    (21, "IQ3_S", Some(Encoding::Iq3S)),
    (22, "IQ2_S", Some(Encoding::Iq2S)),
    (23, "IQ4_XS", Some(Encoding::Iq4Xs)),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Encoding::Bf16)),
    (31, "Q4_0_4_4", None),
    (32, "Q4_0_4_8", None),
    (33, "Q4_0_8_8", None),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (36, "IQ4_NL_4_4", None),
    (37, "IQ4_NL_4_8", None),
    (38, "IQ4_NL_8_8", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
    (41, "Q1_0", None),
];

/// The encoding of the type with this number, if supported.
pub(super) fn encoding(number: u32) -> Option<Encoding> {
    find(number)?.2
}

/// The name of the type with this number.
pub(super) fn name(number: u32) -> Cow<'static, str> {
    match find(number) {
        Some((_, name, _)) => Cow::Borrowed(name),
        None => Cow::Owned(format!("type {number}")),
    }
}

fn find(number: u32) -> Option<&'static Type> {
    TYPES.iter().find(|(known, ..)| *known == number)
}

/// The encoding of the type with this name, if supported.
pub(in crate::checkpoint) fn encoding_named(name: &str) -> Option<Encoding> {
    TYPES.iter().find(|(_, known, _)| *known == name)?.2
}

/// The type number of this encoding.
pub(super) fn number(encoding: Encoding) -> Result<u32> {
    let of_type = |(.., known): &&Type| *known == Some(encoding);
    TYPES.iter().find(of_type).map(|(number, ..)| *number).ok_or_else(|| {
        let reason = "GGUF has no type for it: decode it to F16 or BF16 first";
        Error::unsupported(format!("a GGUF tensor in {encoding}"), reason)
    })
}

/// The names of the supported types.
pub(in crate::checkpoint) fn loadable() -> String {
    let names: Vec<&str> =
        TYPES.iter().filter(|(_, _, encoding)| encoding.is_some()).map(|(_, name, _)| *name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_their_encodings() {
        for (number, name, encoding) in TYPES {
            assert_eq!(encoding_named(name), *encoding);
            assert_eq!(super::encoding(*number), *encoding);
            if let Some(encoding) = encoding {
                assert_eq!(encoding.to_string(), *name);
                assert_eq!(super::number(*encoding).ok(), Some(*number));
            }
        }
        assert!(TYPES.iter().map(|(number, ..)| *number).eq(0..42));
        assert_eq!(name(39), "MXFP4");
        assert_eq!(name(1000), "type 1000");
        assert_eq!(encoding(1000), None);
        assert!(loadable().starts_with("F32, F16, Q4_0") && !loadable().contains("MXFP4"));
    }
}
