//! The emulated GPUs that the tests run on.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod blocks;
pub(crate) mod sizes;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use qwen_backend_cuda::ceilings::CeilingMeter;
use qwen_backend_cuda::emulator::{EmulatedGpu, Kernels};
use qwen_backend_cuda::{CudaBackend, CudaOptions};
use qwen_conformance::{Outcome, Suite, cases};
use qwen_core::{Error, Precision, Result};

use sizes::CHECKS;

/// Compute capabilities without and with bf16 tensor cores.
pub(crate) const TURING: (u32, u32) = (7, 5);
pub(crate) const HOPPER: (u32, u32) = (9, 0);

/// The kernels, compiled once. Without a compiler the tests are skipped, each with this reason.
pub(crate) fn kernels() -> Result<&'static Kernels> {
    static KERNELS: OnceLock<Result<Kernels>> = OnceLock::new();
    let built = KERNELS.get_or_init(|| Kernels::build(Path::new(env!("CARGO_TARGET_TMPDIR"))));
    built.as_ref().map_err(|error| match error {
        Error::Unsupported { what, reason } => Error::unsupported(what, reason),
        other => Error::EngineStopped { reason: other.to_string() },
    })
}

/// An emulated GPU.
fn gpu(capability: (u32, u32), reverse: bool) -> Result<EmulatedGpu> {
    Ok(EmulatedGpu::new(kernels()?).compute_capability(capability.0, capability.1).reverse(reverse))
}

/// A backend on an emulated GPU.
pub(crate) fn backend(capability: (u32, u32), precision: Precision, reverse: bool) -> Result<CudaBackend> {
    CudaBackend::new(CudaOptions::new().emulated(gpu(capability, reverse)?).precision(precision))
}

/// GPUs and precisions that use different kernels.
pub(crate) const GPUS: [((u32, u32), Precision); 3] =
    [(TURING, Precision::Exact), (TURING, Precision::Fast), (HOPPER, Precision::Fast)];

/// Cases of the suite that, together with the checks of sizes, reach every kernel quickly.
const CASES: [&str; 12] = [
    "embed/rows",
    "rms_norm/shapes",
    "rope/every_geometry",
    "attention/ragged_batches",
    "attention/contexts",
    "gate_up_silu/silu_and_mul",
    "add/lengths",
    "add_rows/rows",
    "gather_rows/rows",
    "argmax/valid_columns",
    "argmax/ties",
    "kv/copy_blocks",
];

/// Something that runs kernels and checks their results.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    Case(&'static str),
    Check(usize),
    Ceilings,
}

impl Probe {
    /// All probes, which together reach every kernel: the quick ones first.
    pub(crate) fn all() -> impl Iterator<Item = Probe> {
        let checks = (0..CHECKS.len()).map(Probe::Check);
        CASES.into_iter().map(Probe::Case).chain([Probe::Ceilings]).chain(checks)
    }

    /// Run it on one of [`GPUS`]. The error describes what is wrong.
    pub(crate) fn run(self, gpu: usize, reverse: bool) -> Result<(), String> {
        let (capability, precision) = GPUS[gpu];
        let make = move || backend(capability, precision, reverse);
        match self {
            Probe::Case(name) => {
                let case = cases().into_iter().find(|case| case.name == name).ok_or(format!("there is no {name}"))?;
                match Suite::new(make).fast_depends_on_the_batch().outcome(&case) {
                    Outcome::Passed { .. } => Ok(()),
                    Outcome::Skipped(reason) => Err(format!("skipped: {reason}")),
                    Outcome::Failed(failures) => Err(failures.to_string()),
                }
            }
            Probe::Check(index) => CHECKS[index].1(&mut make().map_err(|error| error.to_string())?),
            Probe::Ceilings => ceilings(capability, reverse).map_err(|error| error.to_string()),
        }
    }
}

/// The figures mean nothing on the emulator, but the kernels run.
fn ceilings(capability: (u32, u32), reverse: bool) -> Result<()> {
    let options = CudaOptions::new().emulated(gpu(capability, reverse)?);
    CeilingMeter::new(&options)?.measure(Duration::from_micros(1)).map(drop)
}
