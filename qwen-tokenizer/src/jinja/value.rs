//! Values while a template runs: what they are, how deep they nest, and how they are told apart.
//!
//! A list or a mapping knows how deep it nests, and none can be made that nests deeper than the limit, so that to
//! compare, to write and to drop a value takes little stack. A namespace, the only thing that changes, cannot be put
//! into another value, so there are no cycles.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{For, Macro, Text};
use super::limits::{Budget, Fault, FaultKind, MAX_VALUE_NESTING, Result, fail, problem};

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// What stands for a name or a key that is not there, with the name for messages.
    Undefined(Text),
    None,
    Bool(bool),
    Int(i128),
    /// The digits of an integer beyond 128 bits, which can only be written.
    LongInt(Text),
    Float(f64),
    Str(Text),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    View(Rc<View>),
    Namespace(Rc<RefCell<Dict>>),
    Loop(Rc<Loop>),
    Macro(Rc<Callable>),
    Method(Rc<(Value, Text)>),
    Function(&'static str),
}

/// What Python gives in the place of a list: it can be gone through, and little else.
#[derive(Debug)]
pub(crate) struct View {
    pub(super) kind: ViewKind,
    pub(super) items: Rc<Items>,
    /// How many items of a generator are used up.
    pub(super) taken: Cell<usize>,
    /// What is wrong with the item after the last; an error only for who comes to it.
    pub(super) problem: Option<Text>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ViewKind {
    Keys,
    Values,
    Entries,
    Range {
        start: i128,
        stop: i128,
        step: i128,
    },
    /// What `map`, `select` and their like give: true even if it is empty, and empty once it has been gone through.
    Generator,
}

/// The items of a list or a tuple.
#[derive(Debug, Default)]
pub(crate) struct Items {
    items: Vec<Value>,
    nesting: usize,
}

impl std::ops::Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

/// A macro and the scope where it is defined.
#[derive(Debug)]
pub(crate) struct Callable {
    pub(super) definition: Arc<Macro>,
    /// The scope's place on the stack, and its number, by which a scope is known that has ended.
    pub(super) scope: usize,
    pub(super) scope_number: u64,
}

/// The variable `loop`.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(super) index: Cell<usize>,
    pub(super) items: Rc<Items>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Vec<Value>>>,
    /// The loop itself, if it may call itself.
    pub(super) recursive: Option<Arc<For>>,
}

/// Bytes of a value in a list.
const SLOT: usize = size_of::<Value>();

impl Value {
    pub(crate) fn str(text: impl Into<Text>) -> Self {
        Self::Str(text.into())
    }

    /// A text that was made here, whose bytes were asked for while it grew.
    pub(super) fn made(text: String) -> Self {
        Self::Str(text.into())
    }

    /// A copy of a part of a text.
    pub(super) fn copied(text: &str, budget: &Budget) -> Result<Self> {
        budget.text(0, text.len())?;
        Ok(Self::Str(text.into()))
    }

    /// A list.
    pub(crate) fn list(items: Vec<Value>, budget: &Budget) -> Result<Self> {
        Ok(Self::List(Self::items(items, budget)?))
    }

    pub(super) fn tuple(items: Vec<Value>, budget: &Budget) -> Result<Self> {
        Ok(Self::Tuple(Self::items(items, budget)?))
    }

    pub(super) fn view(kind: ViewKind, items: Vec<Value>, budget: &Budget) -> Result<Self> {
        Ok(Self::View(Rc::new(View { kind, items: Self::items(items, budget)?, taken: Cell::new(0), problem: None })))
    }

    /// What can be gone through once. Python makes the items as they are asked for, so an error waits until then.
    pub(super) fn generator(items: impl Iterator<Item = Result<Value>>, budget: &Budget) -> Result<Self> {
        let mut made = Vec::new();
        let mut problem = None;
        for item in items {
            match item.map_err(Fault::kind) {
                Ok(item) => made.push(item),
                Err(FaultKind::Problem(text)) => {
                    problem = Some(text.into());
                    break;
                }
                Err(kind) => return Err(kind.into()),
            }
        }
        let items = Self::items(made, budget)?;
        Ok(Self::View(Rc::new(View { kind: ViewKind::Generator, items, taken: Cell::new(0), problem })))
    }

