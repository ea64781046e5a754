//! The engine over a scripted runner: no weights, no device.

mod answers;
mod cancels;
mod constraint;
mod damage;
mod draft;
mod embeddings;
mod fairness;
mod logprobs;
mod preemption;
mod prefix;
mod rope;
mod score;
mod snapshot;
mod speculation;

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc;

use super::*;
use crate::backend::{Interrupt, KvSpec};
use crate::engine::sampling::SamplingParams;
use crate::model::batch::{BlockId, CopyBlock, Damage};
use crate::numerics::encoding::Encoding;

const VOCAB: usize = 10;
const TOKEN_IDS: usize = 9;
/// Every row that attends to this token is damaged.
const BAD: u32 = 8;

/// Added to a token that is stored in the next stage of RoPE.
const STAGE: u32 = 100;

/// Called in the middle of a step.
type During = Box<dyn FnMut(&Batch) -> Result<()> + Send>;

/// The next token is the last one plus one, modulo 8. Remembers the tokens at their slots, as K/V would be.
struct ScriptedRunner {
    limits: Limits,
    /// The next token depends on all tokens at the slots of the sequence instead.
    reads_slots: bool,
    steps: mpsc::Sender<Vec<usize>>,
    during: During,
    /// Modifies the output of a step.
    spoil: fn(&mut StepOutput),
    slots: HashMap<u32, u32>,
    refuses_copies: bool,
    rope_contexts: &'static [usize],
}

impl Runner for ScriptedRunner {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn rope_contexts(&self) -> &[usize] {
        self.rope_contexts
    }

    fn execute(&mut self, batch: &Batch, output: &mut StepOutput, interrupt: &Interrupt) -> Result<()> {
        batch.check(&self.limits)?;
        let lens: Vec<usize> = batch.cu_seqlens_q.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        assert!(lens.iter().all(|len| *len > 0));
        let _ = self.steps.send(lens);
        (self.during)(batch)?;
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        for (token, (&slot, &id)) in batch.slot_mapping.iter().zip(&batch.input_ids).enumerate() {
            // K/V differs by the stage of RoPE.
            let stage = batch.rope_stages[batch.seq_of_token(token as u32)];
            self.slots.insert(slot, id + STAGE * stage);
        }
        output.clear();
        for (row, &index) in batch.logits_indices.iter().enumerate() {
            let id = batch.input_ids[index as usize];
            let next = if self.reads_slots { self.digest(batch, index) } else { (id + 1) % 8 };
            let mut logits = [0.0; VOCAB];
            logits[next as usize] = 5.0;
            if self.reads_slots {
                logits[BAD as usize] = f32::NEG_INFINITY;
            }
            // Beyond `num_token_ids`: must never be chosen, whatever its value.
            logits[TOKEN_IDS] = if row % 2 == 0 { 100.0 } else { f32::NAN };
            let bad = self.attends_to_bad(batch, index);
            output.argmax.push((!bad).then_some(next));
            if row < batch.num_logits_read {
                let row = logits.map(|logit| if bad { f32::NAN } else { logit });
                output.logits.extend_from_slice(&row[..self.limits.vocab_size]);
            }
        }
        for &index in &batch.hidden_indices {
            let values = [batch.input_ids[index as usize], batch.positions[index as usize]].map(|value| value as f32);
            let bad = self.attends_to_bad(batch, index);
            output.hidden.extend(values.map(|value| if bad { f32::NAN } else { value }));
        }
        output.set_damage(batch, &[]);
        for Damage { place, .. } in &mut output.damage {
            *place = "layer 3".into();
        }
        (self.spoil)(output);
        Ok(())
    }

    /// A key is the token at its slot, or nothing.
    fn stored_kv(&self) -> Result<KvSpec> {
        let Limits { num_blocks, block_size, .. } = self.limits;
        let (key_encodings, value_encoding) = (vec![Encoding::F32], Encoding::F32);
        Ok(KvSpec { key_encodings, value_encoding, num_blocks, block_size, num_key_value_heads: 1, head_dim: 1 })
    }

    fn read_blocks(&mut self, blocks: &[BlockId], out: &mut [u8]) -> Result<()> {
        let size = self.limits.block_size;
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(8 * size)) {
            for (place, out) in out.as_chunks_mut().0.iter_mut().take(size).enumerate() {
                let slot = (block.0 as usize * size + place) as u32;
                *out = self.slots.get(&slot).map_or(0, |token| token + 1).to_le_bytes();
            }
        }
        Ok(())
    }

    fn write_blocks(&mut self, blocks: &[BlockId], bytes: &[u8]) -> Result<()> {
        if self.refuses_copies {
            return Err(Error::argument("device", "no copies"));
        }
        let size = self.limits.block_size;
        for (block, bytes) in blocks.iter().zip(bytes.chunks_exact(8 * size)) {
            for (place, token) in bytes.as_chunks().0.iter().take(size).enumerate() {
                let slot = (block.0 as usize * size + place) as u32;
                match u32::from_le_bytes(*token).checked_sub(1) {
                    Some(token) => self.slots.insert(slot, token),
                    None => self.slots.remove(&slot),
                };
            }
        }
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        if self.refuses_copies {
            return Err(Error::argument("device", "no copies"));
        }
        let size = self.limits.block_size as u32;
        for (copy, place) in copies.iter().flat_map(|copy| (0..size).map(move |place| (copy, place))) {
            match self.slots.get(&(copy.from.0 * size + place)).copied() {
                Some(id) => self.slots.insert(copy.to.0 * size + place, id),
                None => self.slots.remove(&(copy.to.0 * size + place)),
            };
        }
        Ok(())
    }
}

