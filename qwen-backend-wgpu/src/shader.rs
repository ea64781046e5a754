//! WGSL from the files in `shaders/`: one file per kernel, plus shared fragments.
//!
//! A [`Shader`] is a file, flags and constants, composed to one module. There are only these directives, each on its
//! own line: `//#include NAME` inserts the fragment `shaders/NAME.wgsl`, `//#include FORMAT` that of the matrix's block
//! format; `//#if FLAG`, `//#else` and `//#endif` keep or drop lines.

use std::fmt::Write as _;

use qwen_core::Encoding;
use qwen_core::backend::planes::PlaneFormat;

/// A kernel and the options from which its shader module is composed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shader {
    /// The file, without `.wgsl`.
    pub(crate) kernel: &'static str,
    pub(crate) flags: Vec<&'static str>,
    /// The name of the matrix's block format, which is that of its fragment in `shaders/formats/`.
    format: &'static str,
    constants: Vec<(&'static str, u32)>,
}

macro_rules! sources {
    ($(#[$doc:meta])* $function:ident, $folder:literal, $($name:literal),* $(,)?) => {
        $(#[$doc])*
        fn $function(name: &str) -> &'static str {
            match name {
                $($name => include_str!(concat!("shaders/", $folder, $name, ".wgsl")),)*
                _ => "",
            }
        }
    };
}

sources! {
    /// The text of a kernel or fragment.
    source, "",
    "activations", "add", "add_rows", "argmax", "attention", "attention_kv", "attention_merge", "attention_state", "blocks", "ceiling_cooperative",
    "ceiling_copy", "ceiling_multiply", "ceiling_read", "cooperative", "copy_blocks", "embed", "f16", "f16_rows",
    "gather_rows", "kv_q8", "kv_write", "math", "matmul", "matmul_cooperative", "matvec", "norm", "product", "rms_norm", "rope",
    "rotary", "signed", "signed_rows", "silu_and_mul", "store_kv", "store_kv_q8", "weights",
}

sources! {
    /// The text of a block format, or of what several of them include.
    format_source, "formats/",
    "grid", "int4", "int8", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_s", "iq3_xxs", "iq4_nl", "iq4_xs", "levels", "q2_k",
    "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0", "scales_and_mins",
}

impl Shader {
    /// The kernel in `shaders/{kernel}.wgsl`.
    pub(crate) fn new(kernel: &'static str) -> Self {
        Shader { kernel, flags: Vec::new(), format: "", constants: Vec::new() }
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

    /// The flag of kernels that read a matrix in `encoding`.
    pub(crate) fn encoding(self, encoding: Encoding) -> Self {
        if let Some(format) = PlaneFormat::of(encoding) {
            let shader = Shader { format: format.name(), ..self }.flag("BLOCKS");
            let shader = shader.constant("TABLE_WORDS", format.table().len() as u32 / 4);
            return match encoding {
                Encoding::Group(group) => shader.constant("GROUP", group.group_size),
                _ => shader,
            };
        }
        self.flag(match encoding {
            Encoding::Bf16 => "BF16",
            Encoding::F16 => "F16",
            _ => "F32",
        })
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
        let source = match (name, name.strip_prefix("formats/")) {
            ("FORMAT", _) => format_source(self.format),
            (_, Some(format)) => format_source(format),
            (_, None) => source(name),
        };
        for line in source.lines() {
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
