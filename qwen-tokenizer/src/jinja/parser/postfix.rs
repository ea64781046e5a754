//! What stands after an operand: attributes, items, calls, filters and tests.

use super::super::ast::{Arguments, Expr, Filter, Line, Postfix};
use super::super::lexer::Token;
use super::{Parser, Result};

impl<'a> Parser<'a> {
    pub(super) fn postfixes(&mut self, all: &mut Vec<(Line, Postfix)>) -> Result<()> {
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
                Some(Token::Operator("(")) => Postfix::Call(self.nested(Self::arguments)?),
                _ => return Ok(()),
            };
            all.push((line, postfix));
        }
    }

    pub(super) fn subscript(&mut self) -> Result<Postfix> {
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

    pub(super) fn filters_and_tests(&mut self, all: &mut Vec<(Line, Postfix)>) -> Result<()> {
        loop {
            let line = self.line();
            if self.skip("|") {
                all.push((line, Postfix::Filter(self.filter()?)));
            } else if self.skip_name("is") {
                let is_negated = self.skip_name("not");
                let name = self.dotted_name()?;
                let arguments = self.test_arguments()?;
                all.push((line, Postfix::Test { name: name.into(), arguments, is_negated }));
            } else if self.is("(") {
                // A call after a filter or a test.
                let arguments = self.nested(Self::arguments)?;
                all.push((line, Postfix::Call(arguments)));
            } else {
                return Ok(());
            }
        }
    }

    /// The arguments of a test: in brackets, or one operand after its name.
    pub(super) fn test_arguments(&mut self) -> Result<Arguments> {
        if self.is("(") {
            return self.nested(Self::arguments);
        }
        let starts = match self.peek() {
            Some(Token::Name(name @ ("is" | "if" | "in" | "not" | "recursive"))) => {
                return self.error(format!("`{name}` after a test; put the test in brackets"));
            }
            Some(Token::Name(name)) => !matches!(*name, "else" | "or" | "and"),
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

    pub(super) fn arguments(&mut self) -> Result<Arguments> {
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

    pub(super) fn filters(&mut self) -> Result<Vec<Filter>> {
        let mut filters = vec![self.filter()?];
        while self.skip("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    pub(super) fn filter(&mut self) -> Result<Filter> {
        let name = self.dotted_name()?;
        let arguments = if self.is("(") { self.nested(Self::arguments)? } else { Arguments::default() };
        Ok(Filter { name: name.into(), arguments })
    }

    pub(super) fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.name()?.to_owned();
        while self.skip(".") {
            name.push('.');
            name.push_str(self.name()?);
        }
        Ok(name)
    }
}
