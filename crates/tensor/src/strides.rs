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
    let mut axes = merged_axes(shape, strides);
    let (inner, step) = axes.pop().unwrap_or((1, 1));
    let (outer, outer_steps): (Vec<usize>, Vec<usize>) = axes.into_iter().unzip();
    for_each_index(&outer, &outer_steps, |at| {
        let first = (offset + at) * size;
        match step {
            0 => extend_repeated(&mut out, &data[first..first + size], inner),
            1 => out.extend_from_slice(&data[first..first + inner * size]),
            _ => (0..inner).for_each(|i| out.extend_from_slice(&data[first + i * step * size..][..size])),
        }
    });
    Ok(out)
}

/// The axes of a view as sizes with strides, those that are walked through as one made one.
fn merged_axes(shape: &[usize], strides: &[usize]) -> Vec<(usize, usize)> {
    let mut axes: Vec<(usize, usize)> = Vec::new();
    for (&size, &stride) in shape.iter().zip(strides).filter(|(size, _)| **size != 1) {
        match axes.last_mut() {
            Some(last) if last.1 == stride * size => *last = (last.0 * size, stride),
            _ => axes.push((size, stride)),
        }
    }
    axes
}

/// Adds `element` `count` times, in copies that double.
fn extend_repeated(out: &mut Vec<u8>, element: &[u8], count: usize) {
    let (start, len) = (out.len(), element.len() * count);
    out.extend_from_slice(&element[..element.len().min(len)]);
    while out.len() - start < len {
        let more = (out.len() - start).min(len - (out.len() - start));
        out.extend_from_within(start..start + more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_gathered_whatever_their_strides() {
        let data: Vec<u8> = (0..240).collect();
        let views: [(&[usize], &[usize], usize); 9] = [
            (&[], &[], 7),
            (&[5], &[0], 3),
            (&[4, 6], &[6, 1], 2),
            (&[6, 4], &[1, 6], 0),
            (&[3, 5, 2], &[0, 0, 0], 9),
            (&[3, 5, 2], &[0, 2, 1], 1),
            (&[2, 1, 7], &[50, 999, 3], 4),
            (&[2, 3, 4], &[1, 0, 8], 5),
            (&[2, 0], &[1, 1], 0),
        ];
        for (size, (shape, strides, offset)) in [1, 2, 4].into_iter().flat_map(|size| views.map(|view| (size, view))) {
            let last: usize = shape.iter().zip(strides).map(|(d, s)| d.saturating_sub(1) * s).sum();
            if (offset + last) * size >= data.len() {
                continue;
            }
            let mut want = Vec::new();
            for_each_index(shape, strides, |at| want.extend_from_slice(&data[(offset + at) * size..][..size]));
            assert_eq!(
                gather_strided(&data, size, shape, strides, offset).expect("inside"),
                want,
                "{shape:?} {strides:?}"
            );
        }
        assert!(gather_strided(&data, 4, &[2, 31], &[31, 1], 0).is_err());
    }
}
