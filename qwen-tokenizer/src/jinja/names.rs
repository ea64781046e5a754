//! The names of all filters and tests, for those that ask whether there is one.

/// The filters of `filters` and `collections`.
pub(super) const FILTERS: [&str; 49] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
];

/// The tests of `predicates`.
pub(super) const TESTS: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

pub(super) fn is_filter(name: &str) -> bool {
    FILTERS.contains(&name)
}

pub(super) fn is_test(name: &str) -> bool {
    TESTS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::super::limits::{Budget, FaultKind, Result};
    use super::super::value::Value;
    use super::super::{arguments::CallArguments, filters, predicates};
    use super::*;

    /// Whether a call was refused because nothing has the name.
    fn is_unknown<T>(result: Result<T>) -> bool {
        let kind = result.err().map(|fault| fault.kind());
        matches!(kind, Some(FaultKind::Problem(problem)) if problem.starts_with("there is no"))
    }

    #[test]
    fn every_name_has_what_it_names() {
        let budget = Budget::of_rendering(0);
        for name in FILTERS {
            assert!(!is_unknown(filters::apply(name, Value::str("a"), CallArguments::default(), &budget)), "{name}");
        }
        for name in TESTS {
            assert!(!is_unknown(predicates::test(name, &Value::str("a"), CallArguments::default(), &budget)), "{name}");
        }
        assert!(is_unknown(filters::apply("nope", Value::str("a"), CallArguments::default(), &budget)));
        assert!(is_unknown(predicates::test("nope", &Value::str("a"), CallArguments::default(), &budget)));
    }
}
