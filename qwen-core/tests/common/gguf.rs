//! GGUF files generated on the fly, correct or wrong in one place.

/// Numbers of types, as files have them.
pub const F32: u32 = 0;
pub const Q8_0: u32 = 8;

/// A file in the making. Dimensions are innermost first, as in files.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub entries: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    /// The actual alignment of the file, whatever it states.
    pub alignment: usize,
    /// Counts to state instead of the real ones: tensors, entries.
    pub counts: (Option<u64>, Option<u64>),
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// The offset to state instead of the real one.
    pub offset: Option<u64>,
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// An array's type, count and values.
pub fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

impl Gguf {
    pub fn new() -> Self {
        Gguf { version: 3, entries: Vec::new(), tensors: Vec::new(), alignment: 32, counts: (None, None) }
    }

    /// A model of one layer: heads of 32, a vocabulary of 6 tokens in a table of 8 rows.
    pub fn model() -> Self {
        let (hidden, inner, vocab) = (64, 96, 8);
        let layer = |name: &str| format!("blk.0.{name}");
        Gguf::new()
            .str("general.architecture", "qwen2")
            .u32("qwen2.block_count", 1)
            .u32("qwen2.context_length", 512)
            .u32("qwen2.embedding_length", hidden as u32)
            .u32("qwen2.feed_forward_length", inner as u32)
            .u32("qwen2.attention.head_count", 2)
            .u32("qwen2.attention.head_count_kv", 1)
            .f32("qwen2.rope.freq_base", 1e6)
            .f32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
            .str("tokenizer.ggml.model", "gpt2")
            .strs("tokenizer.ggml.tokens", &["a", "b", "c", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
            .raw("tokenizer.ggml.token_type", 9, array(5, 6, &[1, 1, 1, 3, 3, 3].map(i32::to_le_bytes).concat()))
            .u32("tokenizer.ggml.eos_token_id", 5)
            .tensor("token_embd.weight", &[hidden, vocab], Q8_0)
            .tensor(&layer("attn_norm.weight"), &[hidden], F32)
            .tensor(&layer("attn_q.weight"), &[hidden, hidden], Q8_0)
            .tensor(&layer("attn_q.bias"), &[hidden], F32)
            .tensor(&layer("attn_k.weight"), &[hidden, 32], Q8_0)
            .tensor(&layer("attn_k.bias"), &[32], F32)
            .tensor(&layer("attn_v.weight"), &[hidden, 32], Q8_0)
            .tensor(&layer("attn_v.bias"), &[32], F32)
            .tensor(&layer("attn_output.weight"), &[hidden, hidden], Q8_0)
            .tensor(&layer("ffn_norm.weight"), &[hidden], F32)
            .tensor(&layer("ffn_gate.weight"), &[hidden, inner], Q8_0)
            .tensor(&layer("ffn_up.weight"), &[hidden, inner], Q8_0)
            .tensor(&layer("ffn_down.weight"), &[inner, hidden], Q8_0)
            .tensor("output_norm.weight", &[hidden], F32)
    }

    /// An entry of any type, which replaces one of the same key.
    pub fn raw(mut self, key: &str, kind: u32, value: Vec<u8>) -> Self {
        match self.entries.iter_mut().find(|(found, ..)| found == key) {
            Some(entry) => (entry.1, entry.2) = (kind, value),
            None => self.entries.push((key.into(), kind, value)),
        }
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, value.to_le_bytes().into())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, value.to_le_bytes().into())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, vec![value.into()])
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, string(value))
    }

    pub fn strs(self, key: &str, values: &[&str]) -> Self {
        let strings: Vec<u8> = values.iter().flat_map(|value| string(value)).collect();
        self.raw(key, 9, array(8, values.len() as u64, &strings))
    }

    pub fn without(mut self, name: &str) -> Self {
        self.entries.retain(|(key, ..)| key != name);
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// A tensor of F32 or Q8_0 with small values in it, which differ from one another.
    pub fn tensor(self, name: &str, dims: &[u64], kind: u32) -> Self {
        let values = dims.iter().product::<u64>() as usize;
        let seed = self.tensors.len();
        let data = match kind {
            Q8_0 => (0..values / 32 * 34)
                .map(|i| match i % 34 {
                    0 => 0,
                    1 => 0x20, // 2^-7 in F16
                    i => (i * 7 + seed * 13) as u8,
                })
                .collect(),
            _ => (0..values).flat_map(|i| (0.5 + ((i * 5 + seed) % 7) as f32 / 8.0).to_le_bytes()).collect(),
        };
        self.with_data(name, dims, kind, data)
    }

    pub fn with_data(mut self, name: &str, dims: &[u64], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.retain(|tensor| tensor.name != name);
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), kind, data, offset: None });
        self
    }

    /// The same with another offset stated for a tensor.
    pub fn offset(mut self, name: &str, offset: u64) -> Self {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor");
        tensor.offset = Some(offset);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.counts.0.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.counts.1.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            file.extend(string(key));
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        if !self.tensors.is_empty() {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
        }
        file.extend(data);
        file
    }
}
