//! Filters that choose, order, group and change the items of lists and mappings.

use std::cmp::Ordering;
use std::rc::Rc;

use super::access;
use super::arguments::CallArguments;
use super::ast::{Operator, Text};
use super::limits::{Budget, Result, Writer, fail};
use super::methods;
use super::ops;
use super::predicates;
use super::python::{to_str, write_str};
use super::value::{Dict, Items, Value, ViewKind};

/// A filter by its name, for `map`, which is given one.
pub(super) type ApplyFilter = fn(&str, Value, CallArguments, &Budget) -> Result<Value>;

/// `value | name(arguments)`
pub(super) fn apply(
    name: &str,
    value: Value,
    mut arguments: CallArguments,
    filter: ApplyFilter,
    budget: &Budget,
) -> Result<Value> {
    let result = match name {
        "list" => Value::list(value.iterate(budget)?.to_vec(), budget)?,
        "items" => match &value {
            Value::Dict(dict) => Value::generator(methods::entries(dict, budget)?.into_iter().map(Ok), budget)?,
            Value::Undefined(_) => Value::generator(std::iter::empty(), budget)?,
            value => return fail(format!("items: a mapping, not {}", value.kind())),
        },
        "first" => match &value {
            Value::View(view) if view.kind == ViewKind::Generator => {
                let at = view.taken.get();
                view.taken.set((at + 1).min(view.items.len()));
                match (view.items.get(at), &view.problem) {
                    (Some(item), _) => item.clone(),
                    (None, Some(problem)) => return fail(problem.to_string()),
                    (None, None) => none_of(name),
                }
            }
            value => value.iterate(budget)?.first().cloned().unwrap_or_else(|| none_of(name)),
        },
        "last" if is_generator(&value) => {
            return fail("last: what `map`, `select` and their like give has no last item; put `| list` before it");
        }
        "last" => value.iterate(budget)?.last().cloned().unwrap_or_else(|| none_of(name)),
        "reverse" => match &value {
            Value::Str(text) => {
                budget.scan(text.len())?;
                budget.text(0, text.len())?;
                Value::made(text.chars().rev().collect())
            }
            value if is_generator(value) => {
                Value::list(value.iterate(budget)?.iter().rev().cloned().collect(), budget)?
            }
            value => Value::generator(value.iterate(budget)?.iter().rev().cloned().map(Ok), budget)?,
        },
        "join" => join(&value, &mut arguments, budget)?,
        "sum" => {
            let attribute = arguments.take("attribute");
            let mut sum = arguments.take("start").unwrap_or(Value::Int(0));
            let path = Path::new(attribute)?;
            for item in value.iterate(budget)?.iter() {
                sum = ops::arithmetic(Operator::Add, &sum, &path.of(item, budget)?, budget)?;
            }
            sum
        }
        "min" | "max" => {
            let case_sensitive = arguments.flag("case_sensitive")?;
            let path = Path::new(arguments.take("attribute"))?;
            let mut best: Option<(Value, Value)> = None;
            for item in value.iterate(budget)?.iter() {
                let key = sort_key(&path.of(item, budget)?, case_sensitive, budget)?;
                let better = match &best {
                    None => true,
                    Some((best, _)) => {
                        let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
                        ops::order(&key, best, budget)? == Some(wanted)
                    }
                };
                if better {
                    best = Some((key, item.clone()));
                }
            }
            best.map_or_else(|| none_of(name), |(_, item)| item)
        }
        "sort" => {
            let is_reversed = arguments.flag("reverse")?;
            let case_sensitive = arguments.flag("case_sensitive")?;
            let paths = Path::list(arguments.take("attribute"))?;
            let key = |item: &Value| {
                let key = |path: &Path| sort_key(&path.of(item, budget)?, case_sensitive, budget);
                paths.iter().map(key).collect::<Result<Vec<Value>>>()
            };
            let keyed =
                value.iterate(budget)?.iter().map(|item| Ok((key(item)?, item.clone()))).collect::<Result<_>>()?;
            Value::list(sorted(keyed, is_reversed, budget)?, budget)?
        }
        "dictsort" => {
            let case_sensitive = arguments.flag("case_sensitive")?;
            let by_value = arguments.text("by")?.is_some_and(|by| &*by == "value");
            let is_reversed = arguments.flag("reverse")?;
            let Value::Dict(dict) = &value else { return fail(format!("dictsort: a mapping, not {}", value.kind())) };
            let entry = |(key, value): (&Value, &Value)| {
                let by = sort_key(if by_value { value } else { key }, case_sensitive, budget)?;
                Ok((vec![by], Value::tuple(vec![key.clone(), value.clone()], budget)?))
            };
            Value::list(sorted(dict.entries().map(entry).collect::<Result<_>>()?, is_reversed, budget)?, budget)?
        }
        "unique" => {
            let case_sensitive = arguments.flag("case_sensitive")?;
            let path = Path::new(arguments.take("attribute"))?;
            let mut seen = Dict::default();
            let mut is_new = |item: &Value| {
                let key = sort_key(&path.of(item, budget)?, case_sensitive, budget)?;
                let is_new = seen.get(&key, budget)?.is_none();
                if is_new {
                    seen.insert(key, Value::None, budget)?;
                }
                Ok(is_new)
            };
            let items = value.iterate(budget)?;
            let items = items.iter().filter_map(|item| match is_new(item) {
                Ok(is_new) => is_new.then(|| Ok(item.clone())),
                Err(fault) => Some(Err(fault)),
            });
            Value::generator(items, budget)?
        }
        "groupby" => groupby(&value, &mut arguments, budget)?,
        "batch" => batch(&value, &mut arguments, budget)?,
        "slice" => slice(&value, &mut arguments, budget)?,
        "map" => map(&value, &mut arguments, filter, budget)?,
        "select" | "reject" | "selectattr" | "rejectattr" => choose(name, &value, &mut arguments, budget)?,
        _ => return fail(format!("there is no filter `{name}`")),
    };
    arguments.finish(name)?;
    Ok(result)
}

