//! Graphs, their nodes, and where those come from.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Argument, SymBool, SymFloat, SymInt, TensorMeta, union::int_enum};

/// A graph of operator calls.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Graph {
    /// Inputs, in order.
    pub inputs: Vec<Argument>,
    /// Outputs, in order.
    pub outputs: Vec<Argument>,
    /// Calls, in the order in which they run.
    pub nodes: Vec<Node>,
    /// Dtype and shape of every tensor.
    pub tensor_values: BTreeMap<String, TensorMeta>,
    /// Value of every symbolic integer.
    #[serde(default)]
    pub sym_int_values: BTreeMap<String, SymInt>,
    /// Value of every symbolic condition.
    #[serde(default)]
    pub sym_bool_values: BTreeMap<String, SymBool>,
    /// Value of every symbolic float.
    #[serde(default)]
    pub sym_float_values: BTreeMap<String, SymFloat>,
    /// For inner graphs: whether the result is one tensor rather than a list.
    #[serde(default)]
    pub is_single_tensor_return: bool,
}

/// The call of an operator.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Node {
    /// The operator, such as `torch.ops.aten.linear.default` or `_operator.mul`.
    pub target: String,
    /// Arguments; those with their default value are left out.
    pub inputs: Vec<NamedArgument>,
    /// Results.
    pub outputs: Vec<Argument>,
    /// Where the call comes from.
    #[serde(default)]
    pub metadata: Metadata,
    /// For calls of inner graphs: whether the result is one tensor rather than a list.
    #[serde(default)]
    pub is_hop_single_tensor_return: Option<bool>,
    /// Name of the node.
    #[serde(default)]
    pub name: Option<String>,
}

impl Node {
    /// The argument with this name in the operator's schema.
    pub fn input(&self, name: &str) -> Option<&Argument> {
        self.inputs.iter().find(|i| i.name == name).map(|i| &i.arg)
    }

    /// A name for messages: that of the node, or of its first result.
    pub fn label(&self) -> &str {
        let mut label = self.name.as_deref();
        for output in &self.outputs {
            if label.is_none() {
                label = output.first_name();
            }
        }
        label.unwrap_or(&self.target)
    }

    /// The module that made the call, such as `encoder.layer.0.attention.self.query`; empty for the root or when
    /// unknown.
    pub fn module_path(&self) -> String {
        self.metadata.module_path()
    }
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct NamedArgument {
    /// Its name in the operator's schema; empty for `_operator` functions.
    #[serde(default)]
    pub name: String,
    /// Its value.
    pub arg: Argument,
    /// Whether it was given by position or by name.
    #[serde(default)]
    pub kind: Option<ArgumentKind>,
}

int_enum! {
    /// How an argument was given.
    ArgumentKind {
        /// By position.
        1 => Positional,
        /// By name.
        2 => Keyword,
    }
}

/// Where a call comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// Enclosing modules, outermost first: `key,path,type` joined by `;`.
    #[serde(default)]
    pub nn_module_stack: String,
    /// Lines of Python.
    #[serde(default)]
    pub stack_trace: String,
}

impl Metadata {
    /// The innermost module's class with its Python module; empty when unknown.
    pub fn module_class(&self) -> &str {
        let innermost = split_outside_brackets(&self.nn_module_stack, b';').pop().unwrap_or_default();
        split_outside_brackets(innermost, b',').get(2).copied().unwrap_or_default()
    }

    /// The innermost module's path; empty for the root or when unknown.
    pub fn module_path(&self) -> String {
        let innermost = split_outside_brackets(&self.nn_module_stack, b';').pop().unwrap_or_default();
        let path = split_outside_brackets(innermost, b',').get(1).copied().unwrap_or_default();
        if path.starts_with("_empty_nn_module_stack") {
            return String::new();
        }
        // Programs traced by TorchDynamo spell `L['self'].layers['0']`, those of today `layers.0`.
        let path = ["L['self']", "L__self__", "self"]
            .iter()
            .find_map(|root| path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with(['.', '['])))
            .unwrap_or(path);
        let path = path.replace("['", ".").replace("']", "").replace("[\"", ".").replace("\"]", "");
        path.trim_matches('.').to_owned()
    }
}

/// `ModuleList[0:2]` has the path `layers.slice(None, 2, None).0`: separators in brackets do not separate.
fn split_outside_brackets(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0i64);
    for (at, c) in text.bytes().enumerate() {
        match c {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            c if c == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}
