//! Rotations of a weight's rows or columns in blocks: what OFT and BOFT train in place of something to add.

use regraft_tensor::Tensor;

use crate::MagnitudeAxis;

/// Rows or columns are mixed in blocks, in one turn or several, and scaled last.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// What is mixed.
    pub axis: MagnitudeAxis,
    /// One after the other.
    pub turns: Vec<Turn>,
    /// What each row or column is multiplied by, where that was trained, too.
    pub scales: Option<(MagnitudeAxis, Tensor)>,
}

/// Line `i` of a block becomes the sum of `blocks[i, j]` times line `j` of it.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Where each line of the weight stands among the blocks' lines; in its own place when empty.
    pub places: Vec<usize>,
    /// `[blocks, size, size]` in f32; one block may be for all lines.
    pub blocks: Tensor,
}

impl Turn {
    /// Lines of one block.
    pub(crate) fn size(&self) -> usize {
        self.blocks.shape().last().copied().unwrap_or(0)
    }

    /// Whether it is a turn of this many lines.
    pub(crate) fn is_of(&self, lines: usize) -> bool {
        let [count, size, again] = *self.blocks.shape() else { return false };
        let mut seen = vec![false; self.places.len()];
        let is_new = |place: &usize| seen.get_mut(*place).is_some_and(|seen| !std::mem::replace(seen, true));
        let in_place = self.places.is_empty() || (self.places.len() == lines && self.places.iter().all(is_new));
        let in_blocks = size > 0 && lines.is_multiple_of(size) && (count == 1 || count * size == lines);
        size == again && in_blocks && in_place && self.blocks.as_slice::<f32>().is_some()
    }
}

impl Rotation {
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let scales = self.scales.iter().map(|(_, scales)| scales);
        self.turns.iter().map(|turn| &turn.blocks).chain(scales)
    }

    /// Whether it is of a weight of this size.
    pub(crate) fn is_of(&self, rows: usize, cols: usize) -> bool {
        let lines = |axis: MagnitudeAxis| if axis == MagnitudeAxis::Rows { rows } else { cols };
        let scales_fit = self.scales.as_ref().is_none_or(|(axis, scales)| scales.numel() == lines(*axis));
        self.turns.iter().all(|turn| turn.is_of(lines(self.axis))) && scales_fit
    }

    /// The weight's values after the rotation, row by row. The caller's scale interpolates each rotation from the identity, and
    /// each scale from 1, as in LyCORIS; PEFT has no scale of rotations.
    pub(crate) fn apply(&self, values: &mut [f64], (rows, cols): (usize, usize), by: f64) {
        // From line to line, and from element to element of one.
        let (lines, step, others, across) = match self.axis {
            MagnitudeAxis::Rows => (rows, cols, cols, 1),
            MagnitudeAxis::Columns => (cols, 1, rows, cols),
        };
        let mut moved = vec![0.0; lines];
        for turn in &self.turns {
            let (size, blocks) = (turn.size(), turn.blocks.as_slice::<f32>().expect("it was read so"));
            let count = turn.blocks.shape().first().copied().unwrap_or(1).max(1);
            let place = |line: usize| turn.places.get(line).copied().unwrap_or(line);
            for other in 0..others {
                let at = |line: usize| line * step + other * across;
                (0..lines).for_each(|line| moved[place(line)] = values[at(line)]);
                for line in 0..lines {
                    let place = place(line);
                    let (block, row) = (place / size % count, place % size);
                    let factors = &blocks[(block * size + row) * size..][..size];
                    let block = &moved[place - row..][..size];
                    let turned =
                        factors.iter().zip(block).map(|(factor, value)| f64::from(*factor) * value).sum::<f64>();
                    // Exact where the caller does not scale it.
                    values[at(line)] = if by == 1.0 { turned } else { moved[place] + by * (turned - moved[place]) };
                }
            }
        }
        if let Some((axis, scales)) = &self.scales {
            let scales = scales.to_f64_vec();
            for (e, value) in values.iter_mut().enumerate() {
                let scale = scales[if *axis == MagnitudeAxis::Rows { e / cols } else { e % cols }];
                *value *= if by == 1.0 { scale } else { 1.0 + by * (scale - 1.0) };
            }
        }
    }
}

