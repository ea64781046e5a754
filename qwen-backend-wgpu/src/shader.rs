//! WGSL out of the files in `shaders/`: one file a kernel, with the fragments that kernels share.
//!
//! A [`Shader`] is a file, flags and constants, and composes to one module. Three directives, each on a line of its own,
//! are all there is: `//#include NAME` puts the fragment `shaders/NAME.wgsl` in place, `//#if FLAG`, `//#else` and
//! `//#endif` keep or drop lines.

use std::fmt::Write as _;

/// A kernel with the choices that make one shader module of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shader {
    /// The file, without `.wgsl`.
    pub(crate) kernel: &'static str,
    flags: Vec<&'static str>,
    constants: Vec<(&'static str, u32)>,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        /// The text of a kernel or fragment.
        fn source(name: &str) -> &'static str {
            match name {
                $($name => include_str!(concat!("shaders/", $name, ".wgsl")),)*
                _ => "",
            }
        }
    };
}

sources! {
    "activations", "add", "argmax", "attention", "attention_merge", "attention_state", "ceiling_copy",
    "ceiling_multiply", "ceiling_read", "copy_blocks", "embed", "gather_rows", "halves", "kv_write", "math", "matmul",
    "matmul_cooperative", "matvec", "norm", "product", "rms_norm", "rope", "silu_and_mul", "store_kv", "weights",
}

impl Shader {
    /// The kernel in `shaders/{kernel}.wgsl`.
    pub(crate) fn new(kernel: &'static str) -> Self {
        Shader { kernel, flags: Vec::new(), constants: Vec::new() }
    }

    /// Keep the lines of `//#if flag`.
    pub(crate) fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// As [`Shader::flag`] when `set`.
    pub(crate) fn flag_if(self, set: bool, flag: &'static str) -> Self {
        if set { self.flag(flag) } else { self }
    }

    /// Define a `u32` constant.
    pub(crate) fn constant(mut self, name: &'static str, value: u32) -> Self {
        self.constants.push((name, value));
        self
    }

    /// The module's WGSL.
    pub(crate) fn compose(&self) -> String {
        let mut text = String::new();
        if self.flags.contains(&"COOPERATIVE") {
            text.push_str("enable f16;\nenable wgpu_cooperative_matrix;\n");
        }
        for (name, value) in &self.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        self.expand(self.kernel, &mut text);
        text
    }

