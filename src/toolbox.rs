//! Functions of the program as tools, and the loop in which a model calls them and reads what they return.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use qwen_tokenizer::{Message, Tool, ToolCall};
use serde_json::{Value, json};

use crate::chat::Chat;
use crate::error::Result;
use crate::tool_choice::ToolChoice;

/// Functions that a model may call.
///
/// What a function returns is a message to the model, and so is what goes wrong: a name that does not exist, arguments that
/// do not fit, an error of the function, or its panic. The model then corrects its call or says what it found.
///
/// ```
/// use qwen::{Engine, GenerateOptions, Toolbox};
/// use serde_json::{Value, json};
///
/// let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
/// let tools = Toolbox::new().json_function("get_time", "Current local time of a city", city, |arguments: Value| {
///     match arguments["city"].as_str() {
///         Some("Cairo") => Ok("12:00".into()),
///         _ => Err("unknown city".into()),
///     }
/// });
/// let engine = Engine::load(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model"))?;
/// let mut chat = engine.chat().options(GenerateOptions::new().greedy());
/// let answer = chat.send_with_tools("Which time is it now in Cairo?", &tools)?;
/// assert!(answer.text().unwrap().contains("12:00"));
/// // The question, the call, what the function returned, the answer.
/// assert_eq!(chat.messages().len(), 4);
/// # Ok::<(), qwen::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Toolbox {
    functions: Vec<Function>,
    max_rounds: usize,
    threads: usize,
}

#[derive(Clone)]
struct Function {
    definition: Tool,
    run: Arc<Run>,
}

type Run = dyn Fn(Value) -> std::result::Result<Value, String> + Send + Sync;

impl fmt::Debug for Toolbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.functions.iter().map(|function| function.definition.name()).collect();
        f.debug_struct("Toolbox")
            .field("functions", &names)
            .field("max_rounds", &self.max_rounds)
            .finish_non_exhaustive()
    }
}

impl Default for Toolbox {
    fn default() -> Self {
        Toolbox { functions: Vec::new(), max_rounds: Self::MAX_ROUNDS, threads: 1 }
    }
}

impl Toolbox {
    /// The default of [`Toolbox::max_rounds`].
    pub const MAX_ROUNDS: usize = 8;

    /// No functions yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a function, in place of one with the same name: what it does, and a JSON schema of its arguments. It gets them
    /// as the model wrote them, which need not fit the schema.
    pub fn json_function(
        mut self,
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: Value,
        run: impl Fn(Value) -> std::result::Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        let definition = Tool::function(name, description, parameters);
        self.functions.retain(|function| function.definition.name() != definition.name());
        self.functions.push(Function { definition, run: Arc::new(run) });
        self
    }

