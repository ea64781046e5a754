//! Low-rank adapters beside a random model: several in one batch, and sequences without any.

use super::drive::{Step, load_whole, run_with};
use super::weights::{GEOMETRIES, RandomModel};
use super::{allowed, mixed_steps, prompts, whole_steps};
use crate::op::Allowed;
use crate::random::{Rng, encode};
use crate::rig::Rig;
use qwen_core::Encoding;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{Backend, Interrupt};
use qwen_core::checkpoint::{Config, LoraHalf, LoraModule};
use qwen_core::error::Result;
use qwen_core::model::batch::{AdapterId, StepOutput};
use qwen_core::model::runner::Runner;
use qwen_core::model::source::LowRankSource;

/// An adapter with random weights.
#[derive(Debug)]
struct RandomAdapter {
    config: Config,
    seed: u64,
    rank: usize,
    encoding: Encoding,
    /// The projections that it goes beside.
    projections: &'static [&'static str],
    /// Whether each projection has a scale of its own.
    mixes_scales: bool,
}

impl RandomAdapter {
    fn shape(&self, projection: &str) -> (usize, usize) {
        let Config { hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim, .. } =
            self.config;
        match projection {
            "q_proj" => (num_attention_heads * head_dim, hidden_size),
            "k_proj" | "v_proj" => (num_key_value_heads * head_dim, hidden_size),
            "o_proj" => (hidden_size, num_attention_heads * head_dim),
            "down_proj" => (hidden_size, intermediate_size),
            _ => (intermediate_size, hidden_size),
        }
    }
}

impl LowRankSource for RandomAdapter {
    fn name(&self) -> String {
        format!("random adapter {}", self.seed)
    }

    fn encodings(&self, module: &str) -> Result<Option<([Encoding; 2], usize)>> {
        let has = self.projections.iter().any(|projection| module.ends_with(projection));
        Ok(has.then_some(([self.encoding; 2], self.rank)))
    }

    fn module(&self, module: &str) -> Result<Option<LoraModule>> {
        let Some(index) = self.projections.iter().position(|projection| module.ends_with(projection)) else {
            return Ok(None);
        };
        let (rows, cols) = self.shape(self.projections[index]);
        let layer = module.split('.').nth(2).and_then(|layer| layer.parse().ok()).unwrap_or(0);
        let half = |which: u64, len: usize, deviation: f32| {
            let values = Rng::of(&[50, self.seed, layer, index as u64, which]).normals(len, deviation);
            LoraHalf::new(self.encoding, encode(self.encoding, &values))
        };
        let a = half(0, self.rank * cols, (cols as f32).powf(-0.5));
        let b = half(1, rows * self.rank, (self.rank as f32).powf(-0.5));
        let scale = 0.5 + if self.mixes_scales { 0.3 * index as f64 } else { 0.0 };
        Ok(Some(LoraModule::new(a, b, self.rank, scale)))
    }
}

/// Every projection or some, ranks that are no multiple of anything, each encoding, and one without a part in a layer's
/// attention.
fn adapters(model: &RandomModel) -> [RandomAdapter; 3] {
    const ALL: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let adapter = |seed, rank, encoding, projections, mixes_scales| RandomAdapter {
        config: model.config.clone(),
        seed,
        rank,
        encoding,
        projections,
        mixes_scales,
    };
    [
        adapter(1, 8, Encoding::Bf16, ALL, false),
        adapter(2, 3, Encoding::F32, &["v_proj", "q_proj", "up_proj"], true),
        adapter(3, 17, Encoding::F16, &["down_proj"], false),
    ]
}

/// The numbers that adapters are loaded under, and those of the four [`prompts`]: two share one, one has none.
const IDS: [AdapterId; 3] = [AdapterId(1), AdapterId(2), AdapterId(3)];
const CHOSEN: [Option<AdapterId>; 4] = [Some(IDS[0]), None, Some(IDS[1]), Some(IDS[0])];
const OTHERS: [Option<AdapterId>; 4] = [Some(IDS[2]), Some(IDS[1]), None, None];

fn with_adapters(runner: &mut dyn Runner, model: &RandomModel) -> Result<()> {
    IDS.into_iter().zip(&adapters(model)).try_for_each(|(id, adapter)| runner.load_adapter(id, adapter))
}

