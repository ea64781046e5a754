//! How much the errors of each input feature matter, matrix by matrix.

use std::collections::HashMap;

/// How much an error in each column of a model's matrices matters: the mean square of what the column is multiplied
/// with, over some text. `llama.cpp` calls it an importance matrix.
///
/// ```
/// use qwen_core::quantize::Importances;
///
/// let mut importances = Importances::default();
/// importances.insert("model.layers.0.mlp.down_proj.weight", vec![0.5, 2.0]);
/// assert_eq!(importances.get("model.layers.0.mlp.down_proj.weight"), Some(&[0.5, 2.0][..]));
/// assert_eq!(importances.get("lm_head.weight"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importances {
    of_matrix: HashMap<String, Vec<f32>>,
}

impl Importances {
    /// Set those of a matrix, by the name of published safetensors checkpoints: a number from 0 on for each column.
    pub fn insert(&mut self, name: impl Into<String>, of_columns: Vec<f32>) {
        self.of_matrix.insert(name.into(), of_columns);
    }

    /// Those of a matrix, if there are any.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.of_matrix.get(name).map(Vec::as_slice)
    }

    /// The number of matrices that have some.
    pub fn len(&self) -> usize {
        self.of_matrix.len()
    }

    /// Whether no matrix has any.
    pub fn is_empty(&self) -> bool {
        self.of_matrix.is_empty()
    }
}
