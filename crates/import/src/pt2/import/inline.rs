//! Calls of inner graphs.

use super::{Bound, Translator};
use crate::pt2::{
    args::{Res, unsupported, wrong},
    schema::{Argument, NamedArgument, Node},
};

/// Inner graphs may hold inner graphs, but not this deep.
const MAX_NESTING: usize = 32;
/// Branches and loops, whose graphs do not just run once.
const CONTROL: [&str; 4] = [
    "torch.ops.higher_order.cond",
    "torch.ops.higher_order.map_impl",
    "torch.ops.higher_order.scan",
    "torch.ops.higher_order.while_loop",
];

impl<'p> Translator<'p> {
    /// A call of an inner graph that runs as if it stood here.
    pub(super) fn inline(&mut self, node: &'p Node, names: &[&'p str], depth: usize) -> Res<()> {
        if depth >= MAX_NESTING {
            return unsupported(format!("inner graphs nested deeper than {MAX_NESTING}"), "simplify the model");
        }
        if is_control(node) {
            return self.control(node, names, depth);
        }
        let Some(at) = node.inputs.iter().position(|i| matches!(i.arg, Argument::Graph(_))) else {
            return wrong("expected an inner graph among the arguments");
        };
        let (before, rest) = node.inputs.split_at(at);
        check_autocast(node, before)?;
        let Some((Argument::Graph(inner), operands)) = rest.split_first().map(|(g, o)| (&g.arg, o)) else {
            return wrong("expected an inner graph among the arguments");
        };
        let flat = self
            .bound_in(operands.iter().map(|i| &i.arg))
            .or_else(|name| wrong(format!("it reads `{name}`, which nothing before it makes")))?;
        let results = self.inner(&inner.graph, flat, depth)?;
        if names.len() != results.len() {
            return wrong(format!("its inner graph gives {} values, {} are expected", results.len(), names.len()));
        }
        self.env.extend(names.iter().copied().zip(results));
        Ok(())
    }

    /// What the names in `args` stand for, or the last name of the first argument with one that stands for nothing.
    pub(super) fn bound_in<'a>(&self, args: impl Iterator<Item = &'a Argument>) -> Result<Vec<Bound>, &'a str> {
        let mut flat = Vec::new();
        for arg in args {
            let mut missing = None;
            arg.for_each_name(&mut |name| match self.env.get(name) {
                Some(bound) => flat.push(bound.clone()),
                None => missing = Some(name),
            });
            if let Some(name) = missing {
                return Err(name);
            }
        }
        Ok(flat)
    }
}

/// Whether the inner graphs of a node do not just run once.
pub(super) fn is_control(node: &Node) -> bool {
    CONTROL.contains(&node.target.as_str())
}

/// Refuses inner graphs that run under autocast.
fn check_autocast(node: &Node, before: &[NamedArgument]) -> Res<()> {
    // The first condition says whether it is enabled, the second is about its cache.
    let enabled = before.iter().find_map(|i| match i.arg {
        Argument::Bool(enabled) => Some(enabled),
        _ => None,
    });
    if node.target.ends_with("wrap_with_autocast") && enabled == Some(true) {
        return unsupported("autocast", "convert the model to the wanted dtype before exporting it");
    }
    Ok(())
}
