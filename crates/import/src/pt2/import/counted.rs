//! Sizes that a program counts while it runs: `nonzero` of a mask has `u0` rows, `x[mask]` too.
//!
//! A tensor with such an axis is kept as large as it may become: what counts stands in front, and behind it anything, which may
//! be NaN. The program's own type says how many count: an axis of `u0 + 32` has 32 elements and then those that were counted. So
//! only operators that are made for it may see it (`ops/counted.rs`), with one such axis for each tensor. Whatever else reads it
//! is refused in the name of the node that counts, which then stays in PyTorch.

use std::collections::HashMap;

use regraft_ir::{ValueId, ops::CompareFn};
use regraft_tensor::{DType, Dim, Symbol};

use super::{Bound, Translator, self_error};
use crate::{
    At,
    pt2::{
        args::{Cx, Problem, Res, unsupported, wrong},
        ops::{self, Found, Handler, counted::Counted},
        schema::{Argument, Node, SymIntArgument},
    },
};

const HELP: &str = "use where() and masks of a fixed size, or compute it outside of the model";

/// A size that the program counts.
#[derive(Debug)]
pub(crate) struct Count {
    /// The most that it may be.
    most: Dim,
    /// The number, an `i64` of rank 0.
    value: ValueId,
    /// The node that counts, and what it does.
    at: At,
    what: &'static str,
    /// Conditions of [`Cx::valid`], by what stands in front.
    valid: HashMap<Dim, ValueId>,
}

/// The axis of a tensor whose size is counted, in the program's own words.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CountedAxis {
    pub(crate) at: usize,
    pub(crate) shape: Vec<Dim>,
    symbol: Symbol,
    /// How many elements stand before those that were counted.
    pub(crate) front: Dim,
}

impl CountedAxis {
    pub(crate) fn size(&self) -> &Dim {
        self.shape.get(self.at).unwrap_or(&self.front)
    }

    /// The position from the last axis on.
    pub(crate) fn places_from_end(&self) -> usize {
        self.shape.len() - self.at
    }

    /// How many elements the axes before and behind it have.
    pub(crate) fn around(&self) -> (Dim, Dim) {
        let (before, behind) = self.shape.split_at(self.at);
        (before.iter().product(), behind.iter().skip(1).product())
    }
}

impl<'p> Translator<'p> {
    /// The counted symbol in an expression.
    fn counted_symbol(&self, dim: &Dim) -> Option<Symbol> {
        let mut found = None;
        dim.for_each_symbol(&mut |s| {
            if self.counts.contains_key(&s) {
                found = Some(s);
            }
        });
        found
    }

    /// The counted symbol in what a name stands for: the type of a tensor, or a number.
    fn counted_in(&self, name: &str) -> Option<Symbol> {
        if let Some(Bound::Dim(dim)) = self.env.get(name) {
            return self.counted_symbol(dim);
        }
        let shape = self.archive.shape(name, self.meta(name)?).ok()?;
        shape.iter().find_map(|d| self.counted_symbol(d))
    }

