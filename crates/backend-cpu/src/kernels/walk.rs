//! Rows over which every operand steps evenly.

/// The result as rows of `inner` elements; along a row each operand has one stride.
pub(super) struct Walk {
    inner: usize,
    /// Sizes of the axes that number the rows, outermost first.
    outer: Vec<usize>,
    /// Per operand the strides along `outer`, then along a row.
    strides: Vec<(Vec<usize>, usize)>,
    /// Elements of a row after which operands that repeat begin anew.
    period: usize,
    /// Which operands do, within a row.
    repeats: Vec<bool>,
}

/// Rows that are shorter are joined where they can be.
const SHORT: usize = 1024;

impl Walk {
    /// A walk over `shape` for operands of given shapes and strides that broadcast to it.
    pub(super) fn new(shape: &[usize], operands: &[(&[usize], &[usize])]) -> Self {
        let aligned: Vec<Vec<usize>> =
            operands.iter().map(|(from, strides)| align(shape.len(), from, strides)).collect();
        // Neighboring axes become one where all operands step over them evenly.
        let mut axes: Vec<(usize, Vec<usize>)> = Vec::new();
        for (axis, &size) in shape.iter().enumerate() {
            if size == 1 {
                continue;
            }
            let own: Vec<usize> = aligned.iter().map(|s| s[axis]).collect();
            match axes.last_mut() {
                Some((merged, strides)) if strides.iter().zip(&own).all(|(outer, inner)| *outer == inner * size) => {
                    *merged *= size;
                    *strides = own;
                }
                _ => axes.push((size, own)),
            }
        }
        let (inner, inner_strides) = axes.pop().unwrap_or((1, vec![0; operands.len()]));
        let along = |i: usize| axes.iter().map(|(_, strides)| strides[i]).collect();
        let strides = inner_strides.into_iter().enumerate().map(|(i, stride)| (along(i), stride)).collect();
        let inner = if shape.contains(&0) { 0 } else { inner };
        let outer = axes.iter().map(|(size, _)| *size).collect();
        Walk { inner, outer, strides, period: inner, repeats: vec![false; operands.len()] }
    }

    /// With many short rows joined to a long one, if there every operand steps evenly or repeats the elements of the first, as what
    /// all pixels of an image are scaled by.
    pub(super) fn joined(mut self) -> Self {
        let inner = self.inner;
        let repeats = |(outer, along): &(Vec<usize>, usize)| outer.last() == Some(&0) && *along != 0;
        let joins = |of: &(Vec<usize>, usize)| repeats(of) || of.0.last() == Some(&(of.1 * inner));
        if (1..SHORT).contains(&inner)
            && self.strides.iter().all(joins)
            && let Some(rows) = self.outer.pop()
        {
            self.repeats = self.strides.iter().map(repeats).collect();
            self.strides.iter_mut().for_each(|(outer, _)| _ = outer.pop());
            self.inner *= rows;
        }
        self
    }

    /// Elements of a row.
    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    /// For each operand whether the elements of a row lie side by side.
    pub(super) fn is_contiguous(&self) -> Vec<bool> {
        self.strides.iter().zip(&self.repeats).map(|((_, along), repeats)| *along == 1 && !repeats).collect()
    }

    /// Elements after which operands that repeat begin anew; 1 where none does.
    pub(super) fn repeated(&self) -> usize {
        if self.repeats.contains(&true) { self.period } else { 1 }
    }

    /// Whether operand `index` repeats after each period.
    pub(super) fn repeats(&self, index: usize) -> bool {
        self.repeats[index]
    }

    /// The element of operand `index` that stands at `column` of `row`, and its stride along the row. Of an operand that repeats,
    /// `column` is the first of a period.
    pub(super) fn position(&self, index: usize, row: usize, column: usize) -> (usize, usize) {
        let (outer, inner) = &self.strides[index];
        let (mut at, mut rest) = (if self.repeats[index] { 0 } else { column * inner }, row);
        for (size, stride) in self.outer.iter().zip(outer).rev() {
            at += rest % size * stride;
            rest /= size;
        }
        (at, *inner)
    }
}

/// Strides of an operand along the axes of the result: 0 where it broadcasts.
fn align(rank: usize, shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut aligned = vec![0; rank - shape.len()];
    aligned.extend(shape.iter().zip(strides).map(|(&size, &stride)| if size == 1 { 0 } else { stride }));
    aligned
}
