//! Activations that a program spells in steps become one function: clamps to `relu` and `relu6`, `x·sigmoid(x)` to
//! `silu`, `hardsigmoid` and `hardswish`, both forms of GELU.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Op,
    ops::{Unary, UnaryFn},
};

use crate::lower::{
    Pass,
    matcher::{Pattern, add, any, literal, max, min, one_of, product, unary},
};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "recompose_activations", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let activations = activations();
    for id in graph.node_ids() {
        let node = graph.node(id);
        let y = node.output();
        if !matches!(node.op, Op::Binary(_)) || !graph.ty(y).dtype.is_float() {
            continue;
        }
        let scope = node.scope.clone();
        let mut found = activations.iter().filter_map(|(f, pattern)| {
            let x = pattern.find(graph, y)?.value("x");
            (graph.ty(x) == graph.ty(y)).then_some((*f, x))
        });
        let Some((f, x)) = found.next() else { continue };
        let new = graph.add1(Unary { f }, &[x], &scope)?;
        graph.replace_uses(y, new);
    }
    Ok(())
}

/// Each function with the ways to spell it, over `x`. Earlier ones are part of later ones, spelled in either way.
fn activations() -> Vec<(UnaryFn, Pattern)> {
    let x = || any("x");
    let hard_gate = || relu6(add(x(), literal(3.0)));
    let hardsigmoid = || product(1.0 / 6.0, [hard_gate()]);
    let erf_gate = add(unary(UnaryFn::Erf, product(FRAC_1_SQRT_2, [x()])), literal(1.0));
    // `sqrt(2/pi)·(x + 0.044715·x³)`, also as `sqrt(2/pi)·x·(1 + 0.044715·x²)`.
    let (outer, cubic) = ((2.0 / PI).sqrt(), 0.044715);
    let sum = add(x(), product(cubic, [x(), x(), x()]));
    let factored = add(product(cubic, [x(), x()]), literal(1.0));
    let tanh_gate = |inner| add(unary(UnaryFn::Tanh, inner), literal(1.0));
    vec![
        (UnaryFn::Relu6, relu6(x())),
        (UnaryFn::Relu, max(x(), literal(0.0))),
        (UnaryFn::Hardsigmoid, hardsigmoid()),
        (UnaryFn::Silu, product(1.0, [x(), unary(UnaryFn::Sigmoid, x())])),
        (
            UnaryFn::Hardswish,
            one_of([product(1.0, [x(), unary(UnaryFn::Hardsigmoid, x())]), product(1.0 / 6.0, [x(), hard_gate()])]),
        ),
        (UnaryFn::Gelu, product(0.5, [x(), erf_gate])),
        (
            UnaryFn::GeluTanh,
            one_of([
                product(0.5, [x(), tanh_gate(product(outer, [sum]))]),
                product(0.5, [x(), tanh_gate(product(outer, [x(), factored]))]),
            ]),
        ),
    ]
}

/// `min(max(x, 0), 6)` in every order, or what was recognized before.
fn relu6(x: Pattern) -> Pattern {
    let relu = one_of([unary(UnaryFn::Relu, x.clone()), max(x.clone(), literal(0.0))]);
    one_of([unary(UnaryFn::Relu6, x.clone()), min(relu, literal(6.0)), max(min(x, literal(6.0)), literal(0.0))])
}
