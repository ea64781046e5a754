//! `quantization_config` of `config.json`: how a GPTQ or AWQ checkpoint packs its matrices.
//!
//! A [`Quantization`] exists only if the files can be read; every other method and layout is refused here by its name.
//! Not here: the packed tensors themselves (`checkpoint/packed`), which say for each matrix whether it is packed at
//! all.

use std::path::Path;

use serde_json::Value;

use super::MAX_WIDTH;
use crate::checkpoint::json::{self, Fields};
use crate::error::Result;
use crate::numerics::encoding::GroupBits;

/// What to use in place of files that are not supported.
const ADVICE: &str = "use the GPTQ, AWQ, GGUF or 16-bit files of the same model";

/// Groups are read in multiples of this many columns.
const GROUP_UNIT: usize = 32;

/// How the packed matrices of a checkpoint are stored, under the names used in the files.
///
/// ```
/// use qwen_core::checkpoint::config::{GptqFormat, QuantMethod, Quantization};
/// use qwen_core::numerics::encoding::GroupBits;
///
/// let quantization = Quantization::from_json("quantize_config.json", r#"{
///     "bits": 4, "group_size": 128, "desc_act": true, "sym": false, "checkpoint_format": "gptq_v2"
/// }"#)?;
/// assert_eq!((quantization.bits, quantization.group_size), (GroupBits::Four, Some(128)));
/// let v2 = QuantMethod::Gptq { checkpoint_format: GptqFormat::V2, desc_act: true, sym: false };
/// assert_eq!(quantization.method, v2);
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantization {
    /// The method, with its specific options.
    pub method: QuantMethod,
    /// Width of the codes.
    pub bits: GroupBits,
    /// Input features that share a scale and a zero point: a multiple of 32. `None`, -1 in the file, is all of them.
    pub group_size: Option<u32>,
    /// Parts of the names of modules that were left in 16 bits. A hint: the tensors themselves show which matrices are
    /// packed.
    pub modules_to_not_convert: Vec<String>,
}

/// The supported methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantMethod {
    /// GPTQ: codes packed along the input features.
    Gptq {
        /// What a stored zero point means.
        checkpoint_format: GptqFormat,
        /// Whether columns were quantised in the order of their importance: `g_idx` has the group of each column.
        desc_act: bool,
        /// Whether all zero points are the middle code. A hint: they are stored in any case.
        sym: bool,
    },
    /// AWQ in the layout "gemm": codes packed along the output features, in an interleaved order.
    Awq,
}

/// The versions of GPTQ files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GptqFormat {
    /// `gptq`: the stored zero point is one less than the code that stands for zero, and wraps below 0.
    V1,
    /// `gptq_v2`: the stored zero point is the code that stands for zero.
    V2,
}

impl Quantization {
    /// Parse the text of a `quantize_config.json`, which older GPTQ checkpoints have in addition to a `config.json`
    /// that does not mention quantisation. `path` is only for errors.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::Error::InvalidConfig) names the key that is missing or malformed;
    /// [`Unsupported`](crate::Error::Unsupported) names the unsupported method or layout, and what to use.
    pub fn from_json(path: impl AsRef<Path>, json: &str) -> Result<Self> {
        let path = path.as_ref();
        let value = json::parse(path, json)?;
        parse(&Fields::root(path, &value)?, Some("gptq"))
    }

    /// Read and parse a `quantize_config.json`.
    ///
    /// # Errors
    /// As [`Quantization::from_json`], and [`Io`](crate::Error::Io) if the file cannot be read.
    pub(crate) fn from_file(path: &Path) -> Result<Self> {
        Quantization::from_json(path, &json::read_config(path)?)
    }
}

/// The object `quantization_config`. `default` is the method of files that name none.
pub(super) fn parse(fields: &Fields<'_>, default: Option<&str>) -> Result<Quantization> {
    let method = fields.str("quant_method")?.or(default).map(str::to_ascii_lowercase);
    match method.as_deref() {
        Some("gptq") => gptq(fields),
        Some("awq") => awq(fields),
        method => {
            let what = format!("quantisation {:?}", method.unwrap_or("of an unnamed method"));
            Err(fields.unsupported("quant_method", &what, reason(method)))
        }
    }
}

/// Why files of a method are not supported, and what to use.
fn reason(method: Option<&str>) -> String {
    let why = match method {
        None => "only \"gptq\" and \"awq\" are read",
        Some("auto-round" | "intel/auto-round") => {
            return "export the model again in the format \"auto_gptq\", or use its GGUF or 16-bit files".into();
        }
        Some("marlin") => "its tensors are repacked for one kernel of NVIDIA GPUs",
        Some("bitsandbytes") => "its blocks are made for the library of that name",
        Some("fp8" | "fbgemm_fp8" | "finegrained_fp8" | "modelopt" | "mxfp4") => {
            "8-bit and 4-bit floating point is not supported"
        }
        Some("aqlm" | "vptq" | "quip" | "spqr" | "higgs") => "its codebooks are not supported",
        _ => "its layout is not supported",
    };
    format!("{why}; {ADVICE}")
}

