//! Bars for what takes long: loading a model, and reading a long prompt. Drawn on stderr, if that is a terminal.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qwen::{Engine, EngineOptions};

use super::failure::Failure;
use super::screen::Screen;

/// Load a model, and show how far it has come.
///
/// # Errors
/// Those of loading.
pub(crate) fn load(options: &EngineOptions, model: &Path, screen: Screen) -> Result<Engine, Failure> {
    let bar = bar(screen, 100, "loading [{bar:30}] {percent:3}%")?;
    let drawn = bar.clone();
    let options = options.clone().progress(move |share| drawn.set_position((share * 100.0) as u64));
    let engine = options.load(model);
    bar.finish_and_clear();
    Ok(engine?)
}

fn bar(screen: Screen, length: u64, template: &str) -> Result<ProgressBar, Failure> {
    let target = if screen.attended { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    Ok(ProgressBar::with_draw_target(Some(length), target).with_style(ProgressStyle::with_template(template)?))
}
