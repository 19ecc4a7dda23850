//! Rows over which every operand steps evenly.

/// The result as rows of `inner` elements; along a row each operand has one stride.
pub(super) struct Walk {
    inner: usize,
    /// Sizes of the axes that number the rows, outermost first.
    outer: Vec<usize>,
    /// Per operand the strides along `outer`, then along a row.
    strides: Vec<(Vec<usize>, usize)>,
}

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
        Walk { inner, outer: axes.iter().map(|(size, _)| *size).collect(), strides }
    }

    /// Elements of a row.
    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    /// For each operand how far apart the elements of a row are.
    pub(super) fn along(&self) -> Vec<usize> {
        self.strides.iter().map(|(_, along)| *along).collect()
    }

    /// The element of operand `index` that stands at `column` of `row`, and its stride along the row.
    pub(super) fn position(&self, index: usize, row: usize, column: usize) -> (usize, usize) {
        let (outer, inner) = &self.strides[index];
        let (mut at, mut rest) = (column * inner, row);
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
