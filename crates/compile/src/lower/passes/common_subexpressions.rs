//! Nodes that compute the same from the same operands become one.

use std::collections::HashMap;

use regraft_backend::Lowering;
use regraft_ir::{Graph, IrError, ValueId};

use crate::lower::Pass;

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "common_subexpressions", run };

fn run(graph: &mut Graph, _: &dyn Lowering) -> Result<(), IrError> {
    let mut seen: HashMap<(String, Vec<Option<ValueId>>), Vec<ValueId>> = HashMap::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        // Every op is a pure function of operands and attributes; the text of attributes is their identity.
        let key = (format!("{} {:?}", node.op.name(), node.op.attrs()), node.inputs.clone());
        let outputs = node.outputs.clone();
        match seen.get(&key) {
            Some(first) => {
                for (old, new) in outputs.iter().zip(first.clone()) {
                    graph.replace_uses(*old, new);
                }
            }
            None => {
                seen.insert(key, outputs);
            }
        }
    }
    Ok(())
}
