use std::path::PathBuf;

use crate::DType;

/// What went wrong with a tensor or a buffer.
///
/// ```
/// use regraft_tensor::{AlignedVec, DType, Tensor};
///
/// let error = Tensor::new(DType::F32, vec![2, 3], AlignedVec::zeroed(20).into()).unwrap_err();
/// assert_eq!(error.to_string(), "f32[2, 3] needs 24 bytes, found 20");
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TensorError(#[from] ErrorKind);

/// The kinds of [`TensorError`].
///
/// ```
/// use regraft_tensor::{AlignedVec, DType, ErrorKind, Tensor};
///
/// let error = Tensor::new(DType::F32, vec![2, 3], AlignedVec::zeroed(20).into()).unwrap_err();
/// assert!(matches!(error.kind(), ErrorKind::Length { expected: 24, found: 20, .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The byte length does not fit the shape and dtype.
    #[error("{dtype}{shape:?} needs {expected} bytes, found {found}")]
    Length {
        /// Element type of the tensor.
        dtype: DType,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Bytes that shape and dtype need.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Number of elements, or their bytes, exceeds what memory can address.
    #[error("a tensor of shape {0:?} is too large for memory")]
    TooLarge(Vec<usize>),
    /// The system refuses memory.
    #[error("the system has no {bytes} bytes of memory")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// Bytes in memory of a device cannot be copied to the host.
    #[error("{device}: {why}")]
    Remote {
        /// The device.
        device: String,
        /// What happened.
        why: String,
    },
    /// A strided view reads outside of its storage.
    #[error("a view of shape {shape:?}, strides {strides:?} at offset {offset} leaves its storage of {len} elements")]
    OutOfStorage {
        /// Shape of the view.
        shape: Vec<usize>,
        /// Strides of the view in elements.
        strides: Vec<usize>,
        /// First element.
        offset: usize,
        /// Elements in the storage.
        len: usize,
    },
    /// A dimension expression could not be read.
    #[error("`{text}` is not a dimension: {why}")]
    DimSyntax {
        /// The text given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A dimension expression has no value: overflow, division by zero or an unbound symbol.
    #[error("dimension {dim} has no value: {why}")]
    DimValue {
        /// The expression.
        dim: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A file could not be mapped.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: std::io::Error,
    },
}

impl TensorError {
    /// The kind of this error.
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }
}
