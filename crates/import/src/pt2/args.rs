//! Typed access to the arguments of a node, with the defaults of its schema, and the ways to add nodes to the graph.

use std::sync::Arc;

use regraft_ir::{
    IrError, Op, Scalar, TensorType,
    ops::{Binary, BinaryFn, Cast, Expand, Full, Permute, Reshape, SizeOf, Slice, Unary, UnaryFn},
};
use regraft_tensor::{DType, Dim, Range};

use super::{
    import::Translator,
    schema::{Argument, Node, OptionalTensorArgument, SymFloatArgument, SymIntArgument},
};
use crate::ImportError;

pub(crate) use regraft_ir::ValueId;

pub(crate) type Res<T> = Result<T, Problem>;

/// `INT64_MAX` and its like: what slices use for "to the end".
const FAR: i64 = i64::MAX / 4;

/// The advice for what is written in place.
pub(crate) const DECOMPOSE: &str = "call run_decompositions() on the exported program before saving it";

/// Why a node has no translation.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It is well formed, but not supported.
    Unsupported {
        /// What is not supported.
        what: String,
        /// What to do.
        help: String,
    },
    /// Its arguments are not as its schema says.
    Wrong(String),
    /// An error that already says where it is.
    Import(ImportError),
}

impl From<IrError> for Problem {
    fn from(error: IrError) -> Self {
        Problem::Wrong(error.to_string())
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        Problem::Import(error)
    }
}

pub(crate) fn unsupported<T>(what: impl Into<String>, help: impl Into<String>) -> Res<T> {
    Err(Problem::Unsupported { what: what.into(), help: help.into() })
}

pub(crate) fn wrong<T>(why: impl Into<String>) -> Res<T> {
    Err(Problem::Wrong(why.into()))
}

/// A number among the arguments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Number {
    Bool(bool),
    Int(i64),
    Float(f64),
    /// An integer that depends on sizes.
    Dim(Dim),
}

impl Number {
    /// The literal, unless it depends on sizes.
    pub(crate) fn scalar(&self) -> Option<Scalar> {
        Some(match self {
            Number::Bool(v) => Scalar::Int(i64::from(*v)),
            Number::Int(v) => Scalar::Int(*v),
            Number::Float(v) => Scalar::Float(*v),
            Number::Dim(_) => return None,
        })
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        self.scalar().map(Scalar::as_f64)
    }

    pub(crate) fn is(&self, value: f64) -> bool {
        self.as_f64() == Some(value)
    }

    /// The dtype PyTorch gives a tensor made of it.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Number::Bool(_) => DType::Bool,
            Number::Int(_) | Number::Dim(_) => DType::I64,
            Number::Float(_) => DType::F32,
        }
    }
}

/// An operand that may be a tensor or a number.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Tensor(ValueId),
    Number(Number),
}

/// What a handler sees: one node, its arguments, and the graph that grows.
pub(crate) struct Cx<'t, 'p> {
    pub(crate) t: &'t mut Translator<'p>,
    pub(crate) node: &'p Node,
    /// The program's types of the node's results, as far as they can be read.
    pub(crate) results: Vec<Option<TensorType>>,
    pub(crate) scope: Arc<str>,
}

