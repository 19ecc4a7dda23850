//! What the inputs and outputs of a graph are.

use serde::Deserialize;

use super::{Argument, CustomObjArgument, TensorArgument, TokenArgument, number::Real, union::union};

/// What the inputs and outputs of a graph are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GraphSignature {
    /// One per graph input.
    pub input_specs: Vec<InputSpec>,
    /// One per graph output.
    pub output_specs: Vec<OutputSpec>,
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
