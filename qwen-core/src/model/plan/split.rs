//! Which layers of a model go to which device, and what that takes.
//!
//! Devices are filled in order: each whose number of layers is left open gets as many as its memory holds, and the last of
//! those gets the rest. Devices may share one memory, as the CPU and an integrated GPU do.

use std::collections::HashMap;
use std::ops::Range;

use super::sizes::{Holding, Part, longest_context};
use super::{Plan, PlanInput, PlanPart};
use crate::backend::{Footprint, KvSpec};
use crate::error::{Error, Result};
use crate::model::source::WeightSource;
use crate::model::spec::ModelSpec;

/// A device that may hold some layers of a model.
#[derive(Debug, Clone, Copy)]
pub struct SplitDevice<'a> {
    /// Its name in plans and errors.
    pub name: &'a str,
    /// What weights, K/V and kernels take on it.
    pub footprint: &'a dyn Footprint,
    /// How many layers it gets; `None` for as many as fit, and for the last such device the rest.
    pub layers: Option<usize>,
    /// Its memory, as an index of [`SplitInput::memories`].
    pub memory: usize,
}

/// What is set aside for adapters on a device with this footprint that holds this part of the model.
pub type Reserved<'a> = dyn Fn(&dyn Footprint, &ModelSpec) -> Result<u64> + 'a;

/// The devices that share a model.
#[derive(Clone, Copy)]
pub struct SplitInput<'a> {
    /// In the order of the layers.
    pub devices: &'a [SplitDevice<'a>],
    /// The bytes that may be used of each memory; `None` if unknown.
    pub memories: &'a [Option<u64>],
    /// The most bytes on all devices together.
    pub budget: Option<u64>,
    /// What is set aside for adapters.
    pub reserved: &'a Reserved<'a>,
}

/// Plans one model for the devices of a split.
pub(super) struct Splitter<'a> {
    source: &'a dyn WeightSource,
    input: &'a PlanInput<'a>,
    draft: Option<(Part, &'a PlanInput<'a>)>,
    split: &'a SplitInput<'a>,
    /// The K/V of all layers.
    kv: KvSpec,
    /// What was computed of layers on a device, and what is set aside there.
    parts: HashMap<(usize, usize, usize), (Part, u64)>,
}

impl<'a> Splitter<'a> {
    pub(super) fn new(
        source: &'a dyn WeightSource,
        input: &'a PlanInput<'a>,
        draft: Option<(&dyn WeightSource, &'a PlanInput<'a>)>,
        split: &'a SplitInput<'a>,
    ) -> Result<Self> {
        let all = input.spec.layers.len();
        let named: usize = split.devices.iter().filter_map(|device| device.layers).fold(0, usize::saturating_add);
        let is_open = split.devices.iter().any(|device| device.layers.is_none());
        if split.devices.is_empty() || input.spec.layers.start > 0 || named > all || (named < all && !is_open) {
            let reason = format!("the parts have {named} layers, the model has {all}");
            return Err(Error::argument("device", reason));
        }
        if let Some(device) = split.devices.iter().find(|device| device.memory >= split.memories.len()) {
            let reason = format!("`{}` has number {} of {}", device.name, device.memory, split.memories.len());
            return Err(Error::argument("memory", reason));
        }
        input.spec.stored_bytes(source)?;
        let kv = input.spec.kv(&input.limits, input.precision, source)?;
        let draft = match (draft, split.devices.first()) {
            (Some((source, draft)), Some(first)) => {
                let kv = draft.spec.kv(&draft.limits, draft.precision, source)?;
                let part = Part::new(source, draft.spec, kv, first.footprint);
                Some((part.map_err(|error| on(first.name, error))?, draft))
            }
            _ => None,
        };
        Ok(Splitter { source, input, draft, split, kv, parts: HashMap::new() })
    }

    /// The plan with the wanted context, and the longest context that would fit.
    pub(super) fn plan(&mut self) -> Result<Plan> {
        let max_context = longest_context(self.input, |context| Ok(self.plan_at(context)?.fits))?;
        Ok(Plan { max_context, ..self.plan_at(self.input.context)? })
    }

    fn plan_at(&mut self, context: usize) -> Result<Plan> {
        let counts = self.counts(context)?;
        let plans = self.plans(&counts, context)?;
        Ok(self.sum(context, plans))
    }

    /// How many layers each device gets.
    fn counts(&mut self, context: usize) -> Result<Vec<usize>> {
        let devices = self.split.devices;
        let mut counts: Vec<usize> = devices.iter().map(|device| device.layers.unwrap_or(0)).collect();
        let open: Vec<usize> = (0..devices.len()).filter(|index| devices[*index].layers.is_none()).collect();
        let Some((&last, filled)) = open.split_last() else { return Ok(counts) };
        counts[last] = self.input.spec.layers.len() - counts.iter().sum::<usize>();
        for &index in filled {
            let SplitDevice { name, memory, .. } = devices[index];
            if self.split.memories[memory].or(self.split.budget).is_none() {
                let reason = "the size of its memory is not known: say how many layers it gets, or set a memory budget";
                return Err(Error::unsupported(format!("layers on `{name}` by plan"), reason));
            }
            // The most layers that fit, by bisection.
            let (mut low, mut high, rest) = (0, counts[last], counts[last]);
            while low < high {
                let middle = (low + high).div_ceil(2);
                (counts[index], counts[last]) = (middle, rest - middle);
                if self.holds(&counts, index, last, context)? { low = middle } else { high = middle - 1 }
            }
            (counts[index], counts[last]) = (low, rest - low);
            if low == 0 && rest > 0 {
                // A device without memory is left out. One that holds no layer however much it has is not: the plan then
                // says why.
                (counts[index], counts[last]) = (1, rest - 1);
                if self.plans(&counts, context)?[index].plan.refused.is_none() {
                    (counts[index], counts[last]) = (0, rest);
                }
            }
        }
        Ok(counts)
    }

