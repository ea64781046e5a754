//! The compiled kernels: PTX, which every driver since CUDA 12.1 compiles for its GPU. One module per source file,
//! loaded with the first of its kernels.

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
    "matmul",
    "matvec",
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
