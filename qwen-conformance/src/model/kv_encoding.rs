//! Whole models with K/V stored in blocks.

use super::drive::{load, run_steps};
use super::{GEOMETRIES, RandomModel, mixed_steps, prompts, whole_steps};
use crate::op::Allowed;
use crate::ops::kv_rows::refusal;
use crate::rig::Rig;
use crate::tolerance;
use qwen_core::Encoding;
use qwen_core::backend::Backend;
use qwen_core::backend::reference::Reference;
use qwen_core::error::Result;
use qwen_core::model::spec::ModelSpec;

/// Prompts, chunks and single tokens in one batch, in scattered blocks: close to the reference, and bit-identical.
///
/// # Errors
/// What the backend reports.
pub fn kv_in_blocks<B: Backend>(rig: &mut Rig<'_, B>) -> Result<()> {
    if let Some(reason) = refusal(rig)? {
        return rig.skip(&reason);
    }
    for geometry in GEOMETRIES {
        let model = RandomModel::new(geometry)?;
        let spec = ModelSpec::new(&model.config).with_kv_encoding(Encoding::Q8_0)?;
        let expected = run_steps(&mut load(Reference::new(), spec.clone(), &model)?, &prompts(), &whole_steps(), None)?;
        let mut runner = load(rig.another()?, spec, &model)?;
        let whole = run_steps(&mut runner, &prompts(), &whole_steps(), None)?;
        let mixed = run_steps(&mut runner, &prompts(), &mixed_steps(), Some(3))?;
        let what = format!("K/V in Q8_0, {geometry:?}");
        // Two roundings of a key near a tie may differ by one step, and so does what follows.
        let allowed = Allowed::rms(4.0 * tolerance::INT8);
        rig.compare_logits(&what, &whole, &expected, allowed);
        rig.compare_logits(&what, &mixed, &expected, allowed);
        if rig.is_batch_invariant() {
            rig.compare_logits(&format!("{what}, against whole prompts"), &mixed, &whole, Allowed::Bits);
        }
    }
    Ok(())
}
