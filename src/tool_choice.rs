//! Whether an answer calls tools: as the model likes, not at all, at least once, or a certain one.

use qwen_tokenizer::Tool;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::grammar::Grammar;

/// Whether an answer calls tools.
///
/// ```
/// use qwen::ToolChoice;
/// assert_eq!(serde_json::to_string(&ToolChoice::Required)?, r#""required""#);
/// assert_eq!(serde_json::to_string(&ToolChoice::function("get_time"))?, r#"{"function":"get_time"}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// None: the model is not told of the tools.
    None,
    /// One or more calls, and nothing else: the tokens are chosen by the schemas of the tools. Needs the feature
    /// `structure`.
    Required,
    /// The same with this function alone.
    Function(String),
}

impl ToolChoice {
    /// Calls of this function.
    pub fn function(name: impl Into<String>) -> Self {
        ToolChoice::Function(name.into())
    }

    /// What the answer has to be, if it has to be something. With `parallel` it may have several calls.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) where there is no tool, or none with this name.
    pub fn grammar(&self, tools: &[Tool], parallel: bool) -> Result<Option<Grammar>> {
        let refused = |reason: String| Err(qwen_core::Error::argument("tool_choice", reason).into());
        let tools: Vec<Tool> = match self {
            ToolChoice::Auto | ToolChoice::None => return Ok(None),
            ToolChoice::Required => tools.to_vec(),
            ToolChoice::Function(name) => {
                let found: Vec<Tool> = tools.iter().filter(|tool| tool.name() == Some(name)).cloned().collect();
                if found.is_empty() {
                    return refused(format!("there is no tool `{name}`"));
                }
                found
            }
        };
        if tools.is_empty() {
            return refused("a call is required, and there are no tools".into());
        }
        Ok(Some(Grammar::tool_calls(&tools).parallel_calls(parallel)))
    }
}
