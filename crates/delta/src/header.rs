//! What a delta says of its tensors.

use regraft_tensor::{DType, Tensor};
use regraft_weights::Digest;
use serde::{Deserialize, Serialize};

use crate::BLOCK;

/// The text at the beginning of a delta.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// Tensors that are as in the base.
    pub(crate) same: Vec<Same>,
    pub(crate) changed: Vec<Changed>,
}

/// A tensor that the base has, and the result as well.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Same {
    pub(crate) name: String,
    /// Its short name.
    pub(crate) dtype: String,
    pub(crate) digest: Digest,
}

/// A tensor that the delta brings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Changed {
    pub(crate) name: String,
    /// Its short name.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    /// The digest of the tensor of the base that the blocks are against; without one they are the tensor itself.
    pub(crate) base: Option<Digest>,
    pub(crate) result: Digest,
    pub(crate) blocks: Vec<Block>,
}

/// A block, one after the other in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Block {
    pub(crate) how: How,
    /// Bytes in the file.
    pub(crate) len: u32,
}

/// How a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// As that of the base: no bytes.
    #[serde(rename = "s")]
    Same,
    /// The difference, by place in an element, compressed.
    #[serde(rename = "z")]
    Compressed,
    /// The difference as it is.
    #[serde(rename = "r")]
    Raw,
}

impl Changed {
    /// Dtype and bytes, when they and the blocks go together; otherwise what does not.
    pub(crate) fn check(&self) -> Result<(DType, usize), String> {
        let dtype =
            DType::from_name(&self.dtype).ok_or_else(|| format!("`{}` has no dtype {}", self.name, self.dtype))?;
        let bytes = Tensor::byte_len(dtype, &self.shape).map_err(|e| format!("`{}`: {e}", self.name))?;
        if self.blocks.len() != bytes.div_ceil(BLOCK) {
            return Err(format!("`{}` has {} blocks for {bytes} bytes", self.name, self.blocks.len()));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let size = BLOCK.min(bytes - index * BLOCK);
            let fits = match block.how {
                How::Same => block.len == 0 && self.base.is_some(),
                How::Compressed => (1..=size).contains(&(block.len as usize)),
                How::Raw => block.len as usize == size,
            };
            if !fits {
                return Err(format!("block {index} of `{}` has {} bytes", self.name, block.len));
            }
        }
        Ok((dtype, bytes))
    }
}
