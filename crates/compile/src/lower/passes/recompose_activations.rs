//! Activations that a program spells in steps become one function: clamps to `relu` and `relu6`, `x·sigmoid(x)` to
//! `silu`, `hardsigmoid` and `hardswish`, both forms of GELU.
//!
//! Products are compared as multisets of factors, so that neither order nor association matters.

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, Op, ValueId,
    ops::{BinaryFn, Unary, UnaryFn},
};

use crate::lower::{
    Pass,
    pattern::{binary, literal_f64, producer},
};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "recompose_activations", run };

/// Products of more values are left alone.
const MAX_FACTORS: usize = 12;

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    for id in graph.node_ids() {
        let node = graph.node(id);
        let y = node.output();
        if !matches!(node.op, Op::Binary(_)) || !graph.ty(y).dtype.is_float() {
            continue;
        }
        let scope = node.scope.clone();
        let Some((f, x)) = recognise(graph, y).filter(|&(_, x)| graph.ty(x) == graph.ty(y)) else { continue };
        let new = graph.add1(Unary { f }, &[x], &scope)?;
        graph.replace_uses(y, new);
    }
    Ok(())
}

/// The function, and the value it is applied to, that `y` is.
fn recognise(graph: &Graph, y: ValueId) -> Option<(UnaryFn, ValueId)> {
    clamp(graph, y).or_else(|| product(graph, y))
}

/// `max(x, 0)` and `min(max(x, 0), 6)`.
fn clamp(graph: &Graph, y: ValueId) -> Option<(UnaryFn, ValueId)> {
    let with_literal = |v: ValueId, f: BinaryFn, bound: f64| {
        let (a, b) = binary(graph, v, f)?;
        let is_bound = |v: ValueId| literal_f64(graph, v) == Some(bound);
        if is_bound(b) { Some(a) } else { is_bound(a).then_some(b) }
    };
    if let Some(x) = with_literal(y, BinaryFn::Max, 0.0) {
        return Some(match with_literal(x, BinaryFn::Min, 6.0) {
            Some(x) => (UnaryFn::Relu6, x),
            None => (UnaryFn::Relu, x),
        });
    }
    let x = with_literal(y, BinaryFn::Min, 6.0)?;
    let x = with_literal(x, BinaryFn::Max, 0.0).or_else(|| unary(graph, x, UnaryFn::Relu))?;
    Some((UnaryFn::Relu6, x))
}

fn unary(graph: &Graph, y: ValueId, f: UnaryFn) -> Option<ValueId> {
    match producer(graph, y)?.1 {
        Node { op: Op::Unary(op), inputs, .. } if op.f == f => inputs[0],
        _ => None,
    }
}

/// A product as its literal factor and the others.
struct Product {
    literal: f64,
    factors: Vec<ValueId>,
}

impl Product {
    /// `y` taken apart, but not `leaf`.
    fn of(graph: &Graph, y: ValueId, leaf: Option<ValueId>) -> Option<Product> {
        let mut product = Product { literal: 1.0, factors: Vec::new() };
        product.collect(graph, y, leaf, &mut Vec::new())?;
        Some(product)
    }

    /// `seen` gathers every value that is taken apart and every factor.
    fn collect(&mut self, graph: &Graph, y: ValueId, leaf: Option<ValueId>, seen: &mut Vec<ValueId>) -> Option<()> {
        seen.push(y);
        if Some(y) == leaf {
            self.factors.push(y);
        } else if let Some(c) = literal_f64(graph, y) {
            self.literal *= c;
        } else if let Some((a, b)) = binary(graph, y, BinaryFn::Mul) {
            self.collect(graph, a, leaf, seen)?;
            self.collect(graph, b, leaf, seen)?;
        } else if let Some((a, c)) = divided(graph, y) {
            self.literal /= c;
            self.collect(graph, a, leaf, seen)?;
        } else {
            self.factors.push(y);
        }
        (seen.len() <= MAX_FACTORS).then_some(())
    }

    fn is_literal(&self, c: f64) -> bool {
        (self.literal - c).abs() <= 1e-6 * c.abs()
    }

    /// Whether the factors are `x` this many times and nothing else.
    fn is_power(&self, x: ValueId, times: usize) -> bool {
        self.factors.len() == times && self.factors.iter().all(|&f| f == x)
    }
}