fn is_generator(value: &Value) -> bool {
    matches!(value, Value::View(view) if view.kind == ViewKind::Generator)
}

fn none_of(name: &str) -> Value {
    Value::Undefined(format!("`{name}` of no items").into())
}

/// Where in an item a filter looks: `a.b.0`, or the item itself.
struct Path(Vec<Step>);

enum Step {
    Name(Text),
    Index(i128),
}

impl Path {
    fn new(attribute: Option<Value>) -> Result<Self> {
        match attribute {
            None | Some(Value::None) => Ok(Self(Vec::new())),
            Some(Value::Str(text)) => Ok(Self::parse(&text)),
            Some(value) => match value.as_int() {
                Some(index) => Ok(Self(vec![Step::Index(index)])),
                None => fail(format!("an attribute is a text or an index, not {}", value.kind())),
            },
        }
    }

    /// Several paths with commas between them.
    fn list(attribute: Option<Value>) -> Result<Vec<Self>> {
        match attribute {
            Some(Value::Str(text)) => Ok(text.split(',').map(Self::parse).collect()),
            attribute => Ok(vec![Self::new(attribute)?]),
        }
    }

    fn parse(text: &str) -> Self {
        let step = |part: &str| part.parse().map_or_else(|_| Step::Name(part.into()), Step::Index);
        Self(text.split('.').map(step).collect())
    }

    fn of(&self, item: &Value, budget: &Budget) -> Result<Value> {
        budget.steps(1)?;
        let mut value = item.clone();
        for step in &self.0 {
            budget.steps(1)?;
            let key = match step {
                Step::Name(name) => Value::Str(Text::clone(name)),
                Step::Index(index) => Value::Int(*index),
            };
            value = access::item(&value, &key, budget)?;
        }
        Ok(value)
    }
}

