//! `/v1/models`: the one model that is served, under each of its names, and with each of its adapters.

use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::Result;
use crate::sse;

pub(crate) fn list(app: &App) -> Response {
    let names = app.settings.model_names.iter().map(|name| model(app, name));
    let adapters = app.loaded().map(qwen::Engine::adapters).unwrap_or_default();
    let models: Vec<Value> = names.chain(adapters.iter().map(|adapter| model(app, adapter.name()))).collect();
    sse::json(&json!({"object": "list", "data": models}))
}

/// # Errors
/// If there is no such model.
pub(crate) fn one(app: &App, name: &str) -> Result<Response> {
    app.check_model(name)?;
    Ok(sse::json(&model(app, name)))
}

fn model(app: &App, name: &str) -> Value {
    let mut model = json!({"id": name, "object": "model", "created": app.created, "owned_by": "qwen-rs"});
    if let Some(engine) = app.loaded() {
        if !app.settings.model_names.iter().any(|served| served == name) {
            model["parent"] = json!(app.model_name());
        }
        model["max_model_len"] = json!(engine.context());
        model["meta"] = json!({
            "device": engine.device_name(),
            "weight_encoding": engine.weight_encoding(),
            "vocab_size": engine.config().vocab_size,
            "hidden_size": engine.config().hidden_size,
        });
    }
    model
}
