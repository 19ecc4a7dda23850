//! Sources, inputs and outputs of the graph.

use std::collections::{BTreeSet, HashMap};

use regraft_checkpoint::onnx::dtype_of;
use regraft_ir::{SourceKind, TensorType};
use regraft_tensor::{DType, Dim, Range, Symbol, Tensor};

use super::{Bound, Translator, damaged};
use crate::{
    ImportError,
    build::{Problem, Res, ValueId, unsupported, wrong},
    onnx::proto::{Size, Stored, ValueInfo},
    pt2::symbols::UNBOUNDED,
};

/// More elements than an initializer has that says something about the program.
const MOST_LITERALS: usize = 4096;

impl<'p> Translator<'p> {
    /// Adds the initializers.
    pub(super) fn sources(&mut self) -> Result<(), ImportError> {
        let (weights, model) = (self.weights, self.model);
        for Stored { name, .. } in &model.graph.initializers {
            let Some(tensor) = weights.get(name) else {
                return Err(damaged(self.path, name, "an initializer was not read".to_owned()));
            };
            let value = self.source(name, kind_of(name, tensor), tensor);
            self.bind(name, Bound::Value(value));
        }
        Ok(())
    }

    fn source(&mut self, name: &str, kind: SourceKind, tensor: &Tensor) -> ValueId {
        let value = self.b.graph.add_source(name, kind, TensorType::of_sizes(tensor.dtype(), tensor.shape()));
        let source = self.b.graph.sources.len() as u32 - 1;
        self.b.mark(value, true);
        if tensor.numel() <= MOST_LITERALS {
            self.b.literals.insert(source, tensor.clone());
        }
        value
    }

    /// The tensor in a node whose message begins at byte `at`: a number of rank 0 and a whole one as a literal, others as a source
    /// of the program. A vector of one float may be the bias of one channel.
    pub(in crate::onnx) fn constant(&mut self, at: usize) -> Res<ValueId> {
        let (value, tensor) = self.in_node(at)?;
        match tensor.dtype().is_float() && !tensor.shape().is_empty() {
            true => Ok(value),
            false => self.compiled_in(value, tensor),
        }
    }

    /// The tensor of one element in a node that it is to fill something with: a literal.
    pub(in crate::onnx) fn filling(&mut self, at: usize) -> Res<ValueId> {
        let (value, tensor) = self.in_node(at)?;
        self.compiled_in(value, tensor)
    }

    /// A source of one element as a literal, with which its value is a part of the program.
    fn compiled_in(&mut self, value: ValueId, tensor: &Tensor) -> Res<ValueId> {
        if tensor.numel() != 1 {
            return Ok(value);
        }
        self.b.known(value);
        self.number(tensor)
    }

    /// The source of the tensor in a node whose message begins at byte `at`.
    fn in_node(&mut self, at: usize) -> Res<(ValueId, &'p Tensor)> {
        let (names, weights) = (self.names, self.weights);
        let Some(name) = names.get(&at) else { return wrong("its tensor was not read") };
        let Some(tensor) = weights.constants().and_then(|constants| constants.get(name)) else {
            let what = weights.skipped().get(name).map_or("a tensor of a kind that is not read", String::as_str);
            return unsupported(what, "use a dtype that Regraft has");
        };
        // Rounds of a loop and calls of a function read the same one.
        let value = match self.constants.get(name.as_str()) {
            Some(value) => *value,
            None => {
                let value = self.source(name, SourceKind::Constant, tensor);
                self.constants.insert(name, value);
                value
            }
        };
        Ok((value, tensor))
    }

    /// A tensor of one element as a literal.
    fn number(&mut self, tensor: &Tensor) -> Res<ValueId> {
        let scalar = if tensor.dtype().is_float() {
            regraft_ir::Scalar::Float(tensor.to_f64_vec().first().copied().unwrap_or_default())
        } else {
            regraft_ir::Scalar::Int(tensor.to_i64_vec().first().copied().unwrap_or_default())
        };
        let literal = self.b.literal(scalar, tensor.dtype())?;
        self.b.expand(literal, tensor.shape().iter().map(|&d| Dim::from(d)).collect())
    }

    /// A tensor that the translation computed, such as the window of a spectrum: a number as a literal, others as a source of the
    /// program, under a name that no file has for it.
    pub(in crate::onnx) fn computed(&mut self, tensor: Tensor, name: &str) -> Res<ValueId> {
        if tensor.numel() == 1 {
            return self.number(&tensor);
        }
        let mut unique = format!("computed/{name}");
        let taken = |t: &Self, name: &str| {
            let in_nodes = t.weights.constants().is_some_and(|constants| constants.contains_key(name));
            in_nodes || t.weights.get(name).is_some() || t.computed.contains_key(name)
        };
        let mut n = 0;
        while taken(self, &unique) {
            n += 1;
            unique = format!("computed/{name}.{n}");
        }
        let value = self.source(&unique, SourceKind::Constant, &tensor);
        self.computed.insert(unique, tensor);
        Ok(value)
    }

    /// Adds the tensors of nodes that the translation came not by: names that a file with other weights has, too.
    pub(super) fn unread_constants(&mut self) {
        let weights = self.weights;
        for (name, tensor) in weights.constants().into_iter().flatten() {
            if !self.constants.contains_key(name.as_str()) {
                self.source(name, SourceKind::Constant, tensor);
            }
        }
    }

