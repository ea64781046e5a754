//! Operators and operands, from those that bind least to those that bind most.

use super::super::ast::{Comparison, Expr, Operator};
use super::super::lexer::Token;
use super::{Parser, Result};

impl<'a> Parser<'a> {
    /// One expression, or several with commas between them: a tuple.
    pub(super) fn tuple(&mut self, with_condition: bool) -> Result<Expr> {
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

    pub(super) fn expr(&mut self) -> Result<Expr> {
        self.nested(Self::condition)
    }

    pub(super) fn condition(&mut self) -> Result<Expr> {
        let mut value = self.or()?;
        let mut branches = Vec::new();
        let mut depth = 0;
        while self.skip_name("if") {
            let condition = self.or()?;
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

    pub(super) fn or(&mut self) -> Result<Expr> {
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

    pub(super) fn and(&mut self) -> Result<Expr> {
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

    pub(super) fn not(&mut self) -> Result<Expr> {
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

    pub(super) fn comparison(&mut self) -> Option<Comparison> {
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

    pub(super) fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let Some(mut comparison) = self.comparison() else { return Ok(first) };
        let mut rest = Vec::new();
        loop {
            rest.push((comparison, self.sum()?));
            match self.comparison() {
                Some(next) => comparison = next,
                None => return Ok(Expr::Compare(Box::new(first), rest)),
            }
        }
    }

    pub(super) fn sum(&mut self) -> Result<Expr> {
        self.arithmetic(Self::concat, |operator| match operator {
            "+" => Some(Operator::Add),
            "-" => Some(Operator::Subtract),
            _ => None,
        })
    }

    pub(super) fn concat(&mut self) -> Result<Expr> {
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

    pub(super) fn product(&mut self) -> Result<Expr> {
        self.arithmetic(Self::power, |operator| match operator {
            "*" => Some(Operator::Multiply),
            "/" => Some(Operator::Divide),
            "//" => Some(Operator::FloorDivide),
            "%" => Some(Operator::Remainder),
            _ => None,
        })
    }

    pub(super) fn power(&mut self) -> Result<Expr> {
        self.arithmetic(|parser| parser.unary(true), |operator| (operator == "**").then_some(Operator::Power))
    }

    pub(super) fn arithmetic(
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

    pub(super) fn unary(&mut self, with_filters: bool) -> Result<Expr> {
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

    pub(super) fn primary(&mut self) -> Result<Expr> {
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

    pub(super) fn parenthesis(&mut self) -> Result<Expr> {
        self.at += 1;
        if self.skip(")") {
            return Ok(Expr::Tuple(Vec::new()));
        }
        let expr = self.tuple(true)?;
        self.expect(")")?;
        Ok(expr)
    }

    pub(super) fn list(&mut self) -> Result<Expr> {
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

    pub(super) fn dict(&mut self) -> Result<Expr> {
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
}
