//! One model over several devices of this machine: consecutive layers on each.

use std::fmt;
use std::ops::Range;

use qwen_core::model::plan::Plan;
use qwen_core::model::runner::{Pipeline, Stage};
use qwen_core::quantize::Importances;
use qwen_core::{Error, Result};

use super::Device;
use super::factory::{Capacity, DeviceFactory, DeviceSettings, LoadRequest, Loading, OpenedDevice, PartCapacity};
use crate::distributed::Loaded;
use crate::progress::{LoadProgress, LoadStage};

/// Which devices share a model, and how many of its layers each gets, in the order of the layers.
///
/// As text: `wgpu=12,cpu=12`, or `wgpu,cpu` for as many layers on the first device as its memory holds and the rest on
/// the second one; behind `split:` it is a [`Device`]. Adapters whose names have a comma or `=` in them are named by their
/// index.
///
/// ```
/// use qwen::{AdapterChoice, Device, Split};
/// let wgpu = Device::Wgpu(AdapterChoice::Best);
/// let named = Device::Split(Split::new().layers(wgpu.clone(), 12).layers(Device::Cpu, 12));
/// assert_eq!("split:wgpu=12,cpu=12".parse(), Ok(named));
/// let by_plan = Device::Split(Split::new().fill(wgpu).fill(Device::Cpu));
/// assert_eq!(by_plan.to_string(), "split:wgpu,cpu");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[must_use = "a split is a value: pass it as `Device::Split`"]
pub struct Split {
    parts: Vec<SplitPart>,
}

/// A device of a [`Split`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SplitPart {
    /// Neither [`Device::Auto`] nor another split.
    pub device: Device,
    /// How many layers it gets; `None` for as many as its memory holds, and for the last such device the rest.
    pub layers: Option<usize>,
}

impl Split {
    /// No device yet; a model needs at least two.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `layers` layers on `device`.
    pub fn layers(mut self, device: Device, layers: usize) -> Self {
        self.parts.push(SplitPart { device, layers: Some(layers) });
        self
    }

    /// As many of the next layers on `device` as its memory holds beside their K/V; on the last device without a number,
    /// what is left.
    pub fn fill(mut self, device: Device) -> Self {
        self.parts.push(SplitPart { device, layers: None });
        self
    }

    /// The devices, in the order of the layers.
    #[must_use]
    pub fn parts(&self) -> &[SplitPart] {
        &self.parts
    }

    /// Refuse what is no split, whatever the model is.
    fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::argument("device", reason));
        if self.parts.len() < 2 {
            return refuse(format!("`split:{self}` has to name two devices or more"));
        }
        for SplitPart { device, layers } in &self.parts {
            if matches!(device, Device::Auto | Device::Split(_)) {
                return refuse(format!("`{device}` is not one device, as a part of a split has to be"));
            }
            if device.to_string().contains([',', '=']) {
                return refuse(format!(
                    "`{device}` cannot be told from its neighbours in a split: name it by its index"
                ));
            }
            if *layers == Some(0) {
                return refuse(format!("`{device}` in a split has to get a layer or more, gets 0"));
            }
        }
        Ok(())
    }

    /// Each device, to be planned for and opened.
    pub(super) fn factory(&self) -> Result<SplitFactory> {
        self.check()?;
        let parts = self.parts.iter().map(|part| Ok((part.clone(), part.device.factory()?)));
        Ok(SplitFactory { split: self.clone(), parts: parts.collect::<Result<_>>()? })
    }

    /// The same devices with the layers of a plan that was made for them. One that holds all layers is alone.
    pub(super) fn placed(self, plan: &Plan) -> Device {
        let parts = self.parts.into_iter().zip(&plan.parts).filter(|(_, planned)| !planned.layers.is_empty());
        let placed = |(SplitPart { device, .. }, planned): (_, &qwen_core::model::plan::PlanPart)| SplitPart {
            device,
            layers: Some(planned.layers.len()),
        };
        let mut parts: Vec<SplitPart> = parts.map(placed).collect();
        match (parts.pop(), parts.is_empty()) {
            (Some(only), true) => only.device,
            (last, _) => {
                parts.extend(last);
                Device::Split(Split { parts })
            }
        }
    }

    /// A split as text, without `split:`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let part = |text: &str| {
            let digits = |layers: &&str| !layers.is_empty() && layers.bytes().all(|digit| digit.is_ascii_digit());
            let (device, layers) = match text.rsplit_once('=') {
                Some((device, layers)) => (device, Some(Some(layers).filter(digits)?.parse().ok()?)),
                None => (text, None),
            };
            Some(SplitPart { device: device.parse().ok()?, layers })
        };
        let split = Split { parts: text.split(',').map(part).collect::<Option<_>>()? };
        split.check().is_ok().then_some(split)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, SplitPart { device, layers }) in self.parts.iter().enumerate() {
            write!(f, "{}{device}", if index > 0 { "," } else { "" })?;
            if let Some(layers) = layers {
                write!(f, "={layers}")?;
            }
        }
        Ok(())
    }
}