/// What an item is ordered by: texts without their case, unless asked otherwise.
fn sort_key(value: &Value, case_sensitive: bool, budget: &Budget) -> Result<Value> {
    match value {
        Value::Str(text) if !case_sensitive => methods::lower(text, budget),
        value => Ok(value.clone()),
    }
}

/// What an item is ordered by, and the item.
type Keyed = (Vec<Value>, Value);

/// The items in the order of their keys; equal ones stay as they were.
///
/// A merge sort of its own: the standard library's may panic where an order has gaps, as that of numbers and NaN has.
fn sorted(keyed: Vec<Keyed>, is_reversed: bool, budget: &Budget) -> Result<Vec<Value>> {
    budget.bytes(keyed.len().saturating_mul(2 * size_of::<Keyed>()))?;
    let mut runs: Vec<Vec<Keyed>> = keyed.into_iter().map(|item| vec![item]).collect();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut pairs = runs.into_iter();
        while let Some(first) = pairs.next() {
            merged.push(match pairs.next() {
                Some(second) => merge(first, second, is_reversed, budget)?,
                None => first,
            });
        }
        runs = merged;
    }
    Ok(runs.into_iter().flatten().map(|(_, item)| item).collect())
}

fn merge(first: Vec<Keyed>, second: Vec<Keyed>, is_reversed: bool, budget: &Budget) -> Result<Vec<Keyed>> {
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
    while let (Some((a, _)), Some((b, _))) = (first.peek(), second.peek()) {
        let mut order = Ordering::Equal;
        for (a, b) in a.iter().zip(b) {
            if !ops::equal(a, b, budget)? {
                order = ops::order(a, b, budget)?.unwrap_or(Ordering::Equal);
                break;
            }
        }
        let second_first = order == if is_reversed { Ordering::Less } else { Ordering::Greater };
        merged.extend(if second_first { second.next() } else { first.next() });
    }
    merged.extend(first);
    merged.extend(second);
    Ok(merged)
}

fn join(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let between = to_str(&arguments.take("d").unwrap_or_else(|| Value::str("")), budget)?;
    let path = Path::new(arguments.take("attribute"))?;
    let mut out = Writer::new(budget);
    for (i, item) in value.iterate(budget)?.iter().enumerate() {
        if i > 0 {
            out.push(between.as_str().unwrap_or_default())?;
        }
        write_str(&path.of(item, budget)?, &mut out)?;
    }
    Ok(Value::made(out.text))
}

