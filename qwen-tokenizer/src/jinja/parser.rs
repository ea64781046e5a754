//! Tokens to a tree, with the grammar and the precedences of Jinja 3.
//!
//! Only nesting recurses here, and nesting is bounded; chains are read by loops.
//!
//! Where marks are given, each control token that the template *writes* is replaced by its mark (see `marks`). One that
//! is compared with contents, or searched for in them, stays as it is.

use std::sync::Arc;

use super::ast::{
    Arguments, Comparison, Expr, Filter, For, Line, Macro, Node, Operator, Postfix, Rest, Target, Text, Tree,
};
use super::lexer::{self, Token};
use super::limits::{MAX_SOURCE_BYTES, MAX_SOURCE_NESTING};
use super::marks::Marks;

/// Methods, filters and tests whose arguments are looked for, not written.
const SEARCHES: [&str; 16] = [
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "startswith",
    "endswith",
    "replace",
    "find",
    "rfind",
    "index",
    "count",
    "strip",
    "lstrip",
    "rstrip",
    "removeprefix",
    "removesuffix",
];

const RESERVED: [&str; 6] = ["true", "True", "false", "False", "none", "None"];

/// Why a source is no template.
#[derive(Debug)]
pub(crate) enum SyntaxError {
    Problem { line: usize, problem: String },
    Limit { line: usize, what: &'static str, found: usize, limit: usize },
}

type Result<T> = std::result::Result<T, SyntaxError>;

/// Parses a template, with marks in place of the control tokens that it writes if `marks` are given.
pub(super) fn parse(source: &str, marks: Option<&Marks>) -> Result<Tree> {
    if source.len() > MAX_SOURCE_BYTES {
        let what = "bytes of source";
        return Err(SyntaxError::Limit { line: 0, what, found: source.len(), limit: MAX_SOURCE_BYTES });
    }
    let source = lexer::normalize(source);
    let tokens = lexer::tokens(&source).map_err(|e| SyntaxError::Problem { line: e.line, problem: e.problem })?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        marks,
        literals: Vec::new(),
        nesting: 0,
        unmarked: 0,
        loops: 0,
        rest: Rest::default(),
    };
    let (nodes, end) = parser.body(&[])?;
    if let Some(name) = end {
        return parser.error(format!("`{name}` without its beginning"));
    }
    let text = |literal: Literal| match marks {
        Some(marks) if literal.is_written => marks.mark(&literal.text).into(),
        _ => literal.text.into(),
    };
    Ok(Tree { nodes, literals: parser.literals.into_iter().map(text).collect() })
}

/// A string literal, and whether the template writes it: neither compares it nor looks for it.
struct Literal {
    text: String,
    is_written: bool,
}

