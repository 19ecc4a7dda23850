//! The formats of slots that kernels of the CPU read.

use regraft_backend::{FormatId, SlotFormat};
use regraft_tensor::{DType, numel};

use crate::{
    pack::{panel_bytes, panel_place},
    simd::FloatType,
};

/// A matrix `[.., k, n]` of floats as `ceil(n / nr)` panels of `k` rows by `nr` columns, the last one padded with zeros; leading
/// axes are matrices one after the other. See [`crate::pack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panels {
    /// Element type, which is that of the slot.
    pub ty: FloatType,
    /// Columns of a panel.
    pub nr: usize,
}

/// The most columns that padding may add to a matrix. An engine file could otherwise ask for any amount of memory.
const MOST_PADDING: usize = 64;

impl Panels {
    fn prefix(ty: FloatType) -> &'static str {
        match ty {
            FloatType::F32 => "panels_f32<n",
            FloatType::F16 => "panels_f16<n",
            FloatType::Bf16 => "panels_bf16<n",
        }
    }

    /// The format's name.
    pub fn id(self) -> FormatId {
        FormatId::new(format!("{}{}>", Panels::prefix(self.ty), self.nr))
    }

    /// The format of this name.
    pub fn parse(id: &FormatId) -> Option<Panels> {
        FloatType::ALL.into_iter().find_map(|ty| {
            let nr = id.name().strip_prefix(Panels::prefix(ty))?.strip_suffix('>')?;
            Some(Panels { ty, nr: nr.parse().ok().filter(|nr| *nr > 0)? })
        })
    }

    /// Bytes of one matrix.
    pub(crate) fn matrix_bytes(self, k: usize, n: usize) -> usize {
        n.div_ceil(self.nr) * panel_bytes(self.ty, k, self.nr)
    }
}

impl SlotFormat for Panels {
    fn byte_len(&self, dtype: DType, shape: &[usize]) -> Option<usize> {
        let [lead @ .., k, n] = shape else { return None };
        if FloatType::of(dtype) != Some(self.ty) {
            return None;
        }
        let columns = n.div_ceil(self.nr).checked_mul(self.nr).filter(|columns| columns - n < MOST_PADDING)?;
        let rows = if self.ty == FloatType::Bf16 { k.checked_next_multiple_of(2)? } else { *k };
        numel(lead)?.checked_mul(columns)?.checked_mul(rows)?.checked_mul(self.ty.size())
    }

    fn place(&self, _: DType, shape: &[usize], index: usize) -> usize {
        let [.., k, n] = shape else { return 0 };
        let (matrix, row, column) = (index / (k * n), index / n % k, index % n);
        matrix * self.matrix_bytes(*k, *n) + self.ty.size() * panel_place(self.ty, self.nr, *k, row, column)
    }
}

/// A matrix `[k, n]` of bytes as `ceil(n / nr)` panels of `nr` columns, `steps` rows side by side in each column: the last ones
/// padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytePanels {
    /// Columns of a panel.
    pub nr: usize,
    /// Rows that stand side by side.
    pub steps: usize,
}

impl BytePanels {
    /// The format's name.
    pub fn id(self) -> FormatId {
        FormatId::new(format!("panels_bytes<n{},k{}>", self.nr, self.steps))
    }

    /// The format of this name.
    pub fn parse(id: &FormatId) -> Option<BytePanels> {
        let (nr, steps) = id.name().strip_prefix("panels_bytes<n")?.strip_suffix('>')?.split_once(",k")?;
        let positive = |text: &str| text.parse().ok().filter(|n| *n > 0);
        Some(BytePanels { nr: positive(nr)?, steps: positive(steps).filter(|steps| *steps <= 4)? })
    }

    /// Bytes of a panel of `k` rows.
    pub(crate) fn panel_bytes(self, k: usize) -> usize {
        k.next_multiple_of(self.steps) * self.nr
    }

