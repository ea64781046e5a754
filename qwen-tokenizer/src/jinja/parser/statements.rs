//! Tags.

use std::sync::Arc;

use super::super::ast::{Expr, For, Line, Macro, Node, Postfix, Rest, Target, Text};
use super::super::lexer::Token;
use super::{Parser, Result};

const RESERVED: [&str; 6] = ["true", "True", "false", "False", "none", "None"];

impl<'a> Parser<'a> {
    /// The nodes up to a tag named in `ends`, which is left after its name; `None` at the end of the template.
    pub(super) fn body(&mut self, ends: &[&str]) -> Result<(Vec<Node>, Option<&'a str>)> {
        let mut nodes = Vec::new();
        while let Some(token) = self.next() {
            match token {
                Token::Data(text) => nodes.push(Node::Text((*text).into())),
                Token::VariableStart => {
                    let line = self.line();
                    let expr = self.tuple(true)?;
                    self.expect_token(&Token::VariableEnd)?;
                    nodes.push(Node::Output(line, expr));
                }
                Token::BlockStart => {
                    let name = self.name()?;
                    if ends.contains(&name) || name.starts_with("end") || matches!(name, "else" | "elif") {
                        return Ok((nodes, Some(name)));
                    }
                    nodes.push(self.nested(|parser| parser.statement(name))?);
                }
                _ => return self.error("a tag was expected"),
            }
        }
        Ok((nodes, None))
    }

    /// The nodes up to one of `ends`, which must come.
    pub(super) fn body_until(&mut self, ends: &[&str]) -> Result<(Vec<Node>, &'a str)> {
        let (nodes, end) = self.body(ends)?;
        match end {
            Some(end) if ends.contains(&end) => Ok((nodes, end)),
            Some(end) => self.error(format!("unexpected `{end}`, expected `{}`", ends.join("` or `"))),
            None => self.error(format!("unexpected end of the template, expected `{}`", ends.join("` or `"))),
        }
    }

    /// The end of a tag, the nodes up to `end` and its end.
    pub(super) fn block(&mut self, end: &str) -> Result<Vec<Node>> {
        self.expect_token(&Token::BlockEnd)?;
        let (nodes, _) = self.body_until(&[end])?;
        self.expect_token(&Token::BlockEnd)?;
        Ok(nodes)
    }

    pub(super) fn statement(&mut self, name: &str) -> Result<Node> {
        let line = self.line();
        let node = match name {
            "for" => return self.for_loop(line),
            "if" => return self.condition_block(line),
            "set" => return self.set(line),
            "macro" => {
                let name = self.assigned_name()?;
                return Ok(Node::Macro(self.macro_rest(name, "endmacro")?));
            }
            "call" => {
                let parameters = if self.is("(") { self.parameters()? } else { Vec::new() };
                let call = self.expr()?;
                if !matches!(&call, Expr::Postfix(_, all) if matches!(all.last(), Some((_, Postfix::Call(_))))) {
                    return self.unexpected("a call");
                }
                let (body, rest) = self.macro_body("endcall")?;
                let caller = Arc::new(Macro { name: "caller".into(), parameters, rest, body });
                return Ok(Node::Call { line, call, caller });
            }
            "filter" => {
                let filters = self.filters()?;
                Node::FilterBlock { line, filters, body: self.block("endfilter")? }
            }
            "with" => {
                let mut targets = Vec::new();
                while self.peek() != Some(&Token::BlockEnd) {
                    if !targets.is_empty() {
                        self.expect(",")?;
                    }
                    let target = self.target(false)?;
                    self.expect("=")?;
                    targets.push((target, self.expr()?));
                }
                Node::With { line, targets, body: self.block("endwith")? }
            }
            "generation" => Node::Scope(self.block("endgeneration")?),
            "autoescape" => {
                if !matches!(self.expr()?, Expr::Bool(false)) {
                    let problem =
                        "the tag `autoescape` makes HTML of texts, and a model reads them as they are; take it out";
                    return self.error(problem);
                }
                Node::Scope(self.block("endautoescape")?)
            }
            "print" => {
                let mut values = Vec::new();
                while self.peek() != Some(&Token::BlockEnd) {
                    if !values.is_empty() {
                        self.expect(",")?;
                    }
                    values.push(self.expr()?);
                }
                self.expect_token(&Token::BlockEnd)?;
                Node::Output(line, Expr::Concat(values))
            }
            "block" => return self.named_block(),
            "break" | "continue" => {
                if self.loops == 0 {
                    return self.error(format!("`{name}` outside of a loop"));
                }
                self.expect_token(&Token::BlockEnd)?;
                if name == "break" { Node::Break } else { Node::Continue }
            }
            "include" | "import" | "from" | "extends" => {
                return self
                    .error(format!("the tag `{name}` reads another file, but a chat template is one; put it in"));
            }
            _ => {
                return self.error(format!(
                    "the tag `{name}` is not one of Jinja as transformers sets it up; correct the template or use another"
                ));
            }
        };
        Ok(node)
    }

