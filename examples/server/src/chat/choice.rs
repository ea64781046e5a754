//! `tool_choice` and `response_format`: what an answer has to be.

use qwen::{Grammar, Tool, ToolChoice};
use serde_json::Value;

use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// What an answer has to be, and the field that says so.
pub(super) type Constraint = Option<(Grammar, &'static str)>;

/// Which of the tools the model sees, and whether it has to call.
///
/// # Errors
/// For choices that are none, and for tools that are not there.
pub(super) fn tool_choice(value: Option<Value>, tools: &mut Vec<Tool>) -> Result<ToolChoice> {
    let Some(value) = value else { return Ok(ToolChoice::Auto) };
    if let Some(choice) = value.as_str() {
        return mode("tool_choice", choice);
    }
    let mut choice = Fields::of(value, "tool_choice")?;
    match choice.require::<String>("type")?.as_str() {
        "function" => {
            let name = function(&mut choice)?;
            choice.finish()?;
            match tools.iter().any(|tool| tool.name() == Some(&name)) {
                true => Ok(ToolChoice::Function(name)),
                false => Err(ApiError::invalid("tool_choice", format!("there is no tool {name:?}"))),
            }
        }
        "allowed_tools" => {
            let allowed = choice.object("allowed_tools")?;
            choice.finish()?;
            let mut allowed = allowed.ok_or_else(|| ApiError::invalid("tool_choice.allowed_tools", "is missing"))?;
            let (names, mode) = (allowed.require::<Vec<Value>>("tools")?, allowed.require::<String>("mode")?);
            allowed.finish()?;
            let name = |(index, tool): (usize, Value)| {
                let mut tool = Fields::of(tool, &format!("tool_choice.allowed_tools.tools[{index}]"))?;
                tool.require::<String>("type")?;
                function(&mut tool)
            };
            let names = names.into_iter().enumerate().map(name).collect::<Result<Vec<_>>>()?;
            tools.retain(|tool| names.iter().any(|name| tool.name() == Some(name)));
            self::mode("tool_choice.allowed_tools.mode", &mode)
        }
        kind => {
            Err(ApiError::unsupported("tool_choice.type", format!("must be function or allowed_tools, is {kind:?}")))
        }
    }
}

fn mode(at: &str, mode: &str) -> Result<ToolChoice> {
    match mode {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        other => Err(ApiError::invalid(at, format!("must be auto, none or required, is {other:?}"))),
    }
}

fn function(choice: &mut Fields) -> Result<String> {
    let at = choice.name("function");
    let mut function = choice.object("function")?.ok_or_else(|| ApiError::invalid(at, "is missing"))?;
    let name = function.require("name")?;
    function.finish()?;
    Ok(name)
}

/// The field `response_format` as a grammar; none for text.
///
/// # Errors
/// For other formats, and a schema that is missing. What is wrong with a schema, the library finds.
pub(super) fn response_format(fields: &mut Fields) -> Result<Constraint> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let grammar = match format.require::<String>("type")?.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::json_object()),
        "json_schema" => {
            let at = format.name("json_schema");
            let mut schema = format.object("json_schema")?.ok_or_else(|| ApiError::invalid(at, "is missing"))?;
            let grammar = Grammar::json_schema(schema.require::<Value>("schema")?);
            // Answers are held to the schema whether or not it is strict.
            schema.take::<bool>("strict")?;
            schema.take::<String>("description")?;
            schema.take::<String>("name")?;
            schema.finish()?;
            Some(grammar)
        }
        kind => {
            let reason = format!("must be text, json_object or json_schema, is {kind:?}");
            return Err(ApiError::invalid("response_format.type", reason));
        }
    };
    format.finish()?;
    Ok(grammar.map(|grammar| (grammar, "response_format")))
}

/// What the answer has to be, of both fields, and of tools whose arguments are held to their schemas.
///
/// # Errors
/// If they contradict each other.
pub(super) fn constraint(
    choice: &ToolChoice,
    parallel: bool,
    format: Constraint,
    tools: &[Tool],
) -> Result<Constraint> {
    let calls = choice.grammar(tools, parallel)?.map(|grammar| (grammar, "tool_choice"));
    let calls = calls.or_else(|| {
        let strict = *choice == ToolChoice::Auto && tools.iter().any(is_strict);
        strict.then(|| (Grammar::tool_calls(tools).parallel_calls(parallel).or_text(true), "tools"))
    });
    let may_call = *choice == ToolChoice::Auto && !tools.is_empty();
    match (calls, format) {
        (Some(_), Some(_)) if !may_call => {
            Err(ApiError::invalid("response_format", "an answer cannot be this and a call of a tool: leave one out"))
        }
        (_, Some(_)) if may_call => {
            let reason = "with it no tool can be called: leave out the tools, or set `tool_choice` to none";
            Err(ApiError::invalid("response_format", reason))
        }
        (calls, format) => Ok(calls.or(format)),
    }
}

/// Whether the arguments of a tool are held to its schema also where the model need not call it.
fn is_strict(tool: &Tool) -> bool {
    tool.json().get("function").and_then(|function| function.get("strict")) == Some(&Value::Bool(true))
}
