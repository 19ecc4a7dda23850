use crate::{ErrorKind, TensorError};

/// Number of elements of `shape`, or `None` on overflow.
pub fn numel(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Row-major strides in elements.
pub fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        // Saturates only where a size of 0 makes the value empty: nothing is read through these strides.
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

/// The shape that all of these broadcast to, or `None` when two sizes differ and neither is 1.
pub fn broadcast_shape(shapes: &[&[usize]]) -> Option<Vec<usize>> {
    let mut all = vec![1; shapes.iter().map(|shape| shape.len()).max().unwrap_or(0)];
    for shape in shapes {
        let lead = all.len() - shape.len();
        for (to, &size) in all[lead..].iter_mut().zip(*shape) {
            match (*to, size) {
                (a, b) if a == b || b == 1 => {}
                (1, b) => *to = b,
                _ => return None,
            }
        }
    }
    Some(all)
}

/// Calls `f(position)` for every index of `shape` in row-major order; `position` is `Σ index·stride`.
pub fn for_each_index(shape: &[usize], strides: &[usize], mut f: impl FnMut(usize)) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    let mut position = 0;
    loop {
        f(position);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            position += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            position -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
}

/// Copies a strided view of `data` (elements of `size` bytes) into row-major bytes.
///
/// # Errors
/// When the view reaches outside of `data`.
pub fn gather_strided(
    data: &[u8],
    size: usize,
    shape: &[usize],
    strides: &[usize],
    offset: usize,
) -> Result<Vec<u8>, TensorError> {
    let len = data.len() / size;
    let count = numel(shape).ok_or_else(|| ErrorKind::TooLarge(shape.to_vec()))?;
    let outside = || ErrorKind::OutOfStorage { shape: shape.to_vec(), strides: strides.to_vec(), offset, len };
    if strides.len() != shape.len() {
        return Err(outside().into());
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let last = shape.iter().zip(strides).try_fold(offset, |at, (&d, &s)| at.checked_add((d - 1).checked_mul(s)?));
    if last.is_none_or(|last| last >= len) {
        return Err(outside().into());
    }
    // A broadcast view (stride 0) of hostile size must not reserve more than its storage justifies at once.
    let mut out = Vec::with_capacity((count.saturating_mul(size)).min(data.len().max(1 << 20)));
    for_each_index(shape, strides, |at| {
        let at = (offset + at) * size;
        out.extend_from_slice(&data[at..at + size]);
    });
    Ok(out)
}