    pub(super) fn items(items: Vec<Value>, budget: &Budget) -> Result<Rc<Items>> {
        budget.steps(items.len())?;
        budget.bytes(items.len().saturating_mul(SLOT).saturating_add(2 * SLOT))?;
        let mut nesting = 0;
        for item in &items {
            nesting = nesting.max(item.nesting()?);
        }
        Ok(Rc::new(Items { items, nesting: deeper(nesting)? }))
    }

    /// A mapping with string keys.
    pub(crate) fn dict(entries: Vec<(String, Value)>, budget: &Budget) -> Result<Self> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            budget.bytes(key.len())?;
            dict.insert(Value::str(key), value, budget)?;
        }
        Ok(Self::Dict(Rc::new(dict)))
    }

    /// How deep this value nests; an error for what cannot be inside another value.
    pub(super) fn nesting(&self) -> Result<usize> {
        match self {
            Self::List(items) | Self::Tuple(items) => Ok(items.nesting),
            Self::Dict(dict) => Ok(dict.nesting),
            Self::View(view) => Ok(view.items.nesting),
            Self::Method(method) => method.0.nesting().map(|nesting| nesting + 1),
            Self::Namespace(_) => fail("a namespace cannot be inside another value here"),
            Self::Loop(_) => fail("`loop` cannot be inside another value here"),
            _ => Ok(0),
        }
    }

    /// The type's name in Python.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::LongInt(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(view) => match view.kind {
                ViewKind::Keys => "dict_keys",
                ViewKind::Values => "dict_values",
                ViewKind::Entries => "dict_items",
                ViewKind::Range { .. } => "range",
                ViewKind::Generator => "generator",
            },
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) => dict.len() > 0,
            Self::View(view) => view.kind == ViewKind::Generator || !view.items.is_empty(),
            _ => true,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// A number as Python's `float` has it.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            Self::LongInt(digits) => digits.parse().ok(),
            _ => self.as_int().map(|number| number as f64),
        }
    }

    /// This value, or an error if it is undefined.
    pub(super) fn defined(self) -> Result<Self> {
        match self {
            Self::Undefined(name) => Err(undefined(&name)),
            value => Ok(value),
        }
    }

    /// What a loop goes through.
    pub(super) fn iterate(&self, budget: &Budget) -> Result<Rc<Items>> {
        match self {
            Self::List(items) | Self::Tuple(items) => Ok(Rc::clone(items)),
            Self::View(view) if view.kind == ViewKind::Generator => {
                if let Some(problem) = &view.problem {
                    return fail(problem.to_string());
                }
                let before = view.taken.replace(view.items.len());
                if before == 0 {
                    return Ok(Rc::clone(&view.items));
                }
                Self::items(view.items.get(before..).unwrap_or_default().to_vec(), budget)
            }
            Self::View(view) => Ok(Rc::clone(&view.items)),
            Self::Undefined(_) => Ok(Rc::default()),
            Self::Dict(dict) => Self::items(dict.entries().map(|(key, _)| key.clone()).collect(), budget),
            Self::Str(text) => {
                budget.bytes(text.len().saturating_mul(SLOT + 32))?;
                let mut char = [0; 4];
                Self::items(text.chars().map(|c| Value::str(&*c.encode_utf8(&mut char))).collect(), budget)
            }
            value => fail(format!("a value of type {} cannot be gone through", value.kind())),
        }
    }

    /// The number of items.
    pub(super) fn length(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(text) => Some(text.chars().count()),
            Self::List(items) | Self::Tuple(items) => Some(items.len()),
            Self::Dict(dict) => Some(dict.len()),
            Self::View(view) if view.kind != ViewKind::Generator => Some(view.items.len()),
            _ => None,
        }
    }
}

/// That a name or key is not there.
pub(super) fn undefined(name: &str) -> Fault {
    // A name alone, or what it is inside of.
    if name.contains(['`', ' ']) {
        problem(format!("{name} is undefined"))
    } else {
        problem(format!("`{name}` is undefined"))
    }
}

