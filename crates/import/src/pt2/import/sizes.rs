//! The sizes that a graph may use.

use regraft_ir::attr::AttrValue;
use regraft_tensor::{Atom, Dim, Symbol};

use super::{Translator, self_error};
use crate::{ImportError, pt2::args::Problem};

impl Translator<'_> {
    /// Every symbol that the graph uses must follow from the sizes of the inputs.
    pub(super) fn check_symbols(&self) -> Result<(), ImportError> {
        let mut known = vec![false; self.graph.symbols.len()];
        for dim in self.graph.inputs.iter().flat_map(|i| &self.graph.ty(i.value).shape) {
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
        for node in self.graph.nodes() {
            for v in &node.outputs {
                self.graph.ty(*v).shape.iter().for_each(|d| check(d, &node.scope));
            }
            for (_, value) in node.op.attrs() {
                each_dim(&value, &mut |d| check(d, &node.scope));
            }
        }
        for input in &self.graph.inputs {
            self.graph.ty(input.value).shape.iter().for_each(|d| check(d, &input.name));
        }
        let Some((symbol, at)) = open else { return Ok(()) };
        let name = self.archive.symbols.info(symbol).map_or_else(|| symbol.to_string(), |i| i.name.clone());
        Err(self_error(
            self.archive,
            &at,
            Problem::Unsupported {
                what: format!("a size `{name}` that does not follow from the sizes of the inputs"),
                help: "give it as a dimension of an input, or make it static".to_owned(),
            },
        ))
    }
}

fn each_dim(value: &AttrValue, f: &mut impl FnMut(&Dim)) {
    match value {
        AttrValue::Dim(d) => f(d),
        AttrValue::List(list) => list.iter().for_each(|v| each_dim(v, f)),
        AttrValue::Float(_) | AttrValue::Word(_) | AttrValue::Str(_) => {}
    }
}
