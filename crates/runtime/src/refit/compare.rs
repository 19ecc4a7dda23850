//! What really changes: a refit that is given a whole checkpoint makes only the slots whose sources differ.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};

use regraft_tensor::Tensor;
use regraft_weights::Matched;

use super::{Changed, Parts};
use crate::generation::Generation;

/// The given sources that differ from the serving generation's. One that differs is told at its first difference; one that
/// does not costs a pass over it, and saves staging its slots.
pub(super) fn changed(
    parts: &Parts<'_>,
    given: &Matched,
    base: Option<&Generation>,
    changed: &Changed,
) -> BTreeSet<usize> {
    let Some(base) = base.filter(|_| matches!(changed, Changed::Detect)) else {
        return given.keys().copied().collect();
    };
    let given: Vec<(&usize, &Tensor)> = given.iter().collect();
    let differs: Vec<AtomicBool> = given.iter().map(|_| true.into()).collect();
    parts.backend.for_each_staged(given.len(), &|i| {
        let (&index, new) = given[i];
        differs[i].store(!base.sources[index].is(new), Ordering::Relaxed);
    });
    let differing = given.iter().zip(differs).filter(|(_, differs)| differs.load(Ordering::Relaxed));
    differing.map(|((index, _), _)| **index).collect()
}
