//! Nodes that compute the same from the same operands become one.

use std::{collections::HashMap, iter::zip};

use regraft_backend::Lowering;
use regraft_ir::{Graph, IrError, NodeId, Op, ValueId};

use crate::lower::Pass;

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "common_subexpressions", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let mut seen: HashMap<(&'static str, Vec<Option<ValueId>>), Vec<NodeId>> = HashMap::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        let alike = seen.entry((node.op.name(), node.inputs.clone())).or_default();
        match alike.iter().find(|&&first| is_same(&graph.node(first).op, &node.op)) {
            Some(&first) => {
                let replaced = zip(node.outputs.clone(), graph.node(first).outputs.clone());
                replaced.for_each(|(old, new)| graph.replace_uses(old, new));
            }
            None => alike.push(id),
        }
    }
    Ok(())
}

/// Every op is a pure function of operands and attributes. The text of attributes is their identity: it tells 0 from -0.
fn is_same(a: &Op, b: &Op) -> bool {
    a == b && format!("{:?}", a.attrs()) == format!("{:?}", b.attrs())
}
