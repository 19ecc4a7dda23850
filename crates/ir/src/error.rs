use regraft_tensor::{DType, TensorError};

use crate::TensorType;

/// Why an op cannot take its operands or attributes.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// Too few, too many, or a required operand left out.
    #[error("takes {expected} operands, found {found}")]
    Arity {
        /// Operands the op takes, in words.
        expected: String,
        /// Operands that are there.
        found: String,
    },
    /// An operand has the wrong dtype.
    #[error("operand `{operand}` must be {expected}, found {found}")]
    DType {
        /// Name of the operand.
        operand: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: DType,
    },
    /// The shapes do not fit together.
    #[error("{0}")]
    Shape(String),
    /// An attribute has no sensible value.
    #[error("attribute `{name}`: {why}")]
    Attr {
        /// Name of the attribute.
        name: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// Why the reference evaluator has no result.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The operands do not fit the op.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A dimension has no value, or a tensor is too large.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An index lies outside of its axis.
    #[error("index {index} is out of range for an axis of size {size}")]
    Index {
        /// The index found.
        index: i64,
        /// Size of the axis.
        size: usize,
    },
    /// A matrix has no such factorization or inverse.
    #[error("{0}")]
    Matrix(&'static str),
    /// An input of the graph was not given or has another type.
    #[error("`{name}`: expected {expected}, found {found}")]
    Input {
        /// Name of the input, source or state.
        name: String,
        /// Its declared type.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The error of one node, with where it came from.
    #[error("{op} at `{scope}`: {error}")]
    Node {
        /// Name of the op.
        op: &'static str,
        /// Module path of the node.
        scope: String,
        /// What happened there.
        #[source]
        error: Box<EvalError>,
    },
}

/// An error about a graph or its text form.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct IrError(Box<IrErrorKind>);

impl IrError {
    /// The kind of this error.
    pub fn kind(&self) -> &IrErrorKind {
        &self.0
    }
}

impl From<IrErrorKind> for IrError {
    fn from(kind: IrErrorKind) -> Self {
        IrError(Box::new(kind))
    }
}

/// The kinds of [`IrError`].
#[derive(Debug, thiserror::Error)]
pub enum IrErrorKind {
    /// A node's operands or attributes are wrong.
    #[error("{op} at `{scope}`: {error}")]
    Node {
        /// Name of the op.
        op: &'static str,
        /// Module path of the node.
        scope: String,
        /// What is wrong.
        #[source]
        error: OpError,
    },
    /// The type of a value is not what its node computes.
    #[error("{op} at `{scope}` computes {computed}, but its value is declared {declared}")]
    Type {
        /// Name of the op.
        op: &'static str,
        /// Module path of the node.
        scope: String,
        /// Type by inference.
        computed: TensorType,
        /// Type on record.
        declared: TensorType,
    },
    /// The graph is not well-formed.
    #[error("malformed graph: {0}")]
    Malformed(String),
    /// Several things are wrong.
    #[error("{}{}", lines(errors), and_more(*more))]
    Several {
        /// The first ones.
        errors: Vec<IrError>,
        /// How many more there are.
        more: usize,
    },
    /// The text form could not be read.
    #[error("line {line}: {why}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong there.
        why: String,
    },
}

fn lines(errors: &[IrError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!("\nand {more} more") }
}
