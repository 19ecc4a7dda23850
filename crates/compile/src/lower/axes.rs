//! Arithmetic of axes: orders, and which axes of a shape a reshape splits or merges.

use std::ops::Range;

use regraft_tensor::Dim;

/// Whether an order leaves every axis where it is.
pub fn is_identity(perm: &[usize]) -> bool {
    perm.iter().copied().eq(0..perm.len())
}

/// The order of `permute(outer)` after `permute(inner)`.
pub fn compose(outer: &[usize], inner: &[usize]) -> Vec<usize> {
    outer.iter().map(|&i| inner[i]).collect()
}

/// The order that undoes `perm`.
pub fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| out[p] = i);
    out
}

/// Whether `perm` keeps the order of all axes of `shape` that are not surely of size 1, so that no element moves.
pub fn moves_only_units(shape: &[Dim], perm: &[usize]) -> bool {
    perm.iter().filter(|&&i| !shape[i].is(1)).is_sorted()
}

/// The order of `perm` with the last two axes exchanged.
pub fn swap_last(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 1, rank - 2);
    perm
}

/// For each axis of `from` the axes of `to` that it is split into, when `to` does nothing but split axes and add or drop
/// axes of size 1. Sizes are compared structurally.
pub fn split_groups(from: &[Dim], to: &[Dim]) -> Option<Vec<Range<usize>>> {
    let mut groups = Vec::with_capacity(from.len());
    let mut at = 0;
    for size in from {
        let start = at;
        let mut product = Dim::new(1);
        if size.is(1) {
            at += usize::from(to.get(at).is_some_and(|d| d.is(1)));
        }
        while product != *size {
            product = &product * to.get(at)?;
            at += 1;
        }
        groups.push(start..at);
    }
    while to.get(at).is_some_and(|d| d.is(1)) {
        at += 1;
    }
    match groups.last_mut() {
        Some(last) => last.end = at,
        None if at > 0 => return None,
        None => {}
    }
    (at == to.len()).then_some(groups)
}

#[cfg(test)]
mod tests {
    use regraft_tensor::Symbol;

    use super::*;

    fn dims(sizes: &[i64]) -> Vec<Dim> {
        sizes.iter().map(|&d| Dim::new(d)).collect()
    }

    #[test]
    fn splits_are_found() {
        assert_eq!(split_groups(&dims(&[6, 4]), &dims(&[2, 3, 4])), Some(vec![0..2, 2..3]));
        assert_eq!(split_groups(&dims(&[6, 1, 4]), &dims(&[6, 4, 1])), Some(vec![0..1, 1..1, 1..3]));
        assert_eq!(split_groups(&dims(&[6, 4]), &dims(&[1, 6, 4])), Some(vec![0..2, 2..3]));
        assert_eq!(split_groups(&dims(&[6, 4]), &dims(&[24])), None);
        assert_eq!(split_groups(&dims(&[6, 4]), &dims(&[4, 6])), None);
        assert_eq!(split_groups(&[], &dims(&[1])), None);
    }

    #[test]
    fn symbolic_sizes_are_compared_as_expressions() {
        let s = Dim::sym(Symbol(0));
        let twelve = &s * &Dim::new(12);
        assert_eq!(
            split_groups(&[twelve.clone(), Dim::new(4)], &[s.clone(), Dim::new(12), Dim::new(4)]),
            Some(vec![0..2, 2..3])
        );
        assert_eq!(split_groups(&[twelve], &[s.clone(), s]), None);
    }

    #[test]
    fn orders_compose_and_invert() {
        let (a, b) = ([2, 0, 1, 3], [0, 2, 1, 3]);
        assert_eq!(compose(&a, &b), [1, 0, 2, 3]);
        assert!(is_identity(&compose(&a, &inverse(&a))));
        assert!(moves_only_units(&dims(&[5, 7, 1, 1]), &[0, 2, 3, 1]));
        assert!(!moves_only_units(&dims(&[5, 7, 2, 1]), &[0, 2, 3, 1]));
    }
}