fn gptq(fields: &Fields<'_>) -> Result<Quantization> {
    let bits = match fields.required("bits", fields.usize("bits", 1, 64)?)? {
        4 => GroupBits::Four,
        8 => GroupBits::Eight,
        other => {
            let reason =
                "only 4 and 8 bits are supported; use the GPTQ-Int4, GPTQ-Int8 or a GGUF file of the same model";
            return Err(fields.unsupported("bits", &format!("GPTQ with {other} bits"), reason));
        }
    };
    if fields.bool("is_marlin_format")? == Some(true) {
        return Err(repacked(fields, "is_marlin_format", "marlin"));
    }
    let (key, format) = layout(fields, &["checkpoint_format", "format"], "gptq")?;
    let checkpoint_format = match format.as_str() {
        "gptq" => GptqFormat::V1,
        "gptq_v2" => GptqFormat::V2,
        other => return Err(repacked(fields, key, other)),
    };
    if let Some(dtype) = fields.str("pack_dtype")?.filter(|dtype| dtype.trim_start_matches("torch.") != "int32") {
        let reason = format!("only codes packed into 32-bit integers are supported; {ADVICE}");
        return Err(fields.unsupported("pack_dtype", &format!("GPTQ packed into {dtype:?}"), reason));
    }
    let group_size = group_size(fields)?;
    dynamic(fields, bits, group_size)?;
    Ok(Quantization {
        method: QuantMethod::Gptq {
            checkpoint_format,
            desc_act: fields.bool("desc_act")?.unwrap_or(false),
            sym: fields.bool("sym")?.unwrap_or(true),
        },
        bits,
        group_size,
        modules_to_not_convert: modules(fields)?,
    })
}

fn awq(fields: &Fields<'_>) -> Result<Quantization> {
    let bits = fields.required("bits", fields.usize("bits", 1, 64)?)?;
    if bits != 4 {
        let reason = "only 4 bits are supported; use the AWQ or GPTQ-Int8 files of the same model, or a GGUF file";
        return Err(fields.unsupported("bits", &format!("AWQ with {bits} bits"), reason));
    }
    let (key, version) = layout(fields, &["version", "checkpoint_format", "format"], "gemm")?;
    if version != "gemm" {
        let reason = format!("the layout \"gemm\" is read, which Qwen2.5's own AWQ files have; {ADVICE}");
        return Err(fields.unsupported(key, &format!("AWQ in the layout {version:?}"), reason));
    }
    if let Some(backend) = fields.str("backend")?.filter(|backend| !backend.eq_ignore_ascii_case("autoawq")) {
        let reason = format!("only the layout of AutoAWQ is supported; {ADVICE}");
        return Err(fields.unsupported("backend", &format!("AWQ as {backend:?} packs it"), reason));
    }
    if fields.bool("zero_point")? == Some(false) {
        let reason = format!("its codes are signed, which the layout \"gemm\" does not have; {ADVICE}");
        return Err(fields.unsupported("zero_point", "AWQ without zero points", reason));
    }
    Ok(Quantization {
        method: QuantMethod::Awq,
        bits: GroupBits::Four,
        group_size: group_size(fields)?,
        modules_to_not_convert: modules(fields)?,
    })
}

/// The first of `keys` that is present, and its value in lower case.
fn layout(fields: &Fields<'_>, keys: &[&'static str], default: &str) -> Result<(&'static str, String)> {
    for key in keys {
        if let Some(name) = fields.str(key)? {
            return Ok((key, name.to_ascii_lowercase()));
        }
    }
    Ok(("quant_method", default.to_owned()))
}

fn repacked(fields: &Fields<'_>, key: &str, format: &str) -> crate::Error {
    let reason = format!("its tensors are repacked for other kernels; {ADVICE}, or the file before that step");
    fields.unsupported(key, &format!("GPTQ in the format {format:?}"), reason)
}

fn group_size(fields: &Fields<'_>) -> Result<Option<u32>> {
    let key = "group_size";
    if fields.get(key).and_then(Value::as_f64) == Some(-1.0) {
        return Ok(None);
    }
    let group_size = fields.required(key, fields.usize(key, 1, MAX_WIDTH)?)?;
    if !group_size.is_multiple_of(GROUP_UNIT) {
        let reason = format!("groups must be multiples of {GROUP_UNIT} columns; {ADVICE}");
        return Err(fields.unsupported(key, &format!("groups of {group_size} columns"), reason));
    }
    // At most MAX_WIDTH.
    Ok(Some(group_size as u32))
}

/// GPTQModel's exceptions by patterns of module names. Exceptions that leave modules unpacked show in the tensors;
/// those that change how modules are packed would require evaluating the patterns.
fn dynamic(fields: &Fields<'_>, bits: GroupBits, group_size: Option<u32>) -> Result<()> {
    let rules = match fields.get("dynamic") {
        None => return Ok(()),
        Some(Value::Object(rules)) => rules,
        Some(_) => return Err(fields.error("dynamic", "expected an object of rules by patterns of names")),
    };
    let group_size = group_size.map_or(-1.0, f64::from);
    for (pattern, rule) in rules {
        let differs = |key: &str, base: f64| rule.get(key).is_some_and(|value| value.as_f64() != Some(base));
        if !pattern.starts_with("-:") && (differs("bits", bits.count().into()) || differs("group_size", group_size)) {
            let what = format!("GPTQ with other bits or groups for the modules {pattern:?}");
            return Err(fields.unsupported(
                "dynamic",
                &what,
                format!("all packed modules need the same format; {ADVICE}"),
            ));
        }
    }
    Ok(())
}

fn modules(fields: &Fields<'_>) -> Result<Vec<String>> {
    let key = "modules_to_not_convert";
    let names = match fields.get(key) {
        None => Some(Vec::new()),
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    names.ok_or_else(|| fields.error(key, "expected a list of names of modules"))
}
