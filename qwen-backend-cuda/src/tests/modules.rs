//! The compiled kernels: every one exists as it is launched, for the driver and for the emulator.

use std::collections::BTreeMap;

use crate::driver::library::Kernels;
use crate::kernel::Kernel;
use crate::modules;

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
    let texts: BTreeMap<&str, String> =
        modules::MODULES.iter().map(|module| (module.name, module.text().unwrap())).collect();
    for kernel in Kernel::all() {
        let name = kernel.to_string();
        let text = &texts[modules::of(&name).unwrap_or_else(|| panic!("no module for {name}")).name];
        let begins = format!(".visible .entry {name}(");
        let head = text.split_once(&begins).unwrap_or_else(|| panic!("no entry {name}")).1.split_once('{').unwrap().0;
        assert_eq!(number(head, ".b8 p[", "]"), params_size(kernel), "parameters of {name}");
        assert_eq!(number(head, ".maxntid ", ","), kernel.threads(), "threads of {name}");
        // Kernels for every GPU are compiled for the lowest capability.
        let target = if kernel.needs_tensor_cores() { 80 } else { 75 };
        assert_eq!(number(text, ".target sm_", "\n"), target, "target of {name}");
    }
}

#[test]
fn every_text_is_launched_and_read_by_drivers_of_cuda_12_1() {
    let launched: Vec<&str> =
        Kernel::all().iter().filter_map(|kernel| Some(modules::of(&kernel.to_string())?.name)).collect();
    let mut entries = 0;
    for module in modules::MODULES {
        let text = module.text().unwrap();
        assert!(launched.contains(&module.name), "{}", module.name);
        assert!(text.starts_with(".version 8.1\n"), "{}", module.name);
        entries += text.matches(".visible .entry ").count();
    }
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
