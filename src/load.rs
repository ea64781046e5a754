//! From an open checkpoint to a model on its device: the whole model, or the part of one rank.

use std::path::Path;
use std::sync::Arc;

use qwen_core::checkpoint::Checkpoint;
use qwen_core::plan::Plan;
use qwen_core::{Config, Result};

use crate::device::Device;
use crate::distributed::{self, Transport};
use crate::options::EngineOptions;
use crate::place::{Job, Part, Place, Room, first_that_loads};

/// A loaded model, or a rank's part of it.
pub(crate) struct Loaded {
    pub(crate) part: Part,
    pub(crate) plan: Plan,
    pub(crate) device: String,
    pub(crate) device_reason: String,
    pub(crate) placed_on: Option<Device>,
}

/// Load what the options say, together with the other ranks if there are any.
pub(crate) fn load(
    place: impl Place,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
    options: &mut EngineOptions,
) -> Result<Loaded> {
    // A number of ranks that does not divide the model is refused before any rank waits for another.
    let spec = options.ranks.part(config)?;
    let mut candidates = place.candidates(options, checkpoint, config, num_token_ids)?;
    let transport = match options.ranks.world_size() {
        1 => None,
        _ => {
            // All ranks use the same kind of device, so none falls back to another one.
            candidates.truncate(1);
            let meant = candidates.first().and_then(|(place, _)| place.device());
            let fingerprint = fingerprint(meant.as_ref(), checkpoint, config, options)?;
            Some(distributed::connect(&options.ranks, &fingerprint)?)
        }
    };
    let load = |transport: Option<Arc<Transport>>| {
        let ((part, plan, device, placed_on), device_reason) = first_that_loads(candidates, |place| {
            let room = place.room(options)?;
            options.plan_in(&room, checkpoint, config, num_token_ids)?.check()?;
            let placed_on = place.device();
            let opened = place.open(options)?;
            let plan = plan_together(&room, checkpoint, config, num_token_ids, options, transport.as_deref())?;
            let limits = options.limits(&room, plan.context, plan.batch, config, num_token_ids);
            let job = Job { checkpoint, config, limits: &limits, spec: spec.clone(), transport: transport.clone() };
            let (part, device) = opened.load(job, options)?;
            Ok((part, plan, device, placed_on))
        })?;
        if let Some(transport) = &transport {
            // No rank starts before all have loaded.
            transport.all_reduce_min(0)?;
        }
        Ok(Loaded { part, plan, device, device_reason, placed_on })
    };
    match transport {
        None => load(None),
        Some(transport) => load(Some(transport.clone())).inspect_err(|error| transport.fail(error)),
    }
}

/// The plan of this process. If no context was asked for, it is the longest that fits on every rank.
fn plan_together(
    room: &Room,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
    options: &mut EngineOptions,
    transport: Option<&Transport>,
) -> Result<Plan> {
    let mut plan = options.plan_in(room, checkpoint, config, num_token_ids)?;
    plan.check()?;
    if let Some(transport) = transport {
        let least = transport.all_reduce_min(plan.context as u64)? as usize;
        if least != plan.context {
            options.set_context(least);
            plan = options.plan_in(room, checkpoint, config, num_token_ids)?;
            plan.check()?;
        }
    }
    Ok(plan)
}

/// Compute rank 0's steps until its engine is dropped.
pub(crate) fn run_worker(path: &Path, mut options: EngineOptions, place: impl Place) -> crate::Result<()> {
    if options.ranks.is_leader() {
        return Err(distributed::no_worker().into());
    }
    let checkpoint = Checkpoint::open(path)?;
    let config = options.config(&checkpoint)?;
    // Only rank 0 chooses tokens, so no tokenizer is read.
    let loaded = load(place, &checkpoint, &config, config.vocab_size, &mut options)?;
    drop(checkpoint);
    match loaded.part {
        Part::Worker(run) => Ok(run()?),
        Part::Engine(_) => Err(distributed::no_worker().into()),
    }
}

/// What must be the same on all ranks, by name.
fn fingerprint(
    device: Option<&Device>,
    checkpoint: &Checkpoint,
    config: &Config,
    options: &EngineOptions,
) -> Result<Vec<(&'static str, String)>> {
    // Two checkpoints of one shape differ in their norms as soon as they were trained differently.
    let norm = checkpoint.tensor("model.norm.weight")?;
    let kind = device.map_or("the program's own".into(), |device| device.to_string());
    let mut fingerprint = vec![
        ("the version of qwen-rs", env!("CARGO_PKG_VERSION").to_owned()),
        ("`hidden_size`", config.hidden_size.to_string()),
        ("`intermediate_size`", config.intermediate_size.to_string()),
        ("`num_hidden_layers`", config.num_hidden_layers.to_string()),
        ("`num_attention_heads`", config.num_attention_heads.to_string()),
        ("`num_key_value_heads`", config.num_key_value_heads.to_string()),
        ("`head_dim`", config.head_dim.to_string()),
        ("`vocab_size`", config.vocab_size.to_string()),
        ("`rms_norm_eps`", config.rms_norm_eps.to_string()),
        ("`rope_theta`", config.rope_theta.to_string()),
        ("`rope_scaling`", format!("{:?}", config.rope_scaling)),
        ("`tie_word_embeddings`", config.tie_word_embeddings.to_string()),
        ("the digest of the weights", format!("{:016x}", fnv(norm.data))),
        ("the size of the weights", checkpoint.total_bytes().to_string()),
        // The kind has to agree; ranks may use different devices of that kind.
        ("the device", kind.split(':').next().unwrap_or_default().to_owned()),
    ];
    fingerprint.extend(options.fingerprint());
    Ok(fingerprint)
}

/// The hash of Fowler, Noll and Vo, 64 bits of its variant 1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
