//! The JSON of an exported program, as far as Regraft needs it: schema version 8 of `torch.export`.
//!
//! Fields that are not listed here are ignored, and a tagged union with an unknown tag becomes `Unknown(tag)`: newer
//! minor versions of the schema may have both, and only what a program uses must be understood.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use regraft_tensor::DType;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor},
};

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

/// What the inputs and outputs of a graph are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GraphSignature {
    /// One per graph input.
    pub input_specs: Vec<InputSpec>,
    /// One per graph output.
    pub output_specs: Vec<OutputSpec>,
}

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
    /// The innermost module's path; empty for the root or when unknown.
    pub fn module_path(&self) -> String {
        let innermost = split_outside_brackets(&self.nn_module_stack, ';').pop().unwrap_or_default();
        let path = split_outside_brackets(innermost, ',').get(1).copied().unwrap_or_default();
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
fn split_outside_brackets(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0i64);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            c if c == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Dtype, shape and layout of a tensor.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TensorMeta {
    /// Element type.
    pub dtype: ScalarType,
    /// Shape.
    pub sizes: Vec<SymInt>,
    /// Strides in elements.
    #[serde(default)]
    pub strides: Vec<SymInt>,
    /// First element in the storage.
    #[serde(default)]
    pub storage_offset: SymInt,
    /// Dense or one of the sparse layouts.
    #[serde(default = "strided")]
    pub layout: Layout,
    /// Where it lives.
    pub device: Device,
    /// Whether it is trained.
    #[serde(default)]
    pub requires_grad: bool,
}

/// A device such as `cpu` or `cuda:0`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// `cpu`, `cuda`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Which of several.
    #[serde(default)]
    pub index: Option<i64>,
}

/// A symbolic expression in sympy's `srepr`, with the value it had when the program was exported.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SymExpr {
    /// The expression.
    pub expr_str: String,
    /// Its value in the example.
    #[serde(default)]
    pub hint: Option<SymExprHint>,
}

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

