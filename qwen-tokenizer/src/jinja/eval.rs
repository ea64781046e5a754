//! Expressions.

use std::rc::Rc;

use super::access;
use super::arguments::CallArguments;
use super::ast::{Arguments, Comparison, Expr, Operator, Postfix, Text};
use super::braces;
use super::functions;
use super::limits::{Result, Writer, fail};
use super::methods;
use super::ops;
use super::python::write_str;
use super::render::Renderer;
use super::value::{Dict, Loop, Value, undefined};
use super::{filters, predicates};

impl Renderer<'_> {
    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &Expr) -> Result<Value> {
        self.budget.steps(1)?;
        match expr {
            Expr::Str(at) => Ok(self.tree.literals.get(*at).map_or(Value::None, |text| Value::Str(Text::clone(text)))),
            Expr::Name(name) => Ok(self.name(name)),
            Expr::Int(number) => Ok(Value::Int(*number)),
            Expr::Float(number) => Ok(Value::Float(*number)),
            Expr::LongInt(digits) => Ok(Value::LongInt(Text::clone(digits))),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::None => Ok(Value::None),
            nested => {
                self.enter()?;
                let value = self.eval_nested(nested)?;
                self.leave();
                Ok(value)
            }
        }
    }

    fn eval_nested(&mut self, expr: &Expr) -> Result<Value> {
        match expr {
            Expr::Postfix(base, postfixes) => {
                let value = self.eval(base)?;
                self.postfixes(value, postfixes)
            }
            Expr::Arithmetic(first, rest) => self.arithmetic(first, rest),
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::Or(all) | Expr::And(all) => {
                let stops_at = matches!(expr, Expr::Or(_));
                let mut value = Value::None;
                for expr in all {
                    value = self.eval(expr)?;
                    if value.is_true() == stops_at {
                        break;
                    }
                }
                Ok(value)
            }
            Expr::Not(expr) => Ok(Value::Bool(!self.eval(expr)?.is_true())),
            Expr::Negative(expr) => ops::negative(&self.eval(expr)?),
            Expr::Positive(expr) => ops::positive(self.eval(expr)?),
            Expr::Condition(branches, otherwise) => {
                for (value, condition) in branches {
                    if self.eval(condition)?.is_true() {
                        return self.eval(value);
                    }
                }
                match otherwise {
                    Some(otherwise) => self.eval(otherwise),
                    None => Ok(Value::Undefined("a condition without `else`".into())),
                }
            }
            Expr::Concat(all) => self.concat(all),
            Expr::List(items) => Value::list(self.all(items)?, self.budget),
            Expr::Tuple(items) => Value::tuple(self.all(items)?, self.budget),
            Expr::Dict(entries) => self.dict(entries),
            _ => Ok(Value::None),
        }
    }

    fn name(&self, name: &Text) -> Value {
        match self.scopes.get(name) {
            Some(value) => value.clone(),
            None => match functions::find(name) {
                Some(name) => Value::Function(name),
                None => Value::Undefined(Text::clone(name)),
            },
        }
    }

    fn all(&mut self, exprs: &[Expr]) -> Result<Vec<Value>> {
        self.budget.bytes(size_of_val(exprs))?;
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    #[inline(never)]
    fn dict(&mut self, entries: &[(Expr, Expr)]) -> Result<Value> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            dict.insert(key, value, self.budget)?;
        }
        Ok(Value::Dict(Rc::new(dict)))
    }

    #[inline(never)]
    fn concat(&mut self, all: &[Expr]) -> Result<Value> {
        let mut out = Writer::new(self.budget);
        for expr in all {
            write_str(&self.eval(expr)?, &mut out)?;
        }
        Ok(Value::made(out.text))
    }

    /// A chain of operators; a sum of texts grows one text.
    fn arithmetic(&mut self, first: &Expr, rest: &[(Operator, Expr)]) -> Result<Value> {
        let mut value = self.eval(first)?;
        let mut sum: Option<Writer<'_>> = None;
        for (operator, expr) in rest {
            let operand = self.eval(expr)?;
            if let (Operator::Add, Value::Str(text)) = (operator, &operand) {
                if let Some(sum) = &mut sum {
                    sum.push(text)?;
                    continue;
                }
                if let Value::Str(first) = &value {
                    let mut out = Writer::new(self.budget);
                    out.push(first)?;
                    out.push(text)?;
                    sum = Some(out);
                    continue;
                }
            }
            if let Some(sum) = sum.take() {
                value = Value::made(sum.text);
            }
            value = ops::arithmetic(*operator, &value, &operand, self.budget)?;
        }
        Ok(sum.map_or(value, |sum| Value::made(sum.text)))
    }

    fn compare(&mut self, first: &Expr, rest: &[(Comparison, Expr)]) -> Result<Value> {
        let mut left = self.eval(first)?;
        for (comparison, expr) in rest {
            let right = self.eval(expr)?;
            if !ops::compare(*comparison, &left, &right, self.budget)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// Applies what stands after an expression, from left to right.
    pub(super) fn postfixes(&mut self, value: Value, postfixes: &[(u32, Postfix)]) -> Result<Value> {
        let mut value = value;
        let mut rest = postfixes.iter();
        while let Some((line, postfix)) = rest.next() {
            self.line = *line;
            self.budget.steps(1)?;
            value = match postfix {
                Postfix::Attribute(name) => match rest.as_slice().first() {
                    Some((_, Postfix::Call(arguments))) => {
                        rest.next();
                        self.call_method(&value, name, arguments)?
                    }
                    _ => access::attribute(&value, name, self.budget)?,
                },
                Postfix::Item(key) => {
                    let key = self.eval(key)?;
                    access::item(&value, &key, self.budget)?
                }
                Postfix::Slice(bounds) => self.slice(&value, bounds)?,
                Postfix::Call(arguments) => {
                    let arguments = self.arguments(arguments)?;
                    self.call(&value, arguments)?
                }
                Postfix::Filter(filter) => {
                    let arguments = self.arguments(&filter.arguments)?;
                    self.line = *line;
                    filters::apply(&filter.name, value, arguments, self.budget)?
                }
                Postfix::Test { name, arguments, is_negated } => {
                    let arguments = self.arguments(arguments)?;
                    self.line = *line;
                    Value::Bool(predicates::test(name, &value, arguments, self.budget)? != *is_negated)
                }
            };
        }
        Ok(value)
    }

    #[inline(never)]
    fn slice(&mut self, value: &Value, bounds: &[Option<Expr>; 3]) -> Result<Value> {
        let mut bound = |expr: &Option<Expr>| expr.as_ref().map_or(Ok(Value::None), |expr| self.eval(expr));
        let [start, stop, step] = bounds;
        let bounds = [bound(start)?, bound(stop)?, bound(step)?];
        ops::slice(value, bounds, self.budget)
    }

    /// `value.name(arguments)`
    fn call_method(&mut self, value: &Value, name: &Text, arguments: &Arguments) -> Result<Value> {
        let line = self.line;
        let arguments = self.arguments(arguments)?;
        self.line = line;
        match value {
            Value::Undefined(name) => Err(undefined(name)),
            Value::Loop(state) => self.loop_method(state, name, arguments),
            value if methods::has(value, name) == Some(true) => self.call_known(value, name, arguments),
            value => {
                let function = access::attribute(value, name, self.budget)?;
                self.call(&function, arguments)
            }
        }
    }

    /// Calls a method that the value has.
    fn call_known(&self, value: &Value, name: &str, arguments: CallArguments) -> Result<Value> {
        match value {
            Value::Str(text) if braces::has(name) => braces::call(text, name, arguments, self.budget),
            value => methods::call(value, name, arguments, self.budget),
        }
    }

    #[inline(never)]
    fn loop_method(&mut self, state: &Rc<Loop>, name: &str, mut arguments: CallArguments) -> Result<Value> {
        let values = arguments.rest();
        match name {
            "cycle" if values.is_empty() => fail("cycle: no values"),
            "cycle" => Ok(values.get(state.index.get() % values.len()).cloned().unwrap_or(Value::None)),
            "changed" => {
                for value in &values {
                    value.nesting()?;
                }
                let mut last = state.changed.borrow_mut();
                let is_same = match &*last {
                    Some(last) if last.len() == values.len() => {
                        let pairs = last.iter().zip(&values);
                        let mut is_same = true;
                        for (a, b) in pairs {
                            is_same = is_same && ops::equal(a, b, self.budget)?;
                        }
                        is_same
                    }
                    _ => false,
                };
                *last = Some(values);
                Ok(Value::Bool(!is_same))
            }
            name => fail(format!("a loop has no method `{name}`")),
        }
    }

    fn call(&mut self, function: &Value, arguments: CallArguments) -> Result<Value> {
        match function {
            Value::Macro(callable) => self.call_macro(callable, arguments, None),
            Value::Loop(state) => self.call_loop(state, arguments),
            Value::Function(name) => functions::call(name, arguments, self.now, self.budget),
            Value::Method(method) => self.call_known(&method.0, &method.1, arguments),
            Value::Undefined(name) => Err(undefined(name)),
            value => fail(format!("a value of type {} cannot be called", value.kind())),
        }
    }

    pub(super) fn arguments(&mut self, arguments: &Arguments) -> Result<CallArguments> {
        let mut positional = self.all(&arguments.positional)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, expr) in &arguments.named {
            named.push((Text::clone(name), self.eval(expr)?));
        }
        if let Some(expr) = &arguments.more_positional {
            let more = self.eval(expr)?.iterate(self.budget)?;
            self.budget.bytes(size_of_val(&**more))?;
            positional.extend(more.iter().cloned());
        }
        if let Some(expr) = &arguments.more_named {
            let Value::Dict(more) = self.eval(expr)? else { return fail("`**` takes a mapping") };
            for (key, value) in more.entries() {
                let Value::Str(name) = key else { return fail("`**` takes a mapping with texts as keys") };
                self.budget.bytes(2 * size_of::<Value>())?;
                named.push((Text::clone(name), value.clone()));
            }
        }
        Ok(CallArguments::new(positional, named))
    }
}
