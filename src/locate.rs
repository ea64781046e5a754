//! What a program gives as a model: a path, or the name of a checkpoint on the hub. A path that exists is never taken for
//! a name.

use std::borrow::Cow;
use std::path::Path;

use crate::error::Result;
use crate::model_name::ModelName;
use crate::options::EngineOptions;

/// The path of the model that `given` means.
#[cfg(feature = "hub")]
pub(crate) fn locate<'a>(given: &'a Path, options: &EngineOptions) -> Result<Cow<'a, Path>> {
    match ModelName::of_path(given).filter(|_| is_absent(given)) {
        None => Ok(Cow::Borrowed(given)),
        Some(name) => {
            let hub = options.hub.clone().unwrap_or_default();
            Ok(Cow::Owned(hub.resolve(&name, &options.observer)?))
        }
    }
}

/// The path of the model that `given` means.
#[cfg(not(feature = "hub"))]
pub(crate) fn locate<'a>(given: &'a Path, _: &EngineOptions) -> Result<Cow<'a, Path>> {
    match ModelName::of_path(given).filter(|_| is_absent(given)) {
        None => Ok(Cow::Borrowed(given)),
        Some(_) => {
            let reason = "there is no such path; if it is the name of a checkpoint on the hub, build qwen-rs with the \
                          feature `hub`, or download it and load it by its path";
            let error = std::io::Error::new(std::io::ErrorKind::NotFound, reason);
            Err(qwen_core::Error::Io { path: given.to_path_buf(), error }.into())
        }
    }
}

/// Whether nothing is there. What cannot be looked at is somewhere, and the error is about the path.
fn is_absent(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

#[cfg(all(test, not(feature = "hub")))]
mod tests {
    #[test]
    fn a_build_without_the_hub_names_the_feature() {
        let error = crate::Engine::load("Qwen/Qwen2.5-0.5B-Instruct").expect_err("no such path");
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
        assert!(error.to_string().contains("feature `hub`"), "{error}");
        let error = crate::Engine::load("no/such/folder").expect_err("no such path");
        assert!(!error.to_string().contains("hub"), "{error}");
    }
}