impl<'p> Cx<'_, 'p> {
    // ---- arguments ----

    /// The argument called `name`, unless it is left out or `None`.
    pub(crate) fn arg(&self, name: &str) -> Option<&'p Argument> {
        self.node
            .input(name)
            .filter(|a| !matches!(a, Argument::None | Argument::OptionalTensor(OptionalTensorArgument::None)))
    }

    fn required(&self, name: &str) -> Res<&'p Argument> {
        self.arg(name).map_or_else(|| wrong(format!("expected an argument `{name}`, found none")), Ok)
    }

    /// Whether the argument is there and not `None`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.arg(name).is_some()
    }

    pub(crate) fn optional_tensor(&mut self, name: &str) -> Res<Option<ValueId>> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::Tensor(t) | Argument::OptionalTensor(OptionalTensorArgument::Tensor(t))) => {
                self.t.read(&t.name, &self.scope).map(Some)
            }
            Some(other) => expected(name, "a tensor", other),
        }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> Res<ValueId> {
        self.required(name)?;
        match self.optional_tensor(name)? {
            Some(v) => Ok(v),
            None => wrong(format!("expected a tensor as `{name}`, found none")),
        }
    }

    pub(crate) fn optional_tensors(&mut self, name: &str) -> Res<Vec<Option<ValueId>>> {
        let mut out = Vec::new();
        match self.arg(name) {
            None => {}
            Some(Argument::Tensors(list)) => {
                for t in list {
                    out.push(Some(self.t.read(&t.name, &self.scope)?));
                }
            }
            Some(Argument::OptionalTensors(list)) => {
                for t in list {
                    out.push(match t {
                        OptionalTensorArgument::Tensor(t) => Some(self.t.read(&t.name, &self.scope)?),
                        OptionalTensorArgument::None => None,
                        OptionalTensorArgument::Unknown(tag) => {
                            return wrong(format!("`{name}` has an unknown `{tag}`"));
                        }
                    });
                }
            }
            Some(Argument::Ints(list)) if list.is_empty() => {}
            Some(other) => return expected(name, "a list of tensors", other),
        }
        Ok(out)
    }

    pub(crate) fn tensors(&mut self, name: &str) -> Res<Vec<ValueId>> {
        let list = self.optional_tensors(name)?;
        list.into_iter()
            .map(|v| v.map_or_else(|| wrong(format!("`{name}` has a None among its tensors")), Ok))
            .collect()
    }

    /// A tensor or a number, as operands of arithmetic are.
    pub(crate) fn operand(&mut self, name: &str) -> Res<Operand> {
        match self.required(name)? {
            Argument::Tensor(_) | Argument::OptionalTensor(_) => self.tensor(name).map(Operand::Tensor),
            _ => self.number(name).map(Operand::Number),
        }
    }

    pub(crate) fn optional_number(&self, name: &str) -> Res<Option<Number>> {
        Ok(Some(match self.arg(name) {
            None => return Ok(None),
            Some(Argument::Bool(v)) => Number::Bool(*v),
            Some(Argument::Int(v)) => Number::Int(*v),
            Some(Argument::Float(v)) => Number::Float(*v),
            Some(Argument::SymInt(v)) => {
                let dim = self.sym_int(v)?;
                dim.as_const().map_or(Number::Dim(dim), Number::Int)
            }
            Some(Argument::SymFloat(SymFloatArgument::Float(v))) => Number::Float(*v),
            Some(Argument::SymFloat(_)) => {
                return unsupported(
                    format!("a float that depends on sizes (`{name}`)"),
                    "compute it with tensors, or make the dimension static",
                );
            }
            Some(other) => return expected(name, "a number", other),
        }))
    }

    pub(crate) fn number(&self, name: &str) -> Res<Number> {
        self.required(name)?;
        self.optional_number(name)?.map_or_else(|| wrong(format!("expected a number as `{name}`")), Ok)
    }

    pub(crate) fn number_or(&self, name: &str, default: Number) -> Res<Number> {
        Ok(self.optional_number(name)?.unwrap_or(default))
    }

    pub(crate) fn optional_float(&self, name: &str) -> Res<Option<f64>> {
        match self.optional_number(name)? {
            None => Ok(None),
            Some(number) => match number.as_f64() {
                Some(v) => Ok(Some(v)),
                None => unsupported(format!("an argument `{name}` that depends on sizes"), "make the dimension static"),
            },
        }
    }

    pub(crate) fn float_or(&self, name: &str, default: f64) -> Res<f64> {
        Ok(self.optional_float(name)?.unwrap_or(default))
    }

    pub(crate) fn bool_or(&self, name: &str, default: bool) -> Res<bool> {
        match self.arg(name) {
            None => Ok(default),
            Some(Argument::Bool(v)) => Ok(*v),
            Some(Argument::Int(v)) => Ok(*v != 0),
            Some(other) => expected(name, "a condition", other),
        }
    }

    pub(crate) fn optional_text(&self, name: &str) -> Res<Option<&'p str>> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::String(v)) => Ok(Some(v)),
            Some(other) => expected(name, "a text", other),
        }
    }

    fn sym_int(&self, value: &'p SymIntArgument) -> Res<Dim> {
        match value {
            SymIntArgument::Int(v) => Ok(Dim::new(*v)),
            SymIntArgument::Name(name) => self.t.dim(name),
            SymIntArgument::Unknown(tag) => wrong(format!("an integer is given as an unknown `{tag}`")),
        }
    }

    pub(crate) fn optional_dim(&self, name: &str) -> Res<Option<Dim>> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::Int(v)) => Ok(Some(Dim::new(*v))),
            Some(Argument::Bool(v)) => Ok(Some(Dim::new(i64::from(*v)))),
            Some(Argument::SymInt(v)) => self.sym_int(v).map(Some),
            Some(other) => expected(name, "an integer", other),
        }
    }

    pub(crate) fn dim(&self, name: &str) -> Res<Dim> {
        self.required(name)?;
        self.optional_dim(name)?.map_or_else(|| wrong(format!("expected an integer as `{name}`")), Ok)
    }

    /// A list of integers, some symbolic; a lone integer is a list of one. Empty when left out.
    pub(crate) fn dims(&self, name: &str) -> Res<Vec<Dim>> {
        match self.arg(name) {
            None => Ok(Vec::new()),
            Some(Argument::Ints(list)) => Ok(list.iter().map(|&v| Dim::new(v)).collect()),
            Some(Argument::SymInts(list)) => list.iter().map(|v| self.sym_int(v)).collect(),
            Some(Argument::Int(_) | Argument::SymInt(_)) => Ok(vec![self.dim(name)?]),
            Some(Argument::Tensors(list)) if list.is_empty() => Ok(Vec::new()),
            Some(other) => expected(name, "a list of integers", other),
        }
    }

    pub(crate) fn optional_int(&self, name: &str) -> Res<Option<i64>> {
        match self.optional_dim(name)? {
            None => Ok(None),
            Some(dim) => fixed(name, &dim).map(Some),
        }
    }

    pub(crate) fn int(&self, name: &str) -> Res<i64> {
        fixed(name, &self.dim(name)?)
    }

    pub(crate) fn int_or(&self, name: &str, default: i64) -> Res<i64> {
        Ok(self.optional_int(name)?.unwrap_or(default))
    }

    pub(crate) fn ints(&self, name: &str) -> Res<Vec<i64>> {
        self.dims(name)?.iter().map(|d| fixed(name, d)).collect()
    }

    /// One natural number per spatial axis: a lone one is meant for all, an empty list is `default`.
    pub(crate) fn windows(&self, name: &str, spatial: usize, default: &[usize]) -> Res<Vec<usize>> {
        let list = self.ints(name)?;
        let list: Vec<usize> = list
            .into_iter()
            .map(|v| usize::try_from(v).or_else(|_| wrong(format!("expected natural numbers as `{name}`, found {v}"))))
            .collect::<Res<_>>()?;
        let list = if list.is_empty() { default.to_vec() } else { list };
        match list.as_slice() {
            [one] if spatial != 1 => Ok(vec![*one; spatial]),
            _ if list.len() == spatial => Ok(list),
            _ => wrong(format!("expected {spatial} numbers as `{name}`, found {list:?}")),
        }
    }

    pub(crate) fn floats(&self, name: &str) -> Res<Vec<f64>> {
        match self.arg(name) {
            None => Ok(Vec::new()),
            Some(Argument::Floats(list)) => Ok(list.clone()),
            Some(Argument::Ints(list)) => Ok(list.iter().map(|&v| v as f64).collect()),
            Some(Argument::Float(v)) => Ok(vec![*v]),
            Some(other) => expected(name, "a list of floats", other),
        }
    }

    pub(crate) fn dtype(&self, name: &str) -> Res<Option<DType>> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::ScalarType(t)) => match t.dtype() {
                Some(d) => Ok(Some(d)),
                None => {
                    unsupported(format!("the dtype {t:?}"), "convert the model to another dtype before exporting it")
                }
            },
            Some(Argument::Int(_)) => wrong(format!("expected a dtype as `{name}`, found an integer")),
            Some(other) => expected(name, "a dtype", other),
        }
    }

    /// An axis of a value with `rank` axes; negative ones count from the end.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Res<usize> {
        let signed = rank.max(1) as i64;
        let at = if axis < 0 { axis.saturating_add(signed) } else { axis };
        match usize::try_from(at) {
            Ok(at) if at < rank.max(1) => Ok(at),
            _ => wrong(format!("there is no axis {axis} in a value with {rank} axes")),
        }
    }

    pub(crate) fn axis_arg(&self, name: &str, default: Option<i64>, rank: usize) -> Res<usize> {
        let axis = match default {
            Some(default) => self.int_or(name, default)?,
            None => self.int(name)?,
        };
        self.axis(axis, rank)
    }

    /// The axes of a reduction: ascending, each once; all of them when the list is empty or left out.
    pub(crate) fn axes(&self, name: &str, rank: usize) -> Res<Vec<usize>> {
        let mut axes: Vec<usize> = self.ints(name)?.into_iter().map(|a| self.axis(a, rank)).collect::<Res<_>>()?;
        if axes.is_empty() {
            return Ok((0..rank).collect());
        }
        axes.sort_unstable();
        axes.dedup();
        axes.retain(|a| *a < rank);
        Ok(axes)
    }

    // ---- values ----

    pub(crate) fn ty(&self, v: ValueId) -> &TensorType {
        self.t.graph.ty(v)
    }

    pub(crate) fn shape(&self, v: ValueId) -> Vec<Dim> {
        self.ty(v).shape.clone()
    }

    pub(crate) fn rank(&self, v: ValueId) -> usize {
        self.ty(v).rank()
    }

    pub(crate) fn dtype_of(&self, v: ValueId) -> DType {
        self.ty(v).dtype
    }

    /// The size of an axis, when it is known.
    pub(crate) fn size(&self, v: ValueId, axis: usize) -> Res<usize> {
        let dim = self.ty(v).shape.get(axis).cloned().unwrap_or(Dim::new(1));
        dim.as_usize().map_or_else(
            || unsupported(format!("a dynamic size {dim} of axis {axis}"), "export this dimension as a static one"),
            Ok,
        )
    }

    /// The program's type of result `i`.
    pub(crate) fn result(&self, i: usize) -> Option<&TensorType> {
        self.results.get(i).and_then(Option::as_ref)
    }

    /// The program's dtype of the first result.
    pub(crate) fn result_dtype(&self) -> Option<DType> {
        self.result(0).map(|t| t.dtype)
    }

    /// `shape`, with every size that the program spells in a simpler way taken from its type of result `i`.
    pub(crate) fn refine(&self, i: usize, shape: Vec<Dim>) -> Vec<Dim> {
        match self.result(i) {
            Some(t) if t.rank() == shape.len() => shape.iter().zip(&t.shape).map(|(a, b)| simpler(a, b)).collect(),
            _ => shape,
        }
    }

    pub(crate) fn bounds(&self, dim: &Dim) -> Range {
        dim.bounds(&self.t.ranges)
    }

    /// Whether `a ≤ b` for all sizes that the program allows.
    pub(crate) fn surely_le(&self, a: &Dim, b: &Dim) -> bool {
        self.bounds(&(b - a)).min >= 0
    }

    /// Whether the value is computed from sources alone.
    pub(crate) fn is_constant(&self, v: ValueId) -> bool {
        self.t.is_constant(v)
    }

    // ---- nodes ----

    pub(crate) fn emit(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Res<ValueId> {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.emit_all(op, inputs)?.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }

    pub(crate) fn emit_opt(&mut self, op: impl Into<Op>, mut inputs: Vec<Option<ValueId>>) -> Res<ValueId> {
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        self.emit_all(op, inputs)?.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }

    pub(crate) fn emit_all(&mut self, op: impl Into<Op>, inputs: Vec<Option<ValueId>>) -> Res<Vec<ValueId>> {
        self.t.add(op.into(), inputs, &self.scope)
    }

    pub(crate) fn cast(&mut self, v: ValueId, dtype: DType) -> Res<ValueId> {
        if self.dtype_of(v) == dtype { Ok(v) } else { self.emit(Cast { dtype }, &[v]) }
    }

    pub(crate) fn unary(&mut self, f: UnaryFn, v: ValueId) -> Res<ValueId> {
        self.emit(Unary { f }, &[v])
    }

    pub(crate) fn binary(&mut self, f: BinaryFn, a: ValueId, b: ValueId) -> Res<ValueId> {
        self.emit(Binary { f }, &[a, b])
    }

    /// A literal of rank 0.
    pub(crate) fn literal(&mut self, value: Scalar, dtype: DType) -> Res<ValueId> {
        // A float literal of an integer dtype truncates, an integer literal of a float dtype is that float.
        let value = match value {
            Scalar::Float(v) if !dtype.is_float() && dtype != DType::Bool => Scalar::Int(v as i64),
            Scalar::Int(v) if dtype.is_float() => Scalar::Float(v as f64),
            value => value,
        };
        self.emit(Full { value, dtype, shape: vec![] }, &[])
    }

    pub(crate) fn float(&mut self, value: f64, dtype: DType) -> Res<ValueId> {
        self.literal(Scalar::Float(value), dtype)
    }

    /// A number as a value of rank 0.
    pub(crate) fn number_value(&mut self, number: &Number, dtype: DType) -> Res<ValueId> {
        match number {
            Number::Dim(value) => {
                let v = self.emit(SizeOf { value: value.clone() }, &[])?;
                self.cast(v, dtype)
            }
            number => match number.scalar() {
                Some(scalar) => self.literal(scalar, dtype),
                None => wrong("expected a number"),
            },
        }
    }

    /// `f(x, value)` with a float literal in the dtype of `x`.
    pub(crate) fn with_literal(&mut self, f: BinaryFn, v: ValueId, value: f64) -> Res<ValueId> {
        let literal = self.float(value, self.dtype_of(v))?;
        self.binary(f, v, literal)
    }

    pub(crate) fn reshape(&mut self, v: ValueId, shape: Vec<Dim>) -> Res<ValueId> {
        if self.ty(v).shape == shape { Ok(v) } else { self.emit(Reshape { shape }, &[v]) }
    }

    pub(crate) fn permute(&mut self, v: ValueId, perm: Vec<usize>) -> Res<ValueId> {
        if perm.iter().copied().eq(0..perm.len()) { Ok(v) } else { self.emit(Permute { perm }, &[v]) }
    }

    pub(crate) fn expand(&mut self, v: ValueId, shape: Vec<Dim>) -> Res<ValueId> {
        if self.ty(v).shape == shape { Ok(v) } else { self.emit(Expand { shape }, &[v]) }
    }

    pub(crate) fn slice(&mut self, v: ValueId, axis: usize, start: Dim, end: Dim) -> Res<ValueId> {
        if start.is(0) && self.ty(v).shape.get(axis) == Some(&end) {
            return Ok(v);
        }
        self.emit(Slice { axis, start, end, step: 1 }, &[v])
    }

    /// A new axis of size 1 at `axis`.
    pub(crate) fn unsqueeze(&mut self, v: ValueId, axis: usize) -> Res<ValueId> {
        let mut shape = self.shape(v);
        shape.insert(axis.min(shape.len()), Dim::new(1));
        self.reshape(v, shape)
    }

    /// The value without axis `axis`, whose size is 1.
    pub(crate) fn squeeze(&mut self, v: ValueId, axis: usize) -> Res<ValueId> {
        let mut shape = self.shape(v);
        if axis < shape.len() {
            shape.remove(axis);
        }
        self.reshape(v, shape)
    }

    /// An index as Python takes it (negative from the end, anything beyond is the end), within `0..=size`.
    pub(crate) fn clamp_index(&self, index: &Dim, size: &Dim) -> Dim {
        if index.as_const().is_some_and(|v| v >= FAR) {
            return size.clone();
        }
        let range = self.bounds(index);
        // An index whose sign depends on sizes is taken as what it was when the program was exported.
        let index = if range.max < 0 || (range.min < 0 && self.t.example(index).is_some_and(|v| v < 0)) {
            let sum = index + size;
            if self.bounds(&sum).min >= 0 { sum } else { sum.max_of(&Dim::new(0)) }
        } else {
            index.clone()
        };
        if self.surely_le(&index, size) {
            index
        } else if self.surely_le(size, &index) {
            size.clone()
        } else {
            index.min_of(size)
        }
    }
}

