//! What really changes: a refit that is given a whole checkpoint makes only the slots whose sources differ.

use std::collections::BTreeSet;

use regraft_weights::Matched;

use super::{Changed, Parts};
use crate::{Generation, RuntimeError, SourceContent};

/// The given sources that differ from the serving generation's. One that differs is told at its first difference; one that
/// does not costs a pass over it, and saves staging its slots.
pub(super) fn changed(
    parts: &Parts<'_>,
    given: &Matched,
    base: Option<&Generation>,
    changed: &Changed,
) -> Result<BTreeSet<usize>, RuntimeError> {
    let Some(base) = base.filter(|_| matches!(changed, Changed::Detect)) else {
        return Ok(given.keys().copied().collect());
    };
    let pairs: Vec<_> = given.iter().map(|(&index, new)| (&*base.sources[index], new)).collect();
    let differ = SourceContent::differ(&**parts.packer, &pairs)?;
    Ok(given.keys().zip(differ).filter(|(_, differs)| *differs).map(|(&index, _)| index).collect())
}
