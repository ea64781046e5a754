//! Variables: a stack of scopes, each of which sees the one around it.

use std::collections::HashMap;

use super::ast::Text;
use super::value::Value;

/// The scopes that are open.
#[derive(Debug)]
pub(super) struct Scopes {
    stack: Vec<Scope>,
    current: usize,
    opened: u64,
}

#[derive(Debug)]
struct Scope {
    variables: HashMap<Text, Value>,
    /// The scope around this one; none around the first.
    parent: Option<usize>,
    number: u64,
}

impl Scopes {
    /// The outermost scope, with these variables.
    pub(super) fn new(variables: impl IntoIterator<Item = (Text, Value)>) -> Self {
        let first = Scope { variables: variables.into_iter().collect(), parent: None, number: 0 };
        Self { stack: vec![first], current: 0, opened: 0 }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let mut at = Some(self.current);
        while let Some(scope) = at.and_then(|at| self.stack.get(at)) {
            if let Some(value) = scope.variables.get(name) {
                return Some(value);
            }
            at = scope.parent;
        }
        None
    }

    /// Sets a variable of the innermost scope.
    pub(super) fn set(&mut self, name: &Text, value: Value) {
        if let Some(scope) = self.stack.get_mut(self.current) {
            scope.variables.insert(Text::clone(name), value);
        }
    }

    /// The place and the number of the innermost scope.
    pub(super) fn here(&self) -> (usize, u64) {
        (self.current, self.stack.get(self.current).map_or(0, |scope| scope.number))
    }

    /// Opens a scope inside the innermost one. What it returns is for [`close`](Self::close).
    pub(super) fn open(&mut self) -> usize {
        self.open_in(self.here())
    }

    /// Opens a scope inside of `parent`, or inside the first one if `parent` has been closed.
    pub(super) fn open_in(&mut self, (parent, number): (usize, u64)) -> usize {
        let is_open = self.stack.get(parent).is_some_and(|scope| scope.number == number);
        self.opened += 1;
        let parent = Some(if is_open { parent } else { 0 });
        self.stack.push(Scope { variables: HashMap::new(), parent, number: self.opened });
        std::mem::replace(&mut self.current, self.stack.len() - 1)
    }

    /// Opens a scope inside of the outermost one, which no other variables are seen from.
    pub(super) fn open_in_first(&mut self) -> usize {
        self.open_in((0, 0))
    }

    /// Empties the innermost scope, for the next round of a loop.
    pub(super) fn clear(&mut self) {
        self.opened += 1;
        if let Some(scope) = self.stack.get_mut(self.current) {
            scope.variables.clear();
            scope.number = self.opened;
        }
    }

    /// Closes the innermost scope and goes back to the one before it.
    pub(super) fn close(&mut self, before: usize) {
        self.stack.truncate(self.current.max(1));
        self.current = before;
    }
}
