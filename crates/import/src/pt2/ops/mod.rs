//! The operators that are known: one file per family, one line per operator in the tables of `tables`.
//!
//! An in-place form (`relu_`) needs no line of its own: it is the plain form, written back.

mod activation;
mod attention;
mod bits;
mod borders;
pub(crate) mod complex;
mod conv;
mod convert;
pub(crate) mod counted;
mod create;
mod diagonal;
mod distance;
mod elementwise;
mod fft;
mod forms;
mod functions;
mod gradient;
mod grid;
mod histogram;
mod index;
mod linalg;
mod linear;
mod loss;
mod lstm;
mod matrix_exp;
mod norm;
mod order;
mod parts;
mod polynomials;
mod pool;
mod product;
mod reduce;
mod regions;
mod resample;
mod resize;
mod scatter;
mod segments;
mod shape;
mod softmax;
mod spectral;
mod sym;
mod tables;
mod whole;
mod windows;

use std::{collections::HashMap, sync::OnceLock};

use regraft_tensor::Dim;

use super::args::{Cx, Res, ValueId, wrong};

/// How an operator is translated.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// One result in memory of its own.
    One(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// As `One`, with half-precision tensors computed in f32 and rounded once: for what takes several steps here and is
    /// one kernel in PyTorch.
    Wide(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// As `Many`, likewise.
    WideMany(fn(&mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>>),
    /// Several results; those that are not computed are `None`.
    Many(fn(&mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>>),
    /// One result that sees the memory of the first argument.
    View(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// One result that may see the memory of the first argument: strides tell.
    MaybeView(fn(&mut Cx<'_, '_>) -> Res<ValueId>),
    /// Several results that see the memory of the first argument.
    Views(fn(&mut Cx<'_, '_>) -> Res<Vec<ValueId>>),
    /// Several results, each of which sees the memory of one tensor of the first argument, a list.
    ViewsOfEach(fn(&mut Cx<'_, '_>) -> Res<Vec<ValueId>>),
    /// Arithmetic on sizes.
    Dim(fn(&mut Cx<'_, '_>) -> Res<Dim>),
    /// An inner graph that runs as if it stood in the place of the call.
    Inline,
    /// Nothing to compute.
    Drop,
    /// Known, and not supported: what it is, and what to do.
    Refuse(&'static str, &'static str),
}

impl Handler {
    /// All results, for a handler that gives tensors.
    pub(crate) fn values(self, cx: &mut Cx<'_, '_>) -> Res<Vec<ValueId>> {
        match self {
            One(f) | Wide(f) | View(f) | MaybeView(f) => Ok(vec![f(cx)?]),
            Views(f) | ViewsOfEach(f) => f(cx),
            Many(_) | WideMany(_) | Sym(_) | Inline | Drop | Refuse(..) => wrong("expected an operator on tensors"),
        }
    }

    /// Whether a result may see the memory of an argument.
    pub(crate) const fn may_view(self) -> bool {
        matches!(self, View(_) | MaybeView(_) | Views(_))
    }
}

/// One part of a complex value.
pub(crate) fn part_of_pair(cx: &mut Cx<'_, '_>, v: ValueId, part: i64) -> Res<ValueId> {
    complex::part(cx, v, part)
}

/// A known operator.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) handler: Handler,
    /// Whether it writes its result to its first argument.
    pub(crate) in_place: bool,
}

use Handler::{Dim as Sym, Drop, Inline, Many, MaybeView, One, Refuse, View, Views, ViewsOfEach, Wide, WideMany};

/// The translation of an operator; `None` when it is not known.
pub(crate) fn find(target: &str) -> Option<Found> {
    static INDEX: OnceLock<HashMap<&'static str, HashMap<&'static str, Handler>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        [("aten", tables::aten().copied().collect()), ("", tables::others().copied().collect())].into()
    });
    let get = |space: &str, name: &str| index.get(space)?.get(name).copied();
    let Some(name) = target.strip_prefix("torch.ops.aten.") else {
        return get("", target).map(|handler| Found { handler, in_place: false });
    };
    if let Some(handler) = get("aten", name) {
        return Some(Found { handler, in_place: false });
    }
    if complex::find(target).is_some() {
        let handler = Refuse("this form for real numbers", "use the operator for real numbers");
        return Some(Found { handler, in_place: false });
    }
    // `view_copy.default` is `view.default` in memory of its own.
    let (base, overload) = name.split_once('.')?;
    if let Some(base) = base.strip_suffix("_copy")
        && let Some(View(f) | MaybeView(f)) = get("aten", &format!("{base}.{overload}"))
    {
        return Some(Found { handler: One(f), in_place: false });
    }
    // `relu_.default` is `relu.default`, written back; `__iand__` and the like do not end in one underscore.
    let base = base.strip_suffix('_').filter(|b| !b.ends_with('_'))?;
    let handler = get("aten", &format!("{base}.{overload}"))?;
    match handler {
        One(_) | Wide(_) => Some(Found { handler, in_place: true }),
        // `detach_` and `dropout_` change nothing; `unsqueeze_` makes the name mean the view.
        MaybeView(_) => Some(Found { handler, in_place: false }),
        View(_) => Some(Found { handler, in_place: true }),
        Many(_) | WideMany(_) | Views(_) | ViewsOfEach(_) | Sym(_) | Inline | Drop => None,
        Refuse(..) => Some(Found { handler, in_place: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_place_forms_are_found() {
        let in_place = |target: &str| find(target).map(|f| f.in_place);
        assert_eq!(in_place("torch.ops.aten.relu.default"), Some(false));
        assert_eq!(in_place("torch.ops.aten.relu_.default"), Some(true));
        assert_eq!(in_place("torch.ops.aten.add_.Tensor"), Some(true));
        assert_eq!(in_place("torch.ops.aten.detach_.default"), Some(false));
        assert_eq!(in_place("torch.ops.aten.relu__.default"), None);
        assert_eq!(in_place("torch.ops.aten.no_such_op.default"), None);
    }

    #[test]
    fn no_operator_is_listed_twice() {
        let mut seen = std::collections::HashSet::new();
        assert!(tables::aten().chain(tables::others()).all(|(name, _)| seen.insert(*name)));
    }
}