    /// Add a function, in place of one with the same name. The schema of its arguments is that of the type `A`, whose
    /// comments describe them to the model; what does not fit the type does not reach the function.
    ///
    /// ```
    /// use qwen::Toolbox;
    ///
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Sum {
    ///     /// The numbers to be added.
    ///     numbers: Vec<f64>,
    /// }
    ///
    /// let tools = Toolbox::new()
    ///     .function("sum", "Adds numbers.", |Sum { numbers }| Ok::<_, String>(numbers.iter().sum::<f64>()));
    /// let definition = &tools.definitions()[0];
    /// assert_eq!(definition.parameters().unwrap()["properties"]["numbers"]["description"], "The numbers to be added.");
    /// let call = qwen::ToolCall::new("sum", serde_json::json!({"numbers": [1, 2.5]}));
    /// assert_eq!(tools.run(&call).text().as_deref(), Some("3.5"));
    /// ```
    #[cfg(feature = "tools")]
    pub fn function<A, T, E>(
        self,
        name: impl Into<String>,
        description: impl Into<String>,
        run: impl Fn(A) -> std::result::Result<T, E> + Send + Sync + 'static,
    ) -> Self
    where
        A: serde::de::DeserializeOwned + schemars::JsonSchema,
        T: serde::Serialize,
        E: fmt::Display,
    {
        // Chat templates write the schema as it is, and models know schemas without references.
        let settings =
            schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let mut parameters = settings.into_generator().into_root_schema_for::<A>().to_value();
        if let Value::Object(parameters) = &mut parameters {
            parameters.remove("$schema");
            parameters.remove("title");
        }
        self.json_function(name, description, parameters, move |arguments| {
            let arguments =
                serde_json::from_value(arguments).map_err(|error| format!("the arguments do not fit: {error}"))?;
            let result = run(arguments).map_err(|error| error.to_string())?;
            serde_json::to_value(result).map_err(|error| error.to_string())
        })
    }

    /// How often the model may call functions before it answers. Default 8: a model may never stop.
    pub fn max_rounds(mut self, rounds: usize) -> Self {
        self.max_rounds = rounds;
        self
    }

    /// Run up to this many calls of one answer at the same time, each on a thread of its own. Default 1: one after the
    /// other on the caller's thread.
    pub fn parallel(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The functions as the model is told of them, for [`Chat::tools`].
    #[must_use]
    pub fn definitions(&self) -> Vec<Tool> {
        self.functions.iter().map(|function| function.definition.clone()).collect()
    }

    /// Run a call. The message to the model says what the function returned, or `{"error": ...}`.
    #[must_use]
    pub fn run(&self, call: &ToolCall) -> Message {
        let result = match self.result(call) {
            Ok(Value::String(text)) => text,
            Ok(value) => value.to_string(),
            Err(error) => json!({"error": error}).to_string(),
        };
        let message = Message::tool(result);
        match &call.id {
            Some(id) => message.with_tool_call_id(id.as_str()),
            None => message,
        }
    }

    /// Run several calls. The messages are in the order of the calls.
    #[must_use]
    pub fn run_all(&self, calls: &[ToolCall]) -> Vec<Message> {
        if self.threads == 1 || calls.len() < 2 {
            return calls.iter().map(|call| self.run(call)).collect();
        }
        let mut messages = Vec::with_capacity(calls.len());
        for calls in calls.chunks(self.threads) {
            std::thread::scope(|scope| {
                let threads: Vec<_> = calls.iter().map(|call| scope.spawn(|| self.run(call))).collect();
                // Panics of functions are caught on their threads: one that arrives here is a fault of this library.
                let results =
                    threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
                messages.extend(results);
            });
        }
        messages
    }

    fn result(&self, call: &ToolCall) -> std::result::Result<Value, String> {
        let name = &call.function.name;
        let function = self.functions.iter().find(|function| function.definition.name() == Some(name));
        let function = function.ok_or_else(|| format!("there is no tool {name}"))?;
        let arguments = match call.function.arguments.as_str().trim() {
            // A function without parameters.
            "" => json!({}),
            text => serde_json::from_str(text).map_err(|error| format!("the arguments are no JSON: {error}"))?,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| (function.run)(arguments)));
        outcome.unwrap_or_else(|_| Err("the tool failed".into()))
    }
}

impl Chat {
    /// Say something, run what the model calls of `tools`, and let it go on with the results, until it answers without a
    /// call. All of it joins the conversation.
    ///
    /// The model is offered these tools, in place of earlier ones. After [`Toolbox::max_rounds`] rounds the last message
    /// is returned with its [`tool_calls`](Message::tool_calls), which were not run. Its [`Chat::tool_choice`] is about the
    /// first answer: those to results are as the model likes.
    ///
    /// # Errors
    /// As [`Chat::send`] and [`Reply::text`](crate::Reply::text). Errors of tools are messages to the model.
    pub fn send_with_tools(&mut self, text: impl Into<String>, tools: &Toolbox) -> Result<Message> {
        self.set_tools(tools.definitions());
        let mut message = self.send(text)?.message()?;
        // What had to be called is called: it would never answer otherwise.
        let choice = self.set_tool_choice(ToolChoice::Auto);
        let mut go_on = || {
            for _ in 0..tools.max_rounds {
                if message.tool_calls.is_empty() {
                    break;
                }
                for result in tools.run_all(&message.tool_calls) {
                    self.push(result)?;
                }
                message = self.reply()?.message()?;
            }
            Ok(())
        };
        let outcome = go_on();
        self.set_tool_choice(choice);
        outcome.map(|()| message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Toolbox {
        let echo = |arguments| Ok(arguments);
        Toolbox::new()
            .json_function("echo", "", json!({}), echo)
            .json_function("fail", "", json!({}), |_| Err("no \"luck\"".into()))
            .json_function("panic", "", json!({}), |_| panic!("a test of panics"))
    }

    fn said(name: &str, arguments: &str) -> String {
        tools().run(&ToolCall::new(name, arguments)).text().unwrap()
    }

    #[test]
    fn what_goes_wrong_is_told_to_the_model() {
        assert_eq!(said("echo", r#"{"a": 1}"#), r#"{"a":1}"#);
        assert_eq!(said("echo", ""), "{}");
        assert_eq!(said("echo", r#""text""#), "text");
        assert_eq!(said("fail", "{}"), r#"{"error":"no \"luck\""}"#);
        assert_eq!(said("panic", "{}"), r#"{"error":"the tool failed"}"#);
        assert_eq!(said("other", "{}"), r#"{"error":"there is no tool other"}"#);
        assert!(said("echo", "{").starts_with(r#"{"error":"the arguments are no JSON"#));
    }

    #[test]
    fn calls_run_at_the_same_time_and_answer_in_order() {
        // Each waits for the others.
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let wait = move |arguments: Value| {
            barrier.wait();
            Ok(arguments)
        };
        let tools = Toolbox::new().json_function("wait", "", json!({}), wait).parallel(3);
        let calls: Vec<ToolCall> =
            (0..6).map(|i| ToolCall::new("wait", json!({"i": i})).with_id(format!("call_{i}"))).collect();
        let messages = tools.run_all(&calls);
        for (i, message) in messages.iter().enumerate() {
            assert_eq!(message.text().unwrap(), format!("{{\"i\":{i}}}"));
            assert_eq!(message.tool_call_id, Some(format!("call_{i}")));
        }
        assert_eq!(messages.len(), 6);
    }

    #[test]
    fn a_name_stands_for_the_latest_function() {
        let tools = tools().json_function("fail", "", json!({}), |_| Ok("well".into()));
        assert_eq!(tools.run(&ToolCall::new("fail", "")).text().unwrap(), "well");
        assert_eq!(tools.definitions().len(), 3);
    }
}
