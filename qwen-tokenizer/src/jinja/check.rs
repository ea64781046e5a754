//! What a template asks for that is not there, found when it is loaded.
//!
//! Jinja finds a missing filter or method only when a chat takes the branch that has it. Here the whole tree is walked
//! once: filters, tests, methods and functions that no value can have are errors at their line. A name that the template
//! itself asks about (`x is defined`, `'x' is filter`) is left alone, since it then has another way for its absence; so
//! is a method's name that is also a key or a variable of the template, since macros may be stored there.

use std::collections::HashSet;

use super::ast::{Arguments, Expr, Filter, Line, Macro, Node, Postfix, Target, Tree};
use super::{functions, methods, names};

/// The first thing that is not there, with its line.
pub(super) fn check(tree: &Tree) -> Result<(), (Line, String)> {
    let mut walk = Walk { tree, known: HashSet::new(), uses: Vec::new(), line: 1 };
    walk.nodes(&tree.nodes);
    let Walk { known, uses, .. } = walk;
    match uses.into_iter().find(|used| !known.contains(used.name) && !used.kind.exists(used.name)) {
        None => Ok(()),
        Some(Use { line, kind, name }) => Err((line, kind.problem(name))),
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Filter,
    Test,
    Method,
    Function,
}

struct Use<'a> {
    line: Line,
    kind: Kind,
    name: &'a str,
}

/// What Jinja has and this engine does not, and why.
const LEFT_OUT: [(&str, &str); 9] = [
    ("cycler", "`loop.cycle` does the same in a loop"),
    ("joiner", "`loop.first` and the filter `join` do the same"),
    ("random", "its result would differ from one rendering to the next"),
    ("lipsum", "its result would differ from one rendering to the next"),
    ("urlize", "it makes HTML"),
    ("striptags", "it reads HTML"),
    ("xmlattr", "it makes HTML"),
    ("pprint", "it writes for people; write with `tojson`"),
    ("encode", "there are no bytes here"),
];

impl Kind {
    fn exists(self, name: &str) -> bool {
        match self {
            Self::Filter => names::is_filter(name),
            Self::Test => names::is_test(name),
            Self::Method => methods::exists(name),
            Self::Function => name == "loop" || functions::find(name).is_some(),
        }
    }

    fn problem(self, name: &str) -> String {
        let shown: String = name.chars().take(60).collect();
        let what = match self {
            Self::Filter => "filter",
            Self::Test => "test",
            Self::Method => "method",
            Self::Function => "function",
        };
        if let Some((_, why)) = LEFT_OUT.iter().find(|(found, _)| *found == name) {
            return format!("the {what} `{shown}` is not supported, since {why}; use a template without it");
        }
        if matches!(self, Self::Method) && methods::is_changing(name) {
            return format!(
                "the method `{shown}` would change a value, which Jinja's sandbox forbids; make a new value, such as \
                 `list + [item]` or `dict(mapping, key=value)`"
            );
        }
        let similar = match self {
            Self::Filter => nearest(name, names::FILTERS),
            Self::Test => nearest(name, names::TESTS),
            Self::Method => nearest(name, methods::names()),
            Self::Function => nearest(name, functions::NAMES),
        };
        let hint = similar.map_or_else(String::new, |similar| format!(" (is `{similar}` meant?)"));
        format!("there is no {what} `{shown}` in Jinja or transformers{hint}; correct the template or use another")
    }
}

/// The name that differs from `name` in one or two letters.
fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 30 {
        return None;
    }
    let distances = names.into_iter().map(|other| (distance(name.as_bytes(), other.as_bytes()), other));
    distances.filter(|(distance, _)| *distance <= 1 + usize::from(name.len() > 4)).min().map(|(_, other)| other)
}