    /// The first counted symbol that a node reads or gives.
    fn counted_by(&self, node: &'p Node, names: &[&'p str]) -> Option<Symbol> {
        let mut found = names.iter().find_map(|n| self.counted_in(n));
        for input in &node.inputs {
            if !matches!(input.arg, Argument::Graph(_)) {
                input.arg.for_each_name(&mut |n| found = found.or_else(|| self.counted_in(n)));
            }
        }
        found
    }

    /// Translates a node that reads a counted size, or counts one; `false` when it is no such node.
    pub(super) fn counted_node(&mut self, node: &'p Node, names: &[&'p str], found: Found) -> Res<bool> {
        if !self.archive.symbols.iter().any(|s| s.is_from_data) || matches!(found.handler, Handler::Drop) {
            return Ok(false);
        }
        let symbol = self.counted_by(node, names);
        let name = ops::counted::name(&node.target, found.in_place);
        let counts = names.first().is_some_and(|n| self.is_from_data(n))
            && name.as_deref().is_some_and(|name| self.is_counting(node, name));
        let complex = self.meets_complex(node, names);
        if symbol.is_none() && (complex || !counts) {
            return Ok(false);
        }
        if complex {
            return Err(self.not_made_for(symbol, node));
        }
        match found.handler {
            // The program's own expression is the one that says how many count.
            Handler::Dim(_) => {
                if !reads_tensors(node) {
                    return Ok(false);
                }
                let Some(name) = names.first() else { return Ok(true) };
                let known = self.archive.sym_int(self.current, name).map_or_else(
                    |_| Bound::Missing("a number that depends on sizes in an unknown way".to_owned()),
                    Bound::Dim,
                );
                self.env.insert(name, known);
                return Ok(true);
            }
            Handler::Inline if !super::inline::is_control(node) => return Ok(false),
            _ => {}
        }
        let results = names.iter().map(|n| self.declared(n).ok().map(|ty| self.at_most_type(ty))).collect();
        self.b.scope = node.module_path().into();
        let mut cx = Cx { t: self, node, results, wide: false, part: None, at_most: true };
        let values = match name.and_then(|name| ops::counted::find(&name)) {
            Some(Counted::Own(f)) => f(&mut cx)?,
            Some(Counted::If(fits)) => match fits(&cx)? {
                true => Some(regular(&mut cx, found.handler)?),
                false => None,
            },
            None => None,
        };
        let Some(values) = values else { return Err(cx.t.not_made_for(symbol, node)) };
        if found.in_place {
            let [value] = values.as_slice() else { return wrong("expected one result") };
            return cx.write_back(*value, names).map(|()| true);
        }
        let values = values.into_iter().map(Some).collect();
        match found.handler.may_view() {
            // What is written to one of them is not followed into the others.
            true => {
                let of = cx.first_cell()?;
                cx.bind(names, values, |t, _, v| t.view_of(of, v, false))?;
            }
            false => cx.bind_new(names, values)?,
        }
        Ok(true)
    }

    /// Whether the program says that a size of the tensor depends on data.
    fn is_from_data(&self, name: &str) -> bool {
        let shape = self.meta(name).and_then(|meta| self.archive.shape(name, meta).ok());
        let mut found = false;
        for dim in shape.iter().flatten() {
            dim.for_each_symbol(&mut |s| found |= self.archive.symbols.info(s).is_some_and(|i| i.is_from_data));
        }
        found
    }

    /// Whether the node counts the true elements of a mask.
    fn is_counting(&self, node: &'p Node, name: &str) -> bool {
        if name != "index.Tensor" {
            return ops::counted::COUNTING.contains(&name);
        }
        let mut masked = false;
        if let Some(list) = node.input("indices") {
            list.for_each_name(&mut |n| {
                let dtype = self.meta(n).and_then(|meta| meta.dtype.dtype());
                masked |= matches!(dtype, Some(DType::Bool | DType::U8));
            });
        }
        masked
    }

    /// Why a node does not get a tensor with a counted size.
    fn not_made_for(&self, symbol: Option<Symbol>, node: &Node) -> Problem {
        let Some(count) = symbol.and_then(|s| self.counts.get(&s)) else {
            return Problem::Unsupported {
                what: "a size that depends on the values of a tensor".to_owned(),
                help: HELP.to_owned(),
            };
        };
        let op = node.target.strip_prefix("torch.ops.").unwrap_or(&node.target);
        let module = node.module_path();
        let place = if module.is_empty() { String::new() } else { format!(" in {module}") };
        count.refused(self.archive, &format!("{}, read by {op}{place},", count.what))
    }

    /// Refuses an output whose size is counted: what an engine gives is as large as its inputs say.
    pub(super) fn check_output(&self, name: &str) -> Res<()> {
        match self.counted_in(name).and_then(|s| self.counts.get(&s)) {
            Some(count) => Err(count.refused(self.archive, &format!("{}, as an output of the program,", count.what))),
            None => Ok(()),
        }
    }

    /// An expression with all counted sizes as large as they may be.
    pub(crate) fn at_most(&self, dim: &Dim) -> Dim {
        if self.counted_symbol(dim).is_none() {
            return dim.clone();
        }
        let largest = |i: usize| {
            let symbol = Symbol(i as u32);
            self.counts.get(&symbol).map_or_else(|| Dim::sym(symbol), |count| count.most.clone())
        };
        dim.substitute(&(0..self.archive.symbols.len()).map(largest).collect::<Vec<_>>())
    }

    fn at_most_type(&self, mut ty: regraft_ir::TensorType) -> regraft_ir::TensorType {
        for dim in &mut ty.shape {
            *dim = self.at_most(dim);
        }
        ty
    }
}

impl Count {
    fn refused(&self, archive: &crate::pt2::Pt2Archive, what: &str) -> Problem {
        let problem = Problem::Unsupported { what: what.to_owned(), help: HELP.to_owned() };
        Problem::Import(self_error(archive, self.at.clone(), problem))
    }
}

/// What the handler for known sizes gives.
fn regular(cx: &mut Cx<'_, '_>, handler: Handler) -> Res<Vec<ValueId>> {
    match handler {
        Handler::Wide(f) => {
            let value = cx.in_f32(f)?;
            Ok(vec![cx.narrowed(0, value)?])
        }
        handler => handler.values(cx),
    }
}

fn reads_tensors(node: &Node) -> bool {
    node.inputs.iter().any(|i| matches!(i.arg, Argument::Tensor(_)))
}

