//! The compiled kernels: PTX, which every driver since CUDA 12.1 compiles for its GPU, compressed as zlib does. One module
//! per source file, and for each format of blocks, loaded with the first of its kernels.

use crate::driver::{Fault, Outcome};

/// The compiled kernels of a source file.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    /// Its text, which is about five times as long, in the format of zlib.
    compressed: &'static [u8],
}

impl Module {
    /// Its PTX.
    pub(crate) fn text(&self) -> Outcome<String> {
        let damaged = || Fault::Refused(format!("this build's compiled kernels of `{}` are damaged", self.name));
        let text = miniz_oxide::inflate::decompress_to_vec_zlib(self.compressed).map_err(|_| damaged())?;
        String::from_utf8(text).map_err(|_| damaged())
    }
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        &[$(Module { name: $name, compressed: include_bytes!(concat!("../kernels/ptx/", $name, ".ptx.zlib")) }),*]
    };
}

/// The modules of all source files.
pub(crate) const MODULES: &[Module] = modules![
    "add",
    "add_rows",
    "argmax",
    "attention",
    "attention_merge",
    "attention_tile",
    "ceiling",
    "ceiling_mma",
    "copy_blocks",
    "embed",
    "gather_rows",
    "int4",
    "int8",
    "iq2_s",
    "iq2_xs",
    "iq2_xxs",
    "iq3_s",
    "iq3_xxs",
    "iq4_nl",
    "iq4_xs",
    "matmul",
    "matvec",
    "q2_k",
    "q3_k",
    "q4_0",
    "q4_1",
    "q4_k",
    "q5_0",
    "q5_1",
    "q5_k",
    "q6_k",
    "q8_0",
    "rms_norm",
    "rope",
    "scale_and_round",
    "silu_and_mul",
    "skinny",
    "store_kv",
    "tile",
];

/// The module of a kernel, whose name begins with that of its source file.
pub(crate) fn of(kernel: &str) -> Option<&'static Module> {
    let holds = |name: &str| kernel.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    MODULES.iter().filter(|module| holds(module.name)).max_by_key(|module| module.name.len())
}