fn deeper(nesting: usize) -> Result<usize> {
    if nesting >= MAX_VALUE_NESTING {
        return Err(Fault::limit("levels of lists and mappings", nesting as u64 + 1, MAX_VALUE_NESTING as u64));
    }
    Ok(nesting + 1)
}

/// A mapping in the order of its entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dict {
    entries: Vec<(Value, Value)>,
    /// Where each key is, once there are many.
    index: HashMap<Key, usize>,
    nesting: usize,
}

/// What is equal about equal keys: `1`, `1.0` and `True` are one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Str(Text),
    Int(i128),
    Float(u64),
    LongInt(Text),
    None,
    /// All undefined values are equal.
    Undefined,
    Tuple(Vec<Key>),
}

/// Up to here a mapping is searched from its beginning.
const SMALL: usize = 8;

impl Key {
    pub(super) fn new(value: &Value, budget: &Budget) -> Result<Self> {
        budget.steps(1)?;
        budget.bytes(SLOT)?;
        Ok(match value {
            Value::Str(text) => Self::Str(budget.plain_text(text)),
            Value::None => Self::None,
            Value::Undefined(_) => Self::Undefined,
            Value::LongInt(digits) => Self::LongInt(Arc::clone(digits)),
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e30 => Self::Int(*number as i128),
            Value::Float(number) => Self::Float(number.to_bits()),
            Value::Tuple(items) => {
                Self::Tuple(items.iter().map(|item| Self::new(item, budget)).collect::<Result<_>>()?)
            }
            value => match value.as_int() {
                Some(number) => Self::Int(number),
                None => return fail(format!("a value of type {} cannot be a key", value.kind())),
            },
        })
    }
}

impl Dict {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// Puts an entry at the end, or in the place of the one with the same key.
    pub(super) fn insert(&mut self, key: Value, value: Value, budget: &Budget) -> Result<()> {
        let nesting = deeper(value.nesting()?.max(key.nesting()?))?;
        budget.steps(1)?;
        budget.bytes(4 * SLOT)?;
        match self.position(&key, budget)? {
            Some(at) => {
                if let Some(entry) = self.entries.get_mut(at) {
                    entry.1 = value;
                }
            }
            None => {
                if self.entries.len() == SMALL {
                    for (at, (key, _)) in self.entries.iter().enumerate() {
                        self.index.insert(Key::new(key, budget)?, at);
                    }
                }
                if self.entries.len() >= SMALL {
                    self.index.insert(Key::new(&key, budget)?, self.entries.len());
                }
                self.entries.push((key, value));
            }
        }
        self.nesting = self.nesting.max(nesting);
        Ok(())
    }

    pub(super) fn get(&self, key: &Value, budget: &Budget) -> Result<Option<&Value>> {
        Ok(self.position(key, budget)?.and_then(|at| self.entries.get(at)).map(|(_, value)| value))
    }

    pub(crate) fn get_str(&self, key: &str, budget: &Budget) -> Option<&Value> {
        if self.entries.len() > SMALL {
            let at = *self.index.get(&Key::Str(budget.plain(key).into()))?;
            return self.entries.get(at).map(|(_, value)| value);
        }
        self.entries.iter().find(|(found, _)| is_text(found, key, budget)).map(|(_, value)| value)
    }

    /// These entries in place of as many whose keys are the same but for guards.
    pub(super) fn with_entries(&self, entries: Vec<(Value, Value)>) -> Self {
        Self { entries, index: self.index.clone(), nesting: self.nesting }
    }

    fn position(&self, key: &Value, budget: &Budget) -> Result<Option<usize>> {
        if self.entries.len() <= SMALL
            && let Some(key) = key.as_str()
        {
            return Ok(self.entries.iter().position(|(found, _)| is_text(found, key, budget)));
        }
        let key = Key::new(key, budget)?;
        if self.entries.len() > SMALL {
            return Ok(self.index.get(&key).copied());
        }
        for (at, (found, _)) in self.entries.iter().enumerate() {
            if Key::new(found, budget)? == key {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

/// Whether a key is this text, whatever guards stand in either.
fn is_text(found: &Value, key: &str, budget: &Budget) -> bool {
    found
        .as_str()
        .is_some_and(|found| found == key || (budget.has_guards() && budget.plain(found) == budget.plain(key)))
}
