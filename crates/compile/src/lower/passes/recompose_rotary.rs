//! Rotary position embeddings that a program spells in steps become one op: `x·cos + cat(-x₂, x₁)·sin` over the halves `x₁` and `x₂` of the
//! last axis, as Hugging Face's `apply_rotary_pos_emb` and `rotate_half` are exported.
//!
//! What other nodes use of the steps is computed for them still.

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Rotary, Slice, UnaryFn},
};
use regraft_tensor::Dim;

use crate::lower::{
    Pass,
    known::known_values,
    matcher::{Pattern, add, any, mul, node, unary},
};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "recompose_rotary", run };

fn run(graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), IrError> {
    let (known, pattern) = (known_values(graph), pattern());
    for id in graph.node_ids() {
        let Some(operands) = recognize(graph, &pattern, &known, id) else { continue };
        if lowering.rotates(graph.ty(operands[0]).dtype) {
            let (y, scope) = (graph.node(id).output(), graph.node(id).scope.clone());
            let new = graph.add1(Rotary {}, &operands, &scope)?;
            graph.replace_uses(y, new);
        }
    }
    Ok(())
}

/// `x·cos + cat(-x₂, x₁)·sin`.
fn pattern() -> Pattern {
    let x = || any("x");
    let (first, second) = (node(is_first_half, [x()]), node(is_second_half, [x()]));
    let turned = node(joins_last, [unary(UnaryFn::Neg, second), first]);
    add(mul(x(), any("cos")), mul(turned, any("sin")))
}

/// Start, end and size of a piece of the last axis.
fn piece<'g>(graph: &'g Graph, node: &'g Node) -> Option<[&'g Dim; 3]> {
    let Op::Slice(Slice { axis, start, end, step: 1 }) = &node.op else { return None };
    let shape = &graph.ty(node.input(0)).shape;
    (axis + 1 == shape.len()).then(|| [start, end, &shape[*axis]])
}

fn is_first_half(graph: &Graph, node: &Node) -> bool {
    piece(graph, node).is_some_and(|[start, end, size]| start.is(0) && end + end == *size)
}

fn is_second_half(graph: &Graph, node: &Node) -> bool {
    piece(graph, node).is_some_and(|[start, end, size]| end == size && start + start == *size)
}

/// Whether it joins two values along the last axis.
fn joins_last(graph: &Graph, node: &Node) -> bool {
    matches!(&node.op, Op::Concat(op) if node.inputs.len() == 2 && op.axis + 1 == graph.ty(node.output()).rank())
}

/// `x`, the cosines and the sines that a node turns `x` by.
fn recognize(graph: &Graph, pattern: &Pattern, known: &[bool], id: NodeId) -> Option<[ValueId; 3]> {
    let node = graph.node(id);
    let Op::Binary(_) = &node.op else { return None };
    let y = node.output();
    let found = pattern.find(graph, y)?;
    let [x, cos, sin] = ["x", "cos", "sin"].map(|name| found.value(name));
    let row = graph.ty(x).shape.last()?;
    // Angles that make `x` larger, or that a row has one of, are none of the op.
    let fits = [cos, sin].iter().all(|&angles| graph.ty(angles).shape.last() == Some(row))
        && graph.ty(x) == graph.ty(y)
        && graph.ty(x).dtype.is_float();
    // What is made of sources alone is computed as it is, in recipes.
    (fits && known.get(y.0 as usize) != Some(&true)).then_some([x, cos, sin])
}
