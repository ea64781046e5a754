//! Bars for what takes long: loading a model, and reading a long prompt. Drawn on stderr, if somebody sits there.

use std::path::Path;

use indicatif::style::TemplateError;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qwen::{Engine, EngineOptions, Reply};

use super::failure::Failure;
use super::screen::Screen;

/// Load a model, and show how far it has come.
///
/// # Errors
/// Those of loading.
pub(crate) fn load(options: &EngineOptions, model: &Path, screen: Screen) -> Result<Engine, Failure> {
    let plain = ProgressStyle::with_template("{msg}")?;
    let counting = ProgressStyle::with_template("{msg} [{bar:30}] {percent:>3}% of {total_bytes}")?;
    let bar = ProgressBar::with_draw_target(None, target(screen));
    let drawn = bar.clone();
    let options = options.clone().progress(move |progress| {
        drawn.set_message(progress.stage.to_string());
        drawn.set_style(if progress.total > 0 { counting.clone() } else { plain.clone() });
        drawn.set_length(progress.total);
        drawn.set_position(progress.done);
    });
    let engine = options.load(model);
    bar.finish_and_clear();
    Ok(engine?)
}

/// Show how far a prompt has come that is computed in several parts. The bar goes by itself when the prompt is through, and
/// has to be cleared where it does not come so far.
///
/// # Errors
/// None, as long as the template is one.
pub(crate) fn prompt(reply: &mut Reply, screen: Screen) -> Result<ProgressBar, TemplateError> {
    let style = ProgressStyle::with_template("reading [{bar:30}] {pos} of {len} tokens")?;
    let bar = ProgressBar::with_draw_target(None, target(screen)).with_style(style);
    let drawn = bar.clone();
    reply.on_prompt_progress(move |progress| {
        if progress.done < progress.total {
            drawn.set_length(progress.total as u64);
            drawn.set_position(progress.done as u64);
        } else {
            drawn.finish_and_clear();
        }
    });
    Ok(bar)
}

fn target(screen: Screen) -> ProgressDrawTarget {
    if screen.attended { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}