/// The square matrix `[size, size]` times another.
fn times(a: &[f64], b: &[f64], size: usize) -> Vec<f64> {
    let mut product = vec![0.0; size * size];
    for (row, a) in product.chunks_exact_mut(size).zip(a.chunks_exact(size)) {
        for (a, b) in a.iter().zip(b.chunks_exact(size)) {
            row.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    product
}

/// Cayley's rotation `(I + q) (I - q)^-1` of a skew-symmetric matrix. With `q` skew `I - q` has an inverse.
pub(crate) fn cayley(q: &[f64], size: usize) -> Vec<f64> {
    let with_one = |sign: f64| -> Vec<f64> {
        (0..size * size).map(|e| sign * q[e] + if e / size == e % size { 1.0 } else { 0.0 }).collect()
    };
    times(&with_one(1.0), &inverse(with_one(-1.0), size), size)
}

/// The first terms of Cayley's rotation as a series, as PEFT adds them up: the last one counts once.
pub(crate) fn cayley_series(q: &[f64], size: usize, terms: usize) -> Vec<f64> {
    let mut sum: Vec<f64> = (0..size * size).map(|e| if e / size == e % size { 1.0 } else { 0.0 }).collect();
    let mut add = |by: f64, power: &[f64]| sum.iter_mut().zip(power).for_each(|(sum, q)| *sum += by * q);
    if terms > 1 {
        add(2.0, q);
    }
    if terms > 2 {
        let mut power = times(q, q, size);
        add(2.0, &power);
        for _ in 3..terms - 1 {
            power = times(&power, q, size);
            add(2.0, &power);
        }
        add(1.0, &times(&power, q, size));
    }
    sum
}

/// The inverse of a matrix that has one, by elimination; numbers that are none stay none.
fn inverse(mut matrix: Vec<f64>, size: usize) -> Vec<f64> {
    let mut inverse: Vec<f64> = (0..size * size).map(|e| if e / size == e % size { 1.0 } else { 0.0 }).collect();
    for column in 0..size {
        let largest =
            |a: &usize, b: &usize| matrix[a * size + column].abs().total_cmp(&matrix[b * size + column].abs());
        let pivot = (column..size).max_by(largest).unwrap_or(column);
        for e in 0..size {
            matrix.swap(pivot * size + e, column * size + e);
            inverse.swap(pivot * size + e, column * size + e);
        }
        let by = 1.0 / matrix[column * size + column];
        for e in 0..size {
            matrix[column * size + e] *= by;
            inverse[column * size + e] *= by;
        }
        for row in (0..size).filter(|row| *row != column) {
            let by = matrix[row * size + column];
            if by == 0.0 {
                continue;
            }
            for e in 0..size {
                matrix[row * size + e] -= by * matrix[column * size + e];
                inverse[row * size + e] -= by * inverse[column * size + e];
            }
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: [f64; 9] = [0.0, 0.3, -0.2, -0.3, 0.0, 0.5, 0.2, -0.5, 0.0];

    #[test]
    fn cayley_gives_rotations_and_the_series_comes_near() {
        let exact = cayley(&SKEW, 3);
        let transposed: Vec<f64> = (0..9).map(|e| exact[e % 3 * 3 + e / 3]).collect();
        for (e, value) in times(&exact, &transposed, 3).into_iter().enumerate() {
            assert!((value - if e % 4 == 0 { 1.0 } else { 0.0 }).abs() < 1e-12, "{e}: {value}");
        }
        let series = cayley_series(&SKEW, 3, 40);
        assert!(series.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(cayley_series(&SKEW, 3, 1), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn turns_are_of_whole_blocks_and_every_line_has_one_place() {
        let blocks = Tensor::from_slice(&[2, 2, 2], &[0f32; 8]);
        let of = |places: &[usize]| Turn { places: places.to_vec(), blocks: blocks.clone() };
        assert!(of(&[]).is_of(4) && of(&[1, 0, 3, 2]).is_of(4));
        assert!(!of(&[]).is_of(6) && !of(&[0, 0, 1, 2]).is_of(4) && !of(&[0, 1, 2, 4]).is_of(4) && !of(&[0]).is_of(4));
        assert!(Turn { places: vec![], blocks: Tensor::from_slice(&[1, 2, 2], &[0f32; 4]) }.is_of(6));
    }
}
