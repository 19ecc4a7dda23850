//! Bias, activation and residual of a convolution or a linear move into its epilogue, in the forms `act(x)`, `x + r`,
//! `act(x + r)` and `act(x) + r`.
//!
//! Each step along the chain has exactly one use, so the residual cannot depend on the product: no cycle arises.

use std::collections::HashSet;

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Activation, BinaryFn},
};

use crate::lower::{Pass, known::known_values};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "fuse_epilogue", run };

/// What is gathered along the chain behind a product.
struct Epilogue {
    act: Activation,
    act_first: bool,
    residual: Option<ValueId>,
    /// The value that the epilogue computes.
    end: ValueId,
}

fn run(graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), IrError> {
    let known = known_values(graph);
    let uses = graph.use_counts();
    let users = graph.users();
    let mut taken: HashSet<NodeId> = HashSet::new();
    for id in graph.node_ids() {
        let node = graph.node(id).clone();
        let Some((act, act_first)) = epilogue_of(&node.op) else { continue };
        if known[node.output().0 as usize] {
            continue;
        }
        let mut chain = Epilogue { act, act_first, residual: node.optional_input(3), end: node.output() };
        while uses[chain.end.0 as usize] == 1
            && let &[user] = users[chain.end.0 as usize].as_slice()
            && !taken.contains(&user)
            && let Some(longer) = extend(graph, &chain, graph.node(user))
            && lowering.takes_epilogue(&with_epilogue(&node.op, &longer), graph.ty(longer.end).dtype)
        {
            taken.insert(user);
            chain = longer;
        }
        if chain.end == node.output() {
            continue;
        }
        let op = with_epilogue(&node.op, &chain);
        let mut inputs = vec![node.optional_input(0), node.optional_input(1), node.optional_input(2), chain.residual];
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let new = graph.add(op, inputs, &node.scope)?[0];
        graph.replace_uses(chain.end, new);
    }
    Ok(())
}

fn epilogue_of(op: &Op) -> Option<(Activation, bool)> {
    match op {
        Op::Linear(op) => Some((op.act, op.act_first)),
        Op::Conv(op) => Some((op.act, op.act_first)),
        _ => None,
    }
}

fn with_epilogue(op: &Op, chain: &Epilogue) -> Op {
    let mut op = op.clone();
    if let Op::Linear(op) = &mut op {
        (op.act, op.act_first) = (chain.act, chain.act_first);
    }
    if let Op::Conv(op) = &mut op {
        (op.act, op.act_first) = (chain.act, chain.act_first);
    }
    op
}

/// The chain with `user`, the only one of its end, if an epilogue can express it.
fn extend(graph: &Graph, chain: &Epilogue, user: &Node) -> Option<Epilogue> {
    let end = user.output();
    match &user.op {
        // `act(act(x))` and `act(act(x) + r)` are beyond an epilogue.
        Op::Unary(op) if chain.act == Activation::None => {
            let act = Activation::from_function(op.f)?;
            Some(Epilogue { act, act_first: false, end, ..*chain })
        }
        Op::Binary(op) if op.f == BinaryFn::Add && chain.residual.is_none() => {
            let (a, b) = (user.input(0), user.input(1));
            let residual = if a == chain.end { b } else { a };
            if residual == chain.end || graph.ty(residual) != graph.ty(chain.end) {
                return None;
            }
            Some(Epilogue { residual: Some(residual), act_first: chain.act != Activation::None, end, ..*chain })
        }
        _ => None,
    }
}