    /// Where an element of a panel stands.
    pub(crate) fn place_in_panel(self, row: usize, column: usize) -> usize {
        (row / self.steps * self.nr + column) * self.steps + row % self.steps
    }
}

impl SlotFormat for BytePanels {
    fn byte_len(&self, dtype: DType, shape: &[usize]) -> Option<usize> {
        let [k, n] = shape else { return None };
        let columns = n.div_ceil(self.nr).checked_mul(self.nr).filter(|columns| columns - n < MOST_PADDING)?;
        let is_byte = matches!(dtype, DType::I8 | DType::U8);
        k.checked_next_multiple_of(self.steps)?.checked_mul(columns).filter(|_| is_byte)
    }

    fn place(&self, _: DType, shape: &[usize], index: usize) -> usize {
        let [k, n] = shape else { return 0 };
        let (row, column) = (index / n, index % n);
        column / self.nr * self.panel_bytes(*k) + self.place_in_panel(row, column % self.nr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_bounds() {
        let bytes = |nr, shape: &[usize]| Panels { ty: FloatType::F32, nr }.byte_len(DType::F32, shape);
        assert_eq!(bytes(64, &[3, 1]), Some(4 * 3 * 64));
        assert_eq!(bytes(1008, &[9, 1000]), Some(4 * 9 * 1008), "depthwise weights are one panel");
        assert_eq!(bytes(1 << 40, &[3, 1]), None);
        assert_eq!(bytes(usize::MAX, &[3, 2]), None);
        let pairs = Panels { ty: FloatType::Bf16, nr: 32 };
        assert_eq!(pairs.byte_len(DType::BF16, &[2, 3, 40]), Some(2 * 2 * 4 * 64), "pairs of rows are whole");
        assert_eq!(pairs.byte_len(DType::F32, &[2, 3, 40]), None);
    }

    #[test]
    fn elements_have_places_of_their_own() {
        for ty in FloatType::ALL {
            let (format, shape) = (Panels { ty, nr: 16 }, [2, 5, 20]);
            let dtype = [DType::F32, DType::F16, DType::BF16][ty as usize];
            let mut places: Vec<usize> = (0..200).map(|i| format.place(dtype, &shape, i)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 200);
            assert!(places[199] + ty.size() <= format.byte_len(dtype, &shape).unwrap());
        }
    }

    #[test]
    fn bytes_have_places_of_their_own() {
        for (panels, dtype) in
            [(BytePanels { nr: 32, steps: 4 }, DType::I8), (BytePanels { nr: 64, steps: 1 }, DType::U8)]
        {
            let shape = [7, 40];
            let mut places: Vec<usize> = (0..280).map(|i| panels.place(dtype, &shape, i)).collect();
            places.sort_unstable();
            places.dedup();
            assert!(places.len() == 280 && places[279] < panels.byte_len(dtype, &shape).unwrap());
            assert_eq!(panels.byte_len(DType::F32, &shape), None);
            assert_eq!(BytePanels::parse(&panels.id()), Some(panels));
        }
        for other in ["panels_bytes<n32,k0>", "panels_bytes<n32,k8>", "panels_bytes<n,k4>", "panels_bytes<n32>"] {
            assert_eq!(BytePanels::parse(&FormatId::new(other)), None, "{other}");
        }
        assert_eq!(BytePanels { nr: 1 << 40, steps: 4 }.byte_len(DType::I8, &[3, 1]), None);
    }

    #[test]
    fn names_are_read_back() {
        for panels in FloatType::ALL.map(|ty| Panels { ty, nr: 48 }) {
            assert_eq!(Panels::parse(&panels.id()), Some(panels));
        }
        for other in
            ["plain", "panels_f32<n0>", "panels_f32<n>", "panels_f32<n-1>", "panels_f32<n16", "panels_f64<n16>"]
        {
            assert_eq!(Panels::parse(&FormatId::new(other)), None, "{other}");
        }
    }
}
