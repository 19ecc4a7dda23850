//! Attention whose result is only used with heads behind the sequence writes it that way.

use regraft_backend::Lowering;
use regraft_ir::{
    Graph, IrError, Op,
    ops::{Attention, HeadsLayout},
};

use crate::lower::Pass;

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "attention_layout", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let uses = graph.use_counts();
    let users = graph.users();
    for id in graph.node_ids() {
        let node = graph.node(id).clone();
        let Op::Attention(op @ Attention { out: HeadsLayout::Bhsd, .. }) = &node.op else { continue };
        let y = node.output().0 as usize;
        let permutes: Vec<_> = users[y].clone();
        let moved = |id| matches!(&graph.node(id).op, Op::Permute(order) if order.perm == [0, 2, 1, 3]);
        // Uses by outputs and states are not among the users.
        if permutes.is_empty() || permutes.len() != uses[y] as usize || !permutes.iter().all(|&u| moved(u)) {
            continue;
        }
        let op = Attention { out: HeadsLayout::Bshd, ..op.clone() };
        let new = graph.add(op, node.inputs.clone(), &node.scope)?[0];
        for user in permutes {
            let permuted = graph.node(user).output();
            graph.replace_uses(permuted, new);
        }
    }
    Ok(())
}