/// How many letters are changed, added or left out.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let changed = at(&row, j) + usize::from(x != y);
            next.push(changed.min(at(&row, j + 1) + 1).min(at(&next, j) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

struct Walk<'a> {
    tree: &'a Tree,
    /// Names that the template defines or asks about.
    known: HashSet<&'a str>,
    uses: Vec<Use<'a>>,
    line: Line,
}

impl<'a> Walk<'a> {
    fn used(&mut self, kind: Kind, name: &'a str) {
        self.uses.push(Use { line: self.line, kind, name });
    }

    fn literal(&self, expr: &Expr) -> Option<&'a str> {
        match expr {
            Expr::Str(at) => self.tree.literals.get(*at).map(|text| &**text),
            _ => None,
        }
    }

    fn nodes(&mut self, nodes: &'a [Node]) {
        for node in nodes {
            self.node(node);
        }
    }

    fn node(&mut self, node: &'a Node) {
        match node {
            Node::Text(_) | Node::Break | Node::Continue => {}
            Node::Output(line, expr) => {
                self.line = *line;
                self.expr(expr);
            }
            Node::For(node) => {
                self.line = node.line;
                self.target(&node.target);
                self.expr(&node.items);
                node.filter.iter().for_each(|filter| self.expr(filter));
                self.nodes(&node.body);
                self.nodes(&node.otherwise);
            }
            Node::If { branches, otherwise } => {
                for (line, condition, body) in branches {
                    self.line = *line;
                    self.expr(condition);
                    self.nodes(body);
                }
                self.nodes(otherwise);
            }
            Node::Set { line, target, value } => {
                self.line = *line;
                self.target(target);
                self.expr(value);
            }
            Node::SetBlock { line, target, filters, body } => {
                self.line = *line;
                self.target(target);
                self.filters(filters);
                self.nodes(body);
            }
            Node::FilterBlock { line, filters, body } => {
                self.line = *line;
                self.filters(filters);
                self.nodes(body);
            }
            Node::With { line, targets, body } => {
                self.line = *line;
                for (target, value) in targets {
                    self.target(target);
                    self.expr(value);
                }
                self.nodes(body);
            }
            Node::Macro(definition) => self.definition(definition),
            Node::Call { line, call, caller } => {
                self.line = *line;
                self.expr(call);
                self.definition(caller);
            }
            Node::Scope(body) | Node::Block { body, .. } => self.nodes(body),
        }
    }

    fn definition(&mut self, definition: &'a Macro) {
        self.known.insert(&definition.name);
        // What a `call` gives the macro.
        self.known.insert("caller");
        for (name, default) in &definition.parameters {
            self.known.insert(name);
            default.iter().for_each(|default| self.expr(default));
        }
        self.nodes(&definition.body);
    }

    fn target(&mut self, target: &'a Target) {
        match target {
            Target::Name(name) => drop(self.known.insert(name)),
            Target::Attribute(_, attribute) => drop(self.known.insert(attribute)),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
        }
    }

    fn filters(&mut self, filters: &'a [Filter]) {
        for filter in filters {
            self.filter(filter);
        }
    }

    fn filter(&mut self, filter: &'a Filter) {
        self.used(Kind::Filter, &filter.name);
        // `map` is given the name of a filter, `select` and its like that of a test.
        let (kind, at) = match &*filter.name {
            "map" => (Kind::Filter, 0),
            "select" | "reject" => (Kind::Test, 0),
            "selectattr" | "rejectattr" => (Kind::Test, 1),
            _ => return self.arguments(&filter.arguments),
        };
        if let Some(name) = filter.arguments.positional.get(at).and_then(|expr| self.literal(expr)) {
            self.used(kind, name);
        }
        self.arguments(&filter.arguments);
    }

    fn arguments(&mut self, arguments: &'a Arguments) {
        arguments.positional.iter().for_each(|expr| self.expr(expr));
        for (name, expr) in &arguments.named {
            // `namespace(f=macro)`
            self.known.insert(name);
            self.expr(expr);
        }
        arguments.more_positional.iter().for_each(|expr| self.expr(expr));
        arguments.more_named.iter().for_each(|expr| self.expr(expr));
    }

    fn expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::List(all) | Expr::Tuple(all) | Expr::Or(all) | Expr::And(all) | Expr::Concat(all) => {
                all.iter().for_each(|expr| self.expr(expr));
            }
            Expr::Dict(entries) => {
                for (key, value) in entries {
                    self.known.extend(self.literal(key));
                    self.expr(key);
                    self.expr(value);
                }
            }
            Expr::Not(expr) | Expr::Negative(expr) | Expr::Positive(expr) => self.expr(expr),
            Expr::Arithmetic(first, rest) => {
                self.expr(first);
                rest.iter().for_each(|(_, expr)| self.expr(expr));
            }
            Expr::Compare(first, rest) => {
                self.expr(first);
                rest.iter().for_each(|(_, expr)| self.expr(expr));
            }
            Expr::Condition(branches, otherwise) => {
                for (value, condition) in branches {
                    self.expr(value);
                    self.expr(condition);
                }
                otherwise.iter().for_each(|expr| self.expr(expr));
            }
            Expr::Postfix(base, postfixes) => self.postfixes(base, postfixes),
            _ => {}
        }
    }

    fn postfixes(&mut self, base: &'a Expr, postfixes: &'a [(Line, Postfix)]) {
        self.expr(base);
        let mut name = match base {
            Expr::Name(name) => Some((Kind::Function, &**name)),
            _ => None,
        };
        let mut literal = self.literal(base);
        for (line, postfix) in postfixes {
            self.line = *line;
            let before = name.take();
            let tested = literal.take();
            match postfix {
                Postfix::Attribute(attribute) => name = Some((Kind::Method, attribute)),
                Postfix::Item(expr) => self.expr(expr),
                Postfix::Slice(bounds) => bounds.iter().flatten().for_each(|expr| self.expr(expr)),
                Postfix::Call(arguments) => {
                    if let Some((kind, name)) = before {
                        self.used(kind, name);
                    }
                    self.arguments(arguments);
                }
                Postfix::Filter(filter) => self.filter(filter),
                Postfix::Test { name, arguments, .. } => {
                    match &**name {
                        "defined" | "undefined" | "callable" | "none" => {
                            self.known.extend(before.map(|(_, name)| name))
                        }
                        "filter" | "test" => self.known.extend(tested),
                        _ => {}
                    }
                    self.used(Kind::Test, name);
                    self.arguments(arguments);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser::{SyntaxError, parse};

    fn problem(source: &str) -> Option<(usize, String)> {
        match parse(source) {
            Ok(_) => None,
            Err(SyntaxError::Problem { line, problem }) => Some((line, problem)),
            Err(SyntaxError::Limit { line, what, .. }) => Some((line, what.to_owned())),
        }
    }

    #[test]
    fn what_cannot_be_had_is_found_in_every_place() {
        for (source, name) in [
            ("{{ x | nope }}", "filter `nope`"),
            ("{% if false %}\n\n{{ x.tojson() }}{% endif %}", "method `tojson`"),
            ("{% for a in b if a is nope %}{% endfor %}", "test `nope`"),
            ("{% set x | nope %}{% endset %}", "filter `nope`"),
            ("{% filter nope %}{% endfilter %}", "filter `nope`"),
            ("{% macro f(a=nope()) %}{% endmacro %}", "function `nope`"),
            ("{% call nope() %}{% endcall %}", "function `nope`"),
            ("{% with a = [{'b': c | nope}] %}{% endwith %}", "filter `nope`"),
            ("{% generation %}{{ -(x | nope) ~ 1 }}{% endgeneration %}", "filter `nope`"),
            ("{{ x | map('nope') | list }}", "filter `nope`"),
            ("{{ x | selectattr('role', 'nope') | list }}", "test `nope`"),
            ("{{ x | reject('nope') | list }}", "test `nope`"),
            ("{{ a if b else c[d.nope():] }}", "method `nope`"),
            ("{{ f(x, *y.nope()) }}{% macro f() %}{% endmacro %}", "method `nope`"),
            ("{{ x.append(1) }}", "`list + [item]`"),
            ("{{ x | random }}", "differ from one rendering"),
            ("{% set sep = joiner(', ') %}", "`loop.first`"),
            ("{{ x | tojsn }}", "is `tojson` meant?"),
            ("{{ x.startwith('a') }}", "is `startswith` meant?"),
            ("{{ x.encode() }}", "no bytes"),
        ] {
            let (line, found) = problem(source).unwrap_or_default();
            assert!(found.contains(name), "{source}: {found}");
            assert_eq!(line, 1 + source.matches('\n').count(), "{source}");
        }
    }

    #[test]
    fn what_may_be_there_is_left_to_the_rendering() {
        for source in [
            "{{ x.strip() }}{{ x.get('a').items() }}{{ loop.cycle(1) }}{{ range(3) }}{{ namespace(a=1) }}",
            "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}{% set g = f %}{{ g() }}",
            "{% set ns = namespace(f=g, h=1) %}{% set ns.k = 1 %}{{ ns.f() }}{{ ns.k() }}{{ {'z': g}.z() }}",
            "{% if nope is defined %}{{ nope(1) }}{% endif %}{% if x.other is defined %}{{ x.other() }}{% endif %}",
            "{% if 'nope' is filter %}{{ x | nope }}{% endif %}{{ x | map(name) }}{{ x.nope }}",
            "{% for a in b recursive %}{{ loop(a) }}{% endfor %}{% macro m(f) %}{{ f() }}{% endmacro %}",
        ] {
            assert_eq!(problem(source), None, "{source}");
        }
    }
}
