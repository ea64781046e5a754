//! How a [`crate::CpuBackend`] is made.

use std::sync::Arc;

use qwen_core::{Error, Precision, Result};

use crate::host;
use crate::simd::Isa;

/// The environment variable that overrides the instruction set, for tests and debugging.
const ISA_VARIABLE: &str = "QWEN_CPU_ISA";

/// The most threads of a backend.
const MAX_THREADS: usize = 1024;

/// How a [`crate::CpuBackend`] is made. All of it has defaults.
///
/// ```
/// use qwen_backend_cpu::{CpuBackend, CpuOptions};
/// use qwen_core::Precision;
/// let backend = CpuBackend::new(CpuOptions::new().precision(Precision::Exact).threads(2))?;
/// # Ok::<(), qwen_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CpuOptions {
    /// What kernels may round.
    pub precision: Precision,
    /// Threads that compute, including the calling one. `None`: the number of physical cores that the process may use,
    /// or of the pool's threads.
    pub threads: Option<usize>,
    /// A pool of the host program to take threads from, in addition to the calling one. `None`: our own threads.
    pub pool: Option<Arc<rayon::ThreadPool>>,
    /// The instruction set to use. `None`: the one that `QWEN_CPU_ISA` names, or the best that the CPU has.
    pub isa: Option<Isa>,
}

impl CpuOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Set [`CpuOptions::precision`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Set [`CpuOptions::threads`].
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Set [`CpuOptions::pool`].
    pub fn pool(mut self, pool: Arc<rayon::ThreadPool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Set [`CpuOptions::isa`].
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// The instruction set to use.
    pub(crate) fn resolve_isa(&self) -> Result<Isa> {
        if let Some(isa) = self.isa {
            return isa.checked();
        }
        match std::env::var(ISA_VARIABLE) {
            Ok(name) => name.parse::<Isa>().and_then(Isa::checked).map_err(|error| match error {
                Error::InvalidArgument { reason, .. } => Error::argument(ISA_VARIABLE, reason),
                Error::Unsupported { what, reason } => Error::unsupported(format!("{ISA_VARIABLE}: {what}"), reason),
                other => other,
            }),
            Err(std::env::VarError::NotPresent) => Ok(Isa::best()),
            Err(error) => Err(Error::argument(ISA_VARIABLE, error.to_string())),
        }
    }

    /// The number of threads.
    pub(crate) fn resolve_threads(&self) -> Result<usize> {
        let threads = self
            .threads
            .unwrap_or_else(|| self.pool.as_ref().map_or_else(host::physical_cores, |pool| pool.current_num_threads()));
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::argument("threads", format!("{threads} is not within 1 ..= {MAX_THREADS}")));
        }
        Ok(threads)
    }
}
