//! The intermediate representation: a graph of tensor ops in SSA form.
//!
//! - [`Graph`]: inputs, sources, states, nodes and outputs, over symbolic dims;
//! - [`Op`]: the closed set of operations, generated from one table (`ops/mod.rs`);
//! - [`Graph::verify`]: the checks that hold between all passes;
//! - [`text`]: a printer and a parser that round-trip;
//! - [`eval`]: the reference evaluator, the oracle of every test.
//!
//! ```
//! let text = r#"program "mlp" {
//!   input  %0 : f32[3, 16] = "x"
//!   source %1 : f32[32, 16] = "fc.weight" (parameter)
//!   %2 = linear %0, %1 {act = relu} : f32[3, 32]  // fc
//!   output %2 = "y"
//! }
//! "#;
//! let graph = regraft_ir::text::parse(text)?;
//! graph.verify()?;
//! assert_eq!(regraft_ir::text::print(&graph), text);
//! # Ok::<(), regraft_ir::IrError>(())
//! ```
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
