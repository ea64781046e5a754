//! Cases over whole models: small ones with random weights, through [`qwen_core::model::runner`].

mod adapters;
mod drive;
mod hidden;
mod kv_encoding;
pub mod parts;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::compare;
use super::op::Allowed;
use super::rig::Rig;
pub use adapters::adapters_in_a_batch;
use drive::{Sequences, Step, load_whole, prompt, run_steps};
pub use hidden::hidden;
pub use kv_encoding::kv_in_blocks;
use qwen_core::Precision;
use qwen_core::backend::composed::argmax_row;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{Backend, Interrupt};
use qwen_core::error::{Error, Result};
use qwen_core::model::batch::{Damage, StepOutput};
use qwen_core::model::runner::Runner;
pub use weights::{GEOMETRIES, Geometry, RandomModel};
use weights::{TOKEN_IDS, VOCAB};

/// How far the logits of a random model may deviate from the reference.
///
/// Plain f32 arithmetic shows 4e-7 to 7e-7 on these models; rounding the inputs of products to bf16 and K/V to f16, and
/// nothing else, 0.0027 to 0.0049.
fn allowed(precision: Precision) -> Allowed {
    Allowed::rms(match precision {
        Precision::Exact => 3e-6,
        Precision::Fast => 7.5e-3,
    })
}

/// The prompts of most cases.
fn prompts() -> Vec<Vec<u32>> {
    [33, 1, 20, 47].into_iter().enumerate().map(|(seed, len)| prompt(seed as u64, len)).collect()
}

/// Steps that mix prompts, chunks and single tokens, and end with all of [`prompts`] computed.
fn mixed_steps() -> Vec<Step> {
    vec![
        vec![(0, 16), (3, 5)],
        vec![(0, 1), (1, 1), (3, 12)],
        vec![(0, 1), (2, 19), (3, 15)],
        vec![(2, 1), (0, 1), (3, 1)],
        vec![(3, 14), (0, 14)],
    ]
}

/// The logits of each sequence, a row for each position.
type Logits = Vec<Vec<f32>>;

/// The reference's logits for [`prompts`], each computed at once and alone. Cached per process.
fn expected(geometry: Geometry) -> Result<Arc<Logits>> {
    static COMPUTED: Mutex<Option<HashMap<String, Arc<Logits>>>> = Mutex::new(None);
    // Locked while computing: the cases that wait need the same values.
    let mut computed = COMPUTED.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("{geometry:?}");
    if let Some(logits) = computed.get_or_insert_default().get(&name) {
        return Ok(logits.clone());
    }
    let mut runner = load_whole(Reference::new(), &RandomModel::new(geometry)?)?;
    let logits = Arc::new(run_steps(&mut runner, &prompts(), &whole_steps(), None)?);
    computed.get_or_insert_default().insert(name, logits.clone());
    Ok(logits)
}

/// Each of [`prompts`] at once, in its own step.
fn whole_steps() -> Vec<Step> {
    prompts().iter().enumerate().map(|(index, ids)| vec![(index, ids.len())]).collect()
}

impl<B: Backend> Rig<'_, B> {
    fn compare_logits(&mut self, what: &str, got: &[Vec<f32>], expected: &[Vec<f32>], allowed: Allowed) {
        for (sequence, (got, expected)) in got.iter().zip(expected).enumerate() {
            let outcome = match allowed {
                _ if got.len() != expected.len() => Err(format!("{} logits, not {}", got.len(), expected.len())),
                Allowed::Bits => compare::bits(got, expected, VOCAB),
                Allowed::Rms { tolerance, floor } => compare::rms(got, expected, VOCAB, tolerance, floor),
            };
            self.note(|| format!("{what}, sequence {sequence}, rows are positions"), outcome);
        }
    }
}

/// Logits of prompts, chunks and single tokens in one batch, against the reference.
pub fn logits<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for geometry in GEOMETRIES {
        let model = RandomModel::new(geometry)?;
        let mut runner = load_whole(rig.another()?, &model)?;
        for steps in [whole_steps(), mixed_steps()] {
            let got = run_steps(&mut runner, &prompts(), &steps, None)?;
            rig.compare_logits(&format!("{geometry:?}"), &got, &expected(geometry)?, allowed(rig.precision));
        }
    }
    Ok(())
}

