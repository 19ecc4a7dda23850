//! The intermediate representation: a graph of tensor ops in SSA form.
//!
//! - [`Graph`]: inputs, sources, states, nodes and outputs, over symbolic dims;
//! - [`Op`]: the closed set of operations, generated from one table (`ops/mod.rs`);
//! - [`Graph::verify`]: the checks that hold between all passes;
//! - [`text`]: a printer and a parser that round-trip;
//! - [`eval`]: the reference evaluator, the oracle of every test.
#![forbid(unsafe_code)]

pub mod attr;
mod error;
pub mod eval;
mod graph;
pub mod ops;
mod subgraph;
pub mod text;
mod types;
mod verify;

pub use error::{EvalError, IrError, IrErrorKind, OpError};
pub use graph::{Def, Graph, Input, Node, NodeId, Output, Role, Source, SourceKind, State, SymbolInfo, Value, ValueId};
pub use ops::Op;
pub use subgraph::Subgraph;
pub use types::{Scalar, TensorType};