/// The devices of a split, before they are open.
#[derive(Debug)]
pub(super) struct SplitFactory {
    split: Split,
    parts: Vec<(SplitPart, Box<dyn DeviceFactory>)>,
}

impl DeviceFactory for SplitFactory {
    fn device(&self) -> Option<Device> {
        Some(Device::Split(self.split.clone()))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        let mut sum = Some(0u64);
        for (index, (part, factory)) in self.parts.iter().enumerate() {
            if self.parts[..index].iter().all(|(before, _)| before.device != part.device) {
                sum = sum.zip(factory.free_bytes()?).map(|(sum, free)| sum.saturating_add(free));
            }
        }
        Ok(sum)
    }

    fn capacity(&self, settings: &DeviceSettings) -> Result<Capacity> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for (SplitPart { device, layers }, factory) in &self.parts {
            match factory.capacity(settings)? {
                Capacity::One(capacity) => {
                    parts.push(PartCapacity { device: device.clone(), layers: *layers, capacity });
                }
                Capacity::Split(nested) => parts.extend(nested),
            }
        }
        Ok(Capacity::Split(parts))
    }

    fn open(self: Box<Self>, settings: &DeviceSettings, plan: &Plan) -> Result<Box<dyn OpenedDevice>> {
        // A device that gets no layer is not opened.
        let used = self.parts.into_iter().zip(&plan.parts).filter(|(_, planned)| !planned.layers.is_empty());
        let opened = used.map(|((_, factory), planned)| {
            Ok(OpenedPart { layers: planned.layers.clone(), device: factory.open(settings, plan)? })
        });
        Ok(Box::new(OpenedSplit { parts: opened.collect::<Result<_>>()? }))
    }
}

/// The devices of a split, open.
struct OpenedSplit {
    parts: Vec<OpenedPart>,
}

struct OpenedPart {
    layers: Range<usize>,
    device: Box<dyn OpenedDevice>,
}

impl OpenedDevice for OpenedSplit {
    fn name(&self) -> String {
        if let [only] = &self.parts[..] {
            return only.device.name();
        }
        let part = |part: &OpenedPart| format!("{} layers on {}", part.layers.len(), part.device.name());
        self.parts.iter().map(part).collect::<Vec<_>>().join(", ")
    }

    fn load(self: Box<Self>, request: LoadRequest<'_>) -> Result<Loaded> {
        let mut parts = self.parts;
        if parts.len() == 1
            && let Some(only) = parts.pop()
        {
            return only.device.load(request);
        }
        let LoadRequest { source, spec, observer, .. } = request;
        let specs = parts.iter().map(|part| spec.clone().stage(part.layers.clone())).collect::<Result<Vec<_>>>()?;
        let sizes = specs.iter().map(|spec| spec.stored_bytes(source)).collect::<Result<Vec<_>>>()?;
        let mut loading = Loading { before: 0, total: sizes.iter().copied().fold(0, u64::saturating_add) };
        let mut stages = Vec::with_capacity(parts.len());
        for ((part, spec), size) in parts.into_iter().zip(&specs).zip(sizes) {
            stages.push(part.device.load_stage(LoadRequest { spec, ..request }, loading)?);
            loading.before = loading.before.saturating_add(size);
        }
        observer.report(LoadProgress::of(LoadStage::WarmUp))?;
        stages.iter_mut().try_for_each(|stage| stage.warm_up())?;
        Ok(Loaded::Engine(Box::new(Pipeline::new(stages)?)))
    }

    fn load_stage(self: Box<Self>, _: LoadRequest<'_>, _: Loading) -> Result<Box<dyn Stage>> {
        Err(Error::unsupported("a split as a part of a split", "name its devices instead"))
    }

    fn measure(self: Box<Self>, request: LoadRequest<'_>, prompts: &[&[u32]]) -> Result<Importances> {
        let mut parts = self.parts;
        match (parts.pop(), parts.is_empty()) {
            (Some(only), true) => only.device.measure(request, prompts),
            _ => {
                let reason = "the importances of a model's weights are measured on one device: name one";
                Err(Error::unsupported("a split model", reason))
            }
        }
    }
}

#[cfg(all(test, feature = "cpu", feature = "wgpu"))]
mod tests;
