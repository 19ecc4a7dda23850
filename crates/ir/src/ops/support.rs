//! What the op families share: operand checks, broadcasting, index arithmetic of the reference evaluation.

use regraft_tensor::{AlignedVec, DType, Dim, ErrorKind, Tensor, TensorError, contiguous_strides};

use crate::{OpError, TensorType};

/// The operand types of an op, checked for number; optional ones may be absent.
pub struct Operands<'a> {
    names: &'static [&'static str],
    types: &'a [Option<&'a TensorType>],
}

impl<'a> Operands<'a> {
    /// Checks that all required operands are there and no others.
    ///
    /// # Errors
    /// [`OpError::Arity`].
    pub fn new(names: &'static [&'static str], types: &'a [Option<&'a TensorType>]) -> Result<Self, OpError> {
        let variadic = names.last().is_some_and(|n| n.ends_with("..."));
        let required = |i: usize| names.get(i).is_none_or(|n| !n.ends_with('?') && !n.ends_with("..."));
        let missing = (0..names.len().max(types.len()))
            .any(|i| if i < types.len() { types[i].is_none() && (required(i) || variadic) } else { required(i) });
        if missing || (types.len() > names.len() && !variadic) || (variadic && types.len() < names.len()) {
            let found = types.iter().map(|t| t.map_or("none".to_owned(), ToString::to_string)).collect::<Vec<_>>();
            return Err(OpError::Arity { expected: format!("({})", names.join(", ")), found: found.join(", ") });
        }
        Ok(Operands { names, types })
    }

    /// The required operand at `i`.
    pub fn get(&self, i: usize) -> &'a TensorType {
        self.types[i].expect("`Operands::new` checked the required operands")
    }

    /// The operand at `i`, if there.
    pub fn optional(&self, i: usize) -> Option<&'a TensorType> {
        self.types.get(i).copied().flatten()
    }

    /// All operands that are there.
    pub fn all(&self) -> impl Iterator<Item = &'a TensorType> + '_ {
        self.types.iter().flatten().copied()
    }

    /// Checks that operand `i` has a dtype that `fits`.
    ///
    /// # Errors
    /// [`OpError::DType`].
    pub fn expect_dtype(&self, i: usize, fits: impl Fn(DType) -> bool, expected: &str) -> Result<(), OpError> {
        match self.optional(i) {
            Some(t) if !fits(t.dtype) => Err(OpError::DType {
                operand: self.names[i.min(self.names.len() - 1)],
                expected: expected.into(),
                found: t.dtype,
            }),
            _ => Ok(()),
        }
    }

    /// Checks that all operands in `which` have the dtype of the first operand.
    ///
    /// # Errors
    /// [`OpError::DType`].
    pub fn expect_same_dtype(&self, which: impl IntoIterator<Item = usize>) -> Result<(), OpError> {
        let dtype = self.get(0).dtype;
        which.into_iter().try_for_each(|i| self.expect_dtype(i, |d| d == dtype, dtype.name()))
    }

    /// Checks that operand `i`, if there, has this shape.
    ///
    /// # Errors
    /// [`OpError::Shape`].
    pub fn expect_shape(&self, i: usize, shape: &[Dim]) -> Result<(), OpError> {
        match self.optional(i) {
            Some(t) if t.rank() != shape.len() || t.shape.iter().zip(shape).any(|(a, b)| differ(a, b)) => {
                let name = self.names[i.min(self.names.len() - 1)];
                Err(OpError::Shape(format!("operand `{name}` must have shape {shape:?}, found {t}")))
            }
            _ => Ok(()),
        }
    }

    /// Checks that operand `i` has at least, or exactly, this rank.
    ///
    /// # Errors
    /// [`OpError::Shape`].
    pub fn expect_rank(&self, i: usize, range: impl std::ops::RangeBounds<usize>) -> Result<(), OpError> {
        let t = self.get(i);
        if range.contains(&t.rank()) {
            return Ok(());
        }
        Err(OpError::Shape(format!("operand `{}` has an unfitting number of axes: {t}", self.names[i])))
    }
}

/// Whether two sizes are known to differ. Symbolic sizes may turn out equal; a run checks them.
pub(crate) fn differ(a: &Dim, b: &Dim) -> bool {
    matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b)
}

/// The one of two equal sizes that says more.
pub(crate) fn join(a: &Dim, b: &Dim) -> Dim {
    if a.as_const().is_some() { a.clone() } else { b.clone() }
}

