use std::{fmt, str::FromStr};

use regraft_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::on_shared_threads;

/// A BLAKE3 digest of a tensor's dtype, shape and bytes. Written as 64 hexadecimal digits.
///
/// ```
/// use regraft_tensor::Tensor;
/// use regraft_weights::Digest;
///
/// let digest = Digest::of(&Tensor::from_slice(&[2], &[0.5f32, 1.0]));
/// assert_eq!(digest.to_string().parse(), Ok(digest));
/// assert_ne!(digest, Digest::of(&Tensor::from_slice(&[2, 1], &[0.5f32, 1.0])), "the shape counts");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// A text that is not a digest, which is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lower-case hexadecimal digits")]
pub struct NoDigest;

impl Digest {
    /// The digest of `tensor`. Large tensors are hashed by several threads.
    pub fn of(tensor: &Tensor) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(tensor.dtype().name().as_bytes());
        for size in tensor.shape() {
            hasher.update(&(*size as u64).to_le_bytes());
        }
        hasher.update(b"\0");
        on_shared_threads(|| _ = hasher.update_rayon(tensor.bytes()));
        Digest(*hasher.finalize().as_bytes())
    }

    /// The digest of some bytes.
    pub fn of_bytes(bytes: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        on_shared_threads(|| _ = hasher.update_rayon(bytes));
        Digest(*hasher.finalize().as_bytes())
    }

    /// A digest of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(NoDigest),
        };
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NoDigest)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Self, NoDigest> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_and_read() {
        let digest = Digest::of_bytes(b"weights");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for text in ["", "zz", &"A".repeat(64), &format!("{digest}0")] {
            assert_eq!(text.parse::<Digest>(), Err(NoDigest), "{text}");
        }
    }
}
