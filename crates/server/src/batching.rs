//! Whether requests can run together, tried out: types tell what could be a batch, only runs tell that rows do not see each other.

use regraft::{DType, Model, Tensor, random_inputs};

use crate::{
    run::stack,
    signature::{BatchAxis, batch_axis},
};

/// How a model runs requests together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batching {
    /// The most rows of a run that several requests share; 1 runs each alone.
    pub(crate) rows: usize,
    /// Whether a request got the same bits alone as together with others when it was tried.
    pub(crate) bit_equal: bool,
}

/// Sizes that are tried, as far as they are allowed.
const TRIED: [usize; 3] = [2, 3, 8];

/// How a model can run up to `asked` rows together.
///
/// # Errors
/// Why it cannot, when more than one row is asked for.
pub(crate) fn find(model: &Model, asked: usize) -> Result<Batching, String> {
    if asked <= 1 {
        return Ok(Batching { rows: 1, bit_equal: true });
    }
    let axis = batch_axis(&model.plan().graph)?;
    let (least, rows) = (axis.least, asked.min(axis.most));
    if rows < 2 * least {
        return Err(format!("it takes {least} to {} rows, so that no two requests fit into {asked}", axis.most));
    }
    let mut bit_equal = true;
    for count in TRIED.into_iter().filter(|count| count * least <= rows) {
        bit_equal &= are_apart(model, &axis, count)?;
    }
    Ok(Batching { rows, bit_equal })
}

/// Whether `count` requests of the fewest rows give the same bits alone as together.
fn are_apart(model: &Model, axis: &BatchAxis, count: usize) -> Result<bool, String> {
    let graph = &model.plan().graph;
    let mut symbols: Vec<i64> = graph.symbols.iter().map(|symbol| symbol.opt).collect();
    symbols[axis.symbol.0 as usize] = axis.least as i64;
    let mut last = String::new();
    for limit in [100, 2, 1] {
        let items = (0..count as u64).map(|seed| random_inputs(graph, &symbols, limit, seed + 1));
        let items: Vec<Vec<Tensor>> = items.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let alone: Result<Vec<Vec<Tensor>>, _> = items.iter().map(|inputs| model.run(inputs)).collect();
        match alone {
            Ok(alone) => return compare(model, &items, &alone),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("it cannot be tried: {last}"))
}

fn compare(model: &Model, items: &[Vec<Tensor>], alone: &[Vec<Tensor>]) -> Result<bool, String> {
    let together = joined(items)?;
    let together = model.run(&together).map_err(|error| format!("it cannot be tried: {error}"))?;
    let expected = joined(alone)?;
    let mut same = true;
    for (output, (found, expected)) in model.plan().graph.outputs.iter().zip(together.iter().zip(&expected)) {
        if found.bit_equal(expected) {
            continue;
        }
        same = false;
        if !is_close(found, expected) {
            return Err(format!("rows of `{}` depend on the other rows of a run", output.name));
        }
    }
    Ok(same)
}

fn joined(items: &[Vec<Tensor>]) -> Result<Vec<Tensor>, String> {
    let one = |index: usize| {
        let parts = items.iter().map(move |tensors| &tensors[index]);
        stack(&items[0][index], parts).map_err(|refusal| refusal.to_string())
    };
    (0..items[0].len()).map(one).collect()
}

/// Whether two results differ by no more than sums in another order do.
fn is_close(found: &Tensor, expected: &Tensor) -> bool {
    if found.shape() != expected.shape() || !found.dtype().is_float() {
        return false;
    }
    let tolerance = match found.dtype() {
        DType::F16 | DType::BF16 => 3e-2,
        _ => 1e-4,
    };
    let (found, expected) = (found.to_f64_vec(), expected.to_f64_vec());
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    found.iter().zip(&expected).all(|(a, b)| a == b || (a - b).abs() <= tolerance * largest)
}