    /// A block, which a template of its own renders where it stands.
    fn named_block(&mut self) -> Result<Node> {
        let name = self.name()?;
        if self.blocks.contains(&name) {
            return self.error(format!("the block `{name}` is there twice; give one another name"));
        }
        self.blocks.push(name);
        let is_scoped = self.skip_name("scoped");
        if self.skip_name("required") {
            return self.error(format!(
                "the block `{name}` is `required` of a template that extends this one, but a chat template is one; put it in"
            ));
        }
        self.expect_token(&Token::BlockEnd)?;
        let (body, _) = self.apart(|parser| parser.body_until(&["endblock"]))?.0;
        self.skip_name(name);
        self.expect_token(&Token::BlockEnd)?;
        Ok(Node::Block { is_scoped, body })
    }

    pub(super) fn for_loop(&mut self, line: Line) -> Result<Node> {
        let target = self.target(false)?;
        self.expect_name("in")?;
        let items = self.tuple(false)?;
        let filter = if self.skip_name("if") { Some(self.expr()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        self.expect_token(&Token::BlockEnd)?;
        self.loops += 1;
        let (body, end) = self.body_until(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if end == "else" { self.block("endfor")? } else { self.end_of(end)? };
        Ok(Node::For(Arc::new(For { line, target, items, filter, is_recursive, body, otherwise })))
    }

    /// The end of an ending tag, which has no nodes.
    pub(super) fn end_of(&mut self, _end: &str) -> Result<Vec<Node>> {
        self.expect_token(&Token::BlockEnd)?;
        Ok(Vec::new())
    }

    pub(super) fn condition_block(&mut self, line: Line) -> Result<Node> {
        let mut branches = Vec::new();
        let mut line = line;
        loop {
            let condition = self.tuple(false)?;
            self.expect_token(&Token::BlockEnd)?;
            let (body, end) = self.body_until(&["elif", "else", "endif"])?;
            branches.push((line, condition, body));
            match end {
                "elif" => line = self.line(),
                "else" => return Ok(Node::If { branches, otherwise: self.block("endif")? }),
                end => return Ok(Node::If { branches, otherwise: self.end_of(end)? }),
            }
        }
    }

    pub(super) fn set(&mut self, line: Line) -> Result<Node> {
        let target = self.target(true)?;
        if self.skip("=") {
            let value = self.tuple(true)?;
            self.expect_token(&Token::BlockEnd)?;
            return Ok(Node::Set { line, target, value });
        }
        let filters = if self.skip("|") { self.filters()? } else { Vec::new() };
        Ok(Node::SetBlock { line, target, filters, body: self.block("endset")? })
    }

    pub(super) fn macro_rest(&mut self, name: Text, end: &str) -> Result<Arc<Macro>> {
        let parameters = self.parameters()?;
        let (body, rest) = self.macro_body(end)?;
        Ok(Arc::new(Macro { name, parameters, rest, body }))
    }

    pub(super) fn macro_body(&mut self, end: &str) -> Result<(Vec<Node>, Rest)> {
        self.apart(|parser| parser.block(end))
    }

    /// What `parse` gives for a body that is a function of its own: no loop around it is its loop. And what it asks for.
    fn apart<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Rest)> {
        let loops = std::mem::take(&mut self.loops);
        let outer = std::mem::take(&mut self.rest);
        let body = parse(self)?;
        self.loops = loops;
        Ok((body, std::mem::replace(&mut self.rest, outer)))
    }

    pub(super) fn parameters(&mut self) -> Result<Vec<(Text, Option<Expr>)>> {
        let mut parameters: Vec<(Text, Option<Expr>)> = Vec::new();
        self.expect("(")?;
        while !self.skip(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            let name = self.assigned_name()?;
            let default = if self.skip("=") { Some(self.expr()?) } else { None };
            if default.is_none() && matches!(parameters.last(), Some((_, Some(_)))) {
                return self.error("a parameter without a default after one with a default");
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    pub(super) fn assigned_name(&mut self) -> Result<Text> {
        let name = self.name()?;
        if RESERVED.contains(&name) || name == "loop" {
            return self.error(format!("`{name}` cannot be assigned to"));
        }
        Ok(name.into())
    }

    pub(super) fn target(&mut self, may_be_attribute: bool) -> Result<Target> {
        let mut targets = Vec::new();
        loop {
            let target = if self.skip("(") {
                let target = self.nested(|parser| parser.target(false))?;
                self.expect(")")?;
                target
            } else {
                let name = self.assigned_name()?;
                match may_be_attribute && self.skip(".") {
                    true => Target::Attribute(name, self.name()?.into()),
                    false => Target::Name(name),
                }
            };
            if !self.skip(",") {
                if targets.is_empty() {
                    return Ok(target);
                }
                targets.push(target);
                return Ok(Target::Tuple(targets));
            }
            targets.push(target);
            if self.is("=") || self.is(")") || self.is_name("in") || self.peek() == Some(&Token::BlockEnd) {
                return Ok(Target::Tuple(targets));
            }
        }
    }
}
