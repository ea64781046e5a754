//! The compiled kernels: PTX, which every driver since CUDA 12.1 translates for its card. One text for each source
//! file, loaded when the first of its kernels is.

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../kernels/ptx/", $name, ".ptx")))),*]
    };
}

/// The texts by the names of their source files.
const MODULES: &[(&str, &str)] = modules![
    "add",
    "argmax",
    "attention",
    "attention_merge",
    "attention_tile",
    "ceiling",
    "ceiling_mma",
    "copy_blocks",
    "embed",
    "gather_rows",
    "halve",
    "matmul",
    "matvec",
    "rms_norm",
    "rope",
    "silu_and_mul",
    "skinny",
    "store_kv",
    "tile",
];

/// The text that holds a kernel, with its name: a kernel's name begins with that of its source file.
pub(crate) fn of(kernel: &str) -> Option<(&'static str, &'static str)> {
    let holds = |name: &str| kernel.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    MODULES.iter().copied().filter(|(name, _)| holds(name)).max_by_key(|(name, _)| name.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Kernels;
    use crate::kernel::Kernel;

    /// The number between `before` and `after` in `text`.
    fn number(text: &str, before: &str, after: &str) -> usize {
        let rest = text.split_once(before).unwrap_or_else(|| panic!("no `{before}` in {text}")).1;
        rest.split_once(after).unwrap().0.parse().unwrap()
    }

    fn params_size(kernel: Kernel) -> usize {
        kernel.fields().iter().map(|field| field.bytes).sum()
    }

    #[test]
    fn every_kernel_is_compiled_as_it_is_launched() {
        for kernel in Kernel::all() {
            let name = kernel.to_string();
            let (_, text) = of(&name).unwrap_or_else(|| panic!("no text for {name}"));
            let begins = format!(".visible .entry {name}(");
            let head =
                text.split_once(&begins).unwrap_or_else(|| panic!("no entry {name}")).1.split_once('{').unwrap().0;
            assert_eq!(number(head, ".b8 p[", "]"), params_size(kernel), "parameters of {name}");
            assert_eq!(number(head, ".maxntid ", ","), kernel.threads(), "threads of {name}");
            // What runs on every card is compiled for the least of them.
            let target = if kernel.needs_tensor_cores() { 80 } else { 75 };
            assert_eq!(number(text, ".target sm_", "\n"), target, "target of {name}");
        }
    }

    #[test]
    fn every_text_is_launched_and_read_by_drivers_of_cuda_12_1() {
        let launched: Vec<&str> = Kernel::all().iter().filter_map(|kernel| Some(of(&kernel.to_string())?.0)).collect();
        for (name, text) in MODULES {
            assert!(launched.contains(name), "{name}");
            assert!(text.starts_with(".version 8.1\n"), "{name}");
        }
        let entries: usize = MODULES.iter().map(|(_, text)| text.matches(".visible .entry ").count()).sum();
        assert_eq!(entries, Kernel::all().len());
    }

    #[test]
    fn the_emulator_has_every_kernel() {
        let Some(kernels) = Kernels::for_tests() else { return };
        for kernel in Kernel::all() {
            assert_eq!(kernels.params_size(kernel), Some(params_size(kernel)), "{kernel}");
        }
        assert_eq!(kernels.names(), Kernel::all().iter().map(Kernel::to_string).collect());
    }
}
