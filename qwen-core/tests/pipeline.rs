//! What a pipeline does with its stages, with scripted ones: their order, errors between them, K/V and adapters.

use std::path::Path;
use std::sync::{Arc, Mutex};

use qwen_core::backend::{Interrupt, KvSpec, Limits, StepKey};
use qwen_core::checkpoint::LoraModule;
use qwen_core::model::batch::{AdapterId, Batch, BlockId, CopyBlock, Damage, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::runner::{Pipeline, Runner, Stage};
use qwen_core::model::source::LowRankSource;
use qwen_core::model::spec::ModelSpec;
use qwen_core::{Config, Encoding, Error, Result};

const LIMITS: Limits = Limits {
    max_model_len: 64,
    max_num_batched_tokens: 16,
    max_num_seqs: 4,
    max_num_logits: 4,
    block_size: 16,
    num_blocks: 8,
    vocab_size: 100,
    num_token_ids: 100,
};

/// Adds 1 to each value of the residual stream, and notes what it is asked for.
struct Scripted {
    spec: ModelSpec,
    limits: Limits,
    values: Encoding,
    log: Arc<Mutex<Vec<String>>>,
    hidden: Vec<f32>,
    fails: bool,
}

impl Scripted {
    fn note(&self, what: &str) {
        self.log.lock().unwrap().push(format!("{what} {:?}", self.spec.layers));
    }
}

impl Runner for Scripted {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn execute(&mut self, _: &Batch, _: &mut StepOutput, _: &Interrupt) -> Result<()> {
        Err(Error::unsupported("a stage as a model", "it is a stage"))
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        self.note(&format!("copy {}", copies.len()));
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, _: &dyn LowRankSource) -> Result<()> {
        self.note(&format!("load {}", id.0));
        if self.fails { Err(Error::unsupported("this adapter", "it is too large")) } else { Ok(()) }
    }

    fn unload_adapter(&mut self, id: AdapterId) {
        self.note(&format!("unload {}", id.0));
    }

    fn stored_kv(&self) -> Result<KvSpec> {
        Ok(KvSpec {
            key_encodings: vec![Encoding::F16; self.spec.layers.len()],
            value_encoding: self.values,
            num_blocks: LIMITS.num_blocks,
            block_size: LIMITS.block_size,
            num_key_value_heads: 2,
            head_dim: 64,
        })
    }

    fn read_blocks(&mut self, _: &[BlockId], out: &mut [u8]) -> Result<()> {
        out.fill(self.spec.layers.start as u8 + 1);
        Ok(())
    }

    fn write_blocks(&mut self, blocks: &[BlockId], bytes: &[u8]) -> Result<()> {
        assert!(bytes.iter().all(|byte| *byte == self.spec.layers.start as u8 + 1));
        self.note(&format!("write {}", blocks[0].0));
        Ok(())
    }
}

impl Stage for Scripted {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn warm_up(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self, batch: &Batch, hidden: Option<&[f32]>, interrupt: &Interrupt) -> Result<StepKey> {
        self.note("run");
        assert_eq!(hidden.is_none(), self.spec.is_first());
        if interrupt.is_raised() {
            return Err(Error::Cancelled);
        }
        self.hidden = hidden.map_or(vec![0.0; batch.num_tokens()], <[f32]>::to_vec);
        self.hidden.iter_mut().for_each(|value| *value += 1.0);
        if self.fails {
            // As a cancel from another thread, once this stage has begun.
            interrupt.raise();
        }
        Ok(StepKey {
            num_tokens: batch.num_tokens(),
            num_seqs: batch.num_seqs(),
            num_logits: 1,
            max_seqlen_q: batch.max_seqlen_q(),
            hidden: false,
            adapters: false,
        })
    }

    fn read_hidden(&mut self, _: usize, hidden: &mut Vec<f32>) -> Result<()> {
        hidden.clone_from(&self.hidden);
        Ok(())
    }

    fn read_output(&mut self, _: &Batch, output: &mut StepOutput) -> Result<()> {
        output.clear();
        output.argmax.push(Some(self.hidden[0] as u32).filter(|id| *id != 3));
        Ok(())
    }

    fn locate(&mut self, _: &Batch, hidden: Option<&[f32]>, _: StepKey) -> Result<Vec<Damage>> {
        self.note(&format!("locate from {:?}", hidden.map(|hidden| hidden[0])));
        Ok(Vec::new())
    }
}

/// The stages of a model of 24 layers that end at these, and what they note.
fn stages(ends: &[usize]) -> (Vec<Scripted>, Arc<Mutex<Vec<String>>>) {
    let text = include_str!("data/config-0.5b-instruct.json");
    let spec = ModelSpec::new(&Config::from_json(Path::new("config.json"), text).unwrap());
    let log = Arc::<Mutex<Vec<String>>>::default();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let stage = |(start, end)| Scripted {
        spec: spec.clone().stage(start..end).unwrap(),
        limits: LIMITS,
        values: Encoding::F16,
        log: log.clone(),
        hidden: Vec::new(),
        fails: false,
    };
    (starts.zip(ends.iter().copied()).map(stage).collect(), log)
}

fn pipeline(stages: Vec<Scripted>) -> Result<Pipeline> {
    Pipeline::new(stages.into_iter().map(|stage| Box::new(stage) as Box<dyn Stage>).collect())
}

fn batch() -> Batch {
    let mut batch = Batch::new(LIMITS.block_size);
    let (input_ids, block_table, logits) = (&[1, 2][..], &[BlockId(0)][..], WantLogits::Argmax);
    let step = SequenceStep { input_ids, num_computed_tokens: 0, block_table, logits, rope_stage: 0, adapter: None };
    batch.push(step).unwrap();
    batch
}

fn noted(log: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut log.lock().unwrap())
}

