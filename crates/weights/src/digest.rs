use std::fmt;

use regraft_tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A BLAKE3 digest of a tensor's dtype, shape and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `tensor`. Large tensors are hashed by several threads.
    pub fn of(tensor: &Tensor) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(tensor.dtype().name().as_bytes());
        for size in tensor.shape() {
            hasher.update(&(*size as u64).to_le_bytes());
        }
        hasher.update(b"\0");
        hasher.update_rayon(tensor.bytes());
        Digest(*hasher.finalize().as_bytes())
    }

    /// The digest of some bytes.
    pub fn of_bytes(bytes: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(bytes);
        Digest(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