    /// Whether device `index` has memory for its layers, beside all devices but the one that gets the rest.
    fn holds(&mut self, counts: &[usize], index: usize, rest: usize, context: usize) -> Result<bool> {
        let mut parts = self.plans(counts, context)?;
        let refused = parts[index].plan.refused.is_some();
        parts[rest].plan = Plan::empty(context, self.input.batch);
        let SplitInput { devices, memories, budget, .. } = *self.split;
        let peaks = self.peaks(&parts);
        let all = peaks.iter().copied().fold(0, u64::saturating_add);
        let within = |bytes: u64, most: Option<u64>| most.is_none_or(|most| bytes <= most);
        let memory = devices[index].memory;
        Ok(!refused && within(peaks[memory], memories[memory]) && within(all, budget))
    }

    /// The peak of each memory, where devices are loaded one after another.
    fn peaks(&self, parts: &[PlanPart]) -> Vec<u64> {
        let mut held = vec![0u64; self.split.memories.len()];
        let mut peaks = held.clone();
        for (device, part) in self.split.devices.iter().zip(parts) {
            let (held, peak) = (&mut held[device.memory], &mut peaks[device.memory]);
            *peak = held.saturating_add(part.plan.total_bytes).max(*peak);
            *held = held.saturating_add(part.plan.held_bytes());
        }
        peaks
    }

    /// What each device holds, whatever memory there is.
    fn plans(&mut self, counts: &[usize], context: usize) -> Result<Vec<PlanPart>> {
        let mut next = 0;
        let mut plans = Vec::with_capacity(counts.len());
        for (index, count) in counts.iter().enumerate() {
            let layers = next..next + count;
            next = layers.end;
            plans.push(PlanPart {
                device: self.split.devices[index].name.into(),
                plan: self.part_plan(index, layers.clone(), context)?,
                layers,
            });
        }
        Ok(plans)
    }

    fn part_plan(&mut self, index: usize, layers: Range<usize>, context: usize) -> Result<Plan> {
        let footprint = self.split.devices[index].footprint;
        let (part, reserved) = match self.part(index, layers)? {
            Some((part, reserved)) => (Some(part), reserved),
            None => (None, 0),
        };
        let draft = self.draft.clone().filter(|_| index == 0);
        Ok(Holding { footprint, part, draft }.plan(self.input, context).with_adapters(reserved))
    }

    /// The layers `layers` on device `index`, and what is set aside there.
    fn part(&mut self, index: usize, layers: Range<usize>) -> Result<Option<(Part, u64)>> {
        if layers.is_empty() {
            return Ok(None);
        }
        let key = (index, layers.start, layers.end);
        if let Some(known) = self.parts.get(&key) {
            return Ok(Some(known.clone()));
        }
        let SplitDevice { name, footprint, .. } = self.split.devices[index];
        let spec = self.input.spec.clone().stage(layers.clone())?;
        let kv = KvSpec { key_encodings: self.kv.key_encodings[layers].to_vec(), ..self.kv };
        let part = Part::new(self.source, &spec, kv, footprint).map_err(|error| on(name, error))?;
        let found = (part, (self.split.reserved)(footprint, &spec)?);
        self.parts.insert(key, found.clone());
        Ok(Some(found))
    }

    /// The sums over the devices, and whether their memories hold them.
    fn sum(&self, context: usize, mut parts: Vec<PlanPart>) -> Plan {
        let SplitInput { devices, memories, budget, .. } = *self.split;
        let peaks = self.peaks(&parts);
        let total = peaks.iter().copied().fold(0, u64::saturating_add);
        let in_budget = budget.is_none_or(|budget| total <= budget);
        let mut sum = Plan { fits: in_budget, total_bytes: total, ..Plan::empty(context, self.input.batch) };
        for (device, part) in devices.iter().zip(&mut parts) {
            let plan = &mut part.plan;
            plan.available_bytes = memories[device.memory];
            plan.fits = plan.refused.is_none() && plan.available_bytes.is_none_or(|most| peaks[device.memory] <= most);
            sum.fits &= plan.fits;
            for (sum, own) in [
                (&mut sum.weight_bytes, plan.weight_bytes),
                (&mut sum.read_bytes, plan.read_bytes),
                (&mut sum.kv_bytes, plan.kv_bytes),
                (&mut sum.activation_bytes, plan.activation_bytes),
                (&mut sum.load_bytes, plan.load_bytes),
                (&mut sum.adapter_bytes, plan.adapter_bytes),
            ] {
                *sum = sum.saturating_add(own);
            }
            sum.draft = sum.draft.or(plan.draft);
            let refused = plan.refused.as_ref().map(|reason| format!("`{}`: {reason}", part.device));
            sum.refused = sum.refused.or(refused);
        }
        let mut in_use = memories.iter().zip(&peaks).filter(|(_, peak)| **peak > 0).map(|(memory, _)| *memory);
        let known = in_use.try_fold(0u64, |sum, memory| Some(sum.saturating_add(memory?)));
        sum.available_bytes = match (known, budget) {
            (Some(known), Some(budget)) => Some(known.min(budget)),
            (known, budget) => known.or(budget),
        };
        sum.parts = parts;
        sum
    }
}

/// The error with the name of the device.
fn on(device: &str, error: Error) -> Error {
    match error {
        Error::Unsupported { what, reason } => Error::unsupported(what, format!("`{device}`: {reason}")),
        error => error,
    }
}
