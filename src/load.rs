//! From an open checkpoint to a model on its device: all of it, or the part of one rank.

use std::path::Path;
use std::sync::Arc;

use qwen_core::checkpoint::Checkpoint;
use qwen_core::plan::Plan;
use qwen_core::ranks::Link;
use qwen_core::{Config, Result};

use crate::device::Device;
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

/// Load what the options say: together with the other ranks, where there are any.
pub(crate) fn load(
    place: impl Place,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
    options: &mut EngineOptions,
) -> Result<Loaded> {
    // Ranks that do not divide the model are told so before anyone waits for another one.
    let spec = options.ranks.part(config)?;
    let mut candidates = place.candidates(options, checkpoint, config, num_token_ids)?;
    let link = match options.ranks.world_size() {
        1 => None,
        _ => {
            // Ranks are alike: none goes on to another device than the one that it has named.
            candidates.truncate(1);
            let meant = candidates.first().and_then(|(place, _)| place.device());
            Some(Arc::new(options.ranks.meet(&fingerprint(meant.as_ref(), checkpoint, config, options)?)?))
        }
    };
    let load = |link: Option<Arc<Link>>| {
        let ((part, plan, device, placed_on), device_reason) = first_that_loads(candidates, |place| {
            let room = place.room(options)?;
            options.plan_in(&room, checkpoint, config, num_token_ids)?.check()?;
            let placed_on = place.device();
            let opened = place.open(options)?;
            let plan = plan_together(&room, checkpoint, config, num_token_ids, options, link.as_deref())?;
            let limits = options.limits(&room, plan.context, plan.batch, config, num_token_ids);
            let job = Job { checkpoint, config, limits: &limits, spec: spec.clone(), link: link.clone() };
            let (part, device) = opened.load(job, options)?;
            Ok((part, plan, device, placed_on))
        })?;
        if let Some(link) = &link {
            // Nobody begins before all have loaded.
            link.least(0)?;
        }
        Ok(Loaded { part, plan, device, device_reason, placed_on })
    };
    match link {
        None => load(None),
        Some(link) => load(Some(link.clone())).inspect_err(|error| link.fail(error)),
    }
}

/// The plan of this process. Where no context was asked for, it is the longest that fits on every rank.
fn plan_together(
    room: &Room,
    checkpoint: &Checkpoint,
    config: &Config,
    num_token_ids: usize,
    options: &mut EngineOptions,
    link: Option<&Link>,
) -> Result<Plan> {
    let mut plan = options.plan_in(room, checkpoint, config, num_token_ids)?;
    plan.check()?;
    if let Some(link) = link {
        let least = link.least(plan.context as u64)? as usize;
        if least != plan.context {
            options.set_context(least);
            plan = options.plan_in(room, checkpoint, config, num_token_ids)?;
            plan.check()?;
        }
    }
    Ok(plan)
}

/// Compute with rank 0 until it is done.
pub(crate) fn follow(path: &Path, mut options: EngineOptions, place: impl Place) -> crate::Result<()> {
    if options.ranks.is_leader() {
        return Err(leads().into());
    }
    let checkpoint = Checkpoint::open(path)?;
    let config = options.config(&checkpoint)?;
    // Which ids may be chosen is rank 0's concern, so no tokenizer is read.
    let loaded = load(place, &checkpoint, &config, config.vocab_size, &mut options)?;
    drop(checkpoint);
    match loaded.part {
        Part::Follower(follow) => Ok(follow()?),
        Part::Engine(_) => Err(leads().into()),
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
        ("the digest of the weights", format!("{:016x}", fnv(&norm.data))),
        ("the size of the weights", checkpoint.total_bytes().to_string()),
        // Which of several devices of a kind it is may differ.
        ("the device", kind.split(':').next().unwrap_or_default().to_owned()),
    ];
    fingerprint.extend(options.fingerprint());
    Ok(fingerprint)
}

/// The hash of Fowler, Noll and Vo, 64 bits of its variant 1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The error of a rank that is asked for the engine.
pub(crate) fn no_engine(options: &EngineOptions) -> qwen_core::Error {
    let (rank, ranks) = (options.ranks.rank(), options.ranks.world_size());
    let reason = format!("rank {rank} of {ranks} has no engine, rank 0 has it: call `EngineOptions::follow` here");
    qwen_core::Error::argument("ranks", reason)
}

/// The error of rank 0 when it is asked to follow.
fn leads() -> qwen_core::Error {
    qwen_core::Error::argument("ranks", "rank 0 leads, and has the engine: call `EngineOptions::load` here")
}
