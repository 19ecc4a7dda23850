//! Sums of products by labels, as `torch.einsum`, by permutations, reshapes and matrix products.

use regraft_ir::ops::{Expand, Index, Matmul, Reduce, ReduceFn};
use regraft_tensor::Dim;

use super::{Builder, Res, ValueId, simpler, unsupported, wrong};

/// A value whose axes have labels.
struct Labeled {
    value: ValueId,
    labels: Vec<char>,
}

/// Labels for the axes that an ellipsis stands for, the last first.
const HIDDEN: char = '\u{e000}';

/// `torch.einsum` of these operands.
pub(crate) fn einsum(g: &mut Builder, equation: &str, values: Vec<ValueId>) -> Res<ValueId> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let parts: Vec<&str> = left.split(',').collect();
    if parts.len() != values.len() || values.is_empty() {
        return wrong(format!("the equation `{equation}` does not fit {} operands", values.len()));
    }
    let mut hidden = 0;
    let mut operands = Vec::new();
    for (part, value) in parts.iter().zip(values) {
        let rank = g.rank(value);
        let (labels, extra) = labels(part, rank)?;
        hidden = hidden.max(extra);
        operands.push(diagonals(g, Labeled { value, labels })?);
    }
    let output = match right {
        Some(right) => {
            let explicit = right.replace("...", "").chars().count();
            let output = labels(right, if right.contains("...") { explicit + hidden } else { explicit })?.0;
            if twice(&output).is_some() {
                return wrong(format!("a label stands twice in the output of `{equation}`"));
            }
            output
        }
        // Without an output: the hidden axes, then the labels that occur once, in the order of the alphabet.
        None => {
            let all: Vec<char> = operands.iter().flat_map(|o| o.labels.iter().copied()).collect();
            let mut once: Vec<char> =
                all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1).collect();
            once.retain(|c| *c < HIDDEN);
            once.sort_unstable();
            once.dedup();
            let mut output: Vec<char> = (0..hidden).rev().filter_map(hidden_label).collect();
            output.extend(once);
            output
        }
    };
    let mut rest = operands.into_iter();
    let Some(mut sum) = rest.next() else { return wrong("expected operands") };
    let rest: Vec<Labeled> = rest.collect();
    for (i, next) in rest.iter().enumerate() {
        let later = |c: &char| output.contains(c) || rest.iter().skip(i + 1).any(|o| o.labels.contains(c));
        sum = pair(g, sum, next, later)?;
    }
    let sum = reduce(g, sum, |c| output.contains(c))?;
    let perm: Option<Vec<usize>> = output.iter().map(|c| sum.labels.iter().position(|d| d == c)).collect();
    match perm {
        Some(perm) if perm.len() == sum.labels.len() => g.permute(sum.value, perm),
        _ => unsupported(format!("the equation `{equation}`"), "write it with matmul(), sum() and permute()"),
    }
}

fn hidden_label(i: usize) -> Option<char> {
    char::from_u32(u32::from(HIDDEN) + u32::try_from(i).ok()?)
}

/// The label of each of `rank` axes, and how many of them the ellipsis stands for.
fn labels(part: &str, rank: usize) -> Res<(Vec<char>, usize)> {
    let (before, after) = match part.split_once("...") {
        Some((before, after)) => (before, Some(after)),
        None => (part, None),
    };
    let named = before.chars().count() + after.map_or(0, |a| a.chars().count());
    let extra = if after.is_some() { rank.checked_sub(named) } else { (rank == named).then_some(0) };
    let Some(extra) = extra else { return wrong(format!("`{part}` does not fit a tensor with {rank} axes")) };
    let mut labels: Vec<char> = before.chars().collect();
    labels.extend((0..extra).rev().filter_map(hidden_label));
    labels.extend(after.unwrap_or("").chars());
    match labels.iter().find(|c| !c.is_ascii_alphabetic() && **c < HIDDEN) {
        Some(c) => wrong(format!("`{c}` is not a label")),
        None => Ok((labels, extra)),
    }
}

/// Axes of one label become one, their diagonal.
fn diagonals(g: &mut Builder, mut x: Labeled) -> Res<Labeled> {
    while let Some((first, again)) = twice(&x.labels) {
        let (a, b) = (g.ty(x.value).shape.get(first).cloned(), g.ty(x.value).shape.get(again).cloned());
        let (Some(a), Some(b)) = (a, b) else { return wrong("expected an axis for each label") };
        if a != b {
            return wrong(format!("one label for axes of {a} and {b} elements"));
        }
        // Both axes to the front, and the positions on the diagonal of both.
        let mut perm = vec![first, again];
        perm.extend((0..x.labels.len()).filter(|i| *i != first && *i != again));
        let moved = g.permute(x.value, perm)?;
        let at = g.iota(a, 0, 1)?;
        let value = g.emit(Index { axis: 0 }, &[moved, at, at])?;
        let label = x.labels.remove(again);
        x.labels.remove(first);
        x.labels.insert(0, label);
        x.value = value;
    }
    Ok(x)
}