    /// Adds what the caller gives.
    pub(super) fn inputs(&mut self) -> Result<(), ImportError> {
        let mut named: HashMap<&str, Symbol> = HashMap::new();
        let mut seen = BTreeSet::new();
        let model = self.model;
        for info in &model.graph.inputs {
            // Before version 4 of the format initializers are inputs, too.
            if self.weights.get(info.name).is_some() {
                continue;
            }
            if !seen.insert(info.name) {
                return Err(damaged(self.path, info.name, "it has two inputs of this name".to_owned()));
            }
            match self.input_type(info, &mut named) {
                Ok(ty) => {
                    let value = self.b.graph.add_input(info.name, ty);
                    self.b.mark(value, false);
                    self.bind(info.name, Bound::Value(value));
                }
                Err(problem) => {
                    self.problem(format!("input `{}`", info.name), problem);
                    self.bind(info.name, Bound::Refused);
                }
            }
        }
        Ok(())
    }

    fn input_type(&mut self, info: &ValueInfo<'p>, named: &mut HashMap<&'p str, Symbol>) -> Res<TensorType> {
        let Some((dtype, sizes)) = &info.tensor else {
            return unsupported(
                "an input that is not a tensor",
                "give each of its tensors as an input, and join them by SequenceConstruct",
            );
        };
        let dtype = dtype_of(*dtype).or_else(|name| {
            unsupported(format!("an input of dtype {name}"), "cast it to a dtype that Regraft has before it is given")
        })?;
        if !info.has_shape {
            let help = "set it, with None or names for sizes that change: onnx.tools.update_model_dims";
            return unsupported("an input without a shape", help);
        }
        let rank = sizes.len();
        if rank > 16 {
            return wrong(format!("a tensor with {rank} axes"));
        }
        let mut shape = Vec::with_capacity(rank);
        for (axis, size) in sizes.iter().enumerate() {
            shape.push(match size {
                Size::Known(size) if (0..UNBOUNDED).contains(size) => Dim::new(*size),
                Size::Named(name) => match named.get(name) {
                    Some(symbol) => Dim::sym(*symbol),
                    None => {
                        let symbol = self.symbol((*name).to_owned(), rank, axis);
                        named.insert(name, symbol);
                        Dim::sym(symbol)
                    }
                },
                Size::Known(_) | Size::Open => {
                    Dim::sym(self.symbol(format!("axis {axis} of {}", info.name), rank, axis))
                }
            });
        }
        Ok(TensorType::new(dtype, shape))
    }

    /// A size that the caller chooses. Kernels are chosen for what such an axis mostly has: one example, an image, a text.
    fn symbol(&mut self, name: String, rank: usize, axis: usize) -> Symbol {
        let opt = match (rank, axis) {
            (_, 0) => 1,
            (4, _) => 224,
            _ => 128,
        };
        let range = Range { min: 1, max: UNBOUNDED };
        self.symbols.push(name);
        self.b.ranges.push(range);
        self.b.graph.add_symbol(range, opt)
    }

    pub(super) fn outputs(&mut self) -> Result<(), ImportError> {
        let model = self.model;
        if model.graph.outputs.is_empty() {
            return Err(damaged(self.path, "", "it has no outputs".to_owned()));
        }
        let mut seen = BTreeSet::new();
        for info in &model.graph.outputs {
            if !seen.insert(info.name) {
                return Err(damaged(self.path, info.name, "it has two outputs of this name".to_owned()));
            }
            // A sequence is given as its tensors.
            if let Some(Bound::Sequence(list)) = self.lookup(info.name) {
                for (i, value) in list.clone().into_iter().enumerate() {
                    let name = format!("{}.{i}", info.name);
                    if model.graph.outputs.iter().any(|other| other.name == name) {
                        return Err(damaged(self.path, &name, "it has two outputs of this name".to_owned()));
                    }
                    self.b.graph.add_output(name, value);
                }
                continue;
            }
            match self.output(info) {
                Ok(Some(value)) => self.b.graph.add_output(info.name, value),
                Ok(None) => {}
                Err(problem) => self.problem(format!("output `{}`", info.name), problem),
            }
        }
        Ok(())
    }

    fn output(&self, info: &ValueInfo<'p>) -> Res<Option<ValueId>> {
        let value = match self.lookup(info.name) {
            Some(Bound::Value(value)) => *value,
            Some(Bound::Refused) => return Ok(None),
            Some(Bound::Sequence(_) | Bound::Nothing) => {
                return unsupported("an output without a tensor", "remove this output");
            }
            Some(Bound::Missing(what)) => return unsupported(what.clone(), "remove this output"),
            None => return wrong("nothing makes it"),
        };
        let declared = info.tensor.as_ref().and_then(|(dtype, _)| dtype_of(*dtype).ok());
        let found = self.b.dtype_of(value);
        match declared {
            Some(declared) if declared != found => {
                Err(Problem::Wrong(format!("it is {found}, declared as {declared}")))
            }
            _ => Ok(Some(value)),
        }
    }
}

/// What an initializer is. Whole numbers that are not weights of a quantized model, and numbers that a tool put there, belong
/// to the program.
fn kind_of(name: &str, tensor: &Tensor) -> SourceKind {
    let of_a_tool = name.contains('/') || name.contains("::") || name.contains("onstant");
    match tensor.dtype() {
        DType::I64 | DType::Bool => SourceKind::Constant,
        _ if tensor.shape().is_empty() && of_a_tool => SourceKind::Constant,
        _ => SourceKind::Parameter,
    }
}
