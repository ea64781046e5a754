//! Hidden states after the final norm, beside logits of other sequences.

use super::drive::{Sequence, Sequences, Step, load_whole};
use super::weights::{GEOMETRIES, Geometry, RandomModel, VOCAB};
use super::{allowed, mixed_steps, whole_steps};
use crate::compare;
use crate::op::Allowed;
use crate::rig::Rig;
use qwen_core::backend::reference::Reference;
use qwen_core::backend::{Backend, Interrupt};
use qwen_core::error::Result;
use qwen_core::model::batch::{Batch, SequenceStep, StepOutput, WantLogits};
use qwen_core::model::runner::Runner;

/// What was read of each sequence, a row for each position.
struct Rows {
    hidden: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
}

/// Whether a sequence of [`super::prompts`] wants hidden states in a mixed step; the others want logits.
fn is_embedded(index: usize) -> bool {
    index % 2 == 1
}

/// Run `steps` over the prompts, with hidden states for the sequences that `wants` them and logits for the others.
fn run(runner: &mut dyn Runner, steps: &[Step], wants: impl Fn(usize) -> bool) -> Result<Rows> {
    let prompts = super::prompts();
    let mut sequences = Sequences::new(&prompts, None)?;
    let mut rows = Rows { hidden: vec![Vec::new(); prompts.len()], logits: vec![Vec::new(); prompts.len()] };
    for step in steps {
        let mut batch = Batch::new(runner.limits().block_size);
        for &(index, tokens) in step {
            let Sequences { pool, sequences } = &mut sequences;
            let Sequence { ids, computed, table, .. } = &mut sequences[index];
            let end = *computed + tokens;
            if let Some(copy) = table.reserve(*computed, end, pool)? {
                runner.copy_blocks(&[copy])?;
            }
            batch.push(SequenceStep {
                input_ids: &ids[*computed..end],
                num_computed_tokens: *computed,
                block_table: table.blocks(),
                logits: if wants(index) { WantLogits::Hidden(tokens) } else { WantLogits::All },
                rope_stage: 0,
                adapter: None,
            })?;
            *computed = end;
        }
        let mut output = StepOutput::default();
        runner.execute(&batch, &mut output, &Interrupt::default())?;
        let width = output.hidden.len().checked_div(batch.hidden_indices.len()).unwrap_or(0).max(1);
        let (mut hidden, mut logits) = (output.hidden.chunks(width), output.logits.chunks(VOCAB));
        for &(index, tokens) in step {
            match wants(index) {
                true => rows.hidden[index].extend(hidden.by_ref().take(tokens).flatten()),
                false => rows.logits[index].extend(logits.by_ref().take(tokens).flatten()),
            }
        }
    }
    Ok(rows)
}

/// Hidden states of whole prompts against the reference; in mixed steps, where promised, their bits and those of the
/// logits beside them are the same.
pub fn hidden<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    for geometry in [GEOMETRIES[0], GEOMETRIES[1]] {
        let model = RandomModel::new(geometry)?;
        let mut runner = load_whole(rig.another()?, &model)?;
        let expected = run(&mut load_whole(Reference::new(), &model)?, &whole_steps(), |_| true)?.hidden;
        let whole = run(&mut runner, &whole_steps(), |_| true)?.hidden;
        compare_hidden(rig, geometry, "whole prompts", &whole, &expected, allowed(rig.precision));
        let mixed = run(&mut runner, &mixed_steps(), is_embedded)?;
        let among = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            rows.iter()
                .enumerate()
                .map(|(index, rows)| if is_embedded(index) { rows.clone() } else { Vec::new() })
                .collect()
        };
        let same = if rig.is_batch_invariant() { Allowed::Bits } else { allowed(rig.precision) };
        compare_hidden(rig, geometry, "mixed steps", &mixed.hidden, &among(&whole), same);
        let logits = run(&mut runner, &mixed_steps(), |_| false)?.logits;
        for index in (0..logits.len()).filter(|index| !is_embedded(*index)) {
            let (got, expected) = (&mixed.logits[index..=index], &logits[index..=index]);
            rig.compare_logits(&format!("beside hidden states, {geometry:?}"), got, expected, same);
        }
    }
    Ok(())
}

fn compare_hidden<B: Backend>(
    rig: &mut Rig<'_, B>,
    geometry: Geometry,
    what: &str,
    got: &[Vec<f32>],
    expected: &[Vec<f32>],
    allowed: Allowed,
) {
    let width = geometry.heads * geometry.head_dim;
    for (sequence, (got, expected)) in got.iter().zip(expected).enumerate() {
        let outcome = match allowed {
            _ if got.len() != expected.len() => Err(format!("{} values, not {}", got.len(), expected.len())),
            Allowed::Bits => compare::bits(got, expected, width),
            Allowed::Rms { tolerance, floor } => compare::rms(got, expected, width, tolerance, floor),
        };
        rig.note(|| format!("hidden states, {what}, {geometry:?}, sequence {sequence}, rows are positions"), outcome);
    }
}