impl<'p> Cx<'_, 'p> {
    /// The counted axis of an argument; `None` when all its sizes are known.
    pub(crate) fn counted(&self, arg: &str) -> Res<Option<CountedAxis>> {
        match self.arg(arg).and_then(Argument::first_name) {
            Some(name) => self.counted_axis(name),
            None => Ok(None),
        }
    }

    /// The counted axis of a tensor of the program.
    pub(crate) fn counted_axis(&self, name: &str) -> Res<Option<CountedAxis>> {
        let Some(meta) = self.t.meta(name) else { return wrong(format!("expected a tensor `{name}`")) };
        let shape = self.t.archive.shape(name, meta).map_err(Problem::Import)?;
        let mut axes = shape.iter().enumerate().filter_map(|(i, d)| Some((i, self.t.counted_symbol(d)?)));
        let Some((at, symbol)) = axes.next() else { return Ok(None) };
        let front = &shape.get(at).cloned().unwrap_or(Dim::new(0)) - &Dim::sym(symbol);
        if axes.next().is_some() || self.t.counted_symbol(&front).is_some() {
            return unsupported("a tensor with several sizes that depend on the values of a tensor", HELP);
        }
        Ok(Some(CountedAxis { at, shape, symbol, front }))
    }

    /// The shape of a tensor as the program says it.
    pub(crate) fn declared_shape(&self, name: &str) -> Res<Vec<Dim>> {
        let Some(meta) = self.t.meta(name) else { return wrong(format!("expected a tensor `{name}`")) };
        self.t.archive.shape(name, meta).map_err(Problem::Import)
    }

    /// Whether all results have a counted axis of the size of `axis`.
    pub(crate) fn keeps(&self, axis: &CountedAxis) -> Res<bool> {
        for i in 0..self.results.len() {
            if self.counted_result(i)?.is_none_or(|result| result.size() != axis.size()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The counted axis of a result.
    pub(crate) fn counted_result(&self, i: usize) -> Res<Option<CountedAxis>> {
        let mut names = Vec::new();
        self.node.outputs.iter().for_each(|o| o.for_each_name(&mut |n| names.push(n)));
        names.get(i).map_or(Ok(None), |name| self.counted_axis(name))
    }

    /// Whether a number among the arguments, not among lists of sizes, is counted.
    pub(crate) fn counted_number(&self) -> bool {
        self.node.inputs.iter().any(|i| match &i.arg {
            Argument::SymInt(SymIntArgument::Name(name)) => self.t.counted_in(name).is_some(),
            _ => false,
        })
    }

    /// Says that axis `axis` of the first result has `count` elements of at most `most`.
    pub(crate) fn count(&mut self, axis: usize, most: Dim, count: ValueId, what: &'static str) -> Res<()> {
        let name = self.node.outputs.first().and_then(Argument::first_name).unwrap_or_default();
        let shape = self.declared_shape(name)?;
        let Some(symbol) = shape.get(axis).and_then(Dim::as_symbol) else { return unsupported(what, HELP) };
        if self.t.counts.contains_key(&symbol) {
            return unsupported("a size that two nodes count", HELP);
        }
        let op = self.node.target.strip_prefix("torch.ops.").unwrap_or(&self.node.target).to_owned();
        let at = At { name: self.node.label().to_owned(), op, module: self.node.module_path().to_owned() };
        self.t.counts.insert(symbol, Count { most, value: count, at, what, valid: HashMap::new() });
        for ty in self.results.iter_mut().flatten() {
            *ty = self.t.at_most_type(ty.clone());
        }
        Ok(())
    }

    /// Which elements along the axis count, as conditions that broadcast along it in `rank` axes.
    pub(crate) fn valid(&mut self, axis: &CountedAxis, rank: usize, at: usize) -> Res<ValueId> {
        let size = self.t.at_most(axis.size());
        let Some(count) = self.t.counts.get(&axis.symbol) else { return wrong("expected a counted size") };
        let (value, known) = (count.value, count.valid.get(&axis.front).copied());
        let row = match known {
            Some(row) => row,
            None => {
                let places = self.iota(size, 0, 1)?;
                let front = self.dim_value(&axis.front, DType::I64)?;
                let end = self.binary(regraft_ir::ops::BinaryFn::Add, value, front)?;
                let row = self.compare(CompareFn::Lt, places, end)?;
                if let Some(count) = self.t.counts.get_mut(&axis.symbol) {
                    count.valid.insert(axis.front.clone(), row);
                }
                row
            }
        };
        self.along(row, rank, at)
    }

    /// The number of elements of the counted axis of an argument, when it has one and nothing stands in front.
    pub(crate) fn count_of(&self, arg: &str) -> Res<Option<ValueId>> {
        let axis = self.counted(arg)?.filter(|axis| axis.at == 0 && axis.front.is(0));
        Ok(axis.and_then(|axis| self.t.counts.get(&axis.symbol)).map(|count| count.value))
    }

    /// An expression with counted sizes as large as they may be.
    pub(crate) fn at_most_of(&self, dim: &Dim) -> Dim {
        self.t.at_most(dim)
    }

    /// Whether a tensor, if it is given, has size 1 at the axis that stands at this place from the last on.
    pub(crate) fn broadcasts(&self, arg: &str, places_from_end: usize) -> Res<bool> {
        let Some(name) = self.arg(arg).and_then(Argument::first_name) else { return Ok(true) };
        let shape = self.declared_shape(name)?;
        Ok(shape.len().checked_sub(places_from_end).and_then(|i| shape.get(i)).is_none_or(|d| d.is(1)))
    }

    /// What `f` reads of sizes as the program says them.
    pub(crate) fn as_said<T>(&mut self, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        let outer = std::mem::replace(&mut self.at_most, false);
        let out = f(self);
        self.at_most = outer;
        out
    }
}