/// The shape that `a` and `b` broadcast to.
///
/// # Errors
/// When two sizes are known to differ and neither is 1.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map(|i| s[i].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (Some(x), None) | (None, Some(x)) => Ok(x),
            (Some(x), Some(y)) if x.is(1) => Ok(y),
            (Some(x), Some(y)) if y.is(1) => Ok(x),
            (Some(x), Some(y)) if !differ(&x, &y) => Ok(join(&x, &y)),
            _ => Err(OpError::Shape(format!("shapes {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// The shape that all of `types` broadcast to.
///
/// # Errors
/// As [`broadcast`].
pub fn broadcast_types<'a>(types: impl IntoIterator<Item = &'a TensorType>) -> Result<Vec<Dim>, OpError> {
    types.into_iter().try_fold(Vec::new(), |shape, t| broadcast(&shape, &t.shape))
}

/// Checks an axis number.
pub(crate) fn check_axis(name: &'static str, axis: usize, rank: usize) -> Result<(), OpError> {
    if axis < rank {
        return Ok(());
    }
    Err(OpError::Attr { name, why: format!("axis {axis} of a value with {rank} axes") })
}

/// Asks the system once for as much memory as evaluating an op takes, and gives it back: evaluations are written without
/// thought of memory, and a refusal in the midst of one would end the process.
///
/// # Errors
/// [`ErrorKind::OutOfMemory`], [`ErrorKind::TooLarge`].
pub(super) fn ask_for_memory(inputs: &[Option<&Tensor>], results: &[TensorType]) -> Result<(), TensorError> {
    /// Where less is refused, the process ends whatever it does.
    const SMALL: usize = 1 << 20;
    /// A value as a number and where it comes from, and its bytes twice.
    const RESULT: usize = 32;
    let mut bytes: usize = inputs.iter().flatten().map(|tensor| tensor.numel().saturating_mul(size_of::<f64>())).sum();
    for result in results {
        let shape = sizes(result);
        let len = Tensor::byte_len(result.dtype, &shape)?;
        let needed = (len / result.dtype.size()).checked_mul(RESULT).and_then(|needed| bytes.checked_add(needed));
        bytes = needed.ok_or(ErrorKind::TooLarge(shape))?;
    }
    if bytes > SMALL {
        AlignedVec::try_zeroed(bytes)?;
    }
    Ok(())
}

/// Sizes of a bound type.
pub(crate) fn sizes(ty: &TensorType) -> Vec<usize> {
    ty.sizes().expect("types of a bound op are all constants")
}

/// How many elements a shape has.
pub(super) fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&size| size as u64).product()
}

/// The last size of an operand's shape.
pub(super) fn last(shape: Option<&[usize]>) -> u64 {
    shape.and_then(|shape| shape.last()).map_or(0, |&size| size as u64)
}

/// For each index of `shape` the position in a row-major tensor of shape `from` that broadcasts to it.
pub(crate) fn broadcast_positions(from: &[usize], shape: &[usize]) -> Vec<usize> {
    let pad = shape.len() - from.len();
    let mut strides = vec![0; pad];
    strides.extend(contiguous_strides(from).iter().zip(from).map(|(&s, &d)| if d == 1 { 0 } else { s }));
    let mut positions = Vec::new();
    regraft_tensor::for_each_index(shape, &strides, |at| positions.push(at));
    positions
}

/// The values of `t` broadcast to `shape`.
pub(crate) fn broadcast_f64(t: &Tensor, shape: &[usize]) -> Vec<f64> {
    let values = t.to_f64_vec();
    if t.shape() == shape {
        return values;
    }
    broadcast_positions(t.shape(), shape).into_iter().map(|at| values[at]).collect()
}

/// As [`broadcast_f64`], for integers and booleans.
pub(crate) fn broadcast_i64(t: &Tensor, shape: &[usize]) -> Vec<i64> {
    let values = t.to_i64_vec();
    if t.shape() == shape {
        return values;
    }
    broadcast_positions(t.shape(), shape).into_iter().map(|at| values[at]).collect()
}

/// A number in whose order an integer of `dtype` stands, of which [`Tensor::to_i64_vec`] gives `value`.
pub(crate) fn ordered(dtype: DType, value: i64) -> i64 {
    if dtype == DType::U64 { value ^ i64::MIN } else { value }
}

/// The elements of a tensor of integers or booleans as numbers in their order.
pub(crate) fn ordered_vec(t: &Tensor) -> Vec<i64> {
    t.to_i64_vec().into_iter().map(|v| ordered(t.dtype(), v)).collect()
}

/// A tensor whose element at row-major index `i` is element `positions[i]` of `t`.
pub(crate) fn pick(t: &Tensor, shape: &[usize], positions: impl IntoIterator<Item = usize>) -> Tensor {
    let (size, data) = (t.dtype().size(), t.bytes());
    let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * size);
    for at in positions {
        bytes.extend_from_slice(&data[at * size..(at + 1) * size]);
    }
    let buffer = AlignedVec::copy_of(&bytes).into();
    Tensor::new(t.dtype(), shape.to_vec(), buffer).expect("one position per element")
}

/// Splits `shape` around `axis` into the number of indices before it, its size, and those after it.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// The required input at `i` of an evaluation.
pub(crate) fn input<'a>(inputs: &[Option<&'a Tensor>], i: usize) -> &'a Tensor {
    inputs[i].expect("inference checked the required operands")
}

/// The optional input at `i` of an evaluation.
pub(crate) fn optional<'a>(inputs: &[Option<&'a Tensor>], i: usize) -> Option<&'a Tensor> {
    inputs.get(i).copied().flatten()
}