fn groupby(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let path = Path::new(Some(arguments.need("attribute")?))?;
    let default = arguments.take("default");
    let case_sensitive = arguments.flag("case_sensitive")?;
    let mut keyed = Vec::new();
    for item in value.iterate(budget)?.iter() {
        let by = match (path.of(item, budget)?, &default) {
            (Value::Undefined(_), Some(default)) => default.clone(),
            (by, _) => by,
        };
        let key = sort_key(&by, case_sensitive, budget)?;
        let pair = Value::tuple(vec![by, item.clone()], budget)?;
        keyed.push((vec![key], pair));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for pair in sorted(keyed, false, budget)? {
        let Value::Tuple(pair) = pair else { continue };
        let [by, item] = &**pair else { continue };
        let key = sort_key(by, case_sensitive, budget)?;
        match groups.last_mut() {
            Some((last, _, items)) if ops::equal(last, &key, budget)? => items.push(item.clone()),
            _ => groups.push((key, by.clone(), vec![item.clone()])),
        }
    }
    let group = |(_, by, items)| Value::tuple(vec![by, Value::list(items, budget)?], budget);
    Value::list(groups.into_iter().map(group).collect::<Result<_>>()?, budget)
}

/// A number of at least 1.
fn positive(number: Option<i128>, what: &str) -> Result<usize> {
    match number.and_then(|number| usize::try_from(number).ok()) {
        Some(number) if number > 0 => Ok(number),
        _ => fail(format!("{what}: a number of at least 1")),
    }
}

fn batch(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let size = positive(arguments.int("linecount")?, "batch")?;
    let fill = arguments.take("fill_with").filter(|fill| !matches!(fill, Value::None));
    let mut batches = Vec::new();
    for items in value.iterate(budget)?.chunks(size) {
        let mut items = items.to_vec();
        if let Some(fill) = &fill {
            budget.bytes(size.saturating_mul(size_of::<Value>()))?;
            items.resize(size, fill.clone());
        }
        batches.push(Value::list(items, budget)?);
    }
    Value::generator(batches.into_iter().map(Ok), budget)
}

fn slice(value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let count = positive(arguments.int("slices")?, "slice")?;
    let fill = arguments.take("fill_with").filter(|fill| !matches!(fill, Value::None));
    budget.bytes(count.saturating_mul(4 * size_of::<Value>()))?;
    let items = value.iterate(budget)?;
    let (size, longer) = (items.len() / count, items.len() % count);
    let mut rest = &**items;
    let mut slices = Vec::new();
    for i in 0..count {
        let is_longer = i < longer;
        let (part, after) = rest.split_at((size + usize::from(is_longer)).min(rest.len()));
        rest = after;
        let mut part = part.to_vec();
        if !is_longer && longer > 0 {
            part.extend(fill.clone());
        }
        slices.push(Value::list(part, budget)?);
    }
    Value::generator(slices.into_iter().map(Ok), budget)
}

/// The items of a value; none of one that is false, whatever it is, as these filters have it in Jinja.
fn iterate_true(value: &Value, budget: &Budget) -> Result<Rc<Items>> {
    if value.is_true() { value.iterate(budget) } else { Ok(Rc::default()) }
}

fn map(value: &Value, arguments: &mut CallArguments, filter: ApplyFilter, budget: &Budget) -> Result<Value> {
    let items = iterate_true(value, budget)?;
    if arguments.positional.is_empty()
        && let Some(attribute) = arguments.take_named("attribute")
    {
        let default = arguments.take_named("default");
        let path = Path::new(Some(attribute))?;
        let mapped = items.iter().map(|item| match (path.of(item, budget)?, &default) {
            (Value::Undefined(_), Some(default)) => Ok(default.clone()),
            (value, _) => Ok(value),
        });
        return Value::generator(mapped, budget);
    }
    let name = arguments.need("filter")?;
    let Some(name) = name.as_str() else { return fail("map: the name of a filter is a text") };
    let (positional, named) = (arguments.rest(), std::mem::take(&mut arguments.named));
    let mapped = items.iter().map(|item| {
        budget.steps(positional.len() + named.len())?;
        let arguments = CallArguments::new(positional.clone(), named.clone());
        filter(name, item.clone(), arguments, budget)
    });
    Value::generator(mapped, budget)
}

fn choose(name: &str, value: &Value, arguments: &mut CallArguments, budget: &Budget) -> Result<Value> {
    let path = match name.ends_with("attr") {
        true => Path::new(Some(arguments.need("attribute")?))?,
        false => Path::new(None)?,
    };
    let wanted = name.starts_with("select");
    let test = arguments.text("test")?;
    let (positional, named) = (arguments.rest(), std::mem::take(&mut arguments.named));
    let items = iterate_true(value, budget)?;
    let is = |item: &Value| {
        let tested = path.of(item, budget)?;
        match &test {
            None => Ok(tested.is_true()),
            Some(test) => {
                budget.steps(positional.len() + named.len())?;
                let arguments = CallArguments::new(positional.clone(), named.clone());
                predicates::test(test, &tested, arguments, budget)
            }
        }
    };
    let chosen = items.iter().filter_map(|item| match is(item) {
        Ok(is) => (is == wanted).then(|| Ok(item.clone())),
        Err(fault) => Some(Err(fault)),
    });
    Value::generator(chosen, budget)
}
