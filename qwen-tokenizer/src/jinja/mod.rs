//! Jinja, as much of it as chat templates use, with every cost bounded.
//!
//! The engine is the crate's own because a template comes with a checkpoint, and a hostile one must neither end nor
//! exhaust the process: here the source's nesting, the values' nesting, the work and the memory of one rendering all
//! have limits (see `limits`), and chains of any length cost no stack. What a template means is Jinja's to say: texts are
//! those of Jinja 3 in the sandbox of transformers, byte for byte, which `tests/jinja.rs` holds it to.
//!
//! From source to text: `lexer` makes tokens, `parser` a tree (`ast`), `check` finds what the tree asks for that is not
//! there, `render` runs its tags and `eval` its expressions. `value` is what they compute with, `json` makes values of the
//! caller's input, `ops` are operators, `access` is what is inside a value. `methods`, `filters`, `collections`,
//! `wordwrap`, `predicates` and `functions` are what templates call, by `names`; `python`, `format`, `braces` and `numbers`
//! write values as Python does. `scope` holds variables, `guards` and `texts` help to tell control
//! tokens apart, `clock` is the date.
//!
//! Where it differs from Jinja, on purpose: what no template can have is found at load (`check`); a namespace and `loop`
//! cannot be inside another value, so that there are no cycles; integers of more than 127 bits can only be written; there
//! are no bytes and nothing random; there is no HTML, so `safe` marks nothing, what is added to it is not escaped, and
//! `autoescape` can only be off; there is one template, so nothing is included or extended, and no `self` or `super`; an
//! outer variable that a body reads before the template sets one of its name further down is read, not undefined.
//! `tools/check-jinja.py` compares the two.
//!
//! What a chat is made of is not known here; see `template`.

mod access;
mod arguments;
mod ast;
mod braces;
mod check;
mod clock;
mod collections;
mod eval;
mod filters;
mod format;
mod functions;
mod guards;
pub(crate) mod json;
mod lexer;
mod limits;
mod methods;
mod names;
mod numbers;
mod ops;
mod parser;
mod predicates;
mod python;
mod render;
mod scope;
mod texts;
mod value;
mod wordwrap;

use std::sync::Arc;

pub(crate) use self::limits::{Budget, FaultKind};
pub(crate) use self::parser::SyntaxError;
pub(crate) use self::value::Value;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Program {
    tree: ast::Tree,
}

/// Where and why a rendering stopped.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// The line, counted from 1.
    pub(crate) line: usize,
    pub(crate) kind: FaultKind,
}

impl Program {
    /// Parses a template.
    pub(crate) fn parse(source: &str) -> Result<Self, SyntaxError> {
        Ok(Self { tree: parser::parse(source)? })
    }

    /// Renders the template to a text of at most `room` bytes. `now` are the seconds since 1970 for templates that write
    /// the date.
    pub(crate) fn render(
        &self,
        variables: impl IntoIterator<Item = (Arc<str>, Value)>,
        now: Option<i64>,
        room: usize,
        budget: &Budget,
    ) -> Result<String, Stopped> {
        let scopes = scope::Scopes::new(variables);
        let mut renderer = render::Renderer::new(&self.tree, scopes, now, room, budget);
        renderer.run().map_err(|fault| Stopped { line: renderer.line as usize, kind: fault.kind() })
    }
}
