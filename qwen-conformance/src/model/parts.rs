//! Models split over ranks and stages.

use std::sync::Arc;

use super::drive::{load, load_whole, run_steps};
use super::weights::{GEOMETRIES, Geometry, RandomModel};
use super::{allowed, expected, mixed_steps, prompts};
use crate::op::Allowed;
use crate::rig::Rig;
use qwen_core::backend::collective::{Shard, ThreadGroup};
use qwen_core::backend::{Backend, Interrupt, KvSpec};
use qwen_core::error::{Error, Result};
use qwen_core::model::batch::BlockId;
use qwen_core::model::batch::{Batch, Damage, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::runner::{Pipeline, Runner, Stage};
use qwen_core::model::spec::ModelSpec;

/// One, two and four ranks in threads, also more ranks than K/V heads: close to the reference on each rank, with the
/// same bits on all of them.
pub fn ranks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (geometry, ranks) in [(GEOMETRIES[0], 1), (GEOMETRIES[0], 2), (GEOMETRIES[0], 4), (GEOMETRIES[1], 2)] {
        let results = run_ranks(rig, geometry, ranks)?;
        for (rank, logits) in results.iter().enumerate() {
            let what = format!("rank {rank} of {ranks}, {geometry:?}");
            rig.compare_logits(&what, logits, &expected(geometry)?, allowed(rig.precision));
            rig.compare_logits(&format!("{what}, against rank 0"), logits, &results[0], Allowed::Bits);
        }
    }
    Ok(())
}

fn run_ranks<B: Backend>(rig: &Rig<'_, B>, geometry: Geometry, ranks: usize) -> Result<Vec<Vec<Vec<f32>>>> {
    let model = &RandomModel::new(geometry)?;
    let backends = (0..ranks).map(|_| rig.another()).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ThreadGroup::new(ranks)
            .into_iter()
            .zip(backends)
            .enumerate()
            .map(|(rank, (group, b))| {
                scope.spawn(move || {
                    let spec = ModelSpec::new(&model.config).shard(Shard { rank, world_size: ranks })?;
                    let mut runner = load(b, spec, model)?.with_group(Arc::new(group));
                    run_steps(&mut runner, &prompts(), &mixed_steps(), None)
                })
            })
            .collect();
        let panicked = || Error::EngineStopped { reason: "a rank of the case panicked".into() };
        threads.into_iter().map(|thread| thread.join().map_err(|_| panicked())?).collect()
    })
}

/// Consecutive stages give the same bits as the whole model, and keep the same K/V.
pub fn stages<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for geometry in &GEOMETRIES[..2] {
        let model = RandomModel::new(*geometry)?;
        let mut runner = load_whole(rig.another()?, &model)?;
        let whole = run_steps(&mut runner, &prompts(), &mixed_steps(), None)?;
        for ends in [vec![0, 1, geometry.layers], (0..=geometry.layers).collect()] {
            let mut stages = pipeline(rig, &model, &ends)?;
            let got = run_steps(&mut stages, &prompts(), &mixed_steps(), None)?;
            let what = format!("stages {ends:?}, {geometry:?}");
            rig.compare_logits(&what, &got, &whole, Allowed::Bits);
            let kept = kept(&mut runner)?;
            let mut copy = pipeline(rig, &model, &ends)?;
            copy.write_blocks(&FIRST, &kept.1)?;
            for (whose, stages) in [("their own", &mut stages), ("written", &mut copy)] {
                let outcome = if self::kept(stages)? == kept { Ok(()) } else { Err("another one".into()) };
                rig.note(|| format!("{what}: {whose} K/V"), outcome);
            }
        }
    }
    Ok(())
}

/// The blocks that the first sequence uses.
const FIRST: [BlockId; 2] = [BlockId(0), BlockId(1)];

/// The layout of K/V, and what is in the first blocks.
fn kept(runner: &mut dyn Runner) -> Result<(KvSpec, Vec<u8>)> {
    let stored = runner.stored_kv()?;
    let mut bytes = vec![0; FIRST.len() * stored.block_bytes()];
    runner.read_blocks(&FIRST, &mut bytes)?;
    Ok((stored, bytes))
}

fn pipeline<B: Backend>(rig: &Rig<'_, B>, model: &RandomModel, ends: &[usize]) -> Result<Pipeline> {
    let stage = |pair: &[usize]| {
        let spec = ModelSpec::new(&model.config).stage(pair[0]..pair[1])?;
        Ok(Box::new(load(rig.another()?, spec, model)?) as Box<dyn Stage>)
    };
    Pipeline::new(ends.windows(2).map(stage).collect::<Result<_>>()?)
}

/// A NaN in an early stage is reported with its layer.
pub fn non_finite_stage<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for (layer, ends) in [(0, [0, 1, 3]), (1, [0, 2, 3]), (1, [0, 1, 3]), (2, [0, 1, 3])] {
        let mut model = RandomModel::new(GEOMETRIES[0])?;
        model.damage(&format!("model.layers.{layer}.mlp.up_proj.weight"), 3);
        let mut stages = pipeline(rig, &model, &ends)?;
        let mut batch = Batch::new(16);
        let (input_ids, block_table, logits) = (&[1, 2, 3][..], &[BlockId(0)][..], WantLogits::Last);
        batch.push(SequenceStep {
            input_ids,
            num_computed_tokens: 0,
            block_table,
            logits,
            rope_stage: 0,
            adapter: None,
        })?;
        let mut output = StepOutput::default();
        stages.execute(&batch, &mut output, &Interrupt::default())?;
        let expected = [Damage { seq: 0, place: format!("layer {layer}") }];
        let named = if output.damage == expected { Ok(()) } else { Err(format!("{:?}", output.damage)) };
        rig.note(|| format!("a NaN in layer {layer}, stages {ends:?}"), named);
    }
    Ok(())
}