/// Prompts at once, in chunks, token by token, alone and in a batch: the same bits.
pub fn batch_invariance<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if !rig.is_batch_invariant() {
        return rig.skip("not promised in this precision");
    }
    for geometry in GEOMETRIES {
        let mut runner = load_whole(rig.another()?, &RandomModel::new(geometry)?)?;
        let whole = run_steps(&mut runner, &prompts(), &whole_steps(), None)?;
        let together = vec![prompts().iter().enumerate().map(|(index, ids)| (index, ids.len())).collect()];
        let one_by_one = |index: usize| vec![vec![(index, 1)]; prompts()[index].len()];
        let chunks = vec![vec![(0, 7), (3, 16)], vec![(3, 30), (0, 26)], vec![(3, 1), (2, 20), (1, 1)]];
        for (what, steps) in [
            ("together", together),
            ("mixed", mixed_steps()),
            ("in chunks", chunks),
            ("token by token", (0..prompts().len()).flat_map(one_by_one).collect()),
        ] {
            let got = run_steps(&mut runner, &prompts(), &steps, None)?;
            rig.compare_logits(&format!("{what}, {geometry:?}"), &got, &whole, Allowed::Bits);
        }
    }
    Ok(())
}

/// The position and the previous contents of blocks change no bit.
pub fn permuted_blocks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for geometry in GEOMETRIES {
        let mut runner = load_whole(rig.another()?, &RandomModel::new(geometry)?)?;
        let whole = run_steps(&mut runner, &prompts(), &mixed_steps(), None)?;
        for shuffle in [1, 2] {
            let got = run_steps(&mut runner, &prompts(), &mixed_steps(), Some(shuffle))?;
            rig.compare_logits(&format!("shuffle {shuffle}, {geometry:?}"), &got, &whole, Allowed::Bits);
        }
    }
    Ok(())
}

/// A runner gives the same bits each time, whatever it ran before, and a second runner does too.
pub fn determinism<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let model = RandomModel::new(GEOMETRIES[0])?;
    let mut first = load_whole(rig.another()?, &model)?;
    let mut second = load_whole(rig.another()?, &model)?;
    let once = run_steps(&mut first, &prompts(), &mixed_steps(), None)?;
    run_steps(&mut second, &[prompt(9, 80)], &[vec![(0, 50)], vec![(0, 30)]], None)?;
    for runner in [&mut first, &mut second] {
        let again = run_steps(runner, &prompts(), &mixed_steps(), None)?;
        rig.compare_logits("again", &again, &once, Allowed::Bits);
    }
    Ok(())
}

/// A fork shares blocks until one side writes, and then equals a sequence that never shared.
pub fn forks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let mut runner = load_whole(rig.another()?, &RandomModel::new(GEOMETRIES[0])?)?;
    for shared in [16, 20, 31, 32, 33] {
        let (stem, tails) = (prompt(1, shared), [prompt(2, 20), prompt(3, 20)]);
        let ids: Vec<Vec<u32>> = tails.iter().map(|tail| [&stem[..], tail].concat()).collect();
        let rest: [Step; 3] = [vec![(0, 1), (1, 1)], vec![(0, 15), (1, 15)], vec![(0, 4), (1, 4)]];

        let mut fresh = Sequences::new(&ids, None)?;
        fresh.step(&mut runner, &[(0, shared)])?;
        fresh.step(&mut runner, &[(1, shared)])?;
        rest.iter().try_for_each(|step| fresh.step(&mut runner, step))?;

        let mut forked = Sequences::new(&ids, Some(5))?;
        forked.step(&mut runner, &[(0, shared)])?;
        let Sequences { pool, sequences } = &mut forked;
        sequences[1].table = sequences[0].table.fork(shared, pool);
        sequences[1].computed = shared;
        sequences[1].logits = sequences[0].logits.clone();
        rest.iter().try_for_each(|step| forked.step(&mut runner, step))?;

        let logits = |from: Sequences| from.sequences.into_iter().map(|s| s.logits).collect::<Vec<_>>();
        let what = format!("forked after {shared} positions");
        rig.compare_logits(&what, &logits(forked), &logits(fresh), Allowed::Bits);
    }
    Ok(())
}

/// A greedy step gives the index of the largest logit among the ids of tokens.
pub fn greedy<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for geometry in GEOMETRIES {
        let mut runner = load_whole(rig.another()?, &RandomModel::new(geometry)?)?;
        for tokens in [1, 2, 30] {
            let mut sequences = Sequences::new(&[prompt(4, 40)], None)?;
            let mut output = StepOutput::default();
            let batch = sequences.batch(&mut runner, &[(0, tokens)], true)?;
            runner.execute(&batch, &mut output, &Interrupt::default())?;
            let ids = output.argmax.clone();
            sequences.step(&mut runner, &[(0, tokens)])?;
            let rows = sequences.sequences[0].logits.chunks_exact(VOCAB);
            let largest: Vec<Option<u32>> = rows.map(|row| Some(argmax_row(&row[..TOKEN_IDS]))).collect();
            let outcome = if ids == largest { Ok(()) } else { Err(format!("{ids:?} instead of {largest:?}")) };
            rig.note(|| format!("greedy ids of {tokens} tokens, {geometry:?}"), outcome);
        }
    }
    Ok(())
}

