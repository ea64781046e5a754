//! What all requests share: the settings, the engine once it is loaded, the figures, and who waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use qwen::Engine;

use crate::admission::Admission;
use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::metrics::Metrics;
use crate::settings::Settings;
use axum::http::StatusCode;

#[derive(Debug)]
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) admission: Arc<Admission>,
    /// Whether the server is told to end.
    pub(crate) is_ending: AtomicBool,
    /// Whether requests may come by the loopback interface alone.
    pub(crate) is_loopback: bool,
    /// Seconds since 1970.
    pub(crate) created: u64,
    engine: OnceLock<Engine>,
    ids: AtomicU64,
    /// What makes the ids of this process unlike those of others.
    id_prefix: u64,
}

impl App {
    pub(crate) fn new(settings: Settings, is_loopback: bool) -> Self {
        use std::hash::{BuildHasher, RandomState};
        App {
            admission: Admission::new(settings.max_first_token_time),
            settings,
            metrics: Metrics::default(),
            is_ending: AtomicBool::new(false),
            is_loopback,
            created: now(),
            engine: OnceLock::new(),
            ids: AtomicU64::new(1),
            id_prefix: RandomState::new().hash_one(0),
        }
    }

    /// The model is loaded. The first one stays.
    pub(crate) fn set_engine(&self, engine: Engine) {
        let _ = self.engine.set(engine);
    }

    pub(crate) fn loaded(&self) -> Option<&Engine> {
        self.engine.get()
    }

    /// # Errors
    /// While the model is being loaded.
    pub(crate) fn engine(&self) -> Result<&Engine> {
        self.loaded().ok_or_else(|| ApiError::unavailable("the model is being loaded"))
    }

    /// An id for a response, such as `chatcmpl-...`.
    pub(crate) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.id_prefix, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The engine as the model of this name uses it: with the adapter of the name, if it is one's.
    ///
    /// # Errors
    /// As [`App::engine`].
    pub(crate) fn engine_of(&self, model: &str) -> Result<Engine> {
        let engine = self.engine()?;
        let adapter = if self.is_base(model) { None } else { engine.adapter(model) };
        Ok(adapter.map_or_else(|| engine.clone(), |adapter| engine.with_adapter(&adapter)))
    }

    fn is_base(&self, model: &str) -> bool {
        self.settings.model_names.iter().any(|served| served == model)
    }

    /// The name of the model in answers.
    pub(crate) fn model_name(&self) -> &str {
        self.settings.model_names.first().map_or("qwen", String::as_str)
    }

    /// # Errors
    /// If there is no model of this name.
    pub(crate) fn check_model(&self, name: &str) -> Result<()> {
        if self.is_base(name) || self.loaded().is_some_and(|engine| engine.adapter(name).is_some()) {
            return Ok(());
        }
        let message = format!("`model`: there is no {name:?}; this server has {:?}", self.model_name());
        Err(ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message).code("model_not_found"))
    }

    /// Take the field `model`, and give the name for the answer.
    ///
    /// # Errors
    /// If there is no model of this name.
    pub(crate) fn take_model(&self, fields: &mut Fields) -> Result<String> {
        match fields.take::<String>("model")? {
            Some(name) => self.check_model(&name).map(|()| name),
            None => Ok(self.model_name().to_owned()),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Run `job` on a thread that may wait and compute. If nobody waits for it any more, it does not begin.
///
/// # Errors
/// Those of the job.
pub(crate) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    struct Abort(tokio::task::AbortHandle);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let span = tracing::Span::current();
    let task = tokio::task::spawn_blocking(move || span.in_scope(job));
    let _abort = Abort(task.abort_handle());
    // What a panic says may quote the request.
    task.await.unwrap_or_else(|_| Err(ApiError::internal("the request could not be worked on")))
}