/// Defines an enum that is read from `{"tag": value}`.
macro_rules! union {
    (
        $(#[$doc:meta])*
        $name:ident { $( $(#[$vdoc:meta])* $tag:literal => $variant:ident $( ( $ty:ty $(= $via:ty)? ) )? , )* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name {
            $( $(#[$vdoc])* $variant $( ( $ty ) )?, )*
            /// A tag that is not known here.
            Unknown(String),
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Tagged;
                impl<'de> Visitor<'de> for Tagged {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("{\"tag\": value} for the union ", stringify!($name)))
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let tag: String = map.next_key()?.ok_or_else(|| {
                            A::Error::custom(concat!("expected one tag for the union ", stringify!($name), ", found none"))
                        })?;
                        let value = match tag.as_str() {
                            $( $tag => union!(@read map $name $variant $( $ty $(= $via)? )?), )*
                            _ => {
                                map.next_value::<IgnoredAny>()?;
                                $name::Unknown(tag)
                            }
                        };
                        match map.next_key::<String>()? {
                            None => Ok(value),
                            Some(tag) => Err(A::Error::custom(format_args!(
                                concat!("expected one tag for the union ", stringify!($name), ", found also `{}`"), tag
                            ))),
                        }
                    }
                }
                deserializer.deserialize_map(Tagged)
            }
        }
    };
    (@read $map:ident $name:ident $variant:ident) => {{ $map.next_value::<IgnoredAny>()?; $name::$variant }};
    (@read $map:ident $name:ident $variant:ident $ty:ty) => { $name::$variant($map.next_value::<$ty>()?) };
    (@read $map:ident $name:ident $variant:ident $ty:ty = $via:ty) => { $name::$variant($map.next_value::<$via>()?.0) };
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

union! {
    /// A size: an integer or an expression.
    SymInt {
        /// An expression over symbols.
        "as_expr" => Expr(SymExpr),
        /// An integer.
        "as_int" => Int(i64),
    }
}

impl Default for SymInt {
    fn default() -> Self {
        SymInt::Int(0)
    }
}

impl SymInt {
    /// The value of an integer.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            SymInt::Int(v) => Some(*v),
            SymInt::Expr(_) | SymInt::Unknown(_) => None,
        }
    }
}

union! {
    /// A float or an expression.
    SymFloat {
        /// An expression over symbols.
        "as_expr" => Expr(SymExpr),
        /// A float.
        "as_float" => Float(f64 = Real),
    }
}

union! {
    /// A condition or an expression.
    SymBool {
        /// An expression over symbols.
        "as_expr" => Expr(SymExpr),
        /// A condition.
        "as_bool" => Bool(bool),
    }
}

union! {
    /// The value an expression had when the program was exported.
    SymExprHint {
        /// Of an integer.
        "as_int" => Int(i64),
        /// Of a condition.
        "as_bool" => Bool(bool),
        /// Of a float.
        "as_float" => Float(f64 = Real),
    }
}

union! {
    /// What an input of the graph is.
    InputSpec {
        /// Given by the caller.
        "user_input" => UserInput(UserInputSpec),
        /// An argument of the caller that export has made constant.
        "constant_input" => ConstantInput(ConstantInputSpec),
        /// A parameter.
        "parameter" => Parameter(ParameterSpec),
        /// A buffer.
        "buffer" => Buffer(BufferSpec),
        /// A tensor that the code made from literals.
        "tensor_constant" => TensorConstant(TensorConstantSpec),
        /// An object of a custom class.
        "custom_obj" => CustomObj(CustomObjSpec),
        /// An effect token.
        "token" => Token(TokenSpec),
    }
}

impl InputSpec {
    /// The name of the source behind a parameter, buffer or tensor constant, as `state_dict()` spells it.
    pub fn source(&self) -> Option<&str> {
        match self {
            InputSpec::Parameter(p) => Some(&p.parameter_name),
            InputSpec::Buffer(b) => Some(&b.buffer_name),
            InputSpec::TensorConstant(c) => Some(&c.tensor_constant_name),
            InputSpec::UserInput(_)
            | InputSpec::ConstantInput(_)
            | InputSpec::CustomObj(_)
            | InputSpec::Token(_)
            | InputSpec::Unknown(_) => None,
        }
    }

    /// The name of the input in the graph.
    pub fn graph_name(&self) -> Option<&str> {
        match self {
            InputSpec::UserInput(u) => u.arg.first_name(),
            InputSpec::ConstantInput(c) => Some(&c.name),
            InputSpec::Parameter(p) => Some(&p.arg.name),
            InputSpec::Buffer(b) => Some(&b.arg.name),
            InputSpec::TensorConstant(c) => Some(&c.arg.name),
            InputSpec::CustomObj(c) => Some(&c.arg.name),
            InputSpec::Token(t) => Some(&t.arg.name),
            InputSpec::Unknown(_) => None,
        }
    }
}

union! {
    /// What an output of the graph is.
    OutputSpec {
        /// Returned to the caller.
        "user_output" => UserOutput(UserOutputSpec),
        /// The loss of a training program.
        "loss_output" => Loss(LossOutputSpec),
        /// The new value of a buffer.
        "buffer_mutation" => BufferMutation(BufferMutationSpec),
        /// The new value of a parameter.
        "parameter_mutation" => ParameterMutation(ParameterMutationSpec),
        /// The new value of an input.
        "user_input_mutation" => UserInputMutation(UserInputMutationSpec),
        /// The gradient of a parameter.
        "gradient_to_parameter" => GradientToParameter(ParameterMutationSpec),
        /// The gradient of an input.
        "gradient_to_user_input" => GradientToUserInput(UserInputMutationSpec),
        /// An effect token.
        "token" => Token(TokenSpec),
    }
}

union! {
    /// The value of an argument that export has made constant.
    ConstantValue {
        /// `None`.
        "as_none" => None,
        /// An integer.
        "as_int" => Int(i64),
        /// A float.
        "as_float" => Float(f64 = Real),
        /// A text.
        "as_string" => String(String),
        /// A condition.
        "as_bool" => Bool(bool),
    }
}

/// Defines the payloads of the signature.
macro_rules! specs {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$fdoc:meta])* $field:ident: $ty:ty, )* } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Deserialize)]
            pub struct $name { $( $(#[$fdoc])* pub $field: $ty, )* }
        )*
    };
}

