//! The left operand: rows that are found by a stride or by offsets, checked once.

/// How the rows of `A` are found.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Row `i` starts at `i * lda`. One tap.
    Strided {
        /// Distance between rows.
        lda: usize,
    },
    /// Tap `t` of row `i` starts at `offsets[i * taps + t]`; [`Rows::ZERO`] stands for zeros.
    Indirect {
        /// One offset for each row and tap.
        offsets: &'a [u32],
    },
}

impl Rows<'_> {
    /// The offset of a tap that reads zeros.
    pub const ZERO: u32 = u32::MAX;
}

/// What taps in the padding read. Longer taps get a row of their own.
static ZEROS: [f32; 4096] = [0.0; 4096];

/// A left operand whose every row and tap is known to lie in its data.
pub(crate) struct Operand<'a> {
    a: &'a [f32],
    rows: Rows<'a>,
    m: usize,
    taps: usize,
    k_tap: usize,
    /// Zeros for taps longer than `ZEROS`.
    long_zeros: Vec<f32>,
}

impl<'a> Operand<'a> {
    /// `m` rows of `taps` taps of `k_tap` floats.
    ///
    /// # Panics
    ///
    /// If a tap reaches beyond `a`, or there is not one offset for each row and tap.
    pub(crate) fn new(a: &'a [f32], rows: Rows<'a>, m: usize, taps: usize, k_tap: usize) -> Self {
        let mut long_zeros = Vec::new();
        match rows {
            _ if m == 0 || taps * k_tap == 0 => {}
            Rows::Strided { lda } => {
                assert_eq!(taps, 1, "strided rows have one tap");
                let end = (m - 1).checked_mul(lda).and_then(|last| last.checked_add(k_tap));
                assert!(end.is_some_and(|end| end <= a.len()), "A is too short for {m} rows of {k_tap}, {lda} apart");
            }
            Rows::Indirect { offsets } => {
                assert_eq!(Some(offsets.len()), m.checked_mul(taps), "one offset for each row and tap");
                let fits = |at: &u32| *at == Rows::ZERO || (*at as usize).saturating_add(k_tap) <= a.len();
                assert!(offsets.iter().all(fits), "an offset reaches beyond A");
                if k_tap > ZEROS.len() {
                    long_zeros = vec![0.0; k_tap];
                }
            }
        }
        Operand { a, rows, m, taps, k_tap, long_zeros }
    }

    /// Number of rows.
    pub(crate) fn m(&self) -> usize {
        self.m
    }

    /// Taps in a row.
    pub(crate) fn taps(&self) -> usize {
        self.taps
    }

    /// Floats in a tap.
    pub(crate) fn k_tap(&self) -> usize {
        self.k_tap
    }

    /// The start of a tap: valid for `k_tap` floats if `row < m` and `tap < taps`.
    #[inline(always)]
    pub(super) fn tap_ptr(&self, row: usize, tap: usize) -> *const f32 {
        debug_assert!(row < self.m && tap < self.taps);
        match self.rows {
            Rows::Strided { lda } => self.a.as_ptr().wrapping_add(row * lda),
            Rows::Indirect { offsets } => match offsets[row * self.taps + tap] {
                Rows::ZERO if self.k_tap > ZEROS.len() => self.long_zeros.as_ptr(),
                Rows::ZERO => ZEROS.as_ptr(),
                at => self.a.as_ptr().wrapping_add(at as usize),
            },
        }
    }
}
