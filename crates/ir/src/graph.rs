mod compact;

use std::sync::Arc;

use regraft_tensor::{Range, Symbol};
use serde::{Deserialize, Serialize};

use crate::{IrError, IrErrorKind, Op, TensorType};

/// A value of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A node of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Where a value comes from; the index points into the graph's list of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Def {
    /// An input given at each run.
    Input(u32),
    /// A source: a named tensor of the model.
    Source(u32),
    /// The state of a session at the start of a run.
    State(u32),
    /// An output of a node.
    Node(NodeId, u32),
}

/// A value with its type.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its type.
    pub ty: TensorType,
    /// Where it comes from.
    pub def: Def,
}

/// An input of the program, in the program's order.
#[derive(Clone, Debug)]
pub struct Input {
    /// The name under which a caller gives it.
    pub name: String,
    /// Its value.
    pub value: ValueId,
}

/// What a source was in the original model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceKind {
    /// `nn.Parameter`.
    Parameter,
    /// A buffer that `state_dict()` holds.
    Buffer,
    /// A buffer registered with `persistent=False`: no state dict holds it.
    NonPersistentBuffer,
    /// A tensor lifted out of the program's code: no state dict holds it.
    Constant,
}

impl SourceKind {
    /// Whether `state_dict()` holds sources of this kind.
    pub fn in_state_dict(self) -> bool {
        matches!(self, SourceKind::Parameter | SourceKind::Buffer)
    }

    /// The word for it in text.
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::Parameter => "parameter",
            SourceKind::Buffer => "buffer",
            SourceKind::NonPersistentBuffer => "buffer_non_persistent",
            SourceKind::Constant => "constant",
        }
    }

    /// All kinds.
    pub const ALL: [SourceKind; 4] =
        [SourceKind::Parameter, SourceKind::Buffer, SourceKind::NonPersistentBuffer, SourceKind::Constant];
}

/// What a source is to the module that reads it: which of its axes are outputs and which are inputs, whatever its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// None of these, or several.
    #[default]
    Other,
    /// The matrix of a linear layer as `[out, in]`.
    Linear,
    /// The matrix of a linear layer as `[in, out]`, as GPT-2's `Conv1D` has it.
    LinearInOut,
    /// Rows by index: an embedding.
    Table,
    /// The kernel of a convolution, `[out, in / groups, ...]`.
    Conv,
    /// The kernel of a transposed convolution, `[in, out / groups, ...]`.
    ConvTranspose,
}

impl Role {
    /// The word for it in text.
    pub fn name(self) -> &'static str {
        match self {
            Role::Other => "other",
            Role::Linear => "linear",
            Role::LinearInOut => "linear_in_out",
            Role::Table => "table",
            Role::Conv => "conv",
            Role::ConvTranspose => "conv_transpose",
        }
    }

    /// Whether there is nothing to say.
    pub fn is_other(&self) -> bool {
        *self == Role::Other
    }

    /// All roles.
    pub const ALL: [Role; 6] =
        [Role::Other, Role::Linear, Role::LinearInOut, Role::Table, Role::Conv, Role::ConvTranspose];
}

/// A named tensor of the original model.
#[derive(Clone, Debug)]
pub struct Source {
    /// Fully qualified name, as `state_dict()` spells it.
    pub name: String,
    /// Other names of the same tensor (tied weights).
    pub aliases: Vec<String>,
    /// What it was.
    pub kind: SourceKind,
    /// Its role in the module that reads it.
    pub role: Role,
    /// The source that is the same tensor, and that brings its content. This one is how another module reads it, under the
    /// name that it has there; a constant where the module has no name for it.
    pub twin_of: Option<u32>,
    /// What its tensor held, in words, where that became a part of the program, as a shape does. Another value is another program.
    pub folded: Option<String>,
    /// Its value; the type is in the value.
    pub value: ValueId,
}

/// A buffer that the program mutates: kept per session, starting from a source.
#[derive(Clone, Debug)]
pub struct State {
    /// Fully qualified name of the buffer.
    pub name: String,
    /// The value at the start of a run.
    pub value: ValueId,
    /// The source that holds its first value.
    pub init: u32,
    /// The value at the end of a run.
    pub next: ValueId,
}

/// An output of the program.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: ValueId,
}

/// What is known about a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SymbolInfo {
    /// The values it may take.
    pub range: Range,
    /// The value for which kernels are chosen.
    pub opt: i64,
}

/// One operation applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operation with its attributes.
    pub op: Op,
    /// Operands; an optional operand that is absent is `None`.
    pub inputs: Vec<Option<ValueId>>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Module path in the original model, for messages.
    pub scope: Arc<str>,
}

impl Node {
    /// The required operand at `index`.
    ///
    /// # Panics
    /// When it is absent, which the verifier rules out for required operands.
    pub fn input(&self, index: usize) -> ValueId {
        self.inputs[index].expect("the verifier checked that required operands are there")
    }

    /// The operand at `index`, if there.
    pub fn optional_input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    /// The first result.
    pub fn output(&self) -> ValueId {
        self.outputs[0]
    }
}