specs! {
    /// An input given by the caller.
    UserInputSpec {
        /// Its value in the graph.
        arg: Argument,
    }
    /// An argument of the caller that export has made constant.
    ConstantInputSpec {
        /// Its name in the graph.
        name: String,
        /// The value it must have.
        value: ConstantValue,
    }
    /// A parameter.
    ParameterSpec {
        /// Its value in the graph.
        arg: TensorArgument,
        /// Its name in `state_dict()`.
        parameter_name: String,
    }
    /// A buffer.
    BufferSpec {
        /// Its value in the graph.
        arg: TensorArgument,
        /// Its fully qualified name.
        buffer_name: String,
        /// Whether `state_dict()` has it; others are stored with the constants.
        persistent: bool,
    }
    /// A tensor that the code made from literals.
    TensorConstantSpec {
        /// Its value in the graph.
        arg: TensorArgument,
        /// Its fully qualified name.
        tensor_constant_name: String,
    }
    /// An object of a custom class.
    CustomObjSpec {
        /// Its value in the graph.
        arg: CustomObjArgument,
        /// Its fully qualified name.
        custom_obj_name: String,
    }
    /// An effect token.
    TokenSpec {
        /// Its value in the graph.
        arg: TokenArgument,
    }
    /// A value returned to the caller.
    UserOutputSpec {
        /// The value.
        arg: Argument,
    }
    /// The loss of a training program.
    LossOutputSpec {
        /// The value.
        arg: TensorArgument,
    }
    /// The new value of a buffer.
    BufferMutationSpec {
        /// The value.
        arg: TensorArgument,
        /// Fully qualified name of the buffer.
        buffer_name: String,
    }
    /// The new value or the gradient of a parameter.
    ParameterMutationSpec {
        /// The value.
        arg: TensorArgument,
        /// Fully qualified name of the parameter.
        parameter_name: String,
    }
    /// The new value or the gradient of an input.
    UserInputMutationSpec {
        /// The value.
        arg: TensorArgument,
        /// Name of the input in the graph.
        user_input_name: String,
    }
}

/// Defines an enum that is read from an integer.
macro_rules! int_enum {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $value:literal => $variant:ident, )* } )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum $name {
                $( $(#[$vdoc])* $variant, )*
                /// A number that is not known here.
                Unknown(i64),
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    Ok(match i64::deserialize(deserializer)? {
                        $( $value => $name::$variant, )*
                        other => $name::Unknown(other),
                    })
                }
            }
        )*
    };
}

int_enum! {
    /// How an argument was given.
    ArgumentKind {
        /// By position.
        1 => Positional,
        /// By name.
        2 => Keyword,
    }
    /// How elements are arranged.
    Layout {
        /// A sparse layout.
        1 => SparseCoo,
        /// A sparse layout.
        2 => SparseCsr,
        /// A sparse layout.
        3 => SparseCsc,
        /// A sparse layout.
        4 => SparseBsr,
        /// A sparse layout.
        5 => SparseBsc,
        /// A layout of oneDNN.
        6 => Mkldnn,
        /// Dense, by strides.
        7 => Strided,
    }
    /// The order of axes in memory.
    MemoryFormat {
        /// Row-major.
        1 => Contiguous,
        /// NHWC.
        2 => ChannelsLast,
        /// NDHWC.
        3 => ChannelsLast3d,
        /// As the input.
        4 => Preserve,
    }
    /// An element type of PyTorch.
    ScalarType {
        /// `uint8`.
        1 => Byte,
        /// `int8`.
        2 => Char,
        /// `int16`.
        3 => Short,
        /// `int32`.
        4 => Int,
        /// `int64`.
        5 => Long,
        /// `float16`.
        6 => Half,
        /// `float32`.
        7 => Float,
        /// `float64`.
        8 => Double,
        /// `complex32`.
        9 => ComplexHalf,
        /// `complex64`.
        10 => ComplexFloat,
        /// `complex128`.
        11 => ComplexDouble,
        /// `bool`.
        12 => Bool,
        /// `bfloat16`.
        13 => BFloat16,
        /// `uint16`.
        28 => UInt16,
        /// `float8_e4m3fn`.
        29 => Float8E4M3Fn,
        /// `float8_e5m2`.
        30 => Float8E5M2,
        /// `float8_e4m3fnuz`.
        31 => Float8E4M3Fnuz,
        /// `float8_e5m2fnuz`.
        32 => Float8E5M2Fnuz,
        /// `float8_e8m0fnu`.
        33 => Float8E8M0Fnu,
        /// `uint32`.
        34 => UInt32,
        /// `uint64`.
        35 => UInt64,
    }
}

fn strided() -> Layout {
    Layout::Strided
}

