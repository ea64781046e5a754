//! Grammars on an engine: what a [`Grammar`] allows, token by token, by the crate `llguidance`.
//!
//! The first grammar of an engine prepares its vocabulary, which takes about half a second for the 151,665 tokens of
//! Qwen2.5. Each grammar is compiled once, on the thread of the caller, and remembered; each answer gets a state of its own
//! (`state.rs`), whose masks are computed by a few threads (`helpers.rs`) while the device computes logits.

mod calls;
mod cursor;
mod formats;
mod helpers;
mod schema;
mod state;
mod vocabulary;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use qwen_core::engine::sampling::{Constraint, ConstraintState};
use qwen_tokenizer::Tokenizer;

use crate::error::{Error, Result};
use crate::grammar::{Form, Grammar};
use cursor::Template;
use helpers::Helpers;
use state::State;
use vocabulary::Vocabulary;

/// The grammars of an engine.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    compiler: OnceLock<std::result::Result<Compiler, String>>,
    /// By the grammar's JSON, in which the order of properties counts. Those used last are first.
    compiled: Mutex<VecDeque<(String, Arc<Template>)>>,
}

struct Compiler {
    factory: ParserFactory,
    helpers: Arc<Helpers>,
    /// The id by which the crate says that a text may end.
    end: u32,
    num_ids: u32,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}

/// What a grammar may cost.
fn limits() -> ParserLimits {
    ParserLimits {
        // Of one or two kilobytes each.
        max_lexer_states: 50_000,
        // Errors would have the answer so far.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

impl Structure {
    /// The most grammars that are remembered.
    const MAX_COMPILED: usize = 64;

    /// The longest grammar, as JSON.
    const MAX_BYTES: usize = 1 << 20;

    /// The stack of the thread that compiles: schemas and patterns are nested.
    const STACK: usize = 16 << 20;

    /// The constraint of a request whose answer ends with one of `stop_token_ids`. `threads` compute its masks; with 0 it
    /// is whoever steps the engine.
    pub(crate) fn constraint(
        &self,
        grammar: &Grammar,
        stop_token_ids: &[u32],
        tokenizer: &Tokenizer,
        threads: usize,
    ) -> Result<Arc<dyn Constraint>> {
        if stop_token_ids.is_empty() {
            let reason = "a grammar ends with a stop token, and the request has none: leave `ignore_eos` out";
            return Err(qwen_core::Error::argument("grammar", reason).into());
        }
        let compiler = self.compiler.get_or_init(|| {
            // Odd vocabularies are looked at with assertions.
            let compiler = catch_unwind(AssertUnwindSafe(|| Compiler::new(tokenizer, threads)));
            compiler.unwrap_or_else(|_| Err("the vocabulary of the model cannot be used for grammars".into()))
        });
        let compiler = compiler.as_ref().map_err(|reason| refused(reason.clone()))?;
        let template = self.template(grammar, compiler, tokenizer)?;
        let (helpers, ends) = (compiler.helpers.clone(), stop_token_ids.into());
        Ok(Arc::new(Compiled { template, helpers, ends }))
    }

    fn template(&self, grammar: &Grammar, compiler: &Compiler, tokenizer: &Tokenizer) -> Result<Arc<Template>> {
        let lock = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let key = serde_json::to_string(grammar).map_err(|error| refused(error.to_string()))?;
        if key.len() > Self::MAX_BYTES {
            return Err(refused(format!("it has {} bytes, and may have {}", key.len(), Self::MAX_BYTES)));
        }
        {
            let mut compiled = lock();
            let known = compiled.iter().position(|(known, _)| *known == key);
            if let Some(entry) = known.and_then(|at| compiled.remove(at)) {
                let template = entry.1.clone();
                compiled.push_front(entry);
                return Ok(template);
            }
        }
        let source = source(grammar, tokenizer)?;
        let compile = || compiler.factory.create_parser(source.clone());
        let parser = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("qwen-grammar".into()).stack_size(Self::STACK);
            match thread.spawn_scoped(scope, compile) {
                Ok(thread) => thread.join().map_err(|_| refused("compiling it failed".into())),
                // Where there are no threads.
                Err(_) => Ok(compile()),
            }
        })?;
        let parser = parser.map_err(|error| refused(reason_of(&error.to_string())))?;
        let template = Arc::new(Template::new(Matcher::new(Ok(parser)), compiler.end, compiler.num_ids));
        let mut compiled = lock();
        compiled.truncate(Self::MAX_COMPILED - 1);
        compiled.push_front((key, template.clone()));
        Ok(template)
    }
}

impl Compiler {
    fn new(tokenizer: &Tokenizer, threads: usize) -> std::result::Result<Self, String> {
        let (vocabulary, end) = Vocabulary::new(tokenizer)?;
        let num_ids = vocabulary.num_ids();
        let mut factory = ParserFactory::new_simple(&vocabulary.shared())
            .map_err(|error| format!("the vocabulary cannot be used: {}", reason_of(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Compiler { factory, helpers: Arc::new(Helpers::new(threads)), end, num_ids })
    }
}

/// The grammar as the crate takes it.
fn source(grammar: &Grammar, tokenizer: &Tokenizer) -> Result<TopLevelGrammar> {
    Ok(match &grammar.form {
        Form::JsonSchema(schema) => {
            TopLevelGrammar::from_json_schema(schema::prepared(schema, grammar).map_err(refused)?)
        }
        Form::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
        Form::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        Form::ToolCalls(tools) => {
            let probe = "<tool_call>\n{\"name\": \"probe\", \"arguments\": {}}\n</tool_call>";
            if tokenizer.parse_answer(probe).tool_calls.is_empty() {
                let reason = "the checkpoint's chat template writes calls in another form than `<tool_call>`";
                return Err(qwen_core::Error::unsupported("a required tool call", reason).into());
            }
            TopLevelGrammar::from_lark(calls::lark(tools, grammar, tokenizer).map_err(refused)?)
        }
    })
}

fn refused(reason: String) -> Error {
    qwen_core::Error::Grammar { reason }.into()
}

/// What the crate says is wrong with a grammar, without what is about itself.
fn reason_of(text: &str) -> String {
    const MAX: usize = 500;
    if text.contains("coerce_one_of") {
        return "alternatives of `oneOf` that are not provably disjoint cannot be kept: give them a property with different \
                constants, or say `anyOf`"
            .into();
    }
    if text.contains("'referencing'") {
        return "a `$ref` leads out of the schema: only those within it (`#/...`) are followed, and nothing is fetched"
            .into();
    }
    let text = text.split("\n<").next().unwrap_or_default().trim();
    let end = text.char_indices().nth(MAX).map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or_default().to_owned()
}

/// A compiled grammar, as a request has it.
#[derive(Debug)]
struct Compiled {
    template: Arc<Template>,
    helpers: Arc<Helpers>,
    ends: Arc<[u32]>,
}

impl Constraint for Compiled {
    fn start(&self) -> Box<dyn ConstraintState> {
        Box::new(State::new(self.template.clone(), self.helpers.clone(), self.ends.clone()))
    }
}
