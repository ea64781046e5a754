//! WGSL from the files in `shaders/`: one file per kernel, plus shared fragments.
//!
//! A [`Shader`] is a file, flags and constants, composed to one module. There are only these directives, each on its
//! own line: `//#include NAME` inserts the fragment `shaders/NAME.wgsl`; `//#if FLAG`, `//#else` and `//#endif` keep or
//! drop lines.

use std::fmt::Write as _;

use qwen_core::Encoding;

/// A kernel and the options from which its shader module is composed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shader {
    /// The file, without `.wgsl`.
    pub(crate) kernel: &'static str,
    pub(crate) flags: Vec<&'static str>,
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
    "activations", "add", "add_rows", "argmax", "attention", "attention_merge", "attention_state", "ceiling_cooperative",
    "ceiling_copy", "ceiling_multiply", "ceiling_read", "cooperative", "copy_blocks", "embed", "f16", "f16_rows",
    "gather_rows", "kv_write", "math", "matmul", "matmul_cooperative", "matvec", "norm", "product", "rms_norm", "rope",
    "rotary", "silu_and_mul", "store_kv", "weights",
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

    /// The flag of kernels that read a matrix in `encoding`.
    pub(crate) fn encoding(self, encoding: Encoding) -> Self {
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
