//! Elementwise ops whose intermediate results nothing else needs become one [`Fused`] op; a single one becomes a `Fused`
//! of one step, so that a backend has one elementwise kernel.

use std::collections::{HashMap, HashSet};

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, NodeId, Op, ValueId,
    ops::{Fused, FusedFn, FusedStep, broadcast_types},
};
use regraft_tensor::DType;

use crate::lower::{
    Pass,
    known::known_values,
    pattern::{literal, same_shape},
};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "fuse_elementwise", run };

const MAX_STEPS: usize = 32;
const MAX_OPERANDS: usize = 12;

fn run(graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), IrError> {
    let known = known_values(graph);
    let uses = graph.use_counts();
    let users = graph.users();
    let fits = |graph: &Graph, id: NodeId| {
        let node = graph.node(id);
        step_of(&node.op).is_some() && !known[node.output().0 as usize]
    };
    let mut absorbed: HashSet<NodeId> = HashSet::new();
    let ids: Vec<NodeId> = graph.node_ids().collect();
    for &root in ids.iter().rev() {
        if absorbed.contains(&root) || !fits(graph, root) {
            continue;
        }
        let mut group = Group { root, members: HashSet::from([root]) };
        let Some(mut fused) = group.fuse(graph, lowering) else { continue };
        let mut waiting: Vec<NodeId> = group.producers(graph, root);
        while let Some(id) = waiting.pop() {
            let y = graph.node(id).output();
            // Uses by outputs and states are not among the users.
            let inner = users[y.0 as usize].len() == uses[y.0 as usize] as usize
                && users[y.0 as usize].iter().all(|u| group.members.contains(u));
            let candidate = !group.members.contains(&id) && fits(graph, id) && inner;
            if !candidate || !same_shape(graph, y, graph.node(root).output()) {
                continue;
            }
            group.members.insert(id);
            match group.fuse(graph, lowering) {
                Some(larger) => {
                    fused = larger;
                    // A producer that was turned away for a user outside may fit now that the user is inside.
                    waiting = group.members.iter().flat_map(|&m| group.producers(graph, m)).collect();
                    waiting.sort_unstable();
                    waiting.dedup();
                    waiting.retain(|id| !group.members.contains(id));
                }
                None => {
                    group.members.remove(&id);
                }
            }
        }
        let node = graph.node(root).clone();
        let new = graph.add1(fused.fused, &fused.operands, &node.scope)?;
        graph.replace_uses(node.output(), new);
        absorbed.extend(group.members);
    }
    Ok(())
}

fn step_of(op: &Op) -> Option<FusedFn> {
    Some(match op {
        Op::Unary(op) => FusedFn::Unary(op.f),
        Op::Binary(op) => FusedFn::Binary(op.f),
        Op::Compare(op) => FusedFn::Compare(op.f),
        Op::Select(_) => FusedFn::Select,
        Op::Cast(op) => FusedFn::Cast(op.dtype),
        _ => return None,
    })
}

/// Nodes that are to become one: the root and producers used only inside.
struct Group {
    root: NodeId,
    members: HashSet<NodeId>,
}

/// What a group becomes.
struct Draft {
    operands: Vec<ValueId>,
    fused: Fused,
}

impl Group {
    fn producers(&self, graph: &Graph, id: NodeId) -> Vec<NodeId> {
        graph.node(id).inputs.iter().flatten().filter_map(|&v| graph.producer(v)).collect()
    }

    /// The members in an order in which operands come first.
    fn order(&self, graph: &Graph) -> Vec<NodeId> {
        let (mut order, mut done) = (Vec::new(), HashSet::new());
        self.visit(graph, self.root, &mut done, &mut order);
        order
    }

    /// As deep as a group has members, of which there are few.
    fn visit(&self, graph: &Graph, id: NodeId, done: &mut HashSet<NodeId>, order: &mut Vec<NodeId>) {
        if done.insert(id) {
            for producer in self.producers(graph, id).into_iter().filter(|p| self.members.contains(p)) {
                self.visit(graph, producer, done, order);
            }
            order.push(id);
        }
    }

    /// The op that computes the root; `None` when it is too long, would have another shape, or the backend does not want it.
    fn fuse(&self, graph: &Graph, lowering: &dyn Lowering) -> Option<Draft> {
        let order = self.order(graph);
        let inside: HashSet<ValueId> = order.iter().map(|&id| graph.node(id).output()).collect();
        let mut outside = Vec::new();
        for v in order.iter().flat_map(|&id| graph.node(id).inputs.iter().flatten().copied()) {
            if !inside.contains(&v) && !outside.contains(&v) {
                outside.push(v);
            }
        }
        // Literals become steps; one that the shape of the result depends on stays an operand.
        let to = &graph.ty(graph.node(self.root).output()).shape;
        let fits = |operands: &[ValueId]| {
            !operands.is_empty()
                && operands.len() <= MAX_OPERANDS
                && broadcast_types(operands.iter().map(|&v| graph.ty(v))).is_ok_and(|shape| shape == *to)
        };
        let is_literal = |&v: &ValueId| literal(graph, v).is_some();
        let is_single = |v: &ValueId| is_literal(v) && graph.ty(*v).shape.iter().all(|d| d.is(1));
        let (mut literals, mut operands): (Vec<_>, Vec<_>) = outside.iter().partition(|v| is_literal(v));
        if !fits(&operands) {
            (literals, operands) = outside.iter().partition(|v| is_single(v));
        }
        if !fits(&operands) || literals.len() + order.len() > MAX_STEPS {
            return None;
        }
        let mut numbers: HashMap<ValueId, u32> = operands.iter().copied().zip(0..).collect();
        let mut steps = Vec::new();
        for v in literals {
            numbers.insert(v, (operands.len() + steps.len()) as u32);
            steps.push(FusedStep { f: FusedFn::Literal(literal(graph, v)?, graph.ty(v).dtype), args: vec![] });
        }
        for id in order {
            let node = graph.node(id);
            let args = node.inputs.iter().flatten().map(|v| numbers.get(v).copied()).collect::<Option<Vec<_>>>()?;
            numbers.insert(node.output(), (operands.len() + steps.len()) as u32);
            steps.push(FusedStep { f: step_of(&node.op)?, args });
        }
        let dtypes: Vec<DType> = operands.iter().map(|&v| graph.ty(v).dtype).collect();
        let fused = Fused { steps };
        lowering.fuses(&fused, &dtypes).then_some(Draft { operands, fused })
    }
}
