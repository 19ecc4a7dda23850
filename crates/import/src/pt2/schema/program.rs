//! The program around its graph: versions, ranges and the calls of modules.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Graph, GraphSignature, number::bound};

/// The major version of the schema that is understood.
pub const MAJOR_VERSION: i64 = 8;

/// A program with its signature and constraints.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ExportedProgram {
    /// Graph, signature and calls.
    pub graph_module: GraphModule,
    /// Version of each operator namespace.
    #[serde(default)]
    pub opset_version: BTreeMap<String, i64>,
    /// The values each symbol may have.
    #[serde(default)]
    pub range_constraints: BTreeMap<String, RangeConstraint>,
    /// Version of the schema.
    pub schema_version: SchemaVersion,
    /// The version of torch that wrote the program.
    #[serde(default)]
    pub torch_version: String,
    /// `TRAINING` for a program as exported, `ATEN` and others after decompositions.
    #[serde(default)]
    pub verifiers: Vec<String>,
    /// Conditions on the inputs, as Python code.
    #[serde(default)]
    pub guards_code: Vec<String>,
}

/// Version of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct SchemaVersion {
    /// Changes when old readers cannot go on.
    pub major: i64,
    /// Changes when old readers can.
    pub minor: i64,
}

/// The inclusive range of a symbol; `None` is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RangeConstraint {
    /// Least value.
    #[serde(default, deserialize_with = "bound")]
    pub min_val: Option<i64>,
    /// Greatest value.
    #[serde(default, deserialize_with = "bound")]
    pub max_val: Option<i64>,
}

/// Graph, signature and calls.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GraphModule {
    /// The graph.
    pub graph: Graph,
    /// What its inputs and outputs are.
    pub signature: GraphSignature,
    /// How modules are called; the first, of the name ``, is the program.
    #[serde(default)]
    pub module_call_graph: Vec<ModuleCallEntry>,
    /// Field names of each named tuple type.
    #[serde(default)]
    pub treespec_namedtuple_fields: BTreeMap<String, NamedTupleDef>,
}

/// Fields of a named tuple.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NamedTupleDef {
    /// In order.
    pub field_names: Vec<String>,
}

/// The call of a module.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ModuleCallEntry {
    /// Name of the module.
    pub fqn: String,
    /// How it is called.
    #[serde(default)]
    pub signature: Option<ModuleCallSignature>,
}

/// How a module is called.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ModuleCallSignature {
    /// Structure of the inputs, a JSON text.
    pub in_spec: String,
    /// Structure of the outputs, a JSON text.
    pub out_spec: String,
    /// Names of the arguments.
    #[serde(default)]
    pub forward_arg_names: Option<Vec<String>>,
}
