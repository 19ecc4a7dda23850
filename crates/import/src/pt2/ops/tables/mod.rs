//! The operators that are known, one line for each.

mod elementwise;
mod positions;
mod products;
mod reductions;
mod rest;
mod shapes;

use super::Handler;

/// Operators of ATen, without `torch.ops.aten.`.
pub(super) fn aten() -> impl Iterator<Item = &'static (&'static str, Handler)> {
    let tables = [elementwise::ATEN, products::ATEN, positions::ATEN, reductions::ATEN, shapes::ATEN, rest::ATEN];
    tables.into_iter().flatten()
}

/// Whether it is a function of elements.
pub(super) fn is_elementwise(name: &str) -> bool {
    elementwise::ATEN.iter().any(|(known, _)| *known == name)
}

/// Everything else, by the whole target.
pub(super) fn others() -> impl Iterator<Item = &'static (&'static str, Handler)> {
    rest::OTHERS.iter()
}
