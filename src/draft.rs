//! A draft model: the checkpoint of a small model that guesses the next tokens of a large one's answers. `load.rs` loads
//! it beside the large one, `plan.rs` counts its memory; how it guesses is core's business.

use std::path::{Path, PathBuf};

use qwen_core::Encoding;

/// A small model beside a large one, which guesses the next tokens of its answers: see
/// [`EngineOptions::draft`](crate::EngineOptions::draft).
///
/// ```
/// use qwen::{DraftModel, Encoding};
/// let draft = DraftModel::new("path/to/Qwen2.5-0.5B-Instruct").quantize(Encoding::Q8_0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct DraftModel {
    pub(crate) path: PathBuf,
    pub(crate) quantize: Option<Encoding>,
}

impl DraftModel {
    /// The model at `path`: a folder, a GGUF file or a name, as [`Engine::load`](crate::Engine::load) takes them.
    pub fn new(path: impl AsRef<Path>) -> Self {
        DraftModel { path: path.as_ref().into(), quantize: None }
    }

    /// Quantise its matrices to this encoding while it is loaded, as
    /// [`EngineOptions::quantize`](crate::EngineOptions::quantize) does for the model itself. A faster draft model pays
    /// sooner; its guesses become a little worse. Default: the encodings of its file.
    pub fn quantize(mut self, encoding: Encoding) -> Self {
        self.quantize = Some(encoding);
        self
    }
}

impl<P: AsRef<Path>> From<P> for DraftModel {
    fn from(path: P) -> Self {
        DraftModel::new(path)
    }
}
