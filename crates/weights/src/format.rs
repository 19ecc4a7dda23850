use std::fmt;

use regraft_tensor::{AlignedVec, DType, Tensor};
use serde::{Deserialize, Serialize};

/// The layout of a slot in memory, as the chosen kernel wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PackFormat {
    /// Row-major elements of the slot's dtype.
    Plain,
    /// A matrix `[.., k, n]` of f32 as `ceil(n / nr)` panels of `k` rows by `nr` columns, the last one padded with zeros;
    /// leading axes are matrices one after the other.
    PanelsF32 {
        /// Columns of a panel.
        nr: usize,
    },
}

/// The most columns that padding may add to a matrix. Whoever writes an engine file could otherwise ask for any memory.
const MOST_PADDING: usize = 64;

impl PackFormat {
    /// Bytes of a slot of this dtype and shape; `None` on overflow or when the format does not take the shape.
    pub fn byte_len(self, dtype: DType, shape: &[usize]) -> Option<usize> {
        match self {
            PackFormat::Plain => regraft_tensor::numel(shape)?.checked_mul(dtype.size()),
            PackFormat::PanelsF32 { nr } => {
                let [lead @ .., k, n] = shape else { return None };
                if dtype != DType::F32 || nr == 0 {
                    return None;
                }
                let columns = n.div_ceil(nr).checked_mul(nr).filter(|columns| columns - n < MOST_PADDING)?;
                regraft_tensor::numel(lead)?.checked_mul(columns)?.checked_mul(*k)?.checked_mul(4)
            }
        }
    }

    /// The row-major value of a slot: the definition of the format. `None` when the bytes are not a slot of this dtype and
    /// shape.
    pub fn unpack(self, dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
        if self.byte_len(dtype, shape)? != bytes.len() {
            return None;
        }
        let data = match (self, shape) {
            (PackFormat::PanelsF32 { nr }, [lead @ .., k, n]) => {
                let matrix = n.div_ceil(nr) * nr * k;
                let place = |e: usize| {
                    let (at, row, column) = (e / (k * n), e / n % k, e % n);
                    4 * (at * matrix + column / nr * nr * k + row * nr + column % nr)
                };
                let elements = regraft_tensor::numel(lead)? * k * n;
                (0..elements).flat_map(|e| &bytes[place(e)..][..4]).copied().collect::<Vec<u8>>()
            }
            _ => bytes.to_vec(),
        };
        Tensor::new(dtype, shape.to_vec(), AlignedVec::copy_of(&data).into()).ok()
    }
}

impl fmt::Display for PackFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackFormat::Plain => f.write_str("plain"),
            PackFormat::PanelsF32 { nr } => write!(f, "panels_f32<n{nr}>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_bounds() {
        let bytes = |nr, shape: &[usize]| PackFormat::PanelsF32 { nr }.byte_len(DType::F32, shape);
        assert_eq!(bytes(64, &[3, 1]), Some(4 * 3 * 64));
        assert_eq!(bytes(1008, &[9, 1000]), Some(4 * 9 * 1008), "depthwise weights are one panel");
        assert_eq!(bytes(1 << 40, &[3, 1]), None);
        assert_eq!(bytes(usize::MAX, &[3, 2]), None);
        assert_eq!(bytes(0, &[3, 2]), None);
    }
}
