//! Which modules an adapter's configuration means: names, endings of names and regular expressions, as PEFT reads them.

use regex_automata::meta::Regex;
use serde_json::Value;

use crate::checkpoint::json::Fields;
use crate::error::Result;

/// Memory that one expression may compile to.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// A regular expression that matches a whole name.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// One that matches whole names.
    fn whole(expression: &str) -> Result<Self, String> {
        Pattern::compile(&format!("^(?:{expression})$"))
    }

    /// One that matches whole names and what follows a dot in them: a key of `rank_pattern`.
    pub(super) fn ending(expression: &str) -> Result<Self, String> {
        Pattern::compile(&format!("^(?:.*\\.)?(?:{expression})$"))
    }

    fn compile(expression: &str) -> Result<Self, String> {
        let config = Regex::config().nfa_size_limit(Some(MAX_REGEX_BYTES)).onepass_size_limit(Some(MAX_REGEX_BYTES));
        let regex = Regex::builder().configure(config).build(expression);
        regex.map(Pattern).map_err(|error| format!("is no regular expression that is understood here: {error}"))
    }

    /// Whether it matches `name` or its ending.
    pub(super) fn ends(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

/// `target_modules` with what narrows it.
#[derive(Debug, Clone)]
pub(super) struct Targets {
    modules: Modules,
    excluded: Modules,
    /// `layers_to_transform`: empty for all layers.
    layers: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Modules {
    None,
    /// `all-linear`: every projection of the layers.
    AllLinear,
    /// Names, or their endings after a dot.
    Names(Vec<String>),
    Pattern(Pattern),
    /// An expression that Python understands and this crate does not, such as one with a look-ahead.
    NotUnderstood,
}

impl Modules {
    /// Whether the module `name` is meant; `None` if that cannot be told.
    fn has(&self, name: &str) -> Option<bool> {
        Some(match self {
            Modules::None => false,
            Modules::AllLinear => true,
            Modules::Names(names) => names.iter().any(|module| {
                name.strip_suffix(module.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Modules::Pattern(pattern) => pattern.ends(name),
            Modules::NotUnderstood => return None,
        })
    }

    fn from_fields(fields: &Fields<'_>, key: &str) -> Result<Self> {
        let strings = |values: &[Value]| {
            let string = |value: &Value| value.as_str().map(str::to_owned);
            values.iter().map(string).collect::<Option<Vec<_>>>()
        };
        match fields.get(key) {
            None => Ok(Modules::None),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Ok(Modules::AllLinear),
            Some(Value::String(text)) => Ok(Pattern::whole(text).map_or(Modules::NotUnderstood, Modules::Pattern)),
            Some(Value::Array(values)) => match strings(values) {
                Some(names) => Ok(Modules::Names(names)),
                None => Err(fields.error(key, "expected names, a regular expression or `all-linear`")),
            },
            Some(_) => Err(fields.error(key, "expected names, a regular expression or `all-linear`")),
        }
    }
}

impl Targets {
    pub(super) fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let modules = Modules::from_fields(fields, "target_modules")?;
        if matches!(modules, Modules::None) {
            return Err(fields.error("target_modules", "is missing"));
        }
        let layers = fields.ids("layers_to_transform")?.into_iter().map(|layer| layer as usize).collect();
        Ok(Targets { modules, excluded: Modules::from_fields(fields, "exclude_modules")?, layers })
    }

    /// Whether the adapter has a part for the module `name`; `None` if that cannot be told.
    pub(super) fn has(&self, name: &str) -> Option<bool> {
        let number = |part: &str| part.parse::<usize>().ok();
        let in_layers = self.layers.is_empty()
            || name.split('.').find_map(number).is_some_and(|layer| self.layers.contains(&layer));
        match (self.modules.has(name), self.excluded.has(name)) {
            _ if !in_layers => Some(false),
            (Some(false), _) | (_, Some(true)) => Some(false),
            (Some(true), Some(false)) => Some(true),
            _ => None,
        }
    }
}