/// Two places of one label.
fn twice(labels: &[char]) -> Option<(usize, usize)> {
    let again = |i: usize, c: &char| labels.iter().skip(i + 1).position(|d| d == c).map(|k| (i, i + 1 + k));
    labels.iter().enumerate().find_map(|(i, c)| again(i, c))
}

/// Sums over the labels that are not to be kept.
fn reduce(g: &mut Builder, x: Labeled, keep: impl Fn(&char) -> bool) -> Res<Labeled> {
    let axes: Vec<usize> = (0..x.labels.len()).filter(|&i| x.labels.get(i).is_some_and(|c| !keep(c))).collect();
    if axes.is_empty() {
        return Ok(x);
    }
    let value = g.emit(Reduce { f: ReduceFn::Sum, axes, keep: false }, &[x.value])?;
    Ok(Labeled { value, labels: x.labels.into_iter().filter(|c| keep(c)).collect() })
}

/// The product of two operands, summed over the labels that nothing later needs.
fn pair(g: &mut Builder, a: Labeled, b: &Labeled, later: impl Fn(&char) -> bool) -> Res<Labeled> {
    let b = Labeled { value: b.value, labels: b.labels.clone() };
    let a = reduce(g, a, |c| later(c) || b.labels.contains(c))?;
    let b = reduce(g, b, |c| later(c) || a.labels.contains(c))?;
    let shared = |c: &&char| b.labels.contains(c);
    let batch: Vec<char> = a.labels.iter().filter(shared).filter(|c| later(c)).copied().collect();
    let inner: Vec<char> = a.labels.iter().filter(shared).filter(|c| !later(c)).copied().collect();
    let only_a: Vec<char> = a.labels.iter().filter(|c| !b.labels.contains(c)).copied().collect();
    let only_b: Vec<char> = b.labels.iter().filter(|c| !a.labels.contains(c)).copied().collect();
    let size = |g: &Builder, c: &char| {
        let of = |x: &Labeled| x.labels.iter().position(|d| d == c).and_then(|i| g.ty(x.value).shape.get(i).cloned());
        match (of(&a), of(&b)) {
            (Some(a), Some(b)) if a.is(1) => b,
            (Some(a), Some(b)) if b.is(1) => a,
            (Some(a), Some(b)) => simpler(&a, &b),
            (a, b) => a.or(b).unwrap_or(Dim::new(1)),
        }
    };
    let sizes = |g: &Builder, list: &[char]| list.iter().map(|c| size(g, c)).collect::<Vec<Dim>>();
    let product = |list: &[Dim]| list.iter().product::<Dim>();
    let (nb, ni) = (sizes(g, &batch), sizes(g, &inner));
    let (na, no) = (sizes(g, &only_a), sizes(g, &only_b));
    let arrange = |g: &mut Builder, x: &Labeled, order: Vec<char>, full: Vec<Dim>, shape: Vec<Dim>| {
        let perm = order.iter().filter_map(|c| x.labels.iter().position(|d| d == c)).collect();
        let value = g.permute(x.value, perm)?;
        // Axes of size 1 stand for any size.
        let value = if g.ty(value).shape.iter().zip(&full).any(|(a, b)| a.is(1) && !b.is(1)) {
            g.emit(Expand { shape: full }, &[value])?
        } else {
            value
        };
        g.reshape(value, shape)
    };
    let left = arrange(
        g,
        &a,
        [&batch[..], &only_a[..], &inner[..]].concat(),
        [&nb[..], &na[..], &ni[..]].concat(),
        [&nb[..], &[product(&na), product(&ni)]].concat(),
    )?;
    let right = arrange(
        g,
        &b,
        [&batch[..], &inner[..], &only_b[..]].concat(),
        [&nb[..], &ni[..], &no[..]].concat(),
        [&nb[..], &[product(&ni), product(&no)]].concat(),
    )?;
    let out = g.emit(Matmul { transpose_b: false }, &[left, right])?;
    let value = g.reshape(out, [&nb[..], &na[..], &no[..]].concat())?;
    Ok(Labeled { value, labels: [&batch[..], &only_a[..], &only_b[..]].concat() })
}
