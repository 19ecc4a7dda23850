//! Several elementwise ops in one pass over memory.

use std::fmt::Write;

use regraft_tensor::{DType, Tensor};

use super::{
    Binary, Cast, Compare, Full, Op, OpDef, Operands, Select, Unary,
    elementwise::{BinaryFn, CompareFn},
    support::{broadcast_types, elements, sizes},
    unary::UnaryFn,
};
use crate::{EvalError, OpError, Scalar, TensorType, attr::AttrValue, attrs, plain_attr};

/// What one step of a [`Fused`] op computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FusedFn {
    /// A function of one argument.
    Unary(UnaryFn),
    /// A function of two arguments of one dtype.
    Binary(BinaryFn),
    /// A comparison of two arguments of one dtype.
    Compare(CompareFn),
    /// `cond ? a : b` of three arguments.
    Select,
    /// A conversion of one argument.
    Cast(DType),
    /// A literal; no argument.
    Literal(Scalar, DType),
}

/// One step of a [`Fused`] op.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedStep {
    /// What it computes.
    pub f: FusedFn,
    /// Its arguments: numbers below the operand count are operands, the others earlier steps.
    pub args: Vec<u32>,
}

attrs! {
    /// A chain of elementwise ops whose intermediate values never reach memory. The result is the last step, with the
    /// shape that all operands broadcast to.
    pub struct Fused {
        /// The steps in order.
        pub steps: Vec<FusedStep>,
    }
}

plain_attr!(FusedStep, |s: &FusedStep| AttrValue::Str(s.to_text()), |v: &AttrValue| match v {
    AttrValue::Str(s) => FusedStep::from_text(s),
    _ => None,
});

impl FusedStep {
    /// The step as the op that computes it.
    pub fn op(&self) -> Op {
        match self.f {
            FusedFn::Unary(f) => Unary { f }.into(),
            FusedFn::Binary(f) => Binary { f }.into(),
            FusedFn::Compare(f) => Compare { f }.into(),
            FusedFn::Select => Select {}.into(),
            FusedFn::Cast(dtype) => Cast { dtype }.into(),
            FusedFn::Literal(value, dtype) => Full { value, dtype, shape: vec![] }.into(),
        }
    }

    fn to_text(&self) -> String {
        let mut text = match self.f {
            FusedFn::Unary(f) => format!("unary.{}", f.name()),
            FusedFn::Binary(f) => format!("binary.{}", f.name()),
            FusedFn::Compare(f) => format!("compare.{}", f.name()),
            FusedFn::Select => "select".to_owned(),
            FusedFn::Cast(dtype) => format!("cast.{dtype}"),
            FusedFn::Literal(Scalar::Float(v), dtype) => format!("literal.{dtype}={v:?}"),
            FusedFn::Literal(Scalar::Int(v), dtype) => format!("literal.{dtype}={v}"),
        };
        for arg in &self.args {
            write!(text, " {arg}").expect("writing to a string");
        }
        text
    }

    fn from_text(text: &str) -> Option<FusedStep> {
        let mut words = text.split(' ');
        let head = words.next()?;
        let args = words.map(|w| w.parse().ok()).collect::<Option<Vec<u32>>>()?;
        let (kind, rest) = head.split_once('.').unwrap_or((head, ""));
        let f = match kind {
            "unary" => FusedFn::Unary(UnaryFn::from_name(rest)?),
            "binary" => FusedFn::Binary(BinaryFn::from_name(rest)?),
            "compare" => FusedFn::Compare(CompareFn::from_name(rest)?),
            "select" => FusedFn::Select,
            "cast" => FusedFn::Cast(DType::from_name(rest)?),
            "literal" => {
                let (dtype, value) = rest.split_once('=')?;
                let value = match value.parse() {
                    Ok(v) => Scalar::Int(v),
                    Err(_) => Scalar::Float(value.parse().ok()?),
                };
                FusedFn::Literal(value, DType::from_name(dtype)?)
            }
            _ => return None,
        };
        Some(FusedStep { f, args })
    }
}

impl Fused {
    /// The dtype of each argument number: operands first, then steps.
    ///
    /// # Errors
    /// When a step refers to itself or beyond, or does not take its arguments.
    pub fn dtypes(&self, operands: &[DType]) -> Result<Vec<DType>, OpError> {
        let mut dtypes = operands.to_vec();
        for step in &self.steps {
            let types: Option<Vec<TensorType>> =
                step.args.iter().map(|&a| Some(TensorType::new(*dtypes.get(a as usize)?, vec![]))).collect();
            let types = types.ok_or_else(|| OpError::Attr {
                name: "steps",
                why: format!("`{}` refers to a later step", step.to_text()),
            })?;
            let out = step.op().infer(&types.iter().map(Some).collect::<Vec<_>>())?;
            dtypes.push(out[0].dtype);
        }
        Ok(dtypes)
    }
}

impl OpDef for Fused {
    const OPERANDS: &'static [&'static str] = &["x..."];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        if self.steps.is_empty() {
            return Err(OpError::Attr { name: "steps", why: "there are none".into() });
        }
        let dtypes = self.dtypes(&operands.all().map(|t| t.dtype).collect::<Vec<_>>())?;
        let dtype = *dtypes.last().expect("there is a step");
        Ok(vec![TensorType::new(dtype, broadcast_types(operands.all())?)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let mut values: Vec<Tensor> = inputs.iter().flatten().map(|&t| t.clone()).collect();
        for step in &self.steps {
            let args: Vec<_> = step.args.iter().map(|&a| values.get(a as usize)).collect();
            let out = step.op().eval(&args)?;
            values.extend(out);
        }
        let last = values.pop().expect("there is a step");
        let expand = super::Expand { shape: types[0].shape.clone() };
        debug_assert!(sizes(&types[0]).len() >= last.shape().len());
        Op::from(expand).eval(&[Some(&last)])
    }

    fn flops(&self, _: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        outputs.iter().map(|shape| elements(shape)).max().unwrap_or(0) * self.steps.len() as u64
    }
}
