//! Values that are known while a program is built: literals, sizes, and what is computed of them. Programs say shapes, axes
//! and bounds with tensors; here these become numbers and dimension expressions.

use regraft_ir::{
    Def, Op,
    ops::{BinaryFn, CompareFn, Expand, ReduceFn, UnaryFn},
};
use regraft_tensor::{DType, Dim, Range, Tensor};

use super::{Builder, Res, ValueId};

/// More elements than a value has that says something about a program.
const MOST: usize = 4096;
/// How far back a value is followed.
const DEPTH: usize = 128;

/// A value that is known while the program is built.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// Whole numbers, row-major, which may depend on sizes. Of a float dtype where a program computes sizes with floats.
    Dims { dtype: DType, shape: Vec<usize>, dims: Vec<Dim> },
    /// Floats.
    Tensor(Tensor),
}

impl Known {
    fn of(t: &Tensor) -> Known {
        if t.dtype().is_float() {
            return Known::Tensor(t.clone());
        }
        let dims = t.to_i64_vec().into_iter().map(Dim::new).collect();
        Known::Dims { dtype: t.dtype(), shape: t.shape().to_vec(), dims }
    }

    /// As a tensor, when it does not depend on sizes.
    pub(crate) fn tensor(&self) -> Option<Tensor> {
        match self {
            Known::Tensor(t) => Some(t.clone()),
            Known::Dims { dtype, shape, dims } => {
                let values = dims.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>()?;
                Some(Tensor::from_i64(*dtype, shape, &values))
            }
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Known::Tensor(t) => t.shape(),
            Known::Dims { shape, .. } => shape,
        }
    }

    /// Its elements as dimension expressions; of floats when all are whole numbers.
    pub(crate) fn dims(&self) -> Option<Vec<Dim>> {
        match self {
            Known::Dims { dims, .. } => Some(dims.clone()),
            Known::Tensor(t) => t
                .to_f64_vec()
                .into_iter()
                .map(|v| (v.fract() == 0.0 && v.abs() < 1e15).then(|| Dim::new(v as i64)))
                .collect(),
        }
    }

    /// Its elements as they broadcast to `shape`.
    fn broadcast(&self, shape: &[usize]) -> Option<Vec<Dim>> {
        let op = Op::Expand(Expand { shape: shape.iter().map(|&d| Dim::from(d)).collect() });
        moved(&op, &[Some(self.clone())])
    }
}

impl Builder {
    /// A vector of whole numbers, which is known.
    pub(crate) fn int_vector(&mut self, dims: &[Dim]) -> Res<ValueId> {
        let mut parts = Vec::with_capacity(dims.len());
        for dim in dims {
            let number = self.dim_value(dim, DType::I64)?;
            parts.push(self.unsqueeze(number, 0)?);
        }
        let value = match parts.as_slice() {
            [] => {
                let zero = self.literal(regraft_ir::Scalar::Int(0), DType::I64)?;
                self.expand(zero, vec![Dim::new(0)])?
            }
            parts => self.concat(parts, 0)?,
        };
        let known = Known::Dims { dtype: DType::I64, shape: vec![dims.len()], dims: dims.to_vec() };
        self.known.insert(value, Some(known));
        Ok(value)
    }

    /// What is known of a value. Literals that it is computed from become a part of the program, see [`Builder::read`].
    pub(crate) fn known(&mut self, v: ValueId) -> Option<Known> {
        self.known_within(v, DEPTH)
    }

    fn known_within(&mut self, v: ValueId, depth: usize) -> Option<Known> {
        if let Some(known) = self.known.get(&v) {
            return known.clone();
        }
        let known = depth.checked_sub(1).and_then(|depth| self.find_out(v, depth));
        self.known.insert(v, known.clone());
        known
    }

    fn find_out(&mut self, v: ValueId, depth: usize) -> Option<Known> {
        let small = |ty: &regraft_ir::TensorType| ty.numel().as_usize().is_some_and(|n| n <= MOST);
        if !small(self.ty(v)) {
            return None;
        }
        let (id, at) = match self.graph.value(v).def {
            Def::Node(id, at) => (id, at as usize),
            Def::Source(source) => {
                let known = Known::of(self.literals.get(&source)?);
                self.read.insert(source);
                return Some(known);
            }
            Def::Input(_) | Def::State(_) => return None,
        };
        let node = self.graph.node(id);
        if !node.outputs.iter().all(|v| small(self.ty(*v))) {
            return None;
        }
        let (op, operands) = (node.op.clone(), node.inputs.clone());
        if let Op::SizeOf(size) = &op {
            return Some(Known::Dims { dtype: DType::I64, shape: vec![], dims: vec![size.value.clone()] });
        }
        let mut inputs = Vec::with_capacity(operands.len());
        for operand in operands {
            inputs.push(match operand {
                Some(operand) => Some(self.known_within(operand, depth)?),
                None => None,
            });
        }
        let tensors: Option<Vec<Option<Tensor>>> =
            inputs.iter().map(|known| known.as_ref().map_or(Some(None), |k| k.tensor().map(Some))).collect();
        if let Some(tensors) = tensors {
            let op = op.bind(&[]).ok()?;
            let tensors: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
            return op.eval(&tensors).ok()?.get(at).map(Known::of);
        }
        let ty = self.ty(v).clone();
        let shape = ty.sizes()?;
        let dims = self.of_sizes(&op, &inputs, &shape)?;
        let fits = dims.len() == shape.iter().product::<usize>();
        fits.then_some(Known::Dims { dtype: ty.dtype, shape, dims })
    }

