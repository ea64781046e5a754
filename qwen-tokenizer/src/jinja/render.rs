//! Running a template: its tags, its loops and its macros.
//!
//! Expressions are in `eval`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::CallArguments;
use super::ast::{Expr, Filter, For, Line, Macro, Node, Postfix, Target, Text, Tree};
use super::filters;
use super::limits::{Budget, Fault, MAX_RUN_NESTING, Result, Writer, fail};
use super::python::write_str;
use super::scope::Scopes;
use super::value::{Callable, Items, Loop, Value};

/// One rendering.
pub(super) struct Renderer<'a> {
    pub(super) tree: &'a Tree,
    pub(super) budget: &'a Budget,
    pub(super) scopes: Scopes,
    /// The text of the template, or of what is captured.
    out: Writer<'a>,
    /// The most bytes of the template's text.
    room: usize,
    /// How many texts are being captured, one inside the other.
    captures: usize,
    /// The line that runs, for errors.
    pub(super) line: Line,
    nesting: usize,
    /// Seconds since 1970.
    pub(super) now: Option<i64>,
    loop_name: Text,
}

/// What comes after a node.
enum Flow {
    Next,
    Break,
    Continue,
}

impl<'a> Renderer<'a> {
    pub(super) fn new(tree: &'a Tree, scopes: Scopes, now: Option<i64>, room: usize, budget: &'a Budget) -> Self {
        let out = Writer::new(budget);
        Self { tree, budget, scopes, out, room, captures: 0, line: 0, nesting: 0, now, loop_name: "loop".into() }
    }

    pub(super) fn run(&mut self) -> Result<String> {
        let tree = self.tree;
        self.body(&tree.nodes)?;
        Ok(std::mem::take(&mut self.out.text))
    }

    /// Goes one level deeper; the caller comes back with [`leave`](Self::leave) unless it fails.
    pub(super) fn enter(&mut self) -> Result<()> {
        self.nesting += 1;
        if self.nesting > MAX_RUN_NESTING {
            let limit = MAX_RUN_NESTING as u64;
            return Err(Fault::limit("levels of tags, brackets and calls", self.nesting as u64, limit));
        }
        self.budget.steps(1)
    }

    pub(super) fn leave(&mut self) {
        self.nesting -= 1;
    }

    fn body(&mut self, nodes: &[Node]) -> Result<Flow> {
        self.enter()?;
        for node in nodes {
            match self.node(node)? {
                Flow::Next => {}
                flow => {
                    self.leave();
                    return Ok(flow);
                }
            }
        }
        self.leave();
        Ok(Flow::Next)
    }

