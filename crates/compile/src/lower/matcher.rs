//! Patterns of nodes: declared by a pass, and matched against a value.
//!
//! ```
//! use regraft_compile::lower::matcher::{any, literal, max};
//! use regraft_ir::text;
//!
//! let graph = text::parse(
//!     "program \"p\" {
//!       input %0 : f32[4] = \"x\"
//!       %1 = full {value = 0.0, shape = [], dtype = f32} : f32[]
//!       %2 = binary %1, %0 {f = max} : f32[4]
//!       output %2 = \"y\"
//!     }",
//! )
//! .expect("a program");
//! let relu = max(any("x"), literal(0.0));
//! let found = relu.find(&graph, graph.outputs[0].value).expect("the order of operands does not matter");
//! assert_eq!(found.value("x"), graph.inputs[0].value);
//! ```

use regraft_ir::{
    Graph, Node, Op, ValueId,
    ops::{BinaryFn, Matmul, Softmax, UnaryFn},
};

use super::pattern::{binary, literal_f64, producer, scaled};

/// Products of more values than these are left alone.
const MAX_FACTORS: usize = 12;

/// What a value may be. Made by the functions of this module.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Any value: the same one wherever the name stands in a pattern.
    Any(&'static str),
    /// A scalar literal.
    Literal(f64),
    /// `f(a)`.
    Unary(UnaryFn, Box<Pattern>),
    /// `f(a, b)` or `f(b, a)`.
    Binary(BinaryFn, Box<[Pattern; 2]>),
    /// A literal times these factors, in any order and association; a division by a literal is a factor.
    Product(f64, Vec<Pattern>),
    /// A value with literal factors on it, whose product the number of this name is multiplied by.
    Scaled(&'static str, Box<Pattern>),
    /// A node that a function accepts, with these operands in their order.
    Node(fn(&Graph, &Node) -> bool, Vec<Pattern>),
    /// A value of which this is true, that also fits the pattern.
    Where(fn(&Graph, ValueId) -> bool, Box<Pattern>),
    /// The first of these that fits.
    OneOf(Vec<Pattern>),
    /// What fits, and the name is bound to the value too.
    Named(&'static str, Box<Pattern>),
    /// What fits, and the flag of this name is set.
    Flag(&'static str, Box<Pattern>),
}

/// Any value, by a name.
pub fn any(name: &'static str) -> Pattern {
    Pattern::Any(name)
}

/// A scalar literal.
pub fn literal(value: f64) -> Pattern {
    Pattern::Literal(value)
}

/// `f(a)`.
pub fn unary(f: UnaryFn, a: Pattern) -> Pattern {
    Pattern::Unary(f, Box::new(a))
}

/// `a + b` in either order.
pub fn add(a: Pattern, b: Pattern) -> Pattern {
    Pattern::Binary(BinaryFn::Add, Box::new([a, b]))
}

/// `a · b` in either order, each as it stands; see [`product`] for factors in any association.
pub fn mul(a: Pattern, b: Pattern) -> Pattern {
    Pattern::Binary(BinaryFn::Mul, Box::new([a, b]))
}

/// `max(a, b)` in either order.
pub fn max(a: Pattern, b: Pattern) -> Pattern {
    Pattern::Binary(BinaryFn::Max, Box::new([a, b]))
}

/// `min(a, b)` in either order.
pub fn min(a: Pattern, b: Pattern) -> Pattern {
    Pattern::Binary(BinaryFn::Min, Box::new([a, b]))
}

/// `literal · factors`, in any order and association.
pub fn product(literal: f64, factors: impl IntoIterator<Item = Pattern>) -> Pattern {
    Pattern::Product(literal, factors.into_iter().collect())
}

/// `a` with literal factors on it, which go into the number `name`.
pub fn with_scale(name: &'static str, a: Pattern) -> Pattern {
    Pattern::Scaled(name, Box::new(a))
}

/// A node that `accepts`, with these operands.
pub fn node(accepts: fn(&Graph, &Node) -> bool, operands: impl IntoIterator<Item = Pattern>) -> Pattern {
    Pattern::Node(accepts, operands.into_iter().collect())
}

/// `select(condition, yes, no)`.
pub fn select(condition: Pattern, yes: Pattern, no: Pattern) -> Pattern {
    node(|_, node| matches!(node.op, Op::Select(_)), [condition, yes, no])
}

/// `a · b`, or `a · bᵀ` where `transposed`.
pub fn matmul(transposed: bool, a: Pattern, b: Pattern) -> Pattern {
    let plain: fn(&Graph, &Node) -> bool = |_, node| node.op == Op::from(Matmul { transpose_b: false });
    let other: fn(&Graph, &Node) -> bool = |_, node| node.op == Op::from(Matmul { transpose_b: true });
    node(if transposed { other } else { plain }, [a, b])
}

/// The softmax over the last axis.
pub fn softmax(a: Pattern) -> Pattern {
    let last = |graph: &Graph, node: &Node| match &node.op {
        Op::Softmax(Softmax { axis, log: false }) => axis + 1 == graph.ty(node.output()).rank(),
        _ => false,
    };
    node(last, [a])
}

/// The first of these that fits.
pub fn one_of(patterns: impl IntoIterator<Item = Pattern>) -> Pattern {
    Pattern::OneOf(patterns.into_iter().collect())
}

impl Pattern {
    /// The same, where also `accepts` the value.
    pub fn filter(self, accepts: fn(&Graph, ValueId) -> bool) -> Pattern {
        Pattern::Where(accepts, Box::new(self))
    }

    /// The same, with a name for the value.
    pub fn named(self, name: &'static str) -> Pattern {
        Pattern::Named(name, Box::new(self))
    }

    /// The same, with a flag that tells afterwards that this was what fitted.
    pub fn flag(self, name: &'static str) -> Pattern {
        Pattern::Flag(name, Box::new(self))
    }

    /// What the names of the pattern are when `value` fits it.
    pub fn find(&self, graph: &Graph, value: ValueId) -> Option<Found> {
        self.all(graph, value, &Found::default()).into_iter().next()
    }

    /// Every way in which `value` fits, on top of what was found before.
    fn all(&self, graph: &Graph, value: ValueId, before: &Found) -> Vec<Found> {
        match self {
            Pattern::Any(name) => before.with(name, value).into_iter().collect(),
            Pattern::Literal(wanted) => {
                if literal_f64(graph, value) == Some(*wanted) {
                    vec![before.clone()]
                } else {
                    Vec::new()
                }
            }
            Pattern::Unary(f, a) => match producer(graph, value) {
                Some((_, Node { op: Op::Unary(op), inputs, .. })) if op.f == *f => {
                    inputs[0].map_or_else(Vec::new, |operand| a.all(graph, operand, before))
                }
                _ => Vec::new(),
            },
            Pattern::Binary(f, operands) => {
                let Some((a, b)) = binary(graph, value, *f) else { return Vec::new() };
                let orders = if a == b { vec![[a, b]] } else { vec![[a, b], [b, a]] };
                orders.iter().flat_map(|order| in_order(graph, &operands[..], order, before)).collect()
            }
            Pattern::Product(literal, factors) => products(graph, *literal, factors, value, before),
            Pattern::Scaled(name, a) => {
                let (mut inner, mut scale) = (value, 1.0);
                while let Some((x, factor)) = scaled(graph, inner) {
                    (inner, scale) = (x, scale * factor);
                }
                let found = a.all(graph, inner, before);
                found.into_iter().map(|found| found.scaled(name, scale)).collect()
            }
            Pattern::Node(accepts, operands) => match producer(graph, value) {
                Some((_, node)) if accepts(graph, node) && node.inputs.len() >= operands.len() => {
                    let inputs: Option<Vec<ValueId>> = node.inputs.iter().take(operands.len()).copied().collect();
                    inputs.map_or_else(Vec::new, |inputs| in_order(graph, operands, &inputs, before))
                }
                _ => Vec::new(),
            },
            Pattern::Where(accepts, a) => {
                if accepts(graph, value) {
                    a.all(graph, value, before)
                } else {
                    Vec::new()
                }
            }
            Pattern::OneOf(patterns) => {
                let found = patterns.iter().map(|pattern| pattern.all(graph, value, before));
                found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
            }
            Pattern::Named(name, a) => {
                before.with(name, value).map_or_else(Vec::new, |before| a.all(graph, value, &before))
            }
            Pattern::Flag(name, a) => {
                let found = a.all(graph, value, before);
                found.into_iter().map(|found| found.flagged(name)).collect()
            }
        }
    }
}

/// Factors of a product were rounded to f32, one by one or together.
fn is_close(found: f64, wanted: f64) -> bool {
    found == wanted || (found - wanted).abs() <= 1e-6 * wanted.abs()
}

fn in_order(graph: &Graph, patterns: &[Pattern], values: &[ValueId], before: &Found) -> Vec<Found> {
    patterns.iter().zip(values).fold(vec![before.clone()], |found, (pattern, &value)| {
        found.iter().flat_map(|found| pattern.all(graph, value, found)).collect()
    })
}

/// The ways in which `value` is `literal · factors`. A value that a name stands for may itself be a product: each part of the
/// product is tried as a whole.
fn products(graph: &Graph, literal: f64, patterns: &[Pattern], value: ValueId, before: &Found) -> Vec<Found> {
    let mut parts = Vec::new();
    let mut whole = Factors::default();
    if whole.take_apart(graph, value, None, &mut parts).is_none() {
        return Vec::new();
    }
    let leaves = std::iter::once(None).chain(parts.into_iter().skip(1).map(Some));
    let mut found = leaves.filter_map(|leaf| {
        let mut factors = Factors::default();
        factors.take_apart(graph, value, leaf, &mut Vec::new())?;
        let fits = is_close(factors.literal, literal) && factors.values.len() == patterns.len();
        let found = if fits { in_any_order(graph, patterns, &factors.values, before) } else { Vec::new() };
        (!found.is_empty()).then_some(found)
    });
    found.next().unwrap_or_default()
}

fn in_any_order(graph: &Graph, patterns: &[Pattern], values: &[ValueId], before: &Found) -> Vec<Found> {
    let Some((first, rest)) = patterns.split_first() else { return vec![before.clone()] };
    let mut all = Vec::new();
    for (i, &value) in values.iter().enumerate().filter(|(i, value)| !values[..*i].contains(value)) {
        let mut others = values.to_vec();
        others.remove(i);
        for found in first.all(graph, value, before) {
            all.extend(in_any_order(graph, rest, &others, &found));
        }
    }
    all
}

/// A product as its literal factor and the others.
struct Factors {
    literal: f64,
    values: Vec<ValueId>,
}

impl Default for Factors {
    fn default() -> Self {
        Factors { literal: 1.0, values: Vec::new() }
    }
}

impl Factors {
    /// Takes `value` apart, but not `leaf`; `parts` gathers every value that is taken apart and every factor. `None` when there
    /// are too many.
    fn take_apart(
        &mut self,
        graph: &Graph,
        value: ValueId,
        leaf: Option<ValueId>,
        parts: &mut Vec<ValueId>,
    ) -> Option<()> {
        parts.push(value);
        if Some(value) == leaf {
            self.values.push(value);
        } else if let Some(literal) = literal_f64(graph, value) {
            self.literal *= literal;
        } else if let Some((a, b)) = binary(graph, value, BinaryFn::Mul) {
            self.take_apart(graph, a, leaf, parts)?;
            self.take_apart(graph, b, leaf, parts)?;
        } else if let Some((a, by)) = divided(graph, value) {
            self.literal /= by;
            self.take_apart(graph, a, leaf, parts)?;
        } else {
            self.values.push(value);
        }
        (parts.len() <= MAX_FACTORS).then_some(())
    }
}

/// `value` as `a / c` for a literal `c`.
fn divided(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    let (a, b) = binary(graph, value, BinaryFn::Div)?;
    Some((a, literal_f64(graph, b)?))
}

/// What the names of a pattern are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    values: Vec<(&'static str, ValueId)>,
    numbers: Vec<(&'static str, f64)>,
    flags: Vec<&'static str>,
}

impl Found {
    /// The value of a name.
    ///
    /// # Panics
    /// When the pattern does not bind it wherever it fits.
    pub fn value(&self, name: &str) -> ValueId {
        self.get(name).expect("the pattern binds the name")
    }

    /// The value of a name that only some ways of fitting bind.
    pub fn get(&self, name: &str) -> Option<ValueId> {
        self.values.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    /// The product of the literal factors that went into a number; 1 when there were none.
    pub fn number(&self, name: &str) -> f64 {
        self.numbers.iter().filter(|(other, _)| *other == name).map(|(_, factor)| factor).product()
    }

    /// Whether what has this flag was what fitted.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// This and one name more; `None` when the name is another value already.
    fn with(&self, name: &'static str, value: ValueId) -> Option<Found> {
        match self.get(name) {
            Some(other) => (other == value).then(|| self.clone()),
            None => {
                let mut more = self.clone();
                more.values.push((name, value));
                Some(more)
            }
        }
    }

    fn scaled(mut self, name: &'static str, by: f64) -> Found {
        self.numbers.push((name, by));
        self
    }

    fn flagged(mut self, name: &'static str) -> Found {
        self.flags.push(name);
        self
    }
}
