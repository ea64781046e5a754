//! The demo model, for examples that were not given a model.

use std::path::{Path, PathBuf};

/// Its folder in the repository.
///
/// # Errors
/// If the sources do not include it, as those of a package: the error says where to get it.
pub(crate) fn path() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model");
    if folder.join("config.json").exists() {
        return Ok(folder);
    }
    let (repository, wanted) = (env!("CARGO_PKG_REPOSITORY"), folder.display());
    Err(format!(
        "the demo model is not at {wanted}: the package does not carry it. Copy the folder examples/demo-model of \
         {repository} there, or name a checkpoint of your own"
    ))
}
