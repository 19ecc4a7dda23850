//! Which values are known before a run: the analysis behind binding-time separation.

use regraft_ir::{Graph, Node, ValueId};
use regraft_tensor::Dim;

/// A node whose result has more than this many times the bytes of what it is made from stays in the plan ...
const GROWTH: i64 = 4;
/// ... unless it is small anyway.
const SMALL_BYTES: i64 = 64 << 10;

/// For each value whether it can be computed from sources and literals alone, without a blow-up in size.
///
/// A node is known when all its operands are, it has no symbolic size, and its result is not much larger than the sources
/// it is made from: an `expand` of a bias or a full mask stays in the plan, at the cheap side.
pub fn known_values(graph: &Graph) -> Vec<bool> {
    let mut known = vec![false; graph.value_count()];
    // Bytes of the sources behind each known value, an upper bound where a source is used twice.
    let mut roots = vec![0i64; graph.value_count()];
    for source in &graph.sources {
        known[source.value.0 as usize] = true;
        roots[source.value.0 as usize] = bytes(graph, source.value).unwrap_or(0);
    }
    for node in graph.nodes() {
        let operands_known = node.inputs.iter().flatten().all(|v| known[v.0 as usize]);
        if !operands_known || is_symbolic(node) {
            continue;
        }
        let root = node.inputs.iter().flatten().map(|v| roots[v.0 as usize]).fold(0, i64::saturating_add);
        let limit = root.saturating_mul(GROWTH).saturating_add(SMALL_BYTES);
        let fits = node.outputs.iter().all(|&v| bytes(graph, v).is_some_and(|b| b <= limit));
        for v in node.outputs.iter().filter(|_| fits) {
            known[v.0 as usize] = true;
            roots[v.0 as usize] = root;
        }
    }
    known
}

fn is_symbolic(node: &Node) -> bool {
    // Binding without symbols fails exactly when an attribute mentions one.
    node.op.bind(&[]).is_err()
}

fn bytes(graph: &Graph, value: ValueId) -> Option<i64> {
    let ty = graph.ty(value);
    ty.shape.iter().try_fold(ty.dtype.size() as i64, |n, d: &Dim| n.checked_mul(d.as_const()?))
}
