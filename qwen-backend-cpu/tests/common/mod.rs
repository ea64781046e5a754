//! One layer of a small model, to run in steps.
#![allow(dead_code)]

use qwen_backend_cpu::{CpuBackend, CpuBuffer, CpuKv, CpuOptions, CpuWeight};
use qwen_core::backend::{
    GateUpSilu, HeadLayout, Interrupt, KvSpec, LinearAdd, MatrixPart, Norm, PagedAttention, QkvRopeStore, StepInputs,
    StepKey, StoreKv, WeightRole, WeightView,
};
use qwen_core::{Backend, Encoding, Result};

// Miri is some thousand times slower.
pub(crate) const HIDDEN: usize = if cfg!(miri) { 34 } else { 96 };
pub(crate) const INNER: usize = if cfg!(miri) { 18 } else { 80 };
pub(crate) const CONTEXT: usize = if cfg!(miri) { 320 } else { 640 };
const BLOCK: usize = 16;
pub(crate) const HEADS: HeadLayout =
    HeadLayout { num_attention_heads: if cfg!(miri) { 2 } else { 6 }, num_key_value_heads: 2, head_dim: 32 };

/// A layer, its K/V and the buffers of a step.
pub(crate) struct Small {
    pub(crate) b: CpuBackend,
    pub(crate) interrupt: Interrupt,
    host: Host,
    qkv_w: CpuWeight,
    o_w: CpuWeight,
    gate_up: CpuWeight,
    down: CpuWeight,
    norm: CpuBuffer,
    bias: CpuBuffer,
    residual: CpuBuffer,
    x: CpuBuffer,
    qkv: CpuBuffer,
    attended: CpuBuffer,
    act: CpuBuffer,
    scratch: CpuBuffer,
    inputs: StepInputs<CpuBackend>,
    kv: CpuKv,
}

pub(crate) fn options() -> CpuOptions {
    CpuOptions::new()
}

/// Values that depend only on `i`.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The floating-point state (MXCSR) that a host program has set before it calls, if any.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Host(pub(crate) Option<u32>);

impl Host {
    /// Call `f` in that state, and check that it is the same afterwards.
    pub(crate) fn call<R>(self, f: impl FnOnce() -> R) -> R {
        let Some(state) = self.0 else { return f() };
        let before = mxcsr();
        set_mxcsr(state);
        let result = f();
        let after = mxcsr();
        set_mxcsr(before);
        // With the default state, exception flags may have been set.
        assert_eq!(after & !0x3f, state & !0x3f, "the host's state was not restored");
        result
    }
}

/// The floating-point state of this thread.
#[cfg(target_arch = "x86_64")]
pub(crate) fn mxcsr() -> u32 {
    let mut register = 0u32;
    // SAFETY: stores four bytes at the address given.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack)) };
    register
}

/// Change it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_mxcsr(register: u32) {
    // SAFETY: reads four bytes at the address given; what runs until the state is restored is the subject of a test.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn mxcsr() -> u32 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn set_mxcsr(_: u32) {}

impl Small {
    pub(crate) fn new(options: CpuOptions) -> Small {
        Small::of_host(options, Host::default())
    }

    /// As `new`, loaded and run by a host with that state.
    pub(crate) fn of_host(options: CpuOptions, host: Host) -> Small {
        let mut b = host.call(|| CpuBackend::new(options)).unwrap();
        let mut load = |role, rows: usize, cols: usize, seed| {
            let data: Vec<u8> =
                values(seed, rows * cols).into_iter().flat_map(|v| half_bits(v * 0.2).to_le_bytes()).collect();
            let parts = [MatrixPart::whole(Encoding::Bf16, rows, cols, &data).unwrap()];
            host.call(|| b.load(&WeightView { name: "test", role, parts: &parts })).unwrap()
        };
        let qkv_w = load(WeightRole::Qkv, HEADS.qkv_size(), HIDDEN, 1);
        let o_w = load(WeightRole::Linear, HIDDEN, HEADS.q_size(), 2);
        let gate_up = load(WeightRole::GateUp, 2 * INNER, HIDDEN, 3);
        let down = load(WeightRole::Linear, HIDDEN, INNER, 4);
        let blocks = CONTEXT / BLOCK;
        let spec = KvSpec {
            key_encodings: vec![b.info().precision.kv_encoding()],
            value_encoding: b.info().precision.kv_encoding(),
            num_blocks: blocks,
            block_size: BLOCK,
            num_key_value_heads: HEADS.num_key_value_heads,
            head_dim: HEADS.head_dim,
        };
        let kv = b.kv(&spec).unwrap();
        let mut buffer = |len, seed| {
            let mut buffer = b.alloc(len).unwrap();
            b.write(&mut buffer, &values(seed, len)).unwrap();
            buffer
        };
        let (norm, bias) = (buffer(HIDDEN, 5), buffer(HEADS.qkv_size(), 6));
        let (residual, x) = (buffer(CONTEXT * HIDDEN, 7), buffer(CONTEXT * HIDDEN, 8));
        let (qkv, attended) = (buffer(CONTEXT * HEADS.qkv_size(), 8), buffer(CONTEXT * HEADS.q_size(), 8));
        let (act, scratch) = (buffer(CONTEXT * INNER, 8), buffer(CONTEXT * HIDDEN, 8));
        let cos_sin = buffer(CONTEXT * HEADS.head_dim, 9);
        let mut indices = |len| b.alloc_indices(len).unwrap();
        let inputs = StepInputs {
            input_ids: indices(CONTEXT),
            cos_sin,
            slot_mapping: indices(CONTEXT),
            cu_seqlens_q: indices(2),
            context_lens: indices(1),
            block_tables: indices(blocks),
            max_blocks_per_seq: blocks,
            logits_indices: indices(1),
        };
        Small {
            b,
            interrupt: Interrupt::default(),
            host,
            qkv_w,
            o_w,
            gate_up,
            down,
            norm,
            bias,
            residual,
            x,
            qkv,
            attended,
            act,
            scratch,
            inputs,
            kv,
        }
    }

