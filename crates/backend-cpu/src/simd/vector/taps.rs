//! Where the taps of a convolution are.

/// For each tap, how many floats behind the first of them its pixel and its weight are.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    at: Vec<[usize; 2]>,
    /// The most of each.
    reach: [usize; 2],
}

impl Taps {
    /// One more.
    pub(crate) fn push(&mut self, pixel: usize, weight: usize) {
        self.at.push([pixel, weight]);
        self.reach = [self.reach[0].max(pixel), self.reach[1].max(weight)];
    }

    /// All of them, in the order in which they came; none is farther away than [`Self::reach`] says.
    pub(crate) fn at(&self) -> &[[usize; 2]] {
        &self.at
    }

    /// The most floats that a pixel and a weight are away.
    pub(crate) fn reach(&self) -> [usize; 2] {
        self.reach
    }
}
