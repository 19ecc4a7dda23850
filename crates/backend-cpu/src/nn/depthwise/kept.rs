//! Lines of images that a task computes once for all rows that meet them.

/// As many lines as rows meet at once, each in the place of its number modulo their count: what is missing takes the place of what no row
/// meets anymore.
pub(in crate::nn) struct KeptLines<'a> {
    floats: &'a mut [f32],
    /// Which line is at each place.
    held: Vec<usize>,
    /// Floats of a line.
    line: usize,
}

impl<'a> KeptLines<'a> {
    /// As many lines of so many floats as there is room for.
    pub(in crate::nn) fn new(floats: &'a mut [f32], line: usize) -> Self {
        let held = vec![usize::MAX; floats.len().checked_div(line).unwrap_or(0)];
        KeptLines { floats, held, line }
    }

    /// All places, one after the other.
    pub(in crate::nn) fn floats(&self) -> &[f32] {
        self.floats
    }

    /// Lines that are computed from here on are others, though they have the same numbers.
    pub(in crate::nn) fn forget(&mut self) {
        self.held.fill(usize::MAX);
    }

    /// Calls `compute` with the number of the first and room for as many as follow each other, also in memory, until all `lines` are held;
    /// they are counted from `first`.
    pub(in crate::nn) fn hold(&mut self, first: usize, lines: &[usize], compute: impl Fn(usize, &mut [f32])) {
        let places = self.held.len();
        let mut rest = lines;
        while let Some((next, after)) = rest.split_first() {
            let (line, place) = (first + next, (first + next) % places);
            let missing = rest
                .iter()
                .enumerate()
                .take_while(|(i, other)| place + i < places && **other == next + i && self.held[place + i] != line + i);
            let count = missing.count();
            rest = if count == 0 { after } else { &rest[count..] };
            if count > 0 {
                compute(line, &mut self.floats[place * self.line..][..count * self.line]);
                (0..count).for_each(|i| self.held[place + i] = line + i);
            }
        }
    }
}