    /// Blocks in an order that is neither ascending nor descending.
    fn slot(position: usize) -> u32 {
        let blocks = CONTEXT / BLOCK;
        ((position / BLOCK * 7 % blocks) * BLOCK + position % BLOCK) as u32
    }

    /// Write the inputs of a step with the tokens of positions `first .. first + tokens`.
    pub(crate) fn inputs(&mut self, first: usize, tokens: usize) {
        let all = values(20, CONTEXT * HIDDEN);
        self.b.write(&mut self.residual, &all[first * HIDDEN..(first + tokens) * HIDDEN]).unwrap();
        let angles = values(21, CONTEXT * HEADS.head_dim);
        let dim = HEADS.head_dim;
        self.b.write(&mut self.inputs.cos_sin, &angles[first * dim..(first + tokens) * dim]).unwrap();
        let slots: Vec<u32> = (first..first + tokens).map(Self::slot).collect();
        self.b.write_indices(&mut self.inputs.slot_mapping, &slots).unwrap();
        self.b.write_indices(&mut self.inputs.cu_seqlens_q, &[0, tokens as u32]).unwrap();
        self.b.write_indices(&mut self.inputs.context_lens, &[(first + tokens) as u32]).unwrap();
        let table: Vec<u32> = (0..CONTEXT / BLOCK).map(|i| Self::slot(i * BLOCK) / BLOCK as u32).collect();
        self.b.write_indices(&mut self.inputs.block_tables, &table).unwrap();
    }

    /// Write different lengths from those of `inputs`.
    pub(crate) fn write_cu_seqlens(&mut self, cu_seqlens_q: &[u32]) {
        self.b.write_indices(&mut self.inputs.cu_seqlens_q, cu_seqlens_q).unwrap();
    }

    /// Store NaNs in every slot.
    pub(crate) fn poison(&mut self) {
        let slots: Vec<u32> = (0..CONTEXT as u32).collect();
        self.b.write_indices(&mut self.inputs.slot_mapping, &slots).unwrap();
        let nan = vec![f32::NAN; CONTEXT * HEADS.qkv_size()];
        self.b.write(&mut self.qkv, &nan).unwrap();
        self.b
            .store_kv(StoreKv {
                qkv: &self.qkv,
                slot_mapping: &self.inputs.slot_mapping,
                kv: &mut self.kv,
                layer: 0,
                heads: HEADS,
                rows: CONTEXT,
            })
            .unwrap();
    }

    /// A prompt of `tokens` tokens.
    pub(crate) fn prompt(&mut self, tokens: usize) -> Vec<f32> {
        self.inputs(0, tokens);
        self.run(tokens);
        self.output(tokens)
    }

    /// The token at `position`.
    pub(crate) fn token(&mut self, position: usize) -> Vec<f32> {
        self.inputs(position, 1);
        self.run(1);
        self.output(1)
    }

    pub(crate) fn output(&mut self, tokens: usize) -> Vec<f32> {
        let mut out = vec![0.0; tokens * HIDDEN];
        self.b.read(&self.residual, &mut out).unwrap();
        out
    }

    pub(crate) fn run(&mut self, tokens: usize) {
        self.try_run(tokens).unwrap();
    }

    pub(crate) fn try_run(&mut self, tokens: usize) -> Result<()> {
        let key = StepKey {
            num_tokens: tokens,
            num_seqs: 1,
            num_logits: 1,
            max_seqlen_q: tokens,
            hidden: false,
            adapters: false,
        };
        let host = self.host;
        host.call(|| self.step(key, tokens))
    }

    fn step(&mut self, key: StepKey, tokens: usize) -> Result<()> {
        let Small {
            qkv_w, o_w, gate_up, down, norm, bias, residual, x, qkv, attended, act, scratch, inputs, kv, ..
        } = self;
        self.b.step(key, &self.interrupt, &mut |b| {
            b.qkv_rope_store(QkvRopeStore {
                norm: Some(Norm { weight: norm, eps: 1e-6, hidden_size: HIDDEN, normed: x }),
                x: residual,
                w: qkv_w,
                bias,
                inputs,
                heads: HEADS,
                qkv,
                kv,
                layer: 0,
                rows: tokens,
            })?;
            b.paged_attention(PagedAttention { qkv, kv, layer: 0, heads: HEADS, inputs, out: attended, key })?;
            b.linear_add(LinearAdd {
                group: None,
                x: attended,
                w: o_w,
                scratch,
                residual,
                hidden_size: HIDDEN,
                rows: tokens,
            })?;
            b.gate_up_silu(GateUpSilu {
                norm: Some(Norm { weight: norm, eps: 1e-6, hidden_size: HIDDEN, normed: x }),
                x: residual,
                w: gate_up,
                scratch,
                out: act,
                intermediate_size: INNER,
                rows: tokens,
            })?;
            b.linear_add(LinearAdd {
                group: None,
                x: act,
                w: down,
                scratch,
                residual,
                hidden_size: HIDDEN,
                rows: tokens,
            })
        })
    }
}

fn half_bits(v: f32) -> u16 {
    (v.to_bits() >> 16) as u16
}
