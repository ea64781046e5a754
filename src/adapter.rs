//! Low-rank adapters of an engine: loaded and unloaded while it answers, chosen by each request.

use std::path::Path;
use std::sync::Arc;

use qwen_core::checkpoint::LoraCheckpoint;
use qwen_core::engine::LoadedAdapter;
use qwen_core::numerics::float_env::FloatEnv;

use crate::adapter_registry::Adapter;
use crate::engine::Engine;
use crate::error::Result;
use crate::events::info;

impl Engine {
    /// Load a low-rank adapter (LoRA) beside the model, while it answers: a folder as PEFT saves it, with
    /// `adapter_config.json` and `adapter_model.safetensors`. Its name is that of the folder. `docs/adapters.md` says what
    /// is supported.
    ///
    /// ```no_run
    /// use qwen::{Engine, GenerateOptions};
    /// let engine = Engine::load("path/to/Qwen2.5-0.5B-Instruct")?;
    /// let poet = engine.load_adapter("adapters/poet")?;
    /// let options = GenerateOptions::new().adapter(&poet);
    /// println!("{}", engine.chat().options(options).send("Why is the sky blue?")?.text()?);
    /// engine.unload_adapter("poet")?;
    /// # Ok::<(), qwen::Error>(())
    /// ```
    ///
    /// # Errors
    /// For adapters that are not plain low-rank products or of another model, by name; beyond the limits of the options
    /// ([`EngineOptions::max_adapters`](crate::EngineOptions::max_adapters) and others) or the free memory; for a name that
    /// is loaded; and on a model that is split over ranks.
    pub fn load_adapter(&self, path: impl AsRef<Path>) -> Result<Adapter> {
        let path = path.as_ref();
        // `.` and `..` have no name of their own.
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
        self.load_adapter_as(name.unwrap_or_else(|| "adapter".into()), path)
    }

    /// As [`Engine::load_adapter`], under this name.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`].
    pub fn load_adapter_as(&self, name: impl Into<String>, path: impl AsRef<Path>) -> Result<Adapter> {
        let _float_env = FloatEnv::enter();
        let (name, path) = (name.into(), path.as_ref());
        let checkpoint = LoraCheckpoint::open(path, self.config())?;
        let adapters = self.adapters_by_name();
        let _loading = adapters.one_at_a_time();
        let checkpoint = Arc::new(checkpoint);
        let measured = checkpoint.clone();
        let bytes = self.worker().with_core(move |core| core.adapter_bytes(&*measured))??;
        adapters.check(&name, &checkpoint, bytes)?;
        let read = checkpoint.clone();
        let loaded = self.worker().with_core(move |core| core.load_adapter(&*read))??;
        let adapter = Adapter::new(name, path.to_path_buf(), &checkpoint, bytes, &loaded);
        info!("loaded {adapter:?} from {}", path.display());
        adapters.add(adapter.clone(), loaded);
        Ok(adapter)
    }

    /// Unload the adapter of this name: new requests with it are refused, those that wait or run keep it, and its memory
    /// is freed after the last of them. False if there is none of this name.
    ///
    /// # Errors
    /// After the engine has ended.
    pub fn unload_adapter(&self, name: &str) -> Result<bool> {
        let Some(adapter) = self.adapters_by_name().remove(name) else { return Ok(false) };
        self.worker().with_core(|core| core.free_adapters())?;
        info!("unloaded {adapter:?}");
        Ok(true)
    }

    /// The adapters that are loaded, in the order in which they were.
    #[must_use]
    pub fn adapters(&self) -> Vec<Adapter> {
        self.adapters_by_name().list()
    }

    /// The loaded adapter of this name.
    #[must_use]
    pub fn adapter(&self, name: &str) -> Option<Adapter> {
        self.adapters().into_iter().find(|adapter| adapter.name() == name)
    }

    /// What a request with `adapter` holds.
    ///
    /// # Errors
    /// When it was unloaded, or is of another engine.
    pub(crate) fn hold(&self, adapter: Option<&Adapter>) -> Result<Option<Arc<LoadedAdapter>>> {
        let Some(adapter) = adapter else { return Ok(None) };
        let held = adapter.held()?;
        match self.adapters().contains(adapter) {
            true => Ok(Some(held)),
            false => {
                let reason = format!("`{}` is of another engine, or was unloaded", adapter.name());
                Err(qwen_core::Error::argument("adapter", reason).into())
            }
        }
    }
}