impl ScalarType {
    /// The data type, when Regraft has it.
    pub fn dtype(self) -> Option<DType> {
        Some(match self {
            ScalarType::Byte => DType::U8,
            ScalarType::Char => DType::I8,
            ScalarType::Short => DType::I16,
            ScalarType::Int => DType::I32,
            ScalarType::Long => DType::I64,
            ScalarType::Half => DType::F16,
            ScalarType::Float => DType::F32,
            ScalarType::Double => DType::F64,
            ScalarType::Bool => DType::Bool,
            ScalarType::BFloat16 => DType::BF16,
            ScalarType::ComplexHalf
            | ScalarType::ComplexFloat
            | ScalarType::ComplexDouble
            | ScalarType::UInt16
            | ScalarType::UInt32
            | ScalarType::UInt64
            | ScalarType::Float8E4M3Fn
            | ScalarType::Float8E5M2
            | ScalarType::Float8E4M3Fnuz
            | ScalarType::Float8E5M2Fnuz
            | ScalarType::Float8E8M0Fnu
            | ScalarType::Unknown(_) => return None,
        })
    }
}

/// The configuration of the weights or constants of a model: tensors by name, in the order of the file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PayloadConfig {
    /// By fully qualified name.
    #[serde(deserialize_with = "ordered_map")]
    pub config: Vec<(String, PayloadMeta)>,
}

/// Where a weight or constant is stored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PayloadMeta {
    /// Name of its entry in the folder of the configuration.
    pub path_name: String,
    /// Whether it is a parameter.
    #[serde(default)]
    pub is_param: bool,
    /// Whether the entry is a pickle.
    #[serde(default)]
    pub use_pickle: bool,
    /// How to view the entry, which is a whole storage; absent for objects.
    #[serde(default)]
    pub tensor_meta: Option<TensorMeta>,
}

/// A float, or the text that stands for one that JSON has not.
struct Real(f64);

/// A list of [`Real`].
struct Reals(Vec<f64>);

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Real;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a float, \"Infinity\", \"-Infinity\" or \"NaN\"")
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Real, E> {
                Ok(Real(v))
            }
            fn visit_i64<E: Error>(self, v: i64) -> Result<Real, E> {
                Ok(Real(v as f64))
            }
            fn visit_u64<E: Error>(self, v: u64) -> Result<Real, E> {
                Ok(Real(v as f64))
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<Real, E> {
                match v {
                    "Infinity" => Ok(Real(f64::INFINITY)),
                    "-Infinity" => Ok(Real(f64::NEG_INFINITY)),
                    "NaN" => Ok(Real(f64::NAN)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl<'de> Deserialize<'de> for Reals {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Reals(Vec::<Real>::deserialize(deserializer)?.into_iter().map(|r| r.0).collect()))
    }
}

/// A bound of a range: absent, infinite, or an integer of any length, which saturates.
fn bound<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bound {
        Int(i64),
        Real(Real),
    }
    Ok(Option::<Bound>::deserialize(deserializer)?.and_then(|bound| match bound {
        Bound::Int(v) => Some(v),
        // A cast from float saturates.
        Bound::Real(Real(v)) => v.is_finite().then_some(v as i64),
    }))
}

/// A map with its order, which has every key once.
fn ordered_map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<(String, T)>, D::Error> {
    struct Ordered<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Ordered<T> {
        type Value = Vec<(String, T)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut seen, mut list) = (std::collections::HashSet::new(), Vec::new());
            while let Some(key) = map.next_key::<String>()? {
                if !seen.insert(key.clone()) {
                    return Err(A::Error::custom(format_args!("`{key}` is there twice")));
                }
                list.push((key, map.next_value()?));
            }
            Ok(list)
        }
    }
    deserializer.deserialize_map(Ordered(PhantomData))
}

/// Why a JSON text could not be read.
pub(crate) struct JsonProblem {
    /// Where, such as `graph_module.graph.nodes[3].inputs[0].arg`.
    pub(crate) at: String,
    pub(crate) problem: String,
}

/// Reads a JSON text; nesting is limited by the JSON reader to 128 levels.
pub(crate) fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonProblem> {
    serde_json::from_slice(text).map_err(|error| {
        let lines = error.line().saturating_sub(1);
        let line_start = match lines {
            0 => 0,
            n => text.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(n - 1).map_or(0, |(at, _)| at + 1),
        };
        let offset = line_start.saturating_add(error.column()).min(text.len());
        let near: Vec<char> = String::from_utf8_lossy(&text[offset.saturating_sub(40)..offset]).chars().collect();
        let near: String = near.iter().collect::<String>().replace('\n', " ");
        JsonProblem { at: json_path(&text[..offset]), problem: format!("{error} (after `{}`)", near.trim()) }
    })
}