    /// What `op` makes of numbers that depend on sizes.
    fn of_sizes(&self, op: &Op, inputs: &[Option<Known>], shape: &[usize]) -> Option<Vec<Dim>> {
        let operand = |i: usize| inputs.get(i)?.as_ref()?.broadcast(shape);
        match op {
            Op::Cast(cast) if cast.dtype != DType::Bool => operand(0),
            Op::Unary(unary) => match unary.f {
                UnaryFn::Neg => Some(operand(0)?.iter().map(|d| -d).collect()),
                UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round | UnaryFn::Trunc => operand(0),
                UnaryFn::Abs => {
                    let dims = operand(0)?;
                    dims.iter().all(|d| self.bounds(d).min >= 0).then_some(dims)
                }
                _ => None,
            },
            Op::Binary(binary) => {
                let float = inputs.iter().flatten().any(|k| matches!(k, Known::Tensor(_)) || k.is_float());
                operand(0)?.iter().zip(&operand(1)?).map(|(a, b)| self.joined(binary.f, a, b, float)).collect()
            }
            Op::Compare(compare) => {
                let compare = |(a, b): (&Dim, &Dim)| self.compared(compare.f, a, b).map(|v| Dim::new(i64::from(v)));
                operand(0)?.iter().zip(&operand(1)?).map(compare).collect()
            }
            Op::Select(_) => {
                let (cond, a, b) = (operand(0)?, operand(1)?, operand(2)?);
                let choose = |((c, a), b): ((&Dim, &Dim), &Dim)| match c.as_const()? {
                    0 => Some(b.clone()),
                    _ => Some(a.clone()),
                };
                cond.iter().zip(&a).zip(&b).map(choose).collect()
            }
            Op::Reduce(reduce) if shape.iter().product::<usize>() == 1 => {
                let dims = inputs.first()?.as_ref()?.dims()?;
                let whole = reduce.axes.len() == inputs.first()?.as_ref()?.shape().len();
                let fold: fn(&Dim, &Dim) -> Dim = match reduce.f {
                    ReduceFn::Prod => |a, b| a * b,
                    ReduceFn::Sum => |a, b| a + b,
                    ReduceFn::Max => Dim::max_of,
                    ReduceFn::Min => Dim::min_of,
                    ReduceFn::Mean | ReduceFn::Any | ReduceFn::All => return None,
                };
                whole.then(|| dims.into_iter().reduce(|a, b| fold(&a, &b)).map(|d| vec![d])).flatten()
            }
            op => moved(op, inputs),
        }
    }

    fn joined(&self, f: BinaryFn, a: &Dim, b: &Dim, float: bool) -> Option<Dim> {
        let natural = || self.bounds(a).min >= 0 && b.as_const().is_some_and(|b| b > 0);
        Some(match f {
            BinaryFn::Add => a + b,
            BinaryFn::Sub => a - b,
            BinaryFn::Mul => a * b,
            BinaryFn::Max => a.max_of(b),
            BinaryFn::Min => a.min_of(b),
            BinaryFn::Div if float => a.exact_div(b)?,
            BinaryFn::FloorDiv | BinaryFn::TruncDiv if natural() => a.floor_div(b),
            BinaryFn::Rem | BinaryFn::Fmod if natural() => a.modulo(b),
            _ => return None,
        })
    }

    /// Whether `a f b`, when it is so for all sizes or for none.
    fn compared(&self, f: CompareFn, a: &Dim, b: &Dim) -> Option<bool> {
        let Range { min, max } = self.bounds(&(a - b));
        match f {
            CompareFn::Eq | CompareFn::Ne => {
                let equal = match (min, max) {
                    (0, 0) => true,
                    (min, max) if min > 0 || max < 0 => false,
                    _ => return None,
                };
                Some(equal == (f == CompareFn::Eq))
            }
            CompareFn::Lt if max < 0 => Some(true),
            CompareFn::Lt if min >= 0 => Some(false),
            CompareFn::Le if max <= 0 => Some(true),
            CompareFn::Le if min > 0 => Some(false),
            CompareFn::Gt if min > 0 => Some(true),
            CompareFn::Gt if max <= 0 => Some(false),
            CompareFn::Ge if min >= 0 => Some(true),
            CompareFn::Ge if max < 0 => Some(false),
            CompareFn::Lt | CompareFn::Le | CompareFn::Gt | CompareFn::Ge => None,
        }
    }
}

impl Known {
    fn is_float(&self) -> bool {
        match self {
            Known::Dims { dtype, .. } => dtype.is_float(),
            Known::Tensor(_) => true,
        }
    }
}

/// The order of elements after an op that only moves them, which is run on their positions.
fn moved(op: &Op, inputs: &[Option<Known>]) -> Option<Vec<Dim>> {
    // How many of the operands are moved; the others say where to.
    let data = match op {
        Op::Reshape(_) | Op::Permute(_) | Op::Expand(_) | Op::Slice(_) | Op::Flip(_) => 1,
        Op::Index(_) | Op::Gather(_) | Op::Embedding(_) => 1,
        Op::Concat(_) => inputs.len(),
        _ => return None,
    };
    let (mut all, mut operands) = (Vec::new(), Vec::new());
    for (i, known) in inputs.iter().enumerate() {
        let known = known.as_ref()?;
        if i >= data {
            operands.push(known.tensor()?);
            continue;
        }
        let dims = known.dims()?;
        let places: Vec<i64> = (all.len()..all.len() + dims.len()).map(|at| at as i64).collect();
        operands.push(Tensor::from_i64(DType::I64, known.shape(), &places));
        all.extend(dims);
    }
    let op = op.bind(&[]).ok()?;
    let places = op.eval(&operands.iter().map(Some).collect::<Vec<_>>()).ok()?;
    places.first()?.to_i64_vec().into_iter().map(|at| all.get(usize::try_from(at).ok()?).cloned()).collect()
}
