//! The compiled kernels: PTX, which every driver since CUDA 12.1 compiles for its GPU. One module per source file, and
//! for each format of blocks, loaded with the first of its kernels.

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../kernels/ptx/", $name, ".ptx")))),*]
    };
}

/// The modules by the names of their source files.
pub(crate) const MODULES: &[(&str, &str)] = modules![
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

/// The module of a kernel, with its name: a kernel's name begins with that of its source file.
pub(crate) fn of(kernel: &str) -> Option<(&'static str, &'static str)> {
    let holds = |name: &str| kernel.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    MODULES.iter().copied().filter(|(name, _)| holds(name)).max_by_key(|(name, _)| name.len())
}