/// A program in SSA form. Nodes stand in an order in which every operand comes before its use.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the program.
    pub name: String,
    /// Symbols; [`Symbol`]`(i)` is entry `i`.
    pub symbols: Vec<SymbolInfo>,
    /// Inputs in the program's order.
    pub inputs: Vec<Input>,
    /// Sources.
    pub sources: Vec<Source>,
    /// Session state.
    pub states: Vec<State>,
    /// Outputs in the program's order.
    pub outputs: Vec<Output>,
    values: Vec<Value>,
    nodes: Vec<Node>,
}

impl Graph {
    /// An empty program.
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds a symbol.
    pub fn add_symbol(&mut self, range: Range, opt: i64) -> Symbol {
        self.symbols.push(SymbolInfo { range, opt });
        Symbol(self.symbols.len() as u32 - 1)
    }

    fn add_value(&mut self, ty: TensorType, def: Def) -> ValueId {
        self.values.push(Value { ty, def });
        ValueId(self.values.len() as u32 - 1)
    }

    /// Adds an input.
    pub fn add_input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        let value = self.add_value(ty, Def::Input(self.inputs.len() as u32));
        self.inputs.push(Input { name: name.into(), value });
        value
    }

    /// Adds a source.
    pub fn add_source(&mut self, name: impl Into<String>, kind: SourceKind, ty: TensorType) -> ValueId {
        let value = self.add_value(ty, Def::Source(self.sources.len() as u32));
        self.sources.push(Source {
            name: name.into(),
            aliases: Vec::new(),
            kind,
            role: Role::Other,
            twin_of: None,
            folded: None,
            value,
        });
        value
    }

    /// Adds a state that starts as source `init`; `next` is the state itself until it is set.
    pub fn add_state(&mut self, name: impl Into<String>, init: u32) -> ValueId {
        let ty = self.ty(self.sources[init as usize].value).clone();
        let value = self.add_value(ty, Def::State(self.states.len() as u32));
        self.states.push(State { name: name.into(), value, init, next: value });
        value
    }

    /// Adds an output.
    pub fn add_output(&mut self, name: impl Into<String>, value: ValueId) {
        self.outputs.push(Output { name: name.into(), value });
    }

    /// Adds a node; its results' types are inferred.
    ///
    /// # Errors
    /// When the op does not take these operands; the graph is unchanged then.
    pub fn add(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = Option<ValueId>>,
        scope: &Arc<str>,
    ) -> Result<Vec<ValueId>, IrError> {
        let op = op.into();
        let inputs: Vec<_> = inputs.into_iter().collect();
        let types: Vec<_> = inputs.iter().map(|v| v.map(|v| self.ty(v))).collect();
        let outputs =
            op.infer(&types).map_err(|error| IrErrorKind::Node { op: op.name(), scope: scope.to_string(), error })?;
        Ok(self.add_typed(op, inputs, outputs, scope))
    }

    /// [`Graph::add`] for an op with one result and no absent operands.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn add1(&mut self, op: impl Into<Op>, inputs: &[ValueId], scope: &Arc<str>) -> Result<ValueId, IrError> {
        Ok(self.add(op, inputs.iter().map(|&v| Some(v)), scope)?[0])
    }

    /// Adds a node whose results have the given types.
    pub(crate) fn add_typed(
        &mut self,
        op: Op,
        inputs: Vec<Option<ValueId>>,
        types: Vec<TensorType>,
        scope: &Arc<str>,
    ) -> Vec<ValueId> {
        let id = NodeId(self.nodes.len() as u32);
        let outputs: Vec<_> =
            types.into_iter().enumerate().map(|(i, ty)| self.add_value(ty, Def::Node(id, i as u32))).collect();
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), scope: scope.clone() });
        outputs
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.value(id).ty
    }

    /// Gives a value another type, as when a better expression for the same size is known.
    pub fn set_type(&mut self, id: ValueId, ty: TensorType) {
        self.values[id.0 as usize].ty = ty;
    }

    /// Number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// The nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The ids of the nodes in order.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The node with this id, to be changed.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The node that computes `value`, unless it is an input, source or state.
    pub fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.value(value).def {
            Def::Node(id, _) => Some(id),
            Def::Input(_) | Def::Source(_) | Def::State(_) => None,
        }
    }

    /// The source index behind `value`, if it is one.
    pub fn source_of(&self, value: ValueId) -> Option<u32> {
        match self.value(value).def {
            Def::Source(index) => Some(index),
            Def::Input(_) | Def::State(_) | Def::Node(..) => None,
        }
    }

    /// How many times each value is used, by nodes, outputs and states.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.values.len()];
        let used = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
        for v in used.chain(self.outputs.iter().map(|o| &o.value)).chain(self.states.iter().map(|s| &s.next)) {
            counts[v.0 as usize] += 1;
        }
        counts
    }

    /// The nodes that use each value, in order; outputs and states are not among them.
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut users = vec![Vec::new(); self.values.len()];
        for (id, node) in self.node_ids().zip(&self.nodes) {
            for v in node.inputs.iter().flatten() {
                users[v.0 as usize].push(id);
            }
        }
        users
    }

    /// Makes every use of `old` a use of `new`.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        let in_nodes = self.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten());
        let in_outputs = self.outputs.iter_mut().map(|o| &mut o.value);
        let in_states = self.states.iter_mut().map(|s| &mut s.next);
        for v in in_nodes.chain(in_outputs).chain(in_states).filter(|v| **v == old) {
            *v = new;
        }
    }
}