impl ScriptedRunner {
    /// A runner, and the numbers of tokens of the sequences of each step.
    fn new(limits: Limits, change: impl FnOnce(&mut ScriptedRunner)) -> (Self, mpsc::Receiver<Vec<usize>>) {
        let (sender, steps) = mpsc::channel();
        let (during, slots): (During, _) = (Box::new(|_| Ok(())), HashMap::new());
        let mut runner = ScriptedRunner {
            limits,
            reads_slots: false,
            steps: sender,
            during,
            spoil: |_| {},
            slots,
            refuses_copies: false,
            rope_contexts: &[],
        };
        change(&mut runner);
        (runner, steps)
    }

    /// The tokens that the one at `index` attends to, itself last.
    fn attended<'a>(&'a self, batch: &'a Batch, index: u32) -> impl Iterator<Item = u32> + 'a {
        let seq = batch.seq_of_token(index);
        let blocks = &batch.block_tables[batch.cu_blocks[seq] as usize..batch.cu_blocks[seq + 1] as usize];
        let size = self.limits.block_size as u32;
        let slot = move |position: u32| blocks[(position / size) as usize] * size + position % size;
        (0..=batch.positions[index as usize]).map(move |position| self.slots[&slot(position)])
    }

    fn attends_to_bad(&self, batch: &Batch, index: u32) -> bool {
        self.attended(batch, index).any(|id| id % STAGE == BAD)
    }

    /// A token that is another one, most likely, if any token before it or its place is.
    fn digest(&self, batch: &Batch, index: u32) -> u32 {
        let mix = |sum: u64, id: u32| (sum ^ u64::from(id + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        (self.attended(batch, index).fold(7, mix) % 8) as u32
    }
}

/// The results of a request: its tokens, the one that stopped it, its rows of logits, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Found {
    tokens: Vec<u32>,
    stop: Option<u32>,
    rows: Vec<Vec<f32>>,
    scored: Vec<Logprobs>,
    embeddings: Vec<Vec<f32>>,
    logprobs: Vec<Logprobs>,
    end: Option<String>,
}

struct Rig {
    core: EngineCore,
    intake: Intake,
    steps: mpsc::Receiver<Vec<usize>>,
    found: BTreeMap<SeqId, Found>,
}

fn limits() -> Limits {
    Limits {
        max_model_len: 64,
        max_num_batched_tokens: 8,
        max_num_seqs: 4,
        max_num_logits: 4,
        block_size: 4,
        num_blocks: 32,
        vocab_size: VOCAB,
        num_token_ids: TOKEN_IDS,
    }
}

fn rig() -> Rig {
    Rig::new(limits(), |_| {})
}

impl Rig {
    fn new(limits: Limits, change: impl FnOnce(&mut ScriptedRunner)) -> Rig {
        let (runner, steps) = ScriptedRunner::new(limits, change);
        let intake = Intake::default();
        let mut core = EngineCore::new(Box::new(runner), intake.clone());
        core.scheduler.times.is_frozen = true;
        Rig { core, intake, steps, found: BTreeMap::new() }
    }

    /// Guess with this draft model.
    fn with_draft(mut self, runner: ScriptedRunner) -> Rig {
        let mut core = self.core.with_draft(Box::new(runner));
        core.draft.as_mut().unwrap().freeze();
        self.core = core;
        self
    }

    fn add(&mut self, request: Request) -> SeqId {
        self.core.add(request, self.intake.ticket().unwrap()).unwrap()
    }

    fn add_cancellable(&mut self, request: Request) -> (SeqId, Canceller) {
        let ticket = self.intake.ticket().unwrap();
        let canceller = ticket.canceller();
        (self.core.add(request, ticket).unwrap(), canceller)
    }

    /// One step. False when there was nothing to compute.
    fn step(&mut self) -> bool {
        let found = &mut self.found;
        self.core.step(|id, event| {
            let found = found.entry(id).or_default();
            assert!(found.end.is_none(), "an event after the last: {event:?}");
            match event {
                Event::Token(token) => found.tokens.push(token),
                Event::StopToken(token) => found.stop = Some(token),
                Event::Logits(row) => found.rows.push(row),
                Event::Scored(token) => found.scored.push(token),
                Event::Embedding(values) => found.embeddings.push(values),
                Event::Logprobs(logprobs) => found.logprobs.push(logprobs),
                Event::Prompt { .. } => {}
                Event::Finished(reason) => found.end = Some(format!("{reason:?}")),
                Event::Failed(error) => found.end = Some(error.to_string()),
            }
        })
    }

    /// Step until all requests have ended.
    fn run(&mut self) -> BTreeMap<SeqId, Found> {
        while !self.core.is_idle() {
            self.step();
        }
        let pool = &self.core.scheduler.pool;
        assert_eq!(pool.num_free(), pool.num_blocks(), "blocks leak");
        if self.core.draft.is_some() {
            // It gives blocks back when it next looks.
            self.step();
            assert!(self.core.draft.as_ref().unwrap().is_empty(), "the draft model's blocks leak");
        }
        std::mem::take(&mut self.found)
    }
}

fn request(prompt: &[u32], max_new_tokens: usize) -> Request {
    sampled(prompt, max_new_tokens, SamplingParams::default())
}

fn sampled(prompt: &[u32], max_new_tokens: usize, sampling: SamplingParams) -> Request {
    let params = GenerateParams::new().max_new_tokens(max_new_tokens).stop_token_ids([0]).sampling(sampling);
    Request::generate(prompt, params)
}

fn speculating(mut request: Request, speculation: Speculation) -> Request {
    if let Goal::Generate(params) = &mut request.goal {
        params.speculation = speculation;
    }
    request
}

/// The same without a stop token.
fn endless(mut request: Request) -> Request {
    if let Goal::Generate(params) = &mut request.goal {
        params.stop_token_ids.clear();
    }
    request
}