/// A raised interrupt cancels a step; the same step afterwards is right.
pub fn interrupt<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let model = RandomModel::new(GEOMETRIES[0])?;
    let mut runner = load_whole(rig.another()?, &model)?;
    let whole = run_steps(&mut load_whole(rig.another()?, &model)?, &prompts()[..1], &[vec![(0, 33)]], None)?;
    let raised = Interrupt::default();
    raised.raise();
    for attempt in 0..3 {
        let mut sequences = Sequences::new(&prompts()[..1], None)?;
        let batch = sequences.batch(&mut runner, &[(0, 33)], false)?;
        let mut output = StepOutput::default();
        let cancelled = match runner.execute(&batch, &mut output, &raised) {
            Err(Error::Cancelled) => Ok(()),
            other => Err(format!("{other:?} instead of `Cancelled`")),
        };
        rig.note(|| format!("attempt {attempt} with a raised interrupt"), cancelled);
        sequences.step(&mut runner, &[(0, 33)])?;
        let got = vec![std::mem::take(&mut sequences.sequences[0].logits)];
        rig.compare_logits("the step after a cancelled one", &got, &whole, Allowed::Bits);
    }
    Ok(())
}

/// A NaN in the weights is reported per sequence, with the place where it first appears, and affects only the sequences
/// that use it. Padding rows of the output head are ignored.
pub fn non_finite<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    let geometry = GEOMETRIES[1];
    let bad_token = 7;
    for (tensor, row, place) in [
        ("model.embed_tokens.weight", bad_token, Some("the embedding")),
        ("model.layers.0.self_attn.k_proj.bias", 3, Some("layer 0")),
        ("model.layers.1.mlp.down_proj.weight", 5, Some("layer 1")),
        ("model.layers.1.input_layernorm.weight", 5, Some("layer 1")),
        ("model.norm.weight", 0, Some("the output head")),
        ("lm_head.weight", 11, Some("the output head")),
        ("lm_head.weight", TOKEN_IDS, None),
    ] {
        let mut model = RandomModel::new(geometry)?;
        model.damage(tensor, row);
        // The expected logits of the sequences without the bad token.
        let clean = clean_prompts(bad_token as u32);
        let fresh = run_steps(
            &mut load_whole(rig.another()?, &RandomModel::new(geometry)?)?,
            &clean[..1],
            &[vec![(0, 9)], vec![(0, 24)]],
            None,
        )?;
        for greedy in [false, true] {
            let mut runner = load_whole(rig.another()?, &model)?;
            let bad = [prompt(5, 8), vec![bad_token as u32]].concat();
            // The damaged sequence stands before and behind a sound one.
            let ids = [bad.clone(), clean[0][..9].to_vec(), bad];
            let batch = Sequences::new(&ids, None)?.batch(&mut runner, &[(0, 9), (1, 9), (2, 9)], greedy)?;
            let mut output = StepOutput::default();
            runner.execute(&batch, &mut output, &Interrupt::default())?;
            let only_its_own = tensor.contains("embed_tokens");
            let damaged = (0..3).filter(|seq| place.is_some() && (!only_its_own || *seq != 1));
            let expected: Vec<Damage> =
                damaged.map(|seq| Damage { seq, place: place.unwrap_or_default().into() }).collect();
            let named = if output.damage == expected { Ok(()) } else { Err(format!("{:?}", output.damage)) };
            rig.note(|| format!("a NaN in {tensor}, row {row}, greedy: {greedy}"), named);
            if only_its_own {
                if !greedy && rig.is_batch_invariant() {
                    let rows = output.logits[9 * VOCAB..18 * VOCAB].to_vec();
                    let alone = fresh[0][..9 * VOCAB].to_vec();
                    rig.compare_logits("the sequence beside it", &[rows], &[alone], Allowed::Bits);
                }
                // The blocks hold NaN now; a sequence without that token must not notice.
                let got = run_steps(&mut runner, &clean[..1], &[vec![(0, 9)], vec![(0, 24)]], None)?;
                rig.compare_logits("the sequence after it", &got, &fresh, Allowed::Bits);
            }
        }
    }
    Ok(())
}

/// The prompts without `bad_token`.
fn clean_prompts(bad_token: u32) -> Vec<Vec<u32>> {
    let clean = |ids: Vec<u32>| ids.into_iter().map(|id| if id == bad_token { 8 } else { id }).collect();
    prompts().into_iter().map(clean).collect()
}
