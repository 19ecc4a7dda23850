//! Typed access to the inputs and attributes of a node.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    ops::{Deref, DerefMut},
};

use regraft_checkpoint::onnx::dtype_of;
use regraft_tensor::{DType, Dim};

pub(super) use super::import::Bound;
use super::{
    import::{Translator, not_a_tensor},
    proto::{Attribute, Graph, Node, Stored, Value},
};
use crate::build::Builder;
pub(super) use crate::build::{Res, ValueId, unsupported, wrong};

/// What a handler sees: one node, and the graph that grows.
pub(super) struct Cx<'t, 'p> {
    pub(super) t: &'t mut Translator<'p>,
    pub(super) node: &'p Node<'p>,
    /// Version of the node's operators.
    pub(super) version: i64,
    /// Whether half-precision tensors are read as f32, to be rounded once.
    pub(super) wide: bool,
    /// The dtype that results are rounded to.
    half: Option<DType>,
    /// Attributes and inputs that were looked at: what is not translated must not be ignored.
    read: RefCell<(BTreeSet<&'p str>, BTreeSet<usize>)>,
}

impl Deref for Cx<'_, '_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        &self.t.b
    }
}

impl DerefMut for Cx<'_, '_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.t.b
    }
}

impl<'t, 'p> Cx<'t, 'p> {
    pub(super) fn new(t: &'t mut Translator<'p>, node: &'p Node<'p>, version: i64) -> Self {
        Cx { t, node, version, wide: false, half: None, read: RefCell::default() }
    }

    /// Refuses attributes and inputs that the handler did not look at.
    pub(super) fn all_read(&self) -> Res<()> {
        let read = self.read.borrow();
        for attribute in &self.node.attributes {
            if !read.0.contains(attribute.name) {
                return unsupported(format!("the attribute `{}`", attribute.name), "export the model without it");
            }
        }
        for (i, name) in self.node.inputs.iter().enumerate() {
            if !name.is_empty() && !read.1.contains(&i) {
                return unsupported(format!("its input {i} (`{name}`)"), "export the model without it");
            }
        }
        Ok(())
    }

    /// A result in the half-precision dtype of the operands, if they were read as f32.
    pub(super) fn narrowed(&mut self, v: ValueId) -> Res<ValueId> {
        match self.half {
            Some(half) if self.dtype_of(v) == DType::F32 => self.cast(v, half),
            _ => Ok(v),
        }
    }

    // ---- inputs ----

    pub(super) fn has(&self, i: usize) -> bool {
        self.node.inputs.get(i).is_some_and(|name| !name.is_empty())
    }

    pub(super) fn count(&self) -> usize {
        self.node.inputs.len()
    }

    /// Whether result `i` may be read.
    pub(super) fn wants(&self, i: usize) -> bool {
        self.node.outputs.get(i).is_some_and(|name| !name.is_empty())
    }

    /// What input `i` stands for.
    pub(super) fn bound(&self, i: usize) -> Res<Bound> {
        self.read.borrow_mut().1.insert(i);
        let name = self.node.inputs.get(i).copied().unwrap_or_default();
        match self.t.bound(name) {
            Some(bound) => Ok(bound.clone()),
            None if name.is_empty() => wrong(format!("expected an input {i}, found none")),
            None => wrong(format!("it reads `{name}`, which nothing before it makes")),
        }
    }

    /// Input `i`, as it is.
    pub(super) fn plain(&self, i: usize) -> Res<ValueId> {
        match self.bound(i)? {
            Bound::Value(value) => Ok(value),
            Bound::Sequence(_) => not_a_tensor(self.node.inputs.get(i).copied().unwrap_or_default()),
            Bound::Nothing => unsupported("an optional value that is not there as an operand", "use a value"),
            Bound::Missing(what) => unsupported(what, "change the model so that nothing needs it"),
            Bound::Refused => wrong("it reads what was refused"),
        }
    }

    /// Input `i`, in f32 if halves are to be read so.
    pub(super) fn input(&mut self, i: usize) -> Res<ValueId> {
        let value = self.plain(i)?;
        match self.dtype_of(value) {
            half @ (DType::F16 | DType::BF16) if self.wide => {
                self.half.get_or_insert(half);
                self.cast(value, DType::F32)
            }
            _ => Ok(value),
        }
    }

    pub(super) fn optional(&mut self, i: usize) -> Res<Option<ValueId>> {
        if self.has(i) { self.input(i).map(Some) } else { Ok(None) }
    }

