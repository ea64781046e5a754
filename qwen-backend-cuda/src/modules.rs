//! The compiled kernels: PTX, which every driver since CUDA 12.1 translates for its card. One text for each source file,
//! loaded when the first of its kernels is.

/// The texts by the names of their source files.
const MODULES: &[(&str, &str)] = &[];

/// The text that holds a kernel, with its name: a kernel's name begins with that of its source file.
pub(crate) fn of(kernel: &str) -> Option<(&'static str, &'static str)> {
    let holds = |name: &str| kernel.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    MODULES.iter().copied().filter(|(name, _)| holds(name)).max_by_key(|(name, _)| name.len())
}
