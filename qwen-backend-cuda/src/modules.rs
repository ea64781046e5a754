//! The compiled kernels: PTX, which every driver since CUDA 12.1 compiles for its GPU, compressed as zlib does. One module
//! per source file, and for each format of blocks, loaded with the first of its kernels.

/// The compiled kernels of a source file.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    /// Its text, which is about five times as long, in the format of zlib.
    compressed: &'static [u8],
}

impl Module {
    /// Its PTX; `None` if it is damaged.
    pub(crate) fn text(&self) -> Option<String> {
        String::from_utf8(miniz_oxide::inflate::decompress_to_vec_zlib(self.compressed).ok()?).ok()
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
    "int4_mma",
    "int8",
    "int8_mma",
    "iq2_s",
    "iq2_s_mma",
    "iq2_xs",
    "iq2_xs_mma",
    "iq2_xxs",
    "iq2_xxs_mma",
    "iq3_s",
    "iq3_s_mma",
    "iq3_xxs",
    "iq3_xxs_mma",
    "iq4_nl",
    "iq4_nl_mma",
    "iq4_xs",
    "iq4_xs_mma",
    "matmul",
    "matvec",
    "q2_k",
    "q2_k_mma",
    "q3_k",
    "q3_k_mma",
    "q4_0",
    "q4_0_mma",
    "q4_1",
    "q4_1_mma",
    "q4_k",
    "q4_k_mma",
    "q5_0",
    "q5_0_mma",
    "q5_1",
    "q5_1_mma",
    "q5_k",
    "q5_k_mma",
    "q6_k",
    "q6_k_mma",
    "q8_0",
    "q8_0_mma",
    "rms_norm",
    "rope",
    "round_to_bytes",
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
