//! Counts of short sequences of numbers.

use regraft_ir::ops::{BinaryFn, CompareFn, ReduceFn};
use regraft_tensor::{DType, Dim, Tensor};

use crate::onnx::args::{Cx, Res, ValueId, unsupported, wrong};

/// More n-grams than are counted, and wider gaps in them.
const MOST: usize = 1 << 16;

/// The n-grams of one length, one after the other.
struct Grams {
    len: usize,
    items: Vec<i64>,
}

/// Counts how often each n-gram of a list stands in each row, its elements up to some gap apart.
pub(super) fn tf_idf(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.plain(0)?;
    if !cx.texts("pool_strings")?.is_empty() {
        return unsupported("an operator on texts", "compute it outside of the model");
    }
    let (pool, starts) = (list(cx, "pool_int64s")?, list(cx, "ngram_counts")?);
    let places = list(cx, "ngram_indexes")?;
    let [shortest, longest, gaps] = ["min_gram_length", "max_gram_length", "max_skip_count"].map(|n| cx.natural(n, 0));
    let (shortest, longest, gaps) = (shortest?, longest?, gaps?);
    if gaps > 64 || longest > 64 || pool.len() > MOST || places.len() > MOST {
        return unsupported(format!("{} n-grams of up to {longest}", places.len()), format!("use at most {MOST}"));
    }
    let all = grams(&pool, &starts)?;
    let x = cx.cast(x, DType::I64)?;
    let rows = if cx.rank(x) == 1 { cx.unsqueeze(x, 0)? } else { x };
    let shape = cx.shape(rows);
    let [batch, len] = shape.as_slice() else { return wrong("expected one row of numbers or several") };
    let Some(len) = len.as_usize() else {
        return unsupported(format!("rows of a dynamic size {len}"), "export this dimension as a static one");
    };
    let mut counts = Vec::new();
    for grams in all {
        let n = grams.items.len() / grams.len;
        if n == 0 {
            continue;
        }
        let counted = (shortest..=longest).contains(&grams.len);
        // What has one element has no gaps.
        let steps = if !counted {
            0
        } else if grams.len == 1 {
            1
        } else {
            gaps + 1
        };
        let zero = cx.float(0.0, DType::F32)?;
        let mut sum = cx.expand(zero, vec![batch.clone(), Dim::from(n)])?;
        for step in 1..=steps {
            let Some(windows) = len.checked_sub((grams.len - 1) * step).filter(|w| *w > 0) else { continue };
            let found = occurrences(cx, rows, &grams, step, windows)?;
            sum = cx.binary(BinaryFn::Add, sum, found)?;
        }
        counts.push(sum);
    }
    let counts = cx.concat(&counts, 1)?;
    let counts = arranged(cx, counts, batch, &places)?;
    let out = weighted(cx, counts)?;
    if cx.rank(x) == 1 { cx.squeeze(out, 0) } else { Ok(out) }
}

fn list(cx: &Cx<'_, '_>, name: &str) -> Res<Vec<i64>> {
    match cx.optional_ints_attr(name)? {
        Some(list) if !list.is_empty() => Ok(list),
        _ => wrong(format!("expected numbers as `{name}`")),
    }
}

/// The n-grams of each length, which begin in the pool where `starts` says.
fn grams(pool: &[i64], starts: &[i64]) -> Res<Vec<Grams>> {
    let mut all = Vec::new();
    let ends = starts.iter().skip(1).copied().chain([pool.len() as i64]);
    for (len, (start, end)) in (1..).zip(starts.iter().zip(ends)) {
        let range = usize::try_from(*start).ok().zip(usize::try_from(end).ok());
        let Some(items) = range.and_then(|(start, end)| pool.get(start..end)) else {
            return wrong(format!("`ngram_counts` names the places {start} to {end} of {} numbers", pool.len()));
        };
        if !items.len().is_multiple_of(len) {
            return wrong(format!("{} numbers are not n-grams of {len}", items.len()));
        }
        let mut sorted: Vec<&[i64]> = items.chunks_exact(len).collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair.first() == pair.last()) {
            return unsupported("an n-gram that is listed twice", "list each once");
        }
        all.push(Grams { len, items: items.to_vec() });
    }
    Ok(all)
}

