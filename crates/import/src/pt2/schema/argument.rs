//! Values that calls take and give.

use serde::Deserialize;

use super::{
    Device, Graph, Layout, MemoryFormat, ScalarType,
    number::{Real, Reals},
    union::union,
};

/// A tensor by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TensorArgument {
    /// Its name in the graph.
    pub name: String,
}

/// An effect token by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TokenArgument {
    /// Its name in the graph.
    pub name: String,
}

/// An object of a custom class.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CustomObjArgument {
    /// Its name in the graph.
    pub name: String,
    /// Its class.
    pub class_fqn: String,
}

/// An inner graph, as `cond` and `map` take them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GraphArgument {
    /// Its name.
    pub name: String,
    /// The graph.
    pub graph: Box<Graph>,
}

union! {
    /// A value given to or made by a call.
    Argument {
        /// `None`.
        "as_none" => None,
        /// A tensor.
        "as_tensor" => Tensor(TensorArgument),
        /// A list of tensors.
        "as_tensors" => Tensors(Vec<TensorArgument>),
        /// A tensor or `None`.
        "as_optional_tensor" => OptionalTensor(OptionalTensorArgument),
        /// A list of tensors and `None`s.
        "as_optional_tensors" => OptionalTensors(Vec<OptionalTensorArgument>),
        /// A list of lists of tensors.
        "as_nested_tensors" => NestedTensors(Vec<Vec<TensorArgument>>),
        /// An integer.
        "as_int" => Int(i64),
        /// A list of integers.
        "as_ints" => Ints(Vec<i64>),
        /// A list of lists of integers.
        "as_int_lists" => IntLists(Vec<Vec<i64>>),
        /// A float; infinities and NaN are spelled as text in the file.
        "as_float" => Float(f64 = Real),
        /// A list of floats.
        "as_floats" => Floats(Vec<f64> = Reals),
        /// A text.
        "as_string" => String(String),
        /// A list of texts.
        "as_strings" => Strings(Vec<String>),
        /// A symbolic integer.
        "as_sym_int" => SymInt(SymIntArgument),
        /// A list of integers, some symbolic.
        "as_sym_ints" => SymInts(Vec<SymIntArgument>),
        /// A symbolic float.
        "as_sym_float" => SymFloat(SymFloatArgument),
        /// A list of floats, some symbolic.
        "as_sym_floats" => SymFloats(Vec<SymFloatArgument>),
        /// A symbolic condition.
        "as_sym_bool" => SymBool(SymBoolArgument),
        /// A list of conditions, some symbolic.
        "as_sym_bools" => SymBools(Vec<SymBoolArgument>),
        /// A dtype.
        "as_scalar_type" => ScalarType(ScalarType),
        /// A memory format.
        "as_memory_format" => MemoryFormat(MemoryFormat),
        /// A layout.
        "as_layout" => Layout(Layout),
        /// A device.
        "as_device" => Device(Device),
        /// A condition.
        "as_bool" => Bool(bool),
        /// A list of conditions.
        "as_bools" => Bools(Vec<bool>),
        /// An inner graph.
        "as_graph" => Graph(GraphArgument),
        /// An object of a custom class.
        "as_custom_obj" => CustomObj(CustomObjArgument),
        /// An operator by name.
        "as_operator" => Operator(String),
    }
}

impl Argument {
    /// Calls `f` for the name of every value of the graph in this argument.
    pub fn for_each_name<'a>(&'a self, f: &mut impl FnMut(&'a str)) {
        match self {
            Argument::Tensor(t) => f(&t.name),
            Argument::Tensors(list) => list.iter().for_each(|t| f(&t.name)),
            Argument::NestedTensors(lists) => lists.iter().flatten().for_each(|t| f(&t.name)),
            Argument::OptionalTensor(OptionalTensorArgument::Tensor(t)) => f(&t.name),
            Argument::OptionalTensors(list) => list.iter().for_each(|t| {
                if let OptionalTensorArgument::Tensor(t) = t {
                    f(&t.name);
                }
            }),
            Argument::SymInt(SymIntArgument::Name(name))
            | Argument::SymFloat(SymFloatArgument::Name(name))
            | Argument::SymBool(SymBoolArgument::Name(name)) => f(name),
            Argument::SymInts(list) => list.iter().for_each(|a| {
                if let SymIntArgument::Name(name) = a {
                    f(name);
                }
            }),
            Argument::SymFloats(list) => list.iter().for_each(|a| {
                if let SymFloatArgument::Name(name) = a {
                    f(name);
                }
            }),
            Argument::SymBools(list) => list.iter().for_each(|a| {
                if let SymBoolArgument::Name(name) = a {
                    f(name);
                }
            }),
            Argument::CustomObj(object) => f(&object.name),
            Argument::None
            | Argument::OptionalTensor(_)
            | Argument::Int(_)
            | Argument::Ints(_)
            | Argument::IntLists(_)
            | Argument::Float(_)
            | Argument::Floats(_)
            | Argument::String(_)
            | Argument::Strings(_)
            | Argument::SymInt(_)
            | Argument::SymFloat(_)
            | Argument::SymBool(_)
            | Argument::ScalarType(_)
            | Argument::MemoryFormat(_)
            | Argument::Layout(_)
            | Argument::Device(_)
            | Argument::Bool(_)
            | Argument::Bools(_)
            | Argument::Graph(_)
            | Argument::Operator(_)
            | Argument::Unknown(_) => {}
        }
    }

    /// The name of the first value of the graph in this argument.
    pub fn first_name(&self) -> Option<&str> {
        let mut first = None;
        self.for_each_name(&mut |name| {
            first.get_or_insert(name);
        });
        first
    }
}

union! {
    /// A tensor or `None`.
    OptionalTensorArgument {
        /// A tensor.
        "as_tensor" => Tensor(TensorArgument),
        /// `None`.
        "as_none" => None,
    }
}

union! {
    /// An integer or the name of a symbolic one.
    SymIntArgument {
        /// A name in `sym_int_values`.
        "as_name" => Name(String),
        /// An integer.
        "as_int" => Int(i64),
    }
}

union! {
    /// A float or the name of a symbolic one.
    SymFloatArgument {
        /// A name in `sym_float_values`.
        "as_name" => Name(String),
        /// A float.
        "as_float" => Float(f64 = Real),
    }
}

union! {
    /// A condition or the name of a symbolic one.
    SymBoolArgument {
        /// A name in `sym_bool_values`.
        "as_name" => Name(String),
        /// A condition.
        "as_bool" => Bool(bool),
    }
}