/// The path to the end of `text`, the beginning of a JSON text.
fn json_path(text: &[u8]) -> String {
    enum Step {
        Key(String),
        Index(usize),
    }
    let (mut steps, mut last_text, mut at) = (Vec::new(), String::new(), 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let start = at;
                while let Some(&b) = text.get(at).filter(|b| **b != b'"') {
                    at += if b == b'\\' { 2 } else { 1 };
                }
                last_text = String::from_utf8_lossy(&text[start..at.min(text.len())]).into_owned();
                at += 1;
            }
            b':' => {
                if let Some(Step::Key(key)) = steps.last_mut() {
                    *key = std::mem::take(&mut last_text);
                }
            }
            b',' => match steps.last_mut() {
                Some(Step::Index(index)) => *index += 1,
                Some(Step::Key(key)) => key.clear(),
                None => {}
            },
            b'{' => steps.push(Step::Key(String::new())),
            b'[' => steps.push(Step::Index(0)),
            b'}' | b']' => {
                steps.pop();
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for (i, step) in steps.into_iter().enumerate() {
        if i == 32 {
            return path + "...";
        }
        match step {
            Step::Key(key) if key.is_empty() => {}
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.extend(key.chars().take(200));
            }
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
        from_json(text.as_bytes()).map_err(|p| format!("{}: {}", p.at, p.problem))
    }

    #[test]
    fn unions_read_known_and_unknown_tags() {
        assert_eq!(read(r#"{"as_int": 3}"#), Ok(Argument::Int(3)));
        assert_eq!(read(r#"{"as_none": true}"#), Ok(Argument::None));
        assert_eq!(read(r#"{"as_float": "-Infinity"}"#), Ok(Argument::Float(f64::NEG_INFINITY)));
        assert_eq!(read(r#"{"as_floats": [1, 2.5]}"#), Ok(Argument::Floats(vec![1.0, 2.5])));
        assert_eq!(read(r#"{"as_new": {"x": [1]}}"#), Ok(Argument::Unknown("as_new".to_owned())));
        assert!(read::<Argument>(r#"{}"#).expect_err("empty").contains("one tag"));
        assert!(read::<Argument>(r#"{"as_int": 1, "as_bool": true}"#).expect_err("two").contains("`as_bool`"));
        assert!(read::<Argument>(r#"{"as_float": "x"}"#).is_err());
    }

    #[test]
    fn errors_say_where() {
        let error = read::<Node>(
            r#"{"target": "t", "outputs": [], "inputs": [{"name": "a", "arg": {"as_int": 1}}, {"name": "b", "arg": {"as_int": "1"}}]}"#,
        );
        let error = error.expect_err("a text is no integer");
        assert!(error.starts_with("inputs[1].arg.as_int: "), "{error}");
    }

    #[test]
    fn bounds_saturate_and_open() {
        let read = |text: &str| read::<RangeConstraint>(text).map(|r| (r.min_val, r.max_val));
        assert_eq!(read(r#"{"min_val": 2, "max_val": null}"#), Ok((Some(2), None)));
        assert_eq!(read(r#"{"min_val": -1, "max_val": 99999999999999999999999}"#), Ok((Some(-1), Some(i64::MAX))));
        assert_eq!(read(r#"{"max_val": "Infinity"}"#), Ok((None, None)));
    }

    #[test]
    fn module_paths() {
        let path = |stack: &str| Metadata { nn_module_stack: stack.to_owned(), ..Metadata::default() }.module_path();
        assert_eq!(path(""), "");
        assert_eq!(path("L__self__,,a.B"), "");
        assert_eq!(path("L__self__,,a.B;L__self___layers,layers.0,torch.nn.Linear"), "layers.0");
        assert_eq!(path("a,,B;c,layers.slice(None, 2, None).1,D"), "layers.slice(None, 2, None).1");
        assert_eq!(path("a,L['self'],B;c,L['self'].layers['0'].fc,D"), "layers.0.fc");
        let none = "_empty_nn_module_stack_from_metadata_hook";
        assert_eq!(path(&format!("{none},{none},{none}")), "");
    }

    #[test]
    fn nesting_is_limited() {
        assert!(read::<Argument>(&r#"{"as_new": ["#.repeat(100_000)).is_err());
    }
}
