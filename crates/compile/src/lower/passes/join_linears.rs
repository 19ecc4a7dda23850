//! Linears of the same value become one with their weights and biases joined, as query, key and value projections are.
//!
//! The results are slices of the last axis, which are views at run time.

use std::collections::HashMap;

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Activation, Concat, Linear, Slice},
};
use regraft_tensor::Dim;

use crate::lower::{Pass, known::known_values};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "join_linears", run };

/// More output features than this are not joined.
const MAX_FEATURES: i64 = 16384;

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let known = known_values(graph);
    let mut groups: HashMap<(ValueId, bool), Vec<NodeId>> = HashMap::new();
    let mut order = Vec::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        if !joinable(node, &known) {
            continue;
        }
        let key = (node.input(0), node.optional_input(2).is_some());
        let group = groups.entry(key).or_default();
        if group.is_empty() {
            order.push(key);
        }
        group.push(id);
    }
    for group in order.iter().filter_map(|key| groups.get(key)).filter(|g| g.len() > 1) {
        join(graph, group)?;
    }
    Ok(())
}

fn joinable(node: &Node, known: &[bool]) -> bool {
    let Op::Linear(op) = &node.op else { return false };
    let is_known = |i: usize| node.optional_input(i).is_none_or(|v| known[v.0 as usize]);
    let plain = op.act == Activation::None && node.optional_input(3).is_none();
    plain && is_known(1) && is_known(2) && !known[node.input(0).0 as usize]
}

fn join(graph: &mut Graph, group: &[NodeId]) -> Result<(), IrError> {
    let nodes: Vec<Node> = group.iter().map(|&id| graph.node(id).clone()).collect();
    let rows: Option<Vec<i64>> = nodes.iter().map(|n| graph.ty(n.input(1)).shape[0].as_const()).collect();
    let Some(rows) = rows.filter(|r| r.iter().sum::<i64>() <= MAX_FEATURES) else { return Ok(()) };
    let first = &nodes[0];
    let joined = |graph: &mut Graph, operand: usize| {
        let parts: Vec<ValueId> = nodes.iter().map(|n| n.input(operand)).collect();
        graph.add1(Concat { axis: 0 }, &parts, &first.scope)
    };
    let mut operands = vec![first.input(0), joined(graph, 1)?];
    if first.optional_input(2).is_some() {
        operands.push(joined(graph, 2)?);
    }
    let y = graph.add1(Linear { act: Activation::None, act_first: false }, &operands, &first.scope)?;
    let axis = graph.ty(y).rank() - 1;
    let mut start = 0;
    for (node, rows) in nodes.iter().zip(rows) {
        let slice = Slice { axis, start: Dim::new(start), end: Dim::new(start + rows), step: 1 };
        let part = graph.add1(slice, &[y], &node.scope)?;
        graph.replace_uses(node.output(), part);
        start += rows;
    }
    Ok(())
}
