//! Packs matrices like GPTQ and AWQ files, one code at a time, literally as the formats are described: the reader is
//! compared with it.

use half::f16;
use serde_json::{Value, json};

/// The three layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    GptqV1,
    GptqV2,
    Awq,
}

/// A quantised matrix as plain numbers. Codes are `[row][column]`, scales and zero points `[row][group]`.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub method: Method,
    pub bits: usize,
    pub rows: usize,
    pub cols: usize,
    pub group_size: usize,
    /// The group of each column.
    pub g_idx: Vec<usize>,
    pub codes: Vec<u32>,
    pub scales: Vec<f16>,
    pub zeros: Vec<u32>,
}

/// A tensor: name, element type, shape and data.
pub type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

impl Matrix {
    /// A matrix of pseudo-random figures, its columns in order.
    pub fn random(method: Method, bits: usize, [rows, cols, group_size]: [usize; 3], seed: u64) -> Self {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        let groups = cols / group_size;
        let mask = (1 << bits) - 1;
        Matrix {
            method,
            bits,
            rows,
            cols,
            group_size,
            g_idx: (0..cols).map(|col| col / group_size).collect(),
            codes: (0..rows * cols).map(|_| next() & mask).collect(),
            // Positive and negative, normal and subnormal.
            scales: (0..rows * groups).map(|_| f16::from_bits((next() & 0xbfff) as u16)).collect(),
            zeros: (0..rows * groups).map(|_| next() & mask).collect(),
        }
    }

    pub fn groups(&self) -> usize {
        self.cols / self.group_size
    }

    /// The value of each place: `scale * (code - zero)`.
    pub fn values(&self) -> Vec<f32> {
        let value = |at: usize| {
            let (row, col) = (at / self.cols, at % self.cols);
            let of_group = row * self.groups() + self.g_idx[col];
            self.scales[of_group].to_f32() * (self.codes[at] as f32 - self.zeros[of_group] as f32)
        };
        (0..self.rows * self.cols).map(value).collect()
    }

    /// The tensors of module `module`, with a `g_idx` for GPTQ.
    pub fn tensors(&self, module: &str) -> Vec<Tensor> {
        let (rows, cols, groups, per) = (self.rows, self.cols, self.groups(), 32 / self.bits);
        let mask = (1u32 << self.bits) - 1;
        // Eight output features are one integer of AWQ, in this order.
        let nibble = |row: usize| [0, 2, 4, 6, 1, 3, 5, 7].iter().position(|place| *place == row % 8).unwrap();
        let shape = match self.method {
            Method::Awq => vec![cols, rows / per],
            _ => vec![cols / per, rows],
        };
        let (mut qweight, mut qzeros) = (vec![0u32; rows * cols / per], vec![0u32; groups * rows / per]);
        for row in 0..rows {
            for col in 0..cols {
                let code = self.codes[row * cols + col];
                match self.method {
                    Method::Awq => qweight[col * (rows / 8) + row / 8] |= code << (4 * nibble(row)),
                    _ => qweight[col / per * rows + row] |= code << (self.bits * (col % per)),
                }
            }
            for group in 0..groups {
                let zero = self.zeros[row * groups + group];
                let at = group * (rows / per) + row / per;
                match self.method {
                    Method::Awq => qzeros[at] |= zero << (4 * nibble(row)),
                    Method::GptqV1 => qzeros[at] |= (zero.wrapping_sub(1) & mask) << (self.bits * (row % per)),
                    Method::GptqV2 => qzeros[at] |= zero << (self.bits * (row % per)),
                }
            }
        }
        let bytes = |integers: Vec<u32>| integers.iter().flat_map(|integer| integer.to_le_bytes()).collect::<Vec<u8>>();
        let scales = (0..groups * rows).map(|at| self.scales[at % rows * groups + at / rows]);
        let mut tensors = vec![
            (format!("{module}.qweight"), "I32", shape, bytes(qweight)),
            (format!("{module}.qzeros"), "I32", vec![groups, rows / per], bytes(qzeros)),
            (format!("{module}.scales"), "F16", vec![groups, rows], scales.flat_map(f16::to_le_bytes).collect()),
        ];
        if self.method != Method::Awq {
            let g_idx = self.g_idx.iter().map(|group| *group as u32).collect();
            tensors.push((format!("{module}.g_idx"), "I32", vec![cols], bytes(g_idx)));
        }
        tensors
    }

    /// What `quantization_config` says of it.
    pub fn quantization(&self) -> Value {
        let group_size = match self.group_size == self.cols {
            true => json!(-1),
            false => json!(self.group_size),
        };
        match self.method {
            Method::Awq => {
                json!({
                    "quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": true,
                })
            }
            _ => json!({
                "quant_method": "gptq", "bits": self.bits, "group_size": group_size, "sym": false, "desc_act": true,
                "checkpoint_format": if self.method == Method::GptqV1 { "gptq" } else { "gptq_v2" },
            }),
        }
    }
}

/// The `config.json` of a model with this `quantization_config`.
pub fn config(quantization: &Value) -> String {
    let mut config: Value = serde_json::from_str(include_str!("../data/config-0.5b-instruct.json")).unwrap();
    config["quantization_config"] = quantization.clone();
    config.to_string()
}