#[test]
fn stages_that_are_no_whole_model_are_refused() {
    let refused = |stages: Vec<Scripted>, expected: &str| match pipeline(stages).unwrap_err() {
        error @ Error::InvalidArgument { .. } => assert!(error.to_string().contains(expected), "{error}"),
        error => panic!("{error}"),
    };
    assert!(pipeline(stages(&[10, 24]).0).is_ok() && pipeline(stages(&[24]).0).is_ok());
    refused(Vec::new(), "at least one");
    refused(stages(&[10, 20]).0, "ends at layer 20");
    let mut swapped = stages(&[10, 24]).0;
    swapped.reverse();
    refused(swapped, "layer 0 of 24 has to follow, a stage has 10..24");
    let mut gap = stages(&[10, 12, 24]).0;
    gap.remove(1);
    refused(gap, "layer 10 of 24");
    let mut unlike = stages(&[10, 24]).0;
    unlike[0].limits.num_blocks += 1;
    refused(unlike, "unlike sizes");
    let mut headless = stages(&[10, 24]).0;
    headless[1].spec = headless[1].spec.clone().without_head();
    refused(headless, "without the output head");
}

#[test]
fn each_stage_starts_from_what_the_one_before_computed() {
    let (stages, log) = stages(&[4, 24]);
    let mut pipeline = pipeline(stages).unwrap();
    let mut output = StepOutput::default();
    pipeline.execute(&batch(), &mut output, &Interrupt::default()).unwrap();
    assert_eq!(output.argmax, [Some(2)]);
    assert_eq!(noted(&log), ["run 0..4", "run 4..24"]);
    pipeline.copy_blocks(&[CopyBlock { from: BlockId(1), to: BlockId(2) }]).unwrap();
    assert_eq!(noted(&log), ["copy 1 0..4", "copy 1 4..24"]);
}

#[test]
fn damage_is_looked_for_in_each_stage_from_its_own_input() {
    let (stages, log) = stages(&[4, 8, 24]);
    let mut output = StepOutput::default();
    pipeline(stages).unwrap().execute(&batch(), &mut output, &Interrupt::default()).unwrap();
    assert_eq!(output.argmax, [None]);
    assert_eq!(
        noted(&log)[3..],
        ["locate from None 0..4", "locate from Some(1.0) 4..8", "locate from Some(2.0) 8..24"]
    );
}

#[test]
fn a_cancel_ends_the_step_between_two_stages() {
    let (mut stages, log) = stages(&[4, 8, 24]);
    stages[0].fails = true;
    let cancelled = pipeline(stages).unwrap().execute(&batch(), &mut StepOutput::default(), &Interrupt::default());
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    assert_eq!(noted(&log), ["run 0..4", "run 4..8"]);
}

#[test]
fn blocks_have_the_layers_of_all_stages_if_they_store_alike() {
    let (whole, log) = stages(&[4, 24]);
    let mut whole = pipeline(whole).unwrap();
    let stored = whole.stored_kv().unwrap();
    assert_eq!(stored.key_encodings.len(), 24);
    let blocks = [BlockId(5), BlockId(2)];
    let mut bytes = vec![0; 2 * stored.block_bytes()];
    whole.read_blocks(&blocks, &mut bytes).unwrap();
    let layer = stored.block_bytes() / 24;
    let expected = [vec![1; 4 * layer], vec![5; 20 * layer]].concat();
    assert_eq!(bytes, expected.repeat(2));
    whole.write_blocks(&blocks, &bytes).unwrap();
    assert_eq!(noted(&log), ["write 5 0..4", "write 5 4..24", "write 2 0..4", "write 2 4..24"]);
    assert!(whole.read_blocks(&blocks, &mut bytes[1..]).is_err());

    let (mut unlike, _) = stages(&[4, 24]);
    unlike[0].values = Encoding::F32;
    let mut unlike = pipeline(unlike).unwrap();
    for error in [unlike.stored_kv().map(drop), unlike.read_blocks(&blocks, &mut bytes)].map(Result::unwrap_err) {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("F32, another one as F16"), "{error}");
    }
}

#[test]
fn an_adapter_is_loaded_by_all_stages_or_by_none() {
    #[derive(Debug)]
    struct Nothing;
    impl LowRankSource for Nothing {
        fn name(&self) -> String {
            "nothing".into()
        }

        fn encodings(&self, _: &str) -> Result<Option<([Encoding; 2], usize)>> {
            Ok(None)
        }

        fn module(&self, _: &str) -> Result<Option<LoraModule>> {
            Ok(None)
        }
    }
    let (mut stages, log) = stages(&[4, 8, 24]);
    stages[1].fails = true;
    let mut pipeline = pipeline(stages).unwrap();
    assert!(pipeline.load_adapter(AdapterId(7), &Nothing).is_err());
    let expected = ["load 7 0..4", "load 7 4..8", "unload 7 0..4", "unload 7 4..8", "unload 7 8..24"];
    assert_eq!(noted(&log), expected);
}