struct Parser<'a> {
    tokens: &'a [(Token<'a>, usize)],
    at: usize,
    marks: Option<&'a Marks>,
    literals: Vec<Literal>,
    /// Open tags, brackets and conditions.
    nesting: usize,
    /// Greater than 0 inside of what is looked for.
    unmarked: usize,
    /// Open loops of the current macro.
    loops: usize,
    /// What the current macro asks for.
    rest: Rest,
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

    /// Runs `f` without marks, for what is looked for.
    fn without_marks<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.unmarked += 1;
        let result = f(self);
        self.unmarked -= 1;
        result
    }

    fn literal(&mut self, text: String) -> Expr {
        self.literals.push(Literal { text, is_written: self.unmarked == 0 });
        Expr::Str(self.literals.len() - 1)
    }

    /// The nodes up to a tag named in `ends`, which is left after its name; `None` at the end of the template.
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Node>, Option<&'a str>)> {
        let mut nodes = Vec::new();
        while let Some(token) = self.next() {
            match token {
                Token::Data(text) => {
                    nodes.push(Node::Text(self.marks.map_or_else(|| (*text).into(), |marks| marks.mark(text).into())));
                }
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
    fn body_until(&mut self, ends: &[&str]) -> Result<(Vec<Node>, &'a str)> {
        let (nodes, end) = self.body(ends)?;
        match end {
            Some(end) if ends.contains(&end) => Ok((nodes, end)),
            Some(end) => self.error(format!("unexpected `{end}`, expected `{}`", ends.join("` or `"))),
            None => self.error(format!("unexpected end of the template, expected `{}`", ends.join("` or `"))),
        }
    }

    /// The end of a tag, the nodes up to `end` and its end.
    fn block(&mut self, end: &str) -> Result<Vec<Node>> {
        self.expect_token(&Token::BlockEnd)?;
        let (nodes, _) = self.body_until(&[end])?;
        self.expect_token(&Token::BlockEnd)?;
        Ok(nodes)
    }

    fn statement(&mut self, name: &str) -> Result<Node> {
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
            "generation" => Node::Generation(self.block("endgeneration")?),
            "break" | "continue" => {
                if self.loops == 0 {
                    return self.error(format!("`{name}` outside of a loop"));
                }
                self.expect_token(&Token::BlockEnd)?;
                if name == "break" { Node::Break } else { Node::Continue }
            }
            _ => return self.error(format!("the tag `{name}` is not known")),
        };
        Ok(node)
    }

    fn for_loop(&mut self, line: Line) -> Result<Node> {
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
    fn end_of(&mut self, _end: &str) -> Result<Vec<Node>> {
        self.expect_token(&Token::BlockEnd)?;
        Ok(Vec::new())
    }

    fn condition_block(&mut self, line: Line) -> Result<Node> {
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

    fn set(&mut self, line: Line) -> Result<Node> {
        let target = self.target(true)?;
        if self.skip("=") {
            let value = self.tuple(true)?;
            self.expect_token(&Token::BlockEnd)?;
            return Ok(Node::Set { line, target, value });
        }
        let filters = if self.skip("|") { self.filters()? } else { Vec::new() };
        Ok(Node::SetBlock { line, target, filters, body: self.block("endset")? })
    }

    fn macro_rest(&mut self, name: Text, end: &str) -> Result<Arc<Macro>> {
        let parameters = self.parameters()?;
        let (body, rest) = self.macro_body(end)?;
        Ok(Arc::new(Macro { name, parameters, rest, body }))
    }

    fn macro_body(&mut self, end: &str) -> Result<(Vec<Node>, Rest)> {
        let loops = std::mem::take(&mut self.loops);
        let outer = std::mem::take(&mut self.rest);
        let body = self.block(end)?;
        self.loops = loops;
        Ok((body, std::mem::replace(&mut self.rest, outer)))
    }

    fn parameters(&mut self) -> Result<Vec<(Text, Option<Expr>)>> {
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

    fn filters(&mut self) -> Result<Vec<Filter>> {
        let mut filters = vec![self.filter()?];
        while self.skip("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn filter(&mut self) -> Result<Filter> {
        let name = self.dotted_name()?;
        let arguments = if self.is("(") { self.arguments_of(&name)? } else { Arguments::default() };
        Ok(Filter { name: name.into(), arguments })
    }

    fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.name()?.to_owned();
        while self.skip(".") {
            name.push('.');
            name.push_str(self.name()?);
        }
        Ok(name)
    }

    fn assigned_name(&mut self) -> Result<Text> {
        let name = self.name()?;
        if RESERVED.contains(&name) || name == "loop" {
            return self.error(format!("`{name}` cannot be assigned to"));
        }
        Ok(name.into())
    }

    fn target(&mut self, may_be_attribute: bool) -> Result<Target> {
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

    /// One expression, or several with commas between them: a tuple.
    fn tuple(&mut self, with_condition: bool) -> Result<Expr> {
        let item = |parser: &mut Self| if with_condition { parser.expr() } else { parser.nested(Self::or) };
        let first = item(self)?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip(",") {
            let is_end = matches!(self.peek(), Some(Token::VariableEnd | Token::BlockEnd))
                || self.is(")")
                || self.is_name("recursive");
            if is_end {
                break;
            }
            items.push(item(self)?);
        }
        Ok(Expr::Tuple(items))
    }

    fn expr(&mut self) -> Result<Expr> {
        self.nested(Self::condition)
    }

    fn condition(&mut self) -> Result<Expr> {
        let mut value = self.or()?;
        let mut branches = Vec::new();
        let mut depth = 0;
        while self.skip_name("if") {
            let condition = self.without_marks(Self::or)?;
            branches.push((value, condition));
            if self.skip_name("else") {
                value = self.or()?;
                if !self.is_name("if") {
                    return Ok(Expr::Condition(branches, Some(Box::new(value))));
                }
                continue;
            }
            // `a if b if c`: the whole before is the value of the next.
            value = Expr::Condition(std::mem::take(&mut branches), None);
            depth += 1;
            self.check_nesting(self.nesting + depth)?;
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let first = self.and()?;
        if !self.is_name("or") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_name("or") {
            all.push(self.and()?);
        }
        Ok(Expr::Or(all))
    }

    fn and(&mut self) -> Result<Expr> {
        let first = self.not()?;
        if !self.is_name("and") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip_name("and") {
            all.push(self.not()?);
        }
        Ok(Expr::And(all))
    }

    fn not(&mut self) -> Result<Expr> {
        let mut count = 0_usize;
        while self.skip_name("not") {
            count += 1;
        }
        let mut expr = self.compare()?;
        // Beyond the second, `not` only turns the truth over.
        for _ in 0..if count < 2 { count } else { 2 - count % 2 } {
            expr = Expr::Not(Box::new(expr));
        }
        Ok(expr)
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let comparison = match self.peek()? {
            Token::Operator("==") => Comparison::Equal,
            Token::Operator("!=") => Comparison::NotEqual,
            Token::Operator("<") => Comparison::Less,
            Token::Operator("<=") => Comparison::LessOrEqual,
            Token::Operator(">") => Comparison::Greater,
            Token::Operator(">=") => Comparison::GreaterOrEqual,
            Token::Name("in") => Comparison::In,
            Token::Name("not") if matches!(self.tokens.get(self.at + 1), Some((Token::Name("in"), _))) => {
                self.at += 1;
                Comparison::NotIn
            }
            _ => return None,
        };
        self.at += 1;
        Some(comparison)
    }

    fn compare(&mut self) -> Result<Expr> {
        let start = self.literals.len();
        let first = self.sum()?;
        let Some(mut comparison) = self.comparison() else { return Ok(first) };
        // What is compared is not written.
        for literal in self.literals.iter_mut().skip(start) {
            literal.is_written = false;
        }
        let mut rest = Vec::new();
        loop {
            rest.push((comparison, self.without_marks(Self::sum)?));
            match self.comparison() {
                Some(next) => comparison = next,
                None => return Ok(Expr::Compare(Box::new(first), rest)),
            }
        }
    }

    fn sum(&mut self) -> Result<Expr> {
        self.arithmetic(Self::concat, |operator| match operator {
            "+" => Some(Operator::Add),
            "-" => Some(Operator::Subtract),
            _ => None,
        })
    }

    fn concat(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is("~") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.skip("~") {
            all.push(self.product()?);
        }
        Ok(Expr::Concat(all))
    }

    fn product(&mut self) -> Result<Expr> {
        self.arithmetic(Self::power, |operator| match operator {
            "*" => Some(Operator::Multiply),
            "/" => Some(Operator::Divide),
            "//" => Some(Operator::FloorDivide),
            "%" => Some(Operator::Remainder),
            _ => None,
        })
    }

    fn power(&mut self) -> Result<Expr> {
        self.arithmetic(|parser| parser.unary(true), |operator| (operator == "**").then_some(Operator::Power))
    }

    fn arithmetic(
        &mut self,
        operand: impl Fn(&mut Self) -> Result<Expr>,
        operator: impl Fn(&str) -> Option<Operator>,
    ) -> Result<Expr> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(Token::Operator(found)) = self.peek()
            && let Some(operator) = operator(found)
        {
            self.at += 1;
            rest.push((operator, operand(self)?));
        }
        if rest.is_empty() { Ok(first) } else { Ok(Expr::Arithmetic(Box::new(first), rest)) }
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let sign = match self.peek() {
            Some(Token::Operator("-")) => Some(true),
            Some(Token::Operator("+")) => Some(false),
            _ => None,
        };
        let (base, mut postfixes) = match sign {
            Some(negative) => {
                self.at += 1;
                let operand = Box::new(self.nested(|parser| parser.unary(false))?);
                (if negative { Expr::Negative(operand) } else { Expr::Positive(operand) }, Vec::new())
            }
            None => {
                let base = self.primary()?;
                let mut postfixes = Vec::new();
                self.postfixes(&mut postfixes)?;
                (base, postfixes)
            }
        };
        if with_filters {
            self.filters_and_tests(&mut postfixes)?;
        }
        Ok(if postfixes.is_empty() { base } else { Expr::Postfix(Box::new(base), postfixes) })
    }

    fn primary(&mut self) -> Result<Expr> {
        let expr = match self.peek() {
            Some(Token::Name("true" | "True")) => Expr::Bool(true),
            Some(Token::Name("false" | "False")) => Expr::Bool(false),
            Some(Token::Name("none" | "None")) => Expr::None,
            Some(Token::Name(name)) => {
                self.rest.positional |= *name == "varargs";
                self.rest.named |= *name == "kwargs";
                Expr::Name((*name).into())
            }
            Some(Token::Int(number)) => Expr::Int(*number),
            Some(Token::LongInt(digits)) => Expr::LongInt(digits.as_str().into()),
            Some(Token::Float(number)) => Expr::Float(*number),
            Some(Token::Str(first)) => {
                self.at += 1;
                if !matches!(self.peek(), Some(Token::Str(_))) {
                    return Ok(self.literal(first.clone()));
                }
                let mut text = first.clone();
                while let Some(Token::Str(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                return Ok(self.literal(text));
            }
            Some(Token::Operator("(")) => return self.nested(Self::parenthesis),
            Some(Token::Operator("[")) => return self.nested(Self::list),
            Some(Token::Operator("{")) => return self.nested(Self::dict),
            _ => return self.unexpected("an expression"),
        };
        self.at += 1;
        Ok(expr)
    }

    fn parenthesis(&mut self) -> Result<Expr> {
        self.at += 1;
        if self.skip(")") {
            return Ok(Expr::Tuple(Vec::new()));
        }
        let expr = self.tuple(true)?;
        self.expect(")")?;
        Ok(expr)
    }

    fn list(&mut self) -> Result<Expr> {
        self.at += 1;
        let mut items = Vec::new();
        while !self.skip("]") {
            if !items.is_empty() {
                self.expect(",")?;
                if self.skip("]") {
                    break;
                }
            }
            items.push(self.expr()?);
        }
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Result<Expr> {
        self.at += 1;
        let mut entries = Vec::new();
        while !self.skip("}") {
            if !entries.is_empty() {
                self.expect(",")?;
                if self.skip("}") {
                    break;
                }
            }
            let key = self.expr()?;
            self.expect(":")?;
            entries.push((key, self.expr()?));
        }
        Ok(Expr::Dict(entries))
    }

    fn postfixes(&mut self, all: &mut Vec<(Line, Postfix)>) -> Result<()> {
        loop {
            let line = self.line();
            let postfix = match self.peek() {
                Some(Token::Operator(".")) => {
                    self.at += 1;
                    match self.next() {
                        Some(Token::Name(name)) => Postfix::Attribute((*name).into()),
                        Some(Token::Int(index)) => Postfix::Item(Expr::Int(*index)),
                        _ => {
                            self.at -= 1;
                            return self.unexpected("a name or an index");
                        }
                    }
                }
                Some(Token::Operator("[")) => self.nested(Self::subscript)?,
                Some(Token::Operator("(")) => {
                    let name = match all.last() {
                        Some((_, Postfix::Attribute(name))) => name.to_string(),
                        _ => String::new(),
                    };
                    Postfix::Call(self.arguments_of(&name)?)
                }
                _ => return Ok(()),
            };
            all.push((line, postfix));
        }
    }

    fn subscript(&mut self) -> Result<Postfix> {
        self.at += 1;
        let mut items = Vec::new();
        while !self.skip("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            let start = if self.is(":") { None } else { Some(self.expr()?) };
            if !self.skip(":") {
                items.extend(start);
                continue;
            }
            let is_end = |parser: &Self| parser.is("]") || parser.is(":");
            let stop = if is_end(self) { None } else { Some(self.expr()?) };
            let step = if self.skip(":") && !self.is("]") { Some(self.expr()?) } else { None };
            if !items.is_empty() || !self.skip("]") {
                return self.unexpected("`]`");
            }
            return Ok(Postfix::Slice(Box::new([start, stop, step])));
        }
        match (items.pop(), items.is_empty()) {
            (Some(item), true) => Ok(Postfix::Item(item)),
            (Some(item), false) => {
                items.push(item);
                Ok(Postfix::Item(Expr::Tuple(items)))
            }
            (None, _) => self.error("an empty subscript"),
        }
    }

    fn filters_and_tests(&mut self, all: &mut Vec<(Line, Postfix)>) -> Result<()> {
        loop {
            let line = self.line();
            if self.skip("|") {
                all.push((line, Postfix::Filter(self.filter()?)));
            } else if self.skip_name("is") {
                let is_negated = self.skip_name("not");
                let name = self.dotted_name()?;
                let arguments = self.without_marks(Self::test_arguments)?;
                all.push((line, Postfix::Test { name: name.into(), arguments, is_negated }));
            } else if self.is("(") {
                // A call after a filter or a test.
                let arguments = self.arguments_of("")?;
                all.push((line, Postfix::Call(arguments)));
            } else {
                return Ok(());
            }
        }
    }

    /// The arguments of a test: in brackets, or one operand after its name.
    fn test_arguments(&mut self) -> Result<Arguments> {
        if self.is("(") {
            return self.arguments_of("");
        }
        let starts = match self.peek() {
            Some(Token::Name(name)) => {
                !matches!(*name, "else" | "or" | "and" | "is" | "if" | "in" | "not" | "recursive")
            }
            Some(Token::Str(_) | Token::Int(_) | Token::LongInt(_) | Token::Float(_)) => true,
            _ => self.is("[") || self.is("{"),
        };
        let mut arguments = Arguments::default();
        if starts {
            let base = self.primary()?;
            let mut postfixes = Vec::new();
            self.postfixes(&mut postfixes)?;
            arguments.positional.push(match postfixes.is_empty() {
                true => base,
                false => Expr::Postfix(Box::new(base), postfixes),
            });
        }
        Ok(arguments)
    }

    /// The arguments of a call of `name`, unmarked if it looks for them.
    fn arguments_of(&mut self, name: &str) -> Result<Arguments> {
        if SEARCHES.contains(&name) {
            return self.without_marks(|parser| parser.nested(Self::arguments));
        }
        self.nested(Self::arguments)
    }

    fn arguments(&mut self) -> Result<Arguments> {
        let mut arguments = Arguments::default();
        self.expect("(")?;
        let mut is_first = true;
        while !self.skip(")") {
            if !std::mem::take(&mut is_first) {
                self.expect(",")?;
                if self.skip(")") {
                    break;
                }
            }
            let is_named = matches!(self.tokens.get(self.at + 1), Some((Token::Operator("="), _)));
            if self.skip("**") && arguments.more_named.is_none() {
                arguments.more_named = Some(Box::new(self.expr()?));
            } else if self.skip("*") && arguments.more_positional.is_none() {
                arguments.more_positional = Some(Box::new(self.expr()?));
            } else if is_named && matches!(self.peek(), Some(Token::Name(_))) {
                let name = self.name()?;
                self.at += 1;
                arguments.named.push((name.into(), self.expr()?));
            } else if arguments.named.is_empty() && arguments.more_named.is_none() {
                arguments.positional.push(self.expr()?);
            } else {
                return self.error("a positional argument after a named one");
            }
        }
        Ok(arguments)
    }
}
