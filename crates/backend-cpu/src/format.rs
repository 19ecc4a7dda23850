//! The formats of slots that kernels of the CPU read.

use regraft_backend::{FormatId, SlotFormat};
use regraft_tensor::{DType, numel};

/// A matrix `[.., k, n]` of f32 as `ceil(n / nr)` panels of `k` rows by `nr` columns, the last one padded with zeros; leading
/// axes are matrices one after the other. See [`crate::pack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panels {
    /// Columns of a panel.
    pub nr: usize,
}

/// The most columns that padding may add to a matrix. Whoever writes an engine file could otherwise ask for any memory.
const MOST_PADDING: usize = 64;

impl Panels {
    /// The format's name.
    pub fn id(self) -> FormatId {
        FormatId::new(format!("panels_f32<n{}>", self.nr))
    }

    /// The format of this name.
    pub fn parse(id: &FormatId) -> Option<Panels> {
        let nr = id.name().strip_prefix("panels_f32<n")?.strip_suffix('>')?;
        Some(Panels { nr: nr.parse().ok().filter(|nr| *nr > 0)? })
    }
}

impl SlotFormat for Panels {
    fn byte_len(&self, dtype: DType, shape: &[usize]) -> Option<usize> {
        let [lead @ .., k, n] = shape else { return None };
        if dtype != DType::F32 {
            return None;
        }
        let columns = n.div_ceil(self.nr).checked_mul(self.nr).filter(|columns| columns - n < MOST_PADDING)?;
        numel(lead)?.checked_mul(columns)?.checked_mul(*k)?.checked_mul(4)
    }

    fn place(&self, _: DType, shape: &[usize], index: usize) -> usize {
        let [.., k, n] = shape else { return 0 };
        let nr = self.nr;
        let (matrix, row, column) = (index / (k * n), index / n % k, index % n);
        4 * (matrix * n.div_ceil(nr) * nr * k + column / nr * nr * k + row * nr + column % nr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_bounds() {
        let bytes = |nr, shape: &[usize]| Panels { nr }.byte_len(DType::F32, shape);
        assert_eq!(bytes(64, &[3, 1]), Some(4 * 3 * 64));
        assert_eq!(bytes(1008, &[9, 1000]), Some(4 * 9 * 1008), "depthwise weights are one panel");
        assert_eq!(bytes(1 << 40, &[3, 1]), None);
        assert_eq!(bytes(usize::MAX, &[3, 2]), None);
    }

    #[test]
    fn names_are_read_back() {
        assert_eq!(Panels::parse(&Panels { nr: 48 }.id()), Some(Panels { nr: 48 }));
        for other in ["plain", "panels_f32<n0>", "panels_f32<n>", "panels_f32<n-1>", "panels_f32<n16"] {
            assert_eq!(Panels::parse(&FormatId::new(other)), None, "{other}");
        }
    }
}
