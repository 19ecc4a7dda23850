//! Writes in place.

use std::sync::Arc;

use regraft_ir::{
    Op, ValueId,
    ops::{Concat, Expand, IndexPut, Iota, Permute, PutFn, Reshape, Slice},
};
use regraft_tensor::{DType, Dim};

use super::{Bound, Translator};
use crate::pt2::{
    args::{Cx, DECOMPOSE, Res, unsupported, wrong},
    schema::Argument,
};

impl Translator<'_> {
    /// The base after `value` was written to what `chain` shows of it.
    pub(super) fn write_through(
        &mut self,
        chain: &[Op],
        base: ValueId,
        value: ValueId,
        scope: &Arc<str>,
    ) -> Res<ValueId> {
        let mut steps = vec![base];
        for op in chain {
            let last = *steps.last().unwrap_or(&base);
            steps.push(self.b.add_one(op.clone(), &[last], scope)?);
        }
        let mut new = value;
        for (op, &from) in chain.iter().zip(&steps).rev() {
            let ty = self.b.graph.ty(from).clone();
            new = match op {
                Op::Reshape(_) => self.b.add_one(Reshape { shape: ty.shape }.into(), &[new], scope)?,
                Op::Permute(p) => self.b.add_one(Permute { perm: inverse(&p.perm) }.into(), &[new], scope)?,
                Op::Slice(s) if s.step == 1 => self.put_slice(s, from, new, scope)?,
                Op::Slice(s) if s.start.as_const().is_some() => self.put_steps(s, from, new, scope)?,
                _ => return unsupported("writing in place to a view that repeats elements", DECOMPOSE),
            };
        }
        Ok(new)
    }

    /// As [`Self::put_slice`], for a slice that skips elements.
    fn put_steps(&mut self, slice: &Slice, from: ValueId, new: ValueId, scope: &Arc<str>) -> Res<ValueId> {
        let axis = slice.axis;
        let len = self.b.graph.ty(new).shape.get(axis).cloned().unwrap_or(Dim::new(1));
        let step = Dim::from(slice.step);
        let places = Iota { len, start: slice.start.clone(), step, dtype: DType::I64 };
        let places = self.b.add_one(places.into(), &[], scope)?;
        self.b.add_one(IndexPut { axis, f: PutFn::Set }.into(), &[from, new, places], scope)
    }

    /// `from`, with `new` in place of what `slice` shows of it.
    fn put_slice(&mut self, slice: &Slice, from: ValueId, new: ValueId, scope: &Arc<str>) -> Res<ValueId> {
        let axis = slice.axis;
        let size = self.b.graph.ty(from).shape.get(axis).cloned().unwrap_or(Dim::new(1));
        let mut parts = Vec::new();
        if !slice.start.is(0) {
            let before = Slice { axis, start: Dim::new(0), end: slice.start.clone(), step: 1 };
            parts.push(self.b.add_one(before.into(), &[from], scope)?);
        }
        parts.push(new);
        if slice.end != size {
            let after = Slice { axis, start: slice.end.clone(), end: size, step: 1 };
            parts.push(self.b.add_one(after.into(), &[from], scope)?);
        }
        match parts.as_slice() {
            [one] => Ok(*one),
            parts => self.b.add_one(Concat { axis }.into(), parts, scope),
        }
    }
}

impl<'p> Cx<'_, 'p> {
    /// Ends an in-place op: `value` becomes what its first argument holds, and its results are that tensor.
    pub(super) fn write_back(&mut self, value: ValueId, names: &[&'p str]) -> Res<()> {
        let (cell, scope) = (self.first_cell()?, self.scope.clone());
        let old = self.t.read_cell(cell, &scope)?;
        let ty = self.ty(old).clone();
        let value = self.cast(value, ty.dtype)?;
        let value = if self.ty(value).rank() == ty.rank()
            && self.ty(value).shape.iter().zip(&ty.shape).all(|(a, b)| same(a, b))
        {
            value
        } else {
            self.emit(Expand { shape: ty.shape.clone() }, &[value])?
        };
        if self.graph.producer(value).is_some() && self.ty(value).shape != ty.shape {
            self.graph.set_type(value, ty);
        }
        self.t.write(cell, value, &scope)?;
        for name in names {
            self.t.env.insert(name, Bound::Tensor(cell));
        }
        Ok(())
    }

    /// Writes `value` to the tensor that the argument called `name` is.
    pub(crate) fn write_argument(&mut self, name: &str, value: ValueId) -> Res<()> {
        let tensor = self.arg(name).and_then(Argument::first_name);
        let Some(Bound::Tensor(cell)) = tensor.and_then(|n| self.t.env.get(n)) else {
            return wrong(format!("expected a tensor as `{name}`"));
        };
        let (cell, scope) = (*cell, self.scope.clone());
        let old = self.t.read_cell(cell, &scope)?;
        let value = self.cast_like(value, old)?;
        self.t.write(cell, value, &scope)
    }

    /// After `x.unsqueeze_(0)` the name of `x` means the result.
    pub(super) fn rename_first(&mut self, names: &[&'p str]) {
        if let (Ok(first), Some(bound)) = (self.first_name(), names.first().and_then(|n| self.t.env.get(n)).cloned()) {
            self.t.env.insert(first, bound);
        }
    }
}

/// The permutation that undoes `perm`.
fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    for (i, &axis) in perm.iter().enumerate() {
        if let Some(slot) = inverse.get_mut(axis) {
            *slot = i;
        }
    }
    inverse
}

/// Whether two sizes are the same or may be; what is known to differ is expanded.
fn same(a: &Dim, b: &Dim) -> bool {
    a == b || (!a.is(1) && !matches!((a.as_const(), b.as_const()), (Some(_), Some(_))))
}
