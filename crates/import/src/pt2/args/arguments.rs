//! The arguments of a node by name.

use regraft_tensor::{DType, Dim};

use super::{Cx, Number, Operand, Res, ValueId, unsupported, wrong};
use crate::pt2::schema::{Argument, OptionalTensorArgument, SymFloatArgument, SymIntArgument};

impl<'p> Cx<'_, 'p> {
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

    /// The tensor called `name`, in f32 if halves are to be read so, and the part that is asked for of a complex one.
    fn read(&mut self, name: &str) -> Res<ValueId> {
        let scope = self.scope.clone();
        let value = self.t.read(name, &scope)?;
        match self.part {
            Some(part) if self.t.is_complex(name) => crate::pt2::ops::part_of_pair(self, value, part),
            _ => self.widened(value),
        }
    }

    /// Whether the argument called `name` is a complex tensor.
    pub(crate) fn is_complex(&self, name: &str) -> bool {
        self.arg(name).and_then(Argument::first_name).is_some_and(|n| self.t.is_complex(n))
    }

    /// Whether the first result is complex.
    pub(crate) fn gives_complex(&self) -> bool {
        let name = self.node.outputs.first().and_then(Argument::first_name);
        name.is_some_and(|n| self.t.is_complex(n))
    }

    pub(crate) fn optional_tensor(&mut self, name: &str) -> Res<Option<ValueId>> {
        match self.arg(name) {
            None => Ok(None),
            Some(Argument::Tensor(t) | Argument::OptionalTensor(OptionalTensorArgument::Tensor(t))) => {
                self.read(&t.name).map(Some)
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
                    out.push(Some(self.read(&t.name)?));
                }
            }
            Some(Argument::OptionalTensors(list)) => {
                for t in list {
                    out.push(match t {
                        OptionalTensorArgument::Tensor(t) => Some(self.read(&t.name)?),
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
            Some(Argument::SymFloat(SymFloatArgument::Name(name))) if self.t.missing(name).is_some() => {
                let what = self.t.missing(name).unwrap_or_default();
                return unsupported(what, "keep it a tensor");
            }
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
            SymIntArgument::Name(name) if self.at_most => self.t.dim(name).map(|dim| self.t.at_most(&dim)),
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