/// `y` as `a/c` for a literal `c`.
fn divided(graph: &Graph, y: ValueId) -> Option<(ValueId, f64)> {
    let (a, b) = binary(graph, y, BinaryFn::Div)?;
    Some((a, literal_f64(graph, b)?))
}

/// Activations that are a product: of `x` and a function of `x`, or of a clamp and a literal.
fn product(graph: &Graph, y: ValueId) -> Option<(UnaryFn, ValueId)> {
    let mut seen = Vec::new();
    let mut whole = Product { literal: 1.0, factors: Vec::new() };
    whole.collect(graph, y, None, &mut seen)?;
    if let [gate] = *whole.factors.as_slice()
        && whole.is_literal(1.0 / 6.0)
    {
        let (UnaryFn::Relu6, shifted) = activation(graph, gate)? else { return None };
        return Some((UnaryFn::Hardsigmoid, plus(graph, shifted, 3.0)?));
    }
    // `x` may itself be a product: each part is tried as a whole.
    seen.into_iter().skip(1).find_map(|x| {
        let product = Product::of(graph, y, Some(x))?;
        match *product.factors.as_slice() {
            [a, gate] | [gate, a] if a == x && gate != x => gated(graph, &product, x, gate),
            _ => None,
        }
    })
}

/// The activation that `y` is, recognised before or spelled in steps.
fn activation(graph: &Graph, y: ValueId) -> Option<(UnaryFn, ValueId)> {
    match producer(graph, y)?.1 {
        Node { op: Op::Unary(op), inputs, .. } => Some((op.f, inputs[0]?)),
        _ => clamp(graph, y),
    }
}

/// `literal·x·gate` where the gate is a function of `x`.
fn gated(graph: &Graph, product: &Product, x: ValueId, gate: ValueId) -> Option<(UnaryFn, ValueId)> {
    if product.is_literal(1.0) {
        return match activation(graph, gate)? {
            (UnaryFn::Sigmoid, of) if of == x => Some((UnaryFn::Silu, x)),
            (UnaryFn::Hardsigmoid, of) if of == x => Some((UnaryFn::Hardswish, x)),
            _ => None,
        };
    }
    if product.is_literal(1.0 / 6.0) {
        let (UnaryFn::Relu6, shifted) = activation(graph, gate)? else { return None };
        return (plus(graph, shifted, 3.0) == Some(x)).then_some((UnaryFn::Hardswish, x));
    }
    if !product.is_literal(0.5) {
        return None;
    }
    let (f, inner) = activation(graph, plus(graph, gate, 1.0)?)?;
    match f {
        UnaryFn::Erf => {
            let inner = Product::of(graph, inner, Some(x))?;
            let fits = inner.is_power(x, 1) && inner.is_literal(std::f64::consts::FRAC_1_SQRT_2);
            fits.then_some((UnaryFn::Gelu, x))
        }
        UnaryFn::Tanh => is_gelu_tanh(graph, x, inner).then_some((UnaryFn::GeluTanh, x)),
        _ => None,
    }
}

/// The other addend when `y` adds the literal `c`.
fn plus(graph: &Graph, y: ValueId, c: f64) -> Option<ValueId> {
    let (a, b) = binary(graph, y, BinaryFn::Add)?;
    let is_literal = |v: ValueId| literal_f64(graph, v) == Some(c);
    if is_literal(b) { Some(a) } else { is_literal(a).then_some(b) }
}

/// `sqrt(2/pi)·(x + 0.044715·x³)`, also as `sqrt(2/pi)·x·(1 + 0.044715·x²)`.
fn is_gelu_tanh(graph: &Graph, x: ValueId, inner: ValueId) -> bool {
    const CUBIC: f64 = 0.044715;
    let power = |v: ValueId, times: usize| {
        Product::of(graph, v, Some(x)).is_some_and(|p| p.is_literal(CUBIC) && p.is_power(x, times))
    };
    let Some(outer) = Product::of(graph, inner, Some(x)) else { return false };
    if !outer.is_literal((2.0 / std::f64::consts::PI).sqrt()) {
        return false;
    }
    match *outer.factors.as_slice() {
        [sum] => {
            binary(graph, sum, BinaryFn::Add).is_some_and(|(a, b)| (a == x && power(b, 3)) || (b == x && power(a, 3)))
        }
        [a, b] => {
            let by =
                |x_there: ValueId, sum: ValueId| x_there == x && plus(graph, sum, 1.0).is_some_and(|v| power(v, 2));
            by(a, b) || by(b, a)
        }
        _ => false,
    }
}
