//! A parsed template: plain data, shared between threads.
//!
//! Chains (`a + b + c`, `elif`, filters, attributes) are lists here, not nested nodes, so that their length costs no
//! stack. What does nest is bounded by the parser.

use std::sync::Arc;

pub(super) type Text = Arc<str>;

/// A whole template.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    /// The texts of string literals.
    pub(super) literals: Vec<Text>,
}

#[derive(Debug)]
pub(super) enum Node {
    Text(Text),
    Output(Line, Expr),
    For(Arc<For>),
    If {
        branches: Vec<(Line, Expr, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    Set {
        line: Line,
        target: Target,
        value: Expr,
    },
    SetBlock {
        line: Line,
        target: Target,
        filters: Vec<Filter>,
        body: Vec<Node>,
    },
    With {
        line: Line,
        targets: Vec<(Target, Expr)>,
        body: Vec<Node>,
    },
    Macro(Arc<Macro>),
    /// `call`: the call, and the macro that is its `caller`.
    Call {
        line: Line,
        call: Expr,
        caller: Arc<Macro>,
    },
    FilterBlock {
        line: Line,
        filters: Vec<Filter>,
        body: Vec<Node>,
    },
    /// A body with variables of its own: `generation`, by which training finds the assistant's words, and `autoescape false`.
    Scope(Vec<Node>),
    /// `block`: without `is_scoped`, its body sees no variables but the outermost.
    Block {
        is_scoped: bool,
        body: Vec<Node>,
    },
    Break,
    Continue,
}

/// A line of the source, counted from 1.
pub(super) type Line = u32;

#[derive(Debug)]
pub(super) struct For {
    pub(super) line: Line,
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) is_recursive: bool,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Text,
    pub(super) parameters: Vec<(Text, Option<Expr>)>,
    pub(super) rest: Rest,
    pub(super) body: Vec<Node>,
}

/// Which arguments beyond its parameters a macro takes: those that its body asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rest {
    pub(super) positional: bool,
    pub(super) named: bool,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(Text),
    /// An attribute of a namespace.
    Attribute(Text, Text),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) enum Expr {
    /// An index into [`Tree::literals`].
    Str(usize),
    Int(i128),
    LongInt(Text),
    Float(f64),
    Bool(bool),
    None,
    Name(Text),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Arithmetic(Box<Expr>, Vec<(Operator, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// Value and condition of each branch, and the last `else`.
    Condition(Vec<(Expr, Expr)>, Option<Box<Expr>>),
    /// An expression and what is applied to it, one after the other.
    Postfix(Box<Expr>, Vec<(Line, Postfix)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Postfix {
    Attribute(Text),
    Item(Expr),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Arguments),
    Filter(Filter),
    Test { name: Text, arguments: Arguments, is_negated: bool },
}

#[derive(Debug)]
pub(super) struct Filter {
    pub(super) name: Text,
    pub(super) arguments: Arguments,
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Text, Expr)>,
    /// `*items`
    pub(super) more_positional: Option<Box<Expr>>,
    /// `**entries`
    pub(super) more_named: Option<Box<Expr>>,
}
