//! The sizes that a graph may use.

use regraft_ir::{Graph, attr::AttrValue};
use regraft_tensor::{Atom, Dim, Symbol};

/// The first symbol that the graph uses and that does not follow from the sizes of the inputs, and where it is used.
pub(crate) fn open_symbol(graph: &Graph) -> Option<(Symbol, String)> {
    let mut known = vec![false; graph.symbols.len()];
    for dim in graph.inputs.iter().flat_map(|i| &graph.ty(i.value).shape) {
        if let ([(atoms, _)], _) = dim.parts()
            && let [Atom::Sym(s)] = atoms.as_slice()
            && let Some(known) = known.get_mut(s.0 as usize)
        {
            *known = true;
        }
    }
    let mut open: Option<(Symbol, String)> = None;
    let mut check = |dim: &Dim, at: &str| {
        dim.for_each_symbol(&mut |s| {
            if !known.get(s.0 as usize).copied().unwrap_or(false) && open.is_none() {
                open = Some((s, at.to_owned()));
            }
        });
    };
    for node in graph.nodes() {
        for v in &node.outputs {
            graph.ty(*v).shape.iter().for_each(|d| check(d, &node.scope));
        }
        for (_, value) in node.op.attrs() {
            each_dim(&value, &mut |d| check(d, &node.scope));
        }
    }
    for input in &graph.inputs {
        graph.ty(input.value).shape.iter().for_each(|d| check(d, &input.name));
    }
    open
}

fn each_dim(value: &AttrValue, f: &mut impl FnMut(&Dim)) {
    match value {
        AttrValue::Dim(d) => f(d),
        AttrValue::List(list) => list.iter().for_each(|v| each_dim(v, f)),
        AttrValue::Float(_) | AttrValue::Word(_) | AttrValue::Str(_) => {}
    }
}