/// How often each n-gram stands in each row with its elements `step` apart: `[rows, n-grams]`.
fn occurrences(cx: &mut Cx<'_, '_>, rows: ValueId, grams: &Grams, step: usize, windows: usize) -> Res<ValueId> {
    let mut hit: Option<ValueId> = None;
    for i in 0..grams.len {
        let seen = cx.slice(rows, 1, Dim::from(i * step), Dim::from(i * step + windows))?;
        let seen = cx.unsqueeze(seen, 2)?;
        let column: Vec<i64> = grams.items.iter().skip(i).step_by(grams.len).copied().collect();
        let column = cx.t.computed(Tensor::from_i64(DType::I64, &[column.len()], &column), "ngrams")?;
        let same = cx.compare(CompareFn::Eq, seen, column)?;
        hit = Some(match hit {
            Some(hit) => cx.binary(BinaryFn::And, hit, same)?,
            None => same,
        });
    }
    let Some(hit) = hit else { return wrong("an n-gram without elements") };
    let hit = cx.cast(hit, DType::F32)?;
    cx.reduce(ReduceFn::Sum, hit, &[1], false)
}

/// Each count in the column that `places` says; zeros in those that none has.
fn arranged(cx: &mut Cx<'_, '_>, counts: ValueId, batch: &Dim, places: &[i64]) -> Res<ValueId> {
    let count = places.len();
    let width = places.iter().map(|p| usize::try_from(*p).ok().filter(|p| *p < MOST)).collect::<Option<Vec<usize>>>();
    let Some(places) = width.filter(|_| cx.ty(counts).shape.get(1) == Some(&Dim::from(count))) else {
        return wrong(format!("`ngram_indexes` has {count} places, the counts are {}", cx.ty(counts)));
    };
    let columns = places.iter().max().map_or(0, |most| most + 1);
    let mut from = vec![count as i64; columns];
    for (i, place) in places.iter().enumerate() {
        if let Some(slot) = from.get_mut(*place) {
            if *slot != count as i64 {
                return unsupported("two n-grams with one place", "give each its own");
            }
            *slot = i as i64;
        }
    }
    let zero = cx.float(0.0, DType::F32)?;
    let zero = cx.expand(zero, vec![batch.clone(), Dim::new(1)])?;
    let wide = cx.concat(&[counts, zero], 1)?;
    let from: Vec<Dim> = from.into_iter().map(Dim::new).collect();
    let from = cx.int_vector(&from)?;
    cx.take(wide, 1, from)
}

fn weighted(cx: &mut Cx<'_, '_>, counts: ValueId) -> Res<ValueId> {
    let mode = cx.text("mode", "")?;
    let weights = cx.optional_floats_attr("weights")?;
    let weights = match weights.filter(|w| !w.is_empty()) {
        Some(list) if cx.ty(counts).shape.get(1) == Some(&Dim::from(list.len())) => {
            Some(cx.t.computed(Tensor::from_f64(DType::F32, &[list.len()], &list), "weights")?)
        }
        Some(list) => return wrong(format!("{} weights for {}", list.len(), cx.ty(counts))),
        None => None,
    };
    let counts = match mode {
        "TF" => return Ok(counts),
        "TFIDF" => counts,
        "IDF" => {
            let there = cx.compare_with(CompareFn::Gt, counts, 0.0)?;
            cx.cast(there, DType::F32)?
        }
        other => return wrong(format!("`{other}` is not a way to weight counts")),
    };
    match weights {
        Some(weights) => cx.binary(BinaryFn::Mul, counts, weights),
        None => Ok(counts),
    }
}
