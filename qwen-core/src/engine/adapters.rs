//! The low-rank adapters of an engine, and how long they stay: as long as anybody holds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::EngineCore;
use crate::error::{Error, Result};
use crate::model::batch::AdapterId;
use crate::model::source::LowRankSource;
use crate::numerics::float_env::FloatEnv;

/// A low-rank adapter that an engine has loaded. Requests that hold it ([`Request::adapter`](super::Request::adapter)) are
/// computed with it. Once nobody else holds it, the engine frees its memory.
#[derive(Debug, PartialEq, Eq)]
pub struct LoadedAdapter {
    id: AdapterId,
}

impl LoadedAdapter {
    /// Its number, which no other adapter of this process has.
    pub fn id(&self) -> AdapterId {
        self.id
    }
}

impl EngineCore {
    /// Bytes that an adapter would take on the devices, without the buffers that all adapters share.
    ///
    /// # Errors
    /// As [`EngineCore::load_adapter`].
    pub fn adapter_bytes(&self, adapter: &dyn LowRankSource) -> Result<u64> {
        self.runner.adapter_bytes(adapter)
    }

    /// Load an adapter. It stays as long as the result or a clone of it does, in requests, too.
    ///
    /// # Errors
    /// As [`Runner::load_adapter`](crate::model::runner::Runner::load_adapter).
    pub fn load_adapter(&mut self, adapter: &dyn LowRankSource) -> Result<Arc<LoadedAdapter>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let _float_env = FloatEnv::enter();
        self.free_adapters();
        let id = AdapterId(NEXT.fetch_add(1, Ordering::Relaxed));
        self.runner.load_adapter(id, adapter)?;
        let loaded = Arc::new(LoadedAdapter { id });
        self.adapters.push(loaded.clone());
        Ok(loaded)
    }

    /// Free the adapters that nobody holds any more. Each step does so, too.
    pub fn free_adapters(&mut self) {
        let EngineCore { adapters, runner, .. } = self;
        adapters.retain(|adapter| {
            let is_held = Arc::strong_count(adapter) > 1;
            if !is_held {
                runner.unload_adapter(adapter.id);
            }
            is_held
        });
    }

    /// Refuse an adapter of another engine.
    pub(super) fn check_adapter(&self, adapter: Option<&Arc<LoadedAdapter>>) -> Result<()> {
        match adapter.is_none_or(|adapter| self.adapters.contains(adapter)) {
            true => Ok(()),
            false => Err(Error::argument("adapter", "was loaded by another engine")),
        }
    }
}
