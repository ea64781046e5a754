//! The arguments of one call of a filter, a test, a method or a function.

use super::ast::Text;
use super::limits::{Result, fail, problem};
use super::value::Value;

/// Values by place and by name. Each is taken out as it is used, so that what is left over is an error.
#[derive(Debug, Default)]
pub(super) struct CallArguments {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Text, Value)>,
    taken: usize,
}

impl CallArguments {
    pub(super) fn new(positional: Vec<Value>, named: Vec<(Text, Value)>) -> Self {
        Self { positional, named, taken: 0 }
    }

    /// The next argument by place, else the one of this name.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.taken;
        self.taken += 1;
        if let Some(value) = self.positional.get_mut(at) {
            return Some(std::mem::replace(value, Value::None));
        }
        self.take_named(name)
    }

    pub(super) fn take_named(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(found, _)| &**found == name)?;
        Some(self.named.swap_remove(at).1)
    }

    /// [`take`](Self::take), with an error where there is none.
    pub(super) fn need(&mut self, name: &str) -> Result<Value> {
        self.take(name).ok_or_else(|| problem(format!("the argument `{name}` is missing")))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool> {
        Ok(self.take(name).is_some_and(|value| value.is_true()))
    }

    /// A text; `None` where there is no such argument or it is `none`.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<Text>> {
        match self.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text)),
            Some(value) => fail(format!("the argument `{name}` is a text, not {}", value.kind())),
        }
    }

    /// [`text`](Self::text), with an error where there is none.
    pub(super) fn need_text(&mut self, name: &str) -> Result<Text> {
        self.text(name)?.ok_or_else(|| problem(format!("the argument `{name}` is missing")))
    }

    /// An integer; `None` where there is no such argument or it is `none`.
    pub(super) fn int(&mut self, name: &str) -> Result<Option<i128>> {
        match self.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.as_int() {
                Some(number) => Ok(Some(number)),
                None => fail(format!("the argument `{name}` is an integer, not {}", value.kind())),
            },
        }
    }

    /// The positional arguments that were not taken yet.
    pub(super) fn rest(&mut self) -> Vec<Value> {
        let rest = self.positional.split_off(self.taken.min(self.positional.len()));
        self.taken = self.positional.len();
        rest
    }

    /// An error if arguments are left.
    pub(super) fn finish(self, of: &str) -> Result<()> {
        if self.positional.len() > self.taken {
            return fail(format!("{of}: too many arguments"));
        }
        match self.named.first() {
            Some((name, _)) => fail(format!("{of}: there is no argument `{name}`")),
            None => Ok(()),
        }
    }
}