    fn node(&mut self, node: &Node) -> Result<Flow> {
        self.budget.steps(1)?;
        match node {
            Node::Text(text) => {
                self.check_room(text.len())?;
                self.out.push(text)?;
            }
            Node::Output(line, expr) => {
                self.line = *line;
                let value = self.eval(expr)?;
                self.write(&value)?;
            }
            Node::If { branches, otherwise } => return self.condition(branches, otherwise),
            Node::For(node) => self.for_loop(node)?,
            Node::Set { line, target, value } => {
                self.line = *line;
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            Node::Macro(definition) => {
                let value = self.callable(definition);
                self.scopes.set(&definition.name, value);
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            node => return self.rare(node),
        }
        Ok(Flow::Next)
    }

    /// What few templates have, apart so that its variables cost the others no stack.
    #[inline(never)]
    fn rare(&mut self, node: &Node) -> Result<Flow> {
        match node {
            Node::SetBlock { line, target, filters, body } => {
                let text = self.captured(body)?;
                self.line = *line;
                let value = self.filtered(text, filters)?;
                self.assign(target, value)?;
            }
            Node::FilterBlock { line, filters, body } => {
                let text = self.captured(body)?;
                self.line = *line;
                let value = self.filtered(text, filters)?;
                let Value::Str(_) = value else {
                    return fail(format!("the filters of a `filter` block give a text, not {}", value.kind()));
                };
                self.write(&value)?;
            }
            Node::With { line, targets, body } => {
                self.line = *line;
                let values = targets.iter().map(|(_, value)| self.eval(value)).collect::<Result<Vec<_>>>()?;
                let before = self.scopes.open();
                for ((target, _), value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
                let flow = self.body(body)?;
                self.scopes.close(before);
                return Ok(flow);
            }
            Node::Call { line, call, caller } => {
                self.line = *line;
                let caller = self.callable(caller);
                let Expr::Postfix(base, postfixes) = call else { return fail("`call` takes a call") };
                let Some(((_, Postfix::Call(arguments)), before)) = postfixes.split_last() else {
                    return fail("`call` takes a call");
                };
                let function = self.eval(base)?;
                let function = self.postfixes(function, before)?;
                let arguments = self.arguments(arguments)?;
                let Value::Macro(callable) = &function else { return fail("`call` takes a call of a macro") };
                let value = self.call_macro(callable, arguments, Some(caller))?;
                self.write(&value)?;
            }
            Node::Scope(body) => return self.scoped(body, Scopes::open),
            Node::Block { is_scoped: true, body } => return self.scoped(body, Scopes::open),
            Node::Block { is_scoped: false, body } => return self.scoped(body, Scopes::open_in_first),
            _ => {}
        }
        Ok(Flow::Next)
    }

    /// Runs a body in a scope that `open` opens.
    fn scoped(&mut self, body: &[Node], open: impl FnOnce(&mut Scopes) -> usize) -> Result<Flow> {
        let before = open(&mut self.scopes);
        let flow = self.body(body)?;
        self.scopes.close(before);
        Ok(flow)
    }

    fn write(&mut self, value: &Value) -> Result<()> {
        self.check_room(value.as_str().map_or(0, str::len))?;
        write_str(value, &mut self.out)?;
        self.check_room(0)
    }

    /// An error if `more` bytes are more than there is room for. What is captured may yet be cut.
    fn check_room(&self, more: usize) -> Result<()> {
        if self.captures == 0 && self.out.text.len().saturating_add(more) > self.room {
            return Err(Fault::too_long());
        }
        Ok(())
    }

    fn condition(&mut self, branches: &[(Line, Expr, Vec<Node>)], otherwise: &[Node]) -> Result<Flow> {
        for (line, condition, body) in branches {
            self.line = *line;
            self.budget.steps(1)?;
            if self.eval(condition)?.is_true() {
                return self.body(body);
            }
        }
        self.body(otherwise)
    }

    fn callable(&self, definition: &Arc<Macro>) -> Value {
        let (scope, scope_number) = self.scopes.here();
        Value::Macro(Rc::new(Callable { definition: Arc::clone(definition), scope, scope_number }))
    }

    fn for_loop(&mut self, node: &Arc<For>) -> Result<()> {
        self.line = node.line;
        let items = self.eval(&node.items)?;
        self.rounds(node, &items, 0)
    }

    /// Runs a loop over these items.
    fn rounds(&mut self, node: &Arc<For>, source: &Value, depth: usize) -> Result<()> {
        self.enter()?;
        let mut items = source.iterate(self.budget)?;
        let before = self.scopes.open();
        if let Some(filter) = &node.filter {
            let mut kept = Vec::new();
            for item in items.iter() {
                self.scopes.clear();
                self.assign(&node.target, item.clone())?;
                if self.eval(filter)?.is_true() {
                    kept.push(item.clone());
                }
            }
            items = Value::items(kept, self.budget)?;
        }
        let state = Rc::new(Loop {
            index: Cell::new(0),
            items: Rc::clone(&items),
            depth,
            changed: RefCell::new(None),
            recursive: node.is_recursive.then(|| Arc::clone(node)),
        });
        for (index, item) in items.iter().enumerate() {
            state.index.set(index);
            self.scopes.clear();
            let name = Text::clone(&self.loop_name);
            self.scopes.set(&name, Value::Loop(Rc::clone(&state)));
            self.line = node.line;
            self.assign(&node.target, item.clone())?;
            if let Flow::Break = self.body(&node.body)? {
                if let (Value::View(view), None) = (source, &node.filter) {
                    // What is left of a generator stays in it.
                    view.taken.set(view.items.len() - items.len() + index + 1);
                }
                break;
            }
        }
        if items.is_empty() {
            self.scopes.clear();
            self.body(&node.otherwise)?;
        }
        self.scopes.close(before);
        self.leave();
        Ok(())
    }

    /// `loop(items)` in a loop that is `recursive`.
    pub(super) fn call_loop(&mut self, state: &Loop, mut arguments: CallArguments) -> Result<Value> {
        let items = arguments.need("items")?;
        arguments.finish("loop")?;
        let Some(node) = &state.recursive else { return fail("`loop` is called in a loop that is not `recursive`") };
        self.capture(|renderer| renderer.rounds(node, &items, state.depth + 1))
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => {
                self.budget.bytes(2 * size_of::<Value>())?;
                self.scopes.set(name, value);
            }
            Target::Attribute(name, attribute) => match self.scopes.get(name) {
                Some(Value::Namespace(entries)) => {
                    entries.borrow_mut().insert(Value::Str(Text::clone(attribute)), value, self.budget)?;
                }
                _ => return fail(format!("`{name}` is no namespace, so `{name}.{attribute}` cannot be set")),
            },
            Target::Tuple(targets) => {
                let items: Rc<Items> = value.defined()?.iterate(self.budget)?;
                if items.len() != targets.len() {
                    return fail(format!("{} values for {} names", items.len(), targets.len()));
                }
                for (target, item) in targets.iter().zip(items.iter()) {
                    self.assign(target, item.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Runs `f` and returns what it wrote.
    fn capture(&mut self, f: impl FnOnce(&mut Self) -> Result<()>) -> Result<Value> {
        let before = std::mem::take(&mut self.out.text);
        self.captures += 1;
        f(self)?;
        self.captures -= 1;
        Ok(Value::made(std::mem::replace(&mut self.out.text, before)))
    }

    fn captured(&mut self, body: &[Node]) -> Result<Value> {
        let before = self.scopes.open();
        let text = self.capture(|renderer| renderer.body(body).map(drop))?;
        self.scopes.close(before);
        Ok(text)
    }

    fn filtered(&mut self, mut value: Value, filters: &[Filter]) -> Result<Value> {
        for filter in filters {
            let arguments = self.arguments(&filter.arguments)?;
            value = filters::apply(&filter.name, value, arguments, self.budget)?;
        }
        Ok(value)
    }

    /// Calls a macro. `caller` is what a `call` tag gives it.
    pub(super) fn call_macro(
        &mut self,
        callable: &Callable,
        mut arguments: CallArguments,
        caller: Option<Value>,
    ) -> Result<Value> {
        let definition = Arc::clone(&callable.definition);
        self.enter()?;
        let before = self.scopes.open_in((callable.scope, callable.scope_number));
        let caller = caller.or_else(|| arguments.take_named("caller"));
        if let Some(caller) = caller {
            self.scopes.set(&"caller".into(), caller);
        }
        for (name, default) in &definition.parameters {
            let value = match (arguments.take(name), default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default)?,
                (None, None) => Value::Undefined(Text::clone(name)),
            };
            self.scopes.set(name, value);
        }
        if definition.rest.positional {
            let rest = Value::tuple(arguments.rest(), self.budget)?;
            self.scopes.set(&"varargs".into(), rest);
        }
        if definition.rest.named {
            let named = std::mem::take(&mut arguments.named);
            let named = named.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
            self.scopes.set(&"kwargs".into(), Value::dict(named, self.budget)?);
        }
        arguments.finish(&definition.name)?;
        let text = self.capture(|renderer| renderer.body(&definition.body).map(drop))?;
        self.scopes.close(before);
        self.leave();
        Ok(text)
    }
}
