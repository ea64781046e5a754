//! Guards in texts while a template runs: characters that stand for the first one of a control token which a user wrote
//! (see the crate's `guard`). Texts are compared and searched as if the guards were what they stand for, and what is cut
//! out of a text keeps them.

use std::borrow::Cow;

use super::arguments::CallArguments;
use super::ast::Text;
use super::limits::Budget;
use super::value::Value;

impl Budget {
    /// This budget for values with guards: each is a character and what stands for it.
    pub(crate) fn with_guards(mut self, guards: &[(char, char)]) -> Self {
        self.guards = guards.into();
        self
    }

    pub(super) fn has_guards(&self) -> bool {
        !self.guards.is_empty()
    }

    /// `text` with what its guards stand for.
    pub(super) fn plain<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let stands_for = |c: char| self.guards.iter().find(|(_, guard)| *guard == c).map(|(first, _)| *first);
        match self.guards.is_empty() || !text.contains(|c| stands_for(c).is_some()) {
            true => Cow::Borrowed(text),
            false => Cow::Owned(text.chars().map(|c| stands_for(c).unwrap_or(c)).collect()),
        }
    }

    /// As [`plain`](Self::plain), of a text that is shared.
    pub(super) fn plain_text(&self, text: &Text) -> Text {
        match self.plain(text) {
            Cow::Borrowed(_) => Text::clone(text),
            Cow::Owned(plain) => plain.into(),
        }
    }
}

/// Prepares a call of the method `name` of a text: the text itself and the arguments in the form in which the method
/// finds what it looks for.
pub(super) fn prepare(text: &Text, name: &str, arguments: &mut CallArguments, budget: &Budget) -> Text {
    if budget.guards.is_empty() {
        return Text::clone(text);
    }
    match name {
        // Of these nothing is cut out.
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => {
            for argument in &mut arguments.positional {
                *argument = plain_value(argument, budget);
            }
            budget.plain_text(text)
        }
        "split" | "rsplit" | "partition" | "rpartition" | "replace" | "removeprefix" | "removesuffix" => {
            if let Some(Value::Str(wanted)) = sought(arguments) {
                *wanted = as_it_stands(text, wanted, budget);
            }
            Text::clone(text)
        }
        "strip" | "lstrip" | "rstrip" => {
            if let Some(Value::Str(chars)) = sought(arguments) {
                let guards = budget.guards.iter().filter(|(first, _)| chars.contains(*first)).map(|(_, guard)| guard);
                *chars = chars.chars().chain(guards.copied()).collect::<String>().into();
            }
            Text::clone(text)
        }
        name if name.starts_with("is") => budget.plain_text(text),
        _ => Text::clone(text),
    }
}

/// What a method looks for: its first argument.
fn sought(arguments: &mut CallArguments) -> Option<&mut Value> {
    let named = arguments.named.iter_mut().find(|(name, _)| matches!(&**name, "sep" | "old" | "chars"));
    arguments.positional.first_mut().or(named.map(|(_, value)| value))
}

fn plain_value(value: &Value, budget: &Budget) -> Value {
    match value {
        Value::Str(text) => Value::Str(budget.plain_text(text)),
        Value::Tuple(items) => {
            let items = items.iter().map(|item| plain_value(item, budget)).collect();
            Value::tuple(items, budget).unwrap_or_else(|_| value.clone())
        }
        value => value.clone(),
    }
}

/// `wanted` as `text` has it where it first stands there.
fn as_it_stands(text: &Text, wanted: &Text, budget: &Budget) -> Text {
    let (plain, plain_wanted) = (budget.plain(text), budget.plain(wanted));
    let Some(at) = plain.find(&*plain_wanted).filter(|_| !text.contains(&**wanted)) else { return Text::clone(wanted) };
    let before = plain.get(..at).map_or(0, |before| before.chars().count());
    text.chars().skip(before).take(plain_wanted.chars().count()).collect::<String>().into()
}
