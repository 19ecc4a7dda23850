//! From the values that a handler made to the names of the program.

use regraft_ir::{TensorType, ValueId};
use regraft_tensor::Dim;

use super::{Bound, Translator, memory::Origin, sharing::Sharing};
use crate::pt2::args::{Cx, Res, simpler, unsupported, wrong};

impl<'p> Cx<'_, 'p> {
    pub(super) fn first_name(&self) -> Res<&'p str> {
        let name = self.node.inputs.first().and_then(|i| i.arg.first_name());
        name.map_or_else(|| wrong("expected a tensor as its first argument"), Ok)
    }

    pub(super) fn first_cell(&self) -> Res<usize> {
        match self.t.env.get(self.first_name()?) {
            Some(Bound::Tensor(cell)) => Ok(*cell),
            _ => wrong("expected a tensor as its first argument"),
        }
    }

    /// Binds names to results; what is missing may not be read.
    pub(super) fn bind(
        &mut self,
        names: &[&'p str],
        values: Vec<Option<ValueId>>,
        mut cell: impl FnMut(&mut Translator<'p>, usize, ValueId) -> Res<usize>,
    ) -> Res<()> {
        if values.len() < names.len() {
            return wrong(format!("it has {} results, {} are expected", values.len(), names.len()));
        }
        for (i, (&name, value)) in names.iter().zip(values).enumerate() {
            let bound = match value {
                Some(value) => {
                    self.check_type(i, name, value)?;
                    Bound::Tensor(cell(self.t, i, value)?)
                }
                None => Bound::Missing(format!("result {i} of {}", self.node.target)),
            };
            self.t.env.insert(name, bound);
        }
        Ok(())
    }

    /// Checks a result against the program's type of it, and keeps the simpler spelling of each size.
    fn check_type(&mut self, i: usize, name: &str, value: ValueId) -> Res<()> {
        let Some(expected) = self.result(i).cloned() else {
            // The archive's own error says what is wrong with it.
            self.t.declared(name)?;
            return Ok(());
        };
        let found = self.ty(value).clone();
        let differ = |a: &Dim, b: &Dim| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b);
        if found.dtype != expected.dtype
            || found.rank() != expected.rank()
            || found.shape.iter().zip(&expected.shape).any(|(a, b)| differ(a, b))
        {
            return wrong(format!("the program says that it gives {expected}, its arguments lead to {found}"));
        }
        let is_from_data = |t: &TensorType| {
            let mut found = false;
            for dim in &t.shape {
                dim.for_each_symbol(&mut |s| found |= self.t.archive.symbols.info(s).is_some_and(|i| i.is_from_data));
            }
            found
        };
        if is_from_data(&expected) && is_from_data(&found) {
            return unsupported("a size that depends on the values of a tensor", "give it as a dimension of an input");
        }
        if self.graph.producer(value).is_some() {
            let shape: Vec<Dim> = found.shape.iter().zip(&expected.shape).map(|(a, b)| simpler(a, b)).collect();
            if shape != found.shape {
                self.graph.set_type(value, TensorType::new(found.dtype, shape));
            }
        }
        Ok(())
    }

    /// Binds names to results that share no memory.
    pub(super) fn bind_new(&mut self, names: &[&'p str], values: Vec<Option<ValueId>>) -> Res<()> {
        self.bind(names, values, |t, _, v| Ok(t.new_storage(v, Origin::Computed)))
    }

    /// Binds a name to the result of `reshape`, `contiguous`, `to`, which may be a view of the first argument.
    pub(super) fn bind_maybe_view(&mut self, names: &[&'p str], value: ValueId) -> Res<()> {
        let of = self.first_cell()?;
        match self.sharing(names) {
            Sharing::Same if self.t.cells.get(of).is_some_and(|c| c.value == value) => {
                for name in names {
                    self.t.env.insert(name, Bound::Tensor(of));
                }
                Ok(())
            }
            Sharing::Same | Sharing::View => self.bind(names, vec![Some(value)], |t, _, v| t.view_of(of, v, true)),
            Sharing::Unclear => self.bind(names, vec![Some(value)], |t, _, v| t.view_of(of, v, false)),
            Sharing::None => self.bind_new(names, vec![Some(value)]),
        }
    }

    /// Binds names to results that are views, each of one of the tensors in the first argument.
    pub(super) fn bind_views_of_each(&mut self, names: &[&'p str], values: Vec<ValueId>) -> Res<()> {
        let mut given = Vec::new();
        if let Some(first) = self.node.inputs.first() {
            first.arg.for_each_name(&mut |n| given.push(self.t.env.get(n).cloned()));
        }
        self.bind(names, values.into_iter().map(Some).collect(), |t, i, v| match given.get(i) {
            Some(Some(Bound::Tensor(of))) => t.view_of(*of, v, true),
            _ => wrong("expected as many tensors as results"),
        })
    }

    /// Binds a name to a computed number, or to the simpler spelling of it that the program has.
    pub(super) fn bind_dim(&mut self, name: &'p str, computed: Res<Dim>) {
        // The exporter's own expression is the canonical one.
        let known = self.t.archive.sym_int(self.t.current, name);
        let bound = match (computed, known) {
            (Ok(a), Ok(b)) => Bound::Dim(simpler(&a, &b)),
            (_, Ok(known)) => Bound::Dim(known),
            (Ok(_), Err(_)) if self.t.current.sym_float_values.contains_key(name) => {
                Bound::Missing("a float that depends on sizes".to_owned())
            }
            (Ok(computed), Err(_)) => Bound::Dim(computed),
            (Err(_), Err(_)) => Bound::Missing("a number that depends on sizes in an unknown way".to_owned()),
        };
        self.t.env.insert(name, bound);
    }
}