    fn expand(&self, name: &str, text: &mut String) {
        let mut kept = vec![true];
        for line in source(name).lines() {
            let directive = line.trim_start();
            let outer = kept.len().checked_sub(2).is_none_or(|i| kept[i]);
            if let Some(flag) = directive.strip_prefix("//#if ") {
                let keep = kept.last() == Some(&true) && self.flags.contains(&flag.trim());
                kept.push(keep);
            } else if directive == "//#else" {
                if let Some(last) = kept.last_mut() {
                    *last = outer && !*last;
                }
            } else if directive == "//#endif" {
                kept.pop();
            } else if kept.last() != Some(&true) {
                // Dropped.
            } else if let Some(fragment) = directive.strip_prefix("//#include ") {
                self.expand(fragment.trim(), text);
            } else {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::*;
    use crate::backend::SPAN;

    const ENCODINGS: [&str; 3] = ["BF16", "F16", "F32"];
    const STORES: [[&str; 2]; 4] = [["KEY_F16", "VALUE_F16"], ["", "VALUE_F16"], ["KEY_F16", ""], ["", ""]];

    fn product(kernel: &'static str, pairs: u32, tokens: u32) -> Shader {
        let shader = Shader::new(kernel);
        match kernel {
            "matvec" => {
                shader.constant("LANES", 32).constant("GROUPS", 2).constant("PAIRS", pairs).constant("TOKENS", tokens)
            }
            _ => shader,
        }
    }

    /// Every module that the backend can ask for.
    fn variants() -> Vec<Shader> {
        let mut all: Vec<Shader> = ["add", "argmax", "copy_blocks", "gather_rows", "rms_norm", "rope", "silu_and_mul"]
            .into_iter()
            .map(Shader::new)
            .collect();
        all.push(Shader::new("rms_norm").flag("ADD"));
        all.extend([true, false].map(|ragged| Shader::new("halves").flag_if(ragged, "RAGGED")));
        all.extend(["ceiling_copy", "ceiling_multiply", "ceiling_read"].map(Shader::new));
        all.extend(ENCODINGS.map(|encoding| Shader::new("embed").flag(encoding)));
        for store in STORES {
            let with_store = |shader: Shader| store.iter().fold(shader, |shader, flag| shader.flag(flag));
            all.push(with_store(Shader::new("store_kv")));
            for half in [8, 16, 32, 64, 128] {
                for split in [true, false] {
                    let shader =
                        Shader::new("attention").constant("ROWS", 8).constant("SPAN", SPAN).constant("HALF", half);
                    all.push(with_store(shader.flag_if(split, "SPLIT")));
                }
                all.push(Shader::new("attention_merge").constant("SPAN", SPAN).constant("HALF", half));
            }
        }
        for (kernel, pairs, tokens) in [("matvec", 2, 1), ("matvec", 1, 4), ("matmul", 0, 0)] {
            for encoding in ENCODINGS {
                for ragged in [true, false] {
                    let new = || product(kernel, pairs, tokens).flag(encoding).flag_if(ragged, "RAGGED");
                    for order in ["ORDER_PLAIN", "ORDER_HALVES"] {
                        all.push(new().flag(order).flag("EPILOGUE_WRITE"));
                        all.push(new().flag(order).flag("EPILOGUE_WRITE").flag("BIAS"));
                        all.push(new().flag(order).flag("EPILOGUE_ADD"));
                        all.push(new().flag(order).flag("EPILOGUE_SILU"));
                    }
                    let with_norm = |shader: Shader, binding| shader.flag("NORM").constant("NORM_BINDING", binding);
                    if kernel == "matvec" {
                        let order = if encoding == "F32" { "ORDER_PLAIN" } else { "ORDER_HALVES" };
                        all.push(with_norm(new().flag(order).flag("EPILOGUE_SILU"), 4));
                    }
                    for store in STORES {
                        let shader = new().flag("ORDER_HEADS").flag("EPILOGUE_HEADS");
                        let shader = store.iter().fold(shader, |shader, flag| shader.flag(flag));
                        if kernel == "matvec" {
                            all.push(with_norm(shader.clone(), 9));
                        }
                        all.push(shader);
                    }
                }
            }
        }
        all
    }

    /// The products by cooperative matrices, for subgroups of the sizes of llvmpipe, NVIDIA and AMD.
    fn cooperative_variants() -> Vec<Shader> {
        let mut all = Vec::new();
        for (size, subgroup) in [("SIZE_8", 8), ("SIZE_8", 32), ("SIZE_16", 32), ("SIZE_16", 64)] {
            for encoding in ["BF16", "F16"] {
                let new = |binding| {
                    let shader = Shader::new("matmul_cooperative").flag("COOPERATIVE").flag(size).flag(encoding);
                    shader.constant("SUBGROUP_SIZE", subgroup).constant("SCALES_BINDING", binding)
                };
                for order in ["ORDER_PLAIN", "ORDER_HALVES"] {
                    all.push(new(4).flag(order).flag("EPILOGUE_WRITE"));
                    all.push(new(5).flag(order).flag("EPILOGUE_WRITE").flag("BIAS"));
                    all.push(new(4).flag(order).flag("EPILOGUE_ADD"));
                    all.push(new(4).flag(order).flag("EPILOGUE_SILU"));
                }
                for store in STORES {
                    let shader = new(9).flag("ORDER_HEADS").flag("EPILOGUE_HEADS");
                    all.push(store.iter().fold(shader, |shader, flag| shader.flag(flag)));
                }
            }
        }
        all
    }

    /// Parse and validate, within the limits that the kernels are written for.
    fn validated(shader: &Shader, capabilities: Capabilities) -> (naga::Module, naga::valid::ModuleInfo) {
        let text = shader.compose();
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{shader:?}: {}", error.emit_to_string(&text)));
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{shader:?}: {}", error.emit_to_string(&text)));
        let of_space = |space: fn(&naga::AddressSpace) -> bool| {
            module.global_variables.iter().filter(move |(_, variable)| space(&variable.space))
        };
        let bound = of_space(|space| matches!(space, naga::AddressSpace::Storage { .. })).count();
        // The ones with more are used where a device has room for them.
        let wide = ["NORM", "COOPERATIVE"].iter().any(|flag| shader.flags.contains(flag));
        let most = if wide && shader.flags.contains(&"EPILOGUE_HEADS") { 9 } else { 8 };
        assert!(bound <= most, "{shader:?} binds {bound} arrays");
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let shared: u32 =
            of_space(|space| *space == naga::AddressSpace::WorkGroup).map(|(_, v)| layouter[v.ty].size).sum();
        assert!(shared <= 16 << 10, "{shader:?} takes {shared} bytes of workgroup memory");
        let size = module.entry_points[0].workgroup_size;
        assert!(size.iter().product::<u32>() <= 256, "{shader:?}: {size:?} threads");
        (module, info)
    }

    fn translate_to_spirv_and_msl(module: &naga::Module, info: &naga::valid::ModuleInfo, spirv: (u8, u8)) {
        let spv = naga::back::spv::Options { lang_version: spirv, ..Default::default() };
        naga::back::spv::write_vec(module, info, &spv, None).unwrap();
        let msl = naga::back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
        naga::back::msl::write_string(module, info, &msl, &Default::default()).unwrap();
    }

    #[test]
    fn every_variant_is_valid_within_the_smallest_limits_and_translates() {
        for shader in variants() {
            // Nothing but what WebGPU always has: no f16 type, no subgroups, no immediates.
            let (module, info) = validated(&shader, Capabilities::SHADER_FLOAT16_IN_FLOAT32);
            translate_to_spirv_and_msl(&module, &info, (1, 0));
            let hlsl = naga::back::hlsl::Options { fake_missing_bindings: true, ..Default::default() };
            let mut translated = String::new();
            naga::back::hlsl::Writer::new(&mut translated, &hlsl, &Default::default())
                .write(&module, &info, None)
                .unwrap_or_else(|error| panic!("{shader:?}: {error}"));
        }
    }

    /// Not to HLSL, which has no cooperative matrices: wgpu does not offer them on DX12.
    #[test]
    fn cooperative_variants_are_valid_and_translate_to_what_offers_them() {
        let offered = Capabilities::SHADER_FLOAT16
            | Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SUBGROUP
            | Capabilities::COOPERATIVE_MATRIX;
        for shader in cooperative_variants() {
            let (module, info) = validated(&shader, offered);
            translate_to_spirv_and_msl(&module, &info, (1, 6));
        }
    }

    #[test]
    fn the_one_kernel_with_f16_is_valid_where_that_is_offered() {
        let text = Shader::new("ceiling_multiply").flag("F16").compose();
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        assert!(Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16).validate(&module).is_ok());
        assert!(Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).is_err());
    }

    #[test]
    fn directives_keep_and_drop_lines() {
        let kept = Shader::new("rms_norm").flag("ADD").compose();
        assert!(kept.contains("binding(4)") && !kept.contains("//#"));
        assert!(!Shader::new("rms_norm").compose().contains("binding(4)"));
    }
}
