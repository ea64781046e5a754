//! The kernels compared with the ceilings of the machine: `cargo bench -p qwen-backend-cpu -- [--threads N] [filter]`.
//!
//! Each case runs in rounds; before each round its ceiling is measured briefly, so that both see the same load from
//! other tenants. The share is the median over rounds, the rate the best of them.
//!
//! As a test (`cargo test --benches`) every case runs once.

use std::time::{Duration, Instant};

use qwen_backend_cpu::ceilings::CeilingMeter;
use qwen_backend_cpu::{CpuBackend, CpuBuffer, CpuOptions, CpuWeight};
use qwen_core::backend::{
    GateUpSilu, HeadLayout, Interrupt, KvSpec, Linear, LinearAdd, MatrixPart, Norm, PagedAttention, QkvRopeStore,
    StepInputs, StepKey, StoreKv, WeightRole, WeightView,
};
use qwen_core::{Backend, Encoding, Precision, Result};

/// Bytes of weights that a case cycles through, so that they are not in cache.
const WEIGHT_BYTES: usize = 768 << 20;

const BLOCK: usize = 32;

struct Bench {
    b: CpuBackend,
    meter: CeilingMeter,
    once: bool,
    filter: Option<String>,
    time: Duration,
}

/// What bounds a case.
enum Bound {
    /// Bytes read.
    Memory(f64),
    /// Operations on the products' inputs.
    Arithmetic(f64),
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (mut threads, mut filter, mut once, mut precision) = (None, None, false, Precision::Fast);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => threads = args.next().and_then(|n| n.parse().ok()),
            "--exact" => precision = Precision::Exact,
            "--test" => once = true,
            _ => filter = Some(arg),
        }
    }
    // `cargo test --benches` builds without optimisation and passes no argument.
    once |= cfg!(debug_assertions);
    let mut options = CpuOptions::new().precision(precision);
    options.threads = threads;
    let b = CpuBackend::new(options)?;
    let meter = CeilingMeter::new(b.threads())?;
    println!("{}, {precision:?}", b.info().name);
    let time = Duration::from_millis(1500);
    let mut bench = Bench { b, meter, once, filter, time };
    let ceilings = bench.meter.measure(Duration::from_millis(if once { 1 } else { 600 }));
    println!(
        "ceilings: {:.1} GB/s, f32 {:.0}, bf16 {:.0}, int8 {:.0} Gop/s",
        ceilings.memory_bytes_per_second / 1e9,
        ceilings.f32_flops_per_second / 1e9,
        ceilings.bf16_flops_per_second.unwrap_or(0.0) / 1e9,
        ceilings.int8_ops_per_second.unwrap_or(0.0) / 1e9,
    );
    println!("{:<42} {:>10} {:>24} {:>7}", "case", "time", "rate", "share");
    for (model, hidden, inner, heads, kv_heads, dim) in
        [("0.5b", 896, 4864, 14, 2, 64), ("1.5b", 1536, 8960, 12, 2, 128)]
    {
        let heads = HeadLayout { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim: dim };
        for tokens in [1, 2, 4, 8, 16, 64, 512] {
            bench.linear(&format!("{model} o_proj"), hidden, hidden, tokens)?;
            bench.gate_up(&format!("{model} gate_up"), 2 * inner, hidden, tokens)?;
            bench.linear(&format!("{model} down"), hidden, inner, tokens)?;
        }
        bench.linear(&format!("{model} lm_head"), 151_936, hidden, 1)?;
        for (tokens, context) in [(512, 512), (512, 8192), (32, 8192), (32, 131_072), (1, 512), (1, 8192), (1, 131_072)]
        {
            bench.attention(&format!("{model} attention"), heads, tokens, context)?;
        }
        for tokens in [1, 512] {
            bench.layer(model, heads, hidden, inner, tokens)?;
        }
    }
    Ok(())
}

/// Bytes that look like weights.
fn weights(elements: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(2 * elements);
    for _ in 0..elements {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Around 0.02, of either sign.
        let bits = 0x3c80u16 | (state >> 25) as u16 | (state >> 16) as u16 & 0x8000;
        bytes.extend_from_slice(&bits.to_le_bytes());
    }
    bytes
}