/// Several adapters in one batch, in prompts, chunks and single tokens: near the reference; and where the device promises
/// it, each sequence with the bits that it has alone, and those without an adapter with the bits of a plain model.
pub fn adapters_in_a_batch<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for geometry in GEOMETRIES {
        let model = RandomModel::new(geometry)?;
        let (mut runner, mut reference) = (load_whole(rig.another()?, &model)?, load_whole(Reference::new(), &model)?);
        let plain = run_with(&mut runner, &prompts(), &[None; 4], &mixed_steps())?;
        with_adapters(&mut runner, &model)?;
        with_adapters(&mut reference, &model)?;
        // One geometry takes all of it, the others what depends on the geometry.
        let choices = if geometry == GEOMETRIES[0] { &[CHOSEN, OTHERS][..] } else { &[CHOSEN] };
        for chosen in choices {
            let expected = run_with(&mut reference, &prompts(), chosen, &whole_steps())?;
            let alone = run_with(&mut runner, &prompts(), chosen, &whole_steps())?;
            let mixed = run_with(&mut runner, &prompts(), chosen, &mixed_steps())?;
            let what = format!("{chosen:?}, {geometry:?}");
            for got in [&alone, &mixed] {
                rig.compare_logits(&what, got, &expected, allowed(rig.precision));
            }
            if rig.is_batch_invariant() {
                let ways = [("mixed", mixed), ("together", run_with(&mut runner, &prompts(), chosen, &[all()])?)];
                for (how, got) in ways {
                    rig.compare_logits(&format!("{how}, {what}"), &got, &alone, Allowed::Bits);
                    without(chosen).for_each(|index| {
                        let (got, plain) = (&got[index..=index], &plain[index..=index]);
                        rig.compare_logits(&format!("{how}, without an adapter, {what}"), got, plain, Allowed::Bits);
                    });
                }
            }
        }
        // A step without adapters is a plain one, with them loaded or not.
        let again = run_with(&mut runner, &prompts(), &[None; 4], &mixed_steps())?;
        rig.compare_logits(&format!("no adapter, {geometry:?}"), &again, &plain, Allowed::Bits);
        if geometry == GEOMETRIES[0] {
            unloaded(rig, &mut runner, &model)?;
        }
    }
    Ok(())
}

/// An adapter that is unloaded is refused by a batch, and the same weights under another number give the same bits.
fn unloaded<B: Backend>(rig: &mut Rig<'_, B>, runner: &mut dyn Runner, model: &RandomModel) -> Result<()> {
    let before = run_with(runner, &prompts(), &OTHERS, &mixed_steps())?;
    IDS.into_iter().for_each(|id| runner.unload_adapter(id));
    let refused = match run_with(runner, &prompts(), &OTHERS, &whole_steps()) {
        Err(_) => Ok(()),
        Ok(_) => Err("computed with an adapter that is not there".to_owned()),
    };
    rig.note(|| "an unloaded adapter".into(), refused);
    let renamed = |id: AdapterId| AdapterId(id.0 + 10);
    for (id, adapter) in IDS.into_iter().zip(&adapters(model)).rev() {
        runner.load_adapter(renamed(id), adapter)?;
    }
    let after = run_with(runner, &prompts(), &OTHERS.map(|id| id.map(renamed)), &mixed_steps())?;
    rig.compare_logits("loaded again", &after, &before, Allowed::Bits);
    // Nothing of a step is left that a plain one would notice.
    let mut sequences = super::drive::Sequences::new(&prompts()[..1], None)?;
    let batch = sequences.batch(runner, &[(0, 1)], true)?;
    runner.execute(&batch, &mut StepOutput::default(), &Interrupt::default())
}

/// All of [`prompts`] in one step.
fn all() -> Step {
    prompts().iter().enumerate().map(|(index, ids)| (index, ids.len())).collect()
}

/// The sequences without an adapter.
fn without(chosen: &[Option<AdapterId>]) -> impl Iterator<Item = usize> + '_ {
    chosen.iter().enumerate().filter(|(_, adapter)| adapter.is_none()).map(|(index, _)| index)
}
