//! What a model takes and gives, in the words of the open inference protocol, and whether requests can run together.

use regraft::{
    DType, Model, Symbol,
    ir::{Graph, TensorType},
};
use serde_json::{Value, json};

use crate::dtype;

/// An input or an output.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) ty: TensorType,
}

impl Port {
    pub(crate) fn dtype(&self) -> DType {
        self.ty.dtype
    }

    /// Sizes, with -1 for those that vary.
    pub(crate) fn shape(&self) -> Vec<i64> {
        self.ty.shape.iter().map(|dim| dim.as_const().unwrap_or(-1)).collect()
    }

    fn to_json(&self) -> Value {
        json!({"name": self.name, "datatype": dtype::name_of(self.dtype()), "shape": self.shape()})
    }
}

/// What a model takes and gives.
#[derive(Clone, Debug)]
pub(crate) struct Signature {
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
}

impl Signature {
    pub(crate) fn of(model: &Model) -> Signature {
        Signature::of_graph(&model.plan().graph)
    }

    pub(crate) fn of_graph(graph: &Graph) -> Signature {
        let port = |name: &String, value| Port { name: name.clone(), ty: graph.ty(value).clone() };
        Signature {
            inputs: graph.inputs.iter().map(|i| port(&i.name, i.value)).collect(),
            outputs: graph.outputs.iter().map(|o| port(&o.name, o.value)).collect(),
        }
    }

    pub(crate) fn to_json(&self) -> [Value; 2] {
        [&self.inputs, &self.outputs].map(|ports| ports.iter().map(Port::to_json).collect())
    }
}

/// The size that counts the rows of all that a program takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchAxis {
    pub(crate) symbol: Symbol,
    /// The fewest rows, at least one.
    pub(crate) least: usize,
    /// The most rows.
    pub(crate) most: usize,
}

/// The rows of a program, when all that it takes and gives has one row per item of a batch as far as types tell; otherwise why
/// not.
pub(crate) fn batch_axis(graph: &Graph) -> Result<BatchAxis, String> {
    if !graph.states.is_empty() {
        return Err("it keeps state between runs".into());
    }
    let inputs = graph.inputs.iter().map(|i| (&i.name, graph.ty(i.value)));
    let mut ports = inputs.chain(graph.outputs.iter().map(|o| (&o.name, graph.ty(o.value)))).peekable();
    let symbol = ports.peek().and_then(|(_, ty)| ty.shape.first()?.as_symbol());
    let Some(symbol) = symbol else { return Err("its first input has no first axis of varying size".into()) };
    match ports.find(|(_, ty)| !is_rows_of(ty, symbol)) {
        Some((name, ty)) => Err(format!("`{name}` {ty} is not a list of rows, one for each item")),
        None => {
            let range = graph.symbols[symbol.0 as usize].range;
            let [least, most] = [range.min.max(1), range.max].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            Ok(BatchAxis { symbol, least, most })
        }
    }
}

/// Whether the first axis has the size `symbol`, and no other depends on it.
fn is_rows_of(ty: &TensorType, symbol: Symbol) -> bool {
    let Some((first, others)) = ty.shape.split_first() else { return false };
    let mut elsewhere = false;
    for dim in others {
        dim.for_each_symbol(&mut |other| elsewhere |= other == symbol);
    }
    first.as_symbol() == Some(symbol) && !elsewhere
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(body: &str) -> Result<usize, String> {
        let graph = regraft::ir::text::parse(&format!("program \"p\" {{\n{body}\n}}")).unwrap();
        batch_axis(&graph).map(|axis| axis.most)
    }

    #[test]
    fn rows_are_told_by_types() {
        let dims = "dims s0 in 1..=8 (opt 4)\ndims s1 in 1..=16 (opt 4)";
        let rows = format!("{dims}\ninput %0 : f32[s0, s1] = \"x\"\noutput %0 = \"y\"");
        assert_eq!(axis(&rows), Ok(8));
        let square = format!("{dims}\ninput %0 : f32[s0, s0] = \"x\"\noutput %0 = \"y\"");
        assert!(axis(&square).unwrap_err().contains("`x`"));
        assert!(axis("input %0 : f32[4] = \"x\"\noutput %0 = \"y\"").is_err());
    }
}
