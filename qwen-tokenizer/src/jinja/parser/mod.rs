//! Tokens to a tree, with the grammar and the precedences of Jinja 3.
//!
//! Here are the tokens' cursor and the limits; tags are in `statements`, operators in `expressions`, what stands after
//! an operand in `postfix`.
//!
//! Only nesting recurses here, and nesting is bounded; chains are read by loops.

mod expressions;
mod postfix;
mod statements;

use super::ast::{Expr, Line, Rest, Text, Tree};
use super::check::check;
use super::lexer::{self, Token};
use super::limits::{MAX_SOURCE_BYTES, MAX_SOURCE_NESTING};

/// Why a source is no template.
#[derive(Debug)]
pub(crate) enum SyntaxError {
    Problem { line: usize, problem: String },
    Limit { line: usize, what: &'static str, found: usize, limit: usize },
}

type Result<T> = std::result::Result<T, SyntaxError>;

/// Parses a template. What it asks for and nothing has is an error too.
pub(super) fn parse(source: &str) -> Result<Tree> {
    if source.len() > MAX_SOURCE_BYTES {
        let what = "bytes of source";
        return Err(SyntaxError::Limit { line: 0, what, found: source.len(), limit: MAX_SOURCE_BYTES });
    }
    let source = lexer::normalize(source);
    let tokens = lexer::tokens(&source).map_err(|e| SyntaxError::Problem { line: e.line, problem: e.problem })?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        literals: Vec::new(),
        nesting: 0,
        loops: 0,
        rest: Rest::default(),
        blocks: Vec::new(),
    };
    let (nodes, end) = parser.body(&[])?;
    if let Some(name) = end {
        return parser.error(format!("`{name}` without its beginning"));
    }
    let tree = Tree { nodes, literals: parser.literals };
    check(&tree).map_err(|(line, problem)| SyntaxError::Problem { line: line as usize, problem })?;
    Ok(tree)
}

struct Parser<'a> {
    tokens: &'a [(Token<'a>, usize)],
    at: usize,
    literals: Vec<Text>,
    /// Open tags, brackets and conditions.
    nesting: usize,
    /// Open loops of the current macro.
    loops: usize,
    /// What the current macro asks for.
    rest: Rest,
    /// The names of all blocks so far.
    blocks: Vec<&'a str>,
}

impl<'a> Parser<'a> {
    fn line_number(&self) -> usize {
        let token = self.tokens.get(self.at).or_else(|| self.tokens.last());
        token.map_or(1, |(_, line)| *line)
    }

    fn line(&self) -> Line {
        Line::try_from(self.line_number()).unwrap_or(Line::MAX)
    }

    fn error<T>(&self, problem: impl Into<String>) -> Result<T> {
        Err(SyntaxError::Problem { line: self.line_number(), problem: problem.into() })
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        match self.tokens.get(self.at) {
            Some((token, _)) => self.error(format!("unexpected {token}, expected {expected}")),
            None => self.error(format!("unexpected end of the template, expected {expected}")),
        }
    }

    fn peek(&self) -> Option<&'a Token<'a>> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn next(&mut self) -> Option<&'a Token<'a>> {
        let token = self.peek();
        self.at += usize::from(token.is_some());
        token
    }

    fn is(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(found)) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if *found == name)
    }

    fn skip(&mut self, operator: &str) -> bool {
        let is = self.is(operator);
        self.at += usize::from(is);
        is
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, operator: &str) -> Result<()> {
        if self.skip(operator) { Ok(()) } else { self.unexpected(&format!("`{operator}`")) }
    }

    fn expect_name(&mut self, name: &str) -> Result<()> {
        if self.skip_name(name) { Ok(()) } else { self.unexpected(&format!("`{name}`")) }
    }

    fn expect_token(&mut self, token: &Token<'_>) -> Result<()> {
        if self.peek() == Some(token) {
            self.at += 1;
            return Ok(());
        }
        self.unexpected(&token.to_string())
    }

    fn name(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Runs `f` one level deeper.
    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.nesting += 1;
        self.check_nesting(self.nesting)?;
        let result = f(self);
        self.nesting -= 1;
        result
    }

    fn check_nesting(&self, found: usize) -> Result<()> {
        if found > MAX_SOURCE_NESTING {
            let line = self.line_number();
            return Err(SyntaxError::Limit { line, what: "levels of nesting", found, limit: MAX_SOURCE_NESTING });
        }
        Ok(())
    }

    fn literal(&mut self, text: String) -> Expr {
        self.literals.push(text.into());
        Expr::Str(self.literals.len() - 1)
    }
}