/// The simpler of two spellings of one size.
pub(crate) fn simpler(a: &Dim, b: &Dim) -> Dim {
    let weight = |d: &Dim| match (d.as_const(), d.as_symbol()) {
        (Some(_), _) => 0,
        (_, Some(_)) => 1,
        _ => 1 + d.to_string().len(),
    };
    if a == b || weight(a) <= weight(b) { a.clone() } else { b.clone() }
}

/// Whether these are the strides of a dense row-major tensor; those of axes of size 1 say nothing.
pub(crate) fn row_major(sizes: &[Dim], strides: &[Dim]) -> bool {
    let mut expected = Dim::new(1);
    sizes.len() == strides.len()
        && sizes.iter().zip(strides).rev().all(|(size, stride)| {
            let fits = size.is(1) || *stride == expected;
            expected = &expected * size;
            fits
        })
}

fn fixed(name: &str, dim: &Dim) -> Res<i64> {
    dim.as_const().map_or_else(
        || {
            unsupported(
                format!("an argument `{name}` that depends on sizes ({dim})"),
                "export this dimension as a static one",
            )
        },
        Ok,
    )
}

fn expected<T>(name: &str, what: &str, found: &Argument) -> Res<T> {
    let found = match found {
        Argument::Graph(_) => "an inner graph".to_owned(),
        other => {
            let text = format!("{other:?}");
            text.chars().take(80).collect()
        }
    };
    wrong(format!("expected {what} as `{name}`, found {found}"))
}
