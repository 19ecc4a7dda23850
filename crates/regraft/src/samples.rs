//! Random inputs, for measuring and trying a program.

use regraft_ir::Graph;
use regraft_tensor::{DType, Tensor};

/// An input whose size cannot be computed from the given values of symbols: see [`random_inputs`].
///
/// ```
/// # let model = regraft::Compiler::new().compile("../conformance/fixtures/mlp_gelu.pt2")?.into_model()?;
/// match regraft::random_inputs(&model.plan().graph, &[], 1000, 0) {
///     Ok(inputs) => println!("{} inputs", inputs.len()),
///     Err(error) => println!("{error}"), // input x: f32[s0, 10] has no size for these dims
/// }
/// # Ok::<(), regraft::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("input {name}: {ty} has no size for these dims")]
pub struct InputSizeError {
    name: String,
    ty: String,
}

/// Random inputs of a program at these sizes of its symbols, the same for the same `seed`: floats in -1..1, masks of ones, and
/// integers below `limit`, which may be ids of rows of a table.
///
/// ```
/// # use regraft::{Compiler, Threads};
/// # let model = Compiler::new().compile("../conformance/fixtures/mlp_gelu.pt2")?.into_model()?;
/// let inputs = regraft::random_inputs(&model.plan().graph, &[], 1000, 0)?;
/// let outputs = model.run(&inputs)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When an input has no size for these symbols.
pub fn random_inputs(graph: &Graph, symbols: &[i64], limit: i64, seed: u64) -> Result<Vec<Tensor>, InputSizeError> {
    let mut random = Random(0x5eed ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut inputs = Vec::with_capacity(graph.inputs.len());
    for input in &graph.inputs {
        let ty = graph.ty(input.value);
        let shape: Option<Vec<usize>> =
            ty.shape.iter().map(|d| d.eval(symbols).ok().and_then(|v| usize::try_from(v).ok())).collect();
        let shape = shape.ok_or_else(|| InputSizeError { name: input.name.clone(), ty: ty.to_string() })?;
        let count: usize = shape.iter().product();
        inputs.push(if ty.dtype == DType::Bool || (ty.dtype.is_int() && input.name.contains("mask")) {
            Tensor::from_i64(ty.dtype, &shape, &vec![1; count])
        } else if ty.dtype.is_float() {
            Tensor::from_f64(ty.dtype, &shape, &(0..count).map(|_| random.float()).collect::<Vec<_>>())
        } else {
            Tensor::from_i64(ty.dtype, &shape, &(0..count).map(|_| random.below(limit)).collect::<Vec<_>>())
        });
    }
    Ok(inputs)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn float(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn below(&mut self, limit: i64) -> i64 {
        (self.next() % limit.unsigned_abs().max(1)) as i64
    }
}