/// CPU seconds of all threads of the process, if the system reports them: other processes do not count.
fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split(' ').next()?.parse::<f64>().ok())
        .sum::<f64>()
        / 1e9
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// Enough copies of a matrix to exceed the caches.
    fn load(&mut self, role: WeightRole, rows: usize, cols: usize) -> Result<Vec<CpuWeight>> {
        let data = weights(rows * cols);
        let parts = [MatrixPart::whole(Encoding::Bf16, rows, cols, &data)?];
        let view = WeightView { name: "bench", role, parts: &parts };
        let copies = if self.once { 1 } else { (WEIGHT_BYTES / data.len()).clamp(2, 200) };
        (0..copies).map(|_| self.b.load(&view)).collect()
    }

    fn buffer(&mut self, len: usize) -> Result<CpuBuffer> {
        let mut buffer = self.b.alloc(len)?;
        let values: Vec<f32> = (0..len).map(|i| ((i * 2_654_435_761) >> 7 & 0xffff) as f32 / 65536.0 - 0.5).collect();
        self.b.write(&mut buffer, &values)?;
        Ok(buffer)
    }

    /// Run `work(i)` in rounds between measurements of its ceiling, and print.
    fn case(
        &mut self,
        name: &str,
        bound: Bound,
        mut work: impl FnMut(&mut CpuBackend, usize) -> Result<()>,
    ) -> Result<()> {
        let mut i = 0;
        let mut run = |b: &mut CpuBackend| {
            i += 1;
            work(b, i)
        };
        run(&mut self.b)?;
        if self.once {
            return Ok(());
        }
        let (mut shares, mut best, mut core) = (Vec::new(), f64::INFINITY, f64::INFINITY);
        let begin = Instant::now();
        while begin.elapsed() < self.time {
            let slice = Duration::from_millis(30);
            let least = match bound {
                Bound::Memory(bytes) => bytes / self.meter.memory(slice),
                Bound::Arithmetic(flops) => {
                    let dot = if self.b.isa().has_bf16_dot() { self.meter.bf16_flops(slice) } else { None };
                    flops / dot.unwrap_or_else(|| self.meter.f32_flops(slice))
                }
            };
            let (start, used, mut runs) = (Instant::now(), cpu_seconds(), 0);
            while start.elapsed() < slice {
                run(&mut self.b)?;
                runs += 1;
            }
            let took = start.elapsed().as_secs_f64() / f64::from(runs);
            shares.push(least / took);
            best = best.min(took);
            core = core.min((cpu_seconds() - used) / f64::from(runs));
        }
        shares.sort_by(f64::total_cmp);
        let rate = match bound {
            Bound::Memory(bytes) => format!("{:.1} GB/s, {:.1} a core", bytes / best / 1e9, bytes / core / 1e9),
            Bound::Arithmetic(flops) => {
                format!("{:.0} GF/s, {:.0} a core", flops / best / 1e9, flops / core / 1e9)
            }
        };
        let share = 100.0 * shares[shares.len() / 2];
        println!("{name:<42} {:>7.0} us {rate:>24} {share:>6.0}%", best * 1e6);
        Ok(())
    }

    fn bound(rows: usize, cols: usize, tokens: usize) -> Bound {
        if tokens <= 16 {
            Bound::Memory((2 * rows * cols) as f64)
        } else {
            Bound::Arithmetic((2 * rows * cols * tokens) as f64)
        }
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, tokens: usize) -> Result<()> {
        let name = format!("{name} {rows}x{cols}, {tokens} tokens");
        if !self.wants(&name) {
            return Ok(());
        }
        let w = self.load(WeightRole::Linear, rows, cols)?;
        let (x, mut out) = (self.buffer(tokens * cols)?, self.b.alloc(tokens * rows)?);
        self.case(&name, Self::bound(rows, cols, tokens), |b, i| {
            b.linear(Linear { x: &x, w: &w[i % w.len()], bias: None, out: &mut out, rows: tokens })
        })
    }

    fn gate_up(&mut self, name: &str, rows: usize, cols: usize, tokens: usize) -> Result<()> {
        let name = format!("{name} {rows}x{cols}, {tokens} tokens");
        if !self.wants(&name) {
            return Ok(());
        }
        let w = self.load(WeightRole::GateUp, rows, cols)?;
        let (x, mut out, mut scratch) = (self.buffer(tokens * cols)?, self.b.alloc(tokens * rows)?, self.b.alloc(0)?);
        self.case(&name, Self::bound(rows, cols, tokens), |b, i| {
            b.gate_up_silu(GateUpSilu {
                norm: None,
                x: &x,
                w: &w[i % w.len()],
                scratch: &mut scratch,
                out: &mut out,
                intermediate_size: rows / 2,
                rows: tokens,
            })
        })
    }

    /// The inputs of a step in which one sequence has `tokens` tokens, the last at `context - 1`.
    /// The last `tokens` of `context` positions.
    fn inputs(&mut self, dim: usize, tokens: usize, context: usize) -> Result<StepInputs<CpuBackend>> {
        let blocks = context.div_ceil(BLOCK);
        let mut indices = |values: Vec<u32>| -> Result<_> {
            let mut indices = self.b.alloc_indices(values.len())?;
            self.b.write_indices(&mut indices, &values)?;
            Ok(indices)
        };
        Ok(StepInputs {
            input_ids: indices(vec![1; tokens])?,
            slot_mapping: indices((context - tokens..context).map(|slot| slot as u32).collect())?,
            cu_seqlens_q: indices(vec![0, tokens as u32])?,
            context_lens: indices(vec![context as u32])?,
            block_tables: indices((0..blocks as u32).collect())?,
            max_blocks_per_seq: blocks,
            logits_indices: indices(vec![tokens as u32 - 1])?,
            cos_sin: self.buffer(tokens * dim)?,
        })
    }

    fn store(&mut self, heads: HeadLayout, layers: usize, context: usize) -> Result<(KvSpec, qwen_backend_cpu::CpuKv)> {
        let spec = KvSpec {
            key_encodings: vec![self.b.info().precision.kv_encoding(); layers],
            value_encoding: self.b.info().precision.kv_encoding(),
            num_blocks: context.div_ceil(BLOCK),
            block_size: BLOCK,
            num_key_value_heads: heads.num_key_value_heads,
            head_dim: heads.head_dim,
        };
        let kv = self.b.kv(&spec)?;
        Ok((spec, kv))
    }

    fn attention(&mut self, name: &str, heads: HeadLayout, tokens: usize, context: usize) -> Result<()> {
        let name = format!("{name}, {tokens} tokens of {context}");
        if !self.wants(&name) {
            return Ok(());
        }
        let layer_bytes = 4 * context * heads.num_key_value_heads * heads.head_dim;
        let layers = if self.once { 1 } else { (WEIGHT_BYTES / layer_bytes).clamp(1, 28) };
        let (spec, mut kv) = self.store(heads, layers, context)?;
        let rows = context.min(512);
        let qkv = self.buffer(rows * heads.qkv_size())?;
        for end in (rows..=context).step_by(rows) {
            let StepInputs { slot_mapping, .. } = self.inputs(heads.head_dim, rows, end)?;
            for layer in 0..layers {
                let kv = &mut kv;
                self.b.store_kv(StoreKv { qkv: &qkv, slot_mapping: &slot_mapping, kv, layer, heads, rows })?;
            }
        }
        let inputs = self.inputs(heads.head_dim, tokens, context)?;
        let mut out = self.b.alloc(tokens * heads.q_size())?;
        let key = StepKey {
            num_tokens: tokens,
            num_seqs: 1,
            num_logits: 1,
            max_seqlen_q: tokens,
            hidden: false,
            adapters: false,
        };
        let bound = if tokens == 1 {
            Bound::Memory(spec.stored_bytes() as f64 / layers as f64)
        } else {
            let pairs = tokens * (context - tokens) + tokens * (tokens + 1) / 2;
            Bound::Arithmetic((4 * pairs * heads.q_size()) as f64)
        };
        self.case(&name, bound, |b, i| {
            b.paged_attention(PagedAttention {
                qkv: &qkv,
                kv: &kv,
                layer: i % layers,
                heads,
                inputs: &inputs,
                out: &mut out,
                key,
            })
        })
    }

    /// A whole layer as the model issues it, in one step.
    fn layer(&mut self, model: &str, heads: HeadLayout, hidden: usize, inner: usize, tokens: usize) -> Result<()> {
        let name = format!("{model} layers, {tokens} tokens");
        if !self.wants(&name) {
            return Ok(());
        }
        let layers = if self.once { 1 } else { 16 };
        let (spec, mut kv) = self.store(heads, layers, tokens.max(64))?;
        let inputs = self.inputs(heads.head_dim, tokens, tokens)?;
        let load = |bench: &mut Self, role, rows, cols| -> Result<Vec<CpuWeight>> {
            let mut w = bench.load(role, rows, cols)?;
            let data = weights(rows * cols);
            let parts = [MatrixPart::whole(Encoding::Bf16, rows, cols, &data)?];
            while w.len() < layers {
                w.push(bench.b.load(&WeightView { name: "bench", role, parts: &parts })?);
            }
            w.truncate(layers);
            Ok(w)
        };
        let qkv_w = load(self, WeightRole::Qkv, heads.qkv_size(), hidden)?;
        let o_w = load(self, WeightRole::Linear, hidden, heads.q_size())?;
        let gate_up = load(self, WeightRole::GateUp, 2 * inner, hidden)?;
        let down = load(self, WeightRole::Linear, hidden, inner)?;
        let (mut residual, norm, bias) =
            (self.buffer(tokens * hidden)?, self.buffer(hidden)?, self.buffer(heads.qkv_size())?);
        let mut x = self.b.alloc(tokens * hidden)?;
        let mut qkv = self.b.alloc(tokens * heads.qkv_size())?;
        let mut attended = self.b.alloc(tokens * heads.q_size())?;
        let mut act = self.b.alloc(tokens * inner)?;
        let mut scratch = self.b.alloc(tokens * hidden)?;
        let key = StepKey {
            num_tokens: tokens,
            num_seqs: 1,
            num_logits: 1,
            max_seqlen_q: tokens,
            hidden: false,
            adapters: false,
        };
        let rows = heads.qkv_size() + heads.q_size() + 3 * inner;
        let bound = if tokens == 1 {
            let kv = spec.stored_bytes() as f64 / 64.0;
            Bound::Memory((layers * 2 * hidden * rows) as f64 + kv)
        } else {
            let attention = 2 * tokens * (tokens + 1) * heads.q_size();
            Bound::Arithmetic((layers * (2 * hidden * rows * tokens + attention)) as f64)
        };
        let zeros = vec![0.1; tokens * hidden];
        self.case(&name, bound, |b, _| {
            b.write(&mut residual, &zeros)?;
            b.step(key, &Interrupt::default(), &mut |b| {
                for layer in 0..layers {
                    b.qkv_rope_store(QkvRopeStore {
                        norm: Some(Norm { weight: &norm, eps: 1e-6, hidden_size: hidden, normed: &mut x }),
                        x: &residual,
                        w: &qkv_w[layer],
                        bias: &bias,
                        inputs: &inputs,
                        heads,
                        qkv: &mut qkv,
                        kv: &mut kv,
                        layer,
                        rows: tokens,
                    })?;
                    b.paged_attention(PagedAttention {
                        qkv: &qkv,
                        kv: &kv,
                        layer,
                        heads,
                        inputs: &inputs,
                        out: &mut attended,
                        key,
                    })?;
                    b.linear_add(LinearAdd {
                        group: None,
                        x: &attended,
                        w: &o_w[layer],
                        scratch: &mut scratch,
                        residual: &mut residual,
                        hidden_size: hidden,
                        rows: tokens,
                    })?;
                    b.gate_up_silu(GateUpSilu {
                        norm: Some(Norm { weight: &norm, eps: 1e-6, hidden_size: hidden, normed: &mut x }),
                        x: &residual,
                        w: &gate_up[layer],
                        scratch: &mut scratch,
                        out: &mut act,
                        intermediate_size: inner,
                        rows: tokens,
                    })?;
                    b.linear_add(LinearAdd {
                        group: None,
                        x: &act,
                        w: &down[layer],
                        scratch: &mut scratch,
                        residual: &mut residual,
                        hidden_size: hidden,
                        rows: tokens,
                    })?;
                }
                Ok(())
            })
        })
    }
}
