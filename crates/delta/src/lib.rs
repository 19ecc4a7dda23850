//! What differs between two checkpoints, as a file: a fraction of their size, applied to the one bit for bit to give the other.
//!
//! A delta holds the tensors that changed. Each is cut into blocks; a block holds the exclusive or with the block of the base, its
//! bytes sorted by their place in an element, compressed: weights that moved little share their upper bytes, which become zeros.
//! It is bound to its base: the digests of all tensors of it are in the delta, and so are those of the result.
//!
//! ```no_run
//! # use regraft_weights::StateDict;
//! # fn f(base: &StateDict, tuned: &StateDict) -> Result<(), regraft_delta::DeltaError> {
//! let file = std::fs::File::create("tuned.rgd").expect("a file");
//! regraft_delta::write(base, tuned, file)?;
//! let delta = regraft_delta::Delta::open("tuned.rgd")?;
//! let changed: StateDict = delta.apply(base)?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod block;
mod error;
mod header;
mod read;
mod write;

pub use self::{
    error::{DeltaError, DeltaErrorKind, DeltaProblem},
    read::{Base, Delta},
    write::{Summary, write},
};

/// What a delta file begins with.
const MAGIC: &[u8; 8] = b"RGDELTA1";
/// Bytes of a tensor in a block.
const BLOCK: usize = 1 << 20;