    pub(super) fn inputs(&mut self) -> Res<Vec<ValueId>> {
        (0..self.count()).map(|i| self.input(i)).collect()
    }

    /// Input `i` as whole numbers that are known, or depend on sizes.
    pub(super) fn dims(&mut self, i: usize) -> Res<Vec<Dim>> {
        let value = self.plain(i)?;
        match self.known(value).and_then(|known| known.dims()) {
            Some(dims) => Ok(dims),
            None => self.unknown(i),
        }
    }

    fn unknown<T>(&self, i: usize) -> Res<T> {
        let name = self.node.inputs.get(i).copied().unwrap_or_default();
        unsupported(
            format!("the input {i} (`{name}`), which is computed from data,"),
            "make it a constant, or let it follow from sizes of the inputs",
        )
    }

    pub(super) fn optional_dims(&mut self, i: usize) -> Res<Option<Vec<Dim>>> {
        if self.has(i) { self.dims(i).map(Some) } else { Ok(None) }
    }

    /// Input `i` as numbers that are known.
    pub(super) fn ints(&mut self, i: usize) -> Res<Vec<i64>> {
        let dims = self.dims(i)?;
        match dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>() {
            Some(ints) => Ok(ints),
            None => {
                unsupported(format!("the input {i}, which depends on sizes ({dims:?}),"), "make these sizes static")
            }
        }
    }

    pub(super) fn optional_ints(&mut self, i: usize) -> Res<Option<Vec<i64>>> {
        if self.has(i) { self.ints(i).map(Some) } else { Ok(None) }
    }

    pub(super) fn int(&mut self, i: usize) -> Res<i64> {
        match self.ints(i)?.as_slice() {
            [one] => Ok(*one),
            other => wrong(format!("expected one number as input {i}, found {other:?}")),
        }
    }

    /// Input `i` as floats that are known.
    pub(super) fn floats(&mut self, i: usize) -> Res<Vec<f64>> {
        let value = self.plain(i)?;
        match self.known(value).and_then(|known| known.tensor()) {
            Some(tensor) => Ok(tensor.to_f64_vec()),
            None => self.unknown(i),
        }
    }

    // ---- attributes ----

    fn attribute(&self, name: &str) -> Option<&'p Value<'p>> {
        let node = self.node;
        let found = node.attributes.iter().find(|a| a.name == name)?;
        self.read.borrow_mut().0.insert(found.name);
        self.t.resolve(&found.value)
    }

