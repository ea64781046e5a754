//! Which low-rank adapters an engine has loaded, and the handles of them. How they are loaded is in `adapter.rs`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use qwen_core::HumanBytes;
use qwen_core::checkpoint::LoraCheckpoint;
use qwen_core::engine::LoadedAdapter;

use crate::error::Result;

/// What loaded adapters may take, by default.
const DEFAULT_MAX_ADAPTERS: usize = 16;

/// A low-rank adapter that an engine has loaded ([`Engine::load_adapter`](crate::Engine::load_adapter)): a handle, cheap to
/// clone, for requests that choose it ([`GenerateOptions::adapter`](crate::GenerateOptions::adapter)). It does not keep the
/// adapter: that stays until [`Engine::unload_adapter`](crate::Engine::unload_adapter) and the end of the last request with
/// it.
#[derive(Clone)]
pub struct Adapter {
    facts: Arc<Facts>,
    loaded: Weak<LoadedAdapter>,
}

struct Facts {
    name: String,
    path: PathBuf,
    rank: usize,
    modules: usize,
    bytes: u64,
}

impl Adapter {
    /// Its name in the engine.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// The folder that it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.facts.path
    }

    /// The largest rank of its matrices.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.facts.rank
    }

    /// How many of the model's matrices it goes beside.
    #[must_use]
    pub fn modules(&self) -> usize {
        self.facts.modules
    }

    /// Bytes that it takes on the device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.facts.bytes
    }

    pub(crate) fn new(
        name: String,
        path: PathBuf,
        checkpoint: &LoraCheckpoint,
        bytes: u64,
        loaded: &Arc<LoadedAdapter>,
    ) -> Self {
        let (rank, modules) = (checkpoint.rank(), checkpoint.modules().count());
        let facts = Facts { name, path, rank, modules, bytes };
        Adapter { facts: Arc::new(facts), loaded: Arc::downgrade(loaded) }
    }

    /// What a request holds.
    ///
    /// # Errors
    /// When it was unloaded.
    pub(crate) fn held(&self) -> Result<Arc<LoadedAdapter>> {
        self.loaded.upgrade().ok_or_else(|| {
            let reason = format!("`{}` was unloaded: load it again (Engine::load_adapter)", self.name());
            qwen_core::Error::argument("adapter", reason).into()
        })
    }
}

/// Handles are equal if they are of one adapter, loaded once.
impl PartialEq for Adapter {
    fn eq(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.loaded, &other.loaded)
    }
}

impl Eq for Adapter {}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { name, rank, modules, .. } = &*self.facts;
        write!(f, "Adapter `{name}` (rank {rank} beside {modules} matrices, {})", HumanBytes(self.facts.bytes))
    }
}

/// What the adapters of an engine may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdapterLimits {
    pub(crate) count: usize,
    pub(crate) rank: usize,
    pub(crate) bytes: Option<u64>,
}

impl Default for AdapterLimits {
    fn default() -> Self {
        AdapterLimits { count: DEFAULT_MAX_ADAPTERS, rank: qwen_core::checkpoint::MAX_LORA_RANK, bytes: None }
    }
}

/// The adapters of an engine by name.
#[derive(Debug, Default)]
pub(crate) struct Adapters {
    limits: AdapterLimits,
    all: RwLock<Vec<(Adapter, Arc<LoadedAdapter>)>>,
    /// Held while one is loaded: what another one leaves of the limits is known then.
    loading: Mutex<()>,
}

impl Adapters {
    pub(crate) fn new(limits: AdapterLimits) -> Self {
        Adapters { limits, ..Self::default() }
    }

    pub(crate) fn list(&self) -> Vec<Adapter> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(adapter, _)| adapter.clone()).collect()
    }

    pub(crate) fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Add one that was loaded.
    pub(crate) fn add(&self, adapter: Adapter, loaded: Arc<LoadedAdapter>) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).push((adapter, loaded));
    }

    /// Take one away, if it is there. Requests with it go on.
    pub(crate) fn remove(&self, name: &str) -> Option<Adapter> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let index = all.iter().position(|(adapter, _)| adapter.name() == name)?;
        Some(all.remove(index).0)
    }

    /// Refuse one more adapter that is beyond the limits.
    pub(crate) fn check(&self, name: &str, adapter: &LoraCheckpoint, bytes: u64) -> qwen_core::Result<()> {
        let AdapterLimits { count, rank, bytes: most } = self.limits;
        let loaded = self.list();
        let refused = |option, reason| Err(qwen_core::Error::argument(option, reason));
        if loaded.iter().any(|adapter| adapter.name() == name) {
            return refused("name", format!("an adapter `{name}` is loaded: unload it first, or take another name"));
        }
        if loaded.len() >= count {
            return refused("max_adapters", format!("{count} adapters are loaded, and at most {count} may be"));
        }
        if adapter.rank() > rank {
            let found = adapter.rank();
            return refused("max_adapter_rank", format!("`{name}` has rank {found}, at most {rank} is allowed"));
        }
        let used: u64 = loaded.iter().map(Adapter::bytes).sum();
        match most {
            Some(most) if used.saturating_add(bytes) > most => {
                let [needed, left] = HumanBytes::compared(bytes, most.saturating_sub(used));
                let reason = format!("`{name}` takes {needed}, {left} of the memory for adapters are left");
                refused("adapter_memory", reason)
            }
            _ => Ok(()),
        }
    }
}
