//! What is measured: a node at the sizes for which kernels are chosen.

use std::fmt;

use regraft_ir::{Graph, Node, Op, TensorType};
use regraft_tensor::{DType, Dim, Tensor};

/// An operand with known sizes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ProblemOperand {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Whether it is known from sources, and so a slot.
    pub(super) known: bool,
}

/// A node with its symbols at their `opt` values. Its text is the key of its record: op, attributes and types, no names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeProblem {
    pub(super) op: Op,
    pub(super) inputs: Vec<Option<ProblemOperand>>,
    pub(super) outputs: Vec<(DType, Vec<usize>)>,
}

impl NodeProblem {
    /// The problem of a node; `None` when its sizes do not work out at the `opt` values.
    pub(super) fn new(graph: &Graph, node: &Node) -> Option<NodeProblem> {
        let symbols: Vec<i64> = graph.symbols.iter().map(|s| s.opt).collect();
        let sizes = |ty: &TensorType| {
            let size = |dim: &Dim| usize::try_from(dim.eval(&symbols).ok()?).ok();
            let shape = ty.shape.iter().map(size).collect::<Option<Vec<_>>>()?;
            Tensor::byte_len(ty.dtype, &shape).ok()?;
            Some(shape)
        };
        let operand = |v| {
            let ty = graph.ty(v);
            Some(ProblemOperand { dtype: ty.dtype, shape: sizes(ty)?, known: graph.source_of(v).is_some() })
        };
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            inputs.push(match input {
                Some(v) => Some(operand(*v)?),
                None => None,
            });
        }
        let outputs = node.outputs.iter().map(|&v| Some((graph.ty(v).dtype, sizes(graph.ty(v))?)));
        Some(NodeProblem { op: node.op.bind(&symbols).ok()?, inputs, outputs: outputs.collect::<Option<_>>()? })
    }
}

impl fmt::Display for NodeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ty = |dtype, shape: &[usize]| TensorType::of_sizes(dtype, shape).to_string();
        let operand = |operand: &Option<ProblemOperand>| match operand {
            Some(o) if o.known => format!("known {}", ty(o.dtype, &o.shape)),
            Some(o) => ty(o.dtype, &o.shape),
            None => "none".to_owned(),
        };
        let operands: Vec<String> = self.inputs.iter().map(operand).collect();
        let results: Vec<String> = self.outputs.iter().map(|(dtype, shape)| ty(*dtype, shape)).collect();
        write!(f, "{} {}", self.op.name(), operands.join(", "))?;
        let attrs: Vec<String> = self.op.attrs().iter().map(|(name, value)| format!("{name} = {value}")).collect();
        if !attrs.is_empty() {
            write!(f, " {{{}}}", attrs.join(", "))?;
        }
        write!(f, " : {}", results.join(", "))
    }
}