    /// Where the message of the attribute begins that holds the numbers of a `Constant`; `None` where they are those of a call.
    pub(super) fn numbers_at(&self) -> Option<usize> {
        let has_numbers = |attribute: &&Attribute<'_>| {
            matches!(
                (attribute.name, &attribute.value),
                ("value_float", Value::Float(_))
                    | ("value_int", Value::Int(_))
                    | ("value_floats", Value::Floats(_))
                    | ("value_ints", Value::Ints(_))
            )
        };
        let found = self.node.attributes.iter().find(has_numbers)?;
        self.read.borrow_mut().0.insert(found.name);
        Some(found.at)
    }

    /// Says that an attribute has no meaning here.
    pub(super) fn ignore(&self, name: &str) {
        self.attribute(name);
    }

    pub(super) fn optional_int_attr(&self, name: &str) -> Res<Option<i64>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Value::Int(v)) => Ok(Some(*v)),
            Some(_) => wrong(format!("expected an integer as `{name}`")),
        }
    }

    pub(super) fn int_attr(&self, name: &str, default: i64) -> Res<i64> {
        Ok(self.optional_int_attr(name)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Res<bool> {
        Ok(self.int_attr(name, i64::from(default))? != 0)
    }

    pub(super) fn natural(&self, name: &str, default: usize) -> Res<usize> {
        match self.optional_int_attr(name)? {
            None => Ok(default),
            Some(v) => {
                usize::try_from(v).or_else(|_| wrong(format!("expected a natural number as `{name}`, found {v}")))
            }
        }
    }

    pub(super) fn optional_float_attr(&self, name: &str) -> Res<Option<f64>> {
        match self.attribute(name) {
            None => Ok(None),
            // As it is printed, so that 0.1 is 0.1 where f64 is computed.
            Some(Value::Float(v)) => Ok(Some(f64::from(*v))),
            Some(Value::Int(v)) => Ok(Some(*v as f64)),
            Some(_) => wrong(format!("expected a float as `{name}`")),
        }
    }

    pub(super) fn float_attr(&self, name: &str, default: f64) -> Res<f64> {
        Ok(self.optional_float_attr(name)?.unwrap_or(default))
    }

    pub(super) fn text(&self, name: &str, default: &'p str) -> Res<&'p str> {
        match self.attribute(name) {
            None => Ok(default),
            Some(Value::Text(v)) => std::str::from_utf8(v).or_else(|_| wrong(format!("`{name}` is not UTF-8"))),
            Some(_) => wrong(format!("expected a text as `{name}`")),
        }
    }

    pub(super) fn texts(&self, name: &str) -> Res<Vec<&'p str>> {
        match self.attribute(name) {
            None => Ok(Vec::new()),
            Some(Value::Texts(list)) => list
                .iter()
                .map(|v| std::str::from_utf8(v).or_else(|_| wrong(format!("`{name}` is not UTF-8"))))
                .collect(),
            Some(_) => wrong(format!("expected texts as `{name}`")),
        }
    }

    pub(super) fn optional_ints_attr(&self, name: &str) -> Res<Option<Vec<i64>>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Value::Ints(list)) => Ok(Some(list.clone())),
            Some(Value::Int(v)) => Ok(Some(vec![*v])),
            Some(_) => wrong(format!("expected integers as `{name}`")),
        }
    }

    pub(super) fn optional_floats_attr(&self, name: &str) -> Res<Option<Vec<f64>>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Value::Floats(list)) => Ok(Some(list.iter().map(|v| f64::from(*v)).collect())),
            Some(_) => wrong(format!("expected floats as `{name}`")),
        }
    }

    /// One natural number for each spatial axis.
    pub(super) fn naturals(&self, name: &str, count: usize, default: usize) -> Res<Vec<usize>> {
        let Some(list) = self.optional_ints_attr(name)? else { return Ok(vec![default; count]) };
        let naturals: Option<Vec<usize>> = list.iter().map(|v| usize::try_from(*v).ok()).collect();
        match naturals {
            Some(naturals) if naturals.len() == count => Ok(naturals),
            _ => wrong(format!("expected {count} natural numbers as `{name}`, found {list:?}")),
        }
    }

    pub(super) fn dtype_attr(&self, name: &str) -> Res<Option<DType>> {
        match self.optional_int_attr(name)? {
            None => Ok(None),
            Some(number) => match dtype_of(number) {
                Ok(dtype) => Ok(Some(dtype)),
                Err(dtype) => unsupported(format!("the dtype {dtype}"), "use a dtype that Regraft has"),
            },
        }
    }

    pub(super) fn tensor_attr(&self, name: &str) -> Res<Option<&'p Stored<'p>>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Value::Tensor(stored)) => Ok(Some(stored)),
            Some(_) => wrong(format!("expected a tensor as `{name}`")),
        }
    }

    pub(super) fn graph_attr(&self, name: &str) -> Res<&'p Graph<'p>> {
        match self.attribute(name) {
            Some(Value::Graph(graph)) => Ok(graph),
            _ => wrong(format!("expected a graph as `{name}`")),
        }
    }

    // ---- axes ----

    /// An axis of `rank` axes; negative ones count from the end.
    pub(super) fn axis_of(&self, axis: i64, rank: usize) -> Res<usize> {
        let at = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        match usize::try_from(at) {
            Ok(at) if at < rank => Ok(at),
            _ => wrong(format!("there is no axis {axis} in a value with {rank} axes")),
        }
    }

    pub(super) fn axis_attr(&self, name: &str, default: i64, rank: usize) -> Res<usize> {
        self.axis_of(self.int_attr(name, default)?, rank)
    }

    /// Axes by an attribute or, in later versions, by input `i`; `None` when neither is there.
    pub(super) fn axes(&mut self, i: usize, rank: usize) -> Res<Option<Vec<usize>>> {
        let axes = match self.optional_ints_attr("axes")? {
            Some(axes) => Some(axes),
            None => self.optional_ints(i)?,
        };
        let Some(axes) = axes else { return Ok(None) };
        let mut axes = axes.into_iter().map(|a| self.axis_of(a, rank)).collect::<Res<Vec<_>>>()?;
        axes.sort_unstable();
        let before = axes.len();
        axes.dedup();
        if axes.len() < before { wrong("an axis is named twice") } else { Ok(Some(axes)) }
    }
}
