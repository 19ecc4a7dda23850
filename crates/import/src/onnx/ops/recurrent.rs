//! Recurrent networks.

use regraft_ir::ops::{BinaryFn, Lstm, UnaryFn};
use regraft_tensor::Dim;

use crate::{
    build::linear_op,
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// More steps than are unrolled.
const MOST_STEPS: usize = 1024;

/// The operands that all kinds share, with time first.
struct Network {
    x: ValueId,
    weights: ValueId,
    recurrent: ValueId,
    biases: Option<ValueId>,
    hidden: usize,
    /// Whether each direction runs backwards.
    backwards: Vec<bool>,
    batch_first: bool,
}

fn network(cx: &mut Cx<'_, '_>) -> Res<Network> {
    let (mut x, weights, recurrent, biases) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.optional(3)?);
    let batch_first = cx.flag("layout", false)?;
    if batch_first {
        x = cx.permute(x, vec![1, 0, 2])?;
    }
    let hidden = cx.natural("hidden_size", cx.size(recurrent, 2)?)?;
    let backwards = match cx.text("direction", "forward")? {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return wrong(format!("`{other}` is no direction")),
    };
    if cx.optional_float_attr("clip")?.is_some() {
        return unsupported("a recurrent network with `clip`", "use one without");
    }
    cx.ignore("activation_alpha");
    cx.ignore("activation_beta");
    if cx.has(4) {
        let length = cx.ty(x).shape.first().cloned().unwrap_or(Dim::new(1));
        let lengths = cx.plain(4)?;
        let known = cx.known(lengths).and_then(|k| k.dims());
        if known.is_none_or(|list| list.iter().any(|l| *l != length)) {
            return unsupported("sequences of different lengths", "give sequences of one length, without this input");
        }
    }
    Ok(Network { x, weights, recurrent, biases, hidden, backwards, batch_first })
}

/// Refuses activations beside the usual ones.
fn check_activations(cx: &Cx<'_, '_>, usual: &[&str]) -> Res<()> {
    let list = cx.texts("activations")?;
    let fits = list.iter().enumerate().all(|(i, name)| usual.get(i % usual.len().max(1)) == Some(name));
    if fits { Ok(()) } else { unsupported(format!("the activations {list:?}"), format!("use {usual:?}")) }
}

/// What a tensor has for one direction.
fn of(cx: &mut Cx<'_, '_>, x: ValueId, direction: usize) -> Res<ValueId> {
    let row = cx.slice(x, 0, Dim::from(direction), Dim::from(direction + 1))?;
    cx.squeeze(row, 0)
}

/// Part `i` of rows of `hidden` each.
fn gate(cx: &mut Cx<'_, '_>, x: ValueId, i: usize, hidden: usize) -> Res<ValueId> {
    cx.slice(x, 0, Dim::from(i * hidden), Dim::from((i + 1) * hidden))
}

/// The state that a direction begins with: input `i`, or zeros.
fn begin(cx: &mut Cx<'_, '_>, n: &Network, i: usize, direction: usize) -> Res<ValueId> {
    match cx.optional(i)? {
        Some(all) => {
            let all = if n.batch_first { cx.permute(all, vec![1, 0, 2])? } else { all };
            of(cx, all, direction)
        }
        None => {
            let batch = cx.ty(n.x).shape.get(1).cloned().unwrap_or(Dim::new(1));
            let zero = cx.float_like(0.0, n.x)?;
            cx.expand(zero, vec![batch, Dim::from(n.hidden)])
        }
    }
}

/// Results of all directions: `[time, directions, batch, hidden]`, and the last states.
fn finish(cx: &mut Cx<'_, '_>, n: &Network, outputs: &[ValueId], states: &[Vec<ValueId>]) -> Res<Vec<Option<ValueId>>> {
    let mut columns = Vec::new();
    for y in outputs {
        columns.push(cx.unsqueeze(*y, 1)?);
    }
    let y = cx.concat(&columns, 1)?;
    let mut out = vec![Some(if n.batch_first { cx.permute(y, vec![2, 0, 1, 3])? } else { y })];
    for list in states {
        let mut rows = Vec::new();
        for state in list {
            rows.push(cx.unsqueeze(*state, 0)?);
        }
        let all = cx.concat(&rows, 0)?;
        out.push(Some(if n.batch_first { cx.permute(all, vec![1, 0, 2])? } else { all }));
    }
    Ok(out)
}

pub(super) fn lstm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let n = network(cx)?;
    check_activations(cx, &["Sigmoid", "Tanh", "Tanh"])?;
    if cx.flag("input_forget", false)? || cx.has(7) {
        return unsupported("an LSTM with peepholes or coupled gates", "use one without");
    }
    // ONNX has input, output, forget and cell; the op has input, forget, cell and output.
    let ordered = |cx: &mut Cx<'_, '_>, x: ValueId| -> Res<ValueId> {
        let mut parts = Vec::new();
        for i in [0, 2, 3, 1] {
            parts.push(gate(cx, x, i, n.hidden)?);
        }
        cx.concat(&parts, 0)
    };
    let (mut outputs, mut h, mut c) = (Vec::new(), Vec::new(), Vec::new());
    for (direction, reverse) in n.backwards.iter().copied().enumerate() {
        let (w, r) = (of(cx, n.weights, direction)?, of(cx, n.recurrent, direction)?);
        let (w, r) = (ordered(cx, w)?, ordered(cx, r)?);
        let (mut b_ih, mut b_hh) = (None, None);
        if let Some(biases) = n.biases {
            let both = of(cx, biases, direction)?;
            let half = 4 * n.hidden;
            let first = cx.slice(both, 0, Dim::new(0), Dim::from(half))?;
            let second = cx.slice(both, 0, Dim::from(half), Dim::from(2 * half))?;
            (b_ih, b_hh) = (Some(ordered(cx, first)?), Some(ordered(cx, second)?));
        }
        let gates = cx.emit_opt(linear_op(), vec![Some(n.x), Some(w), b_ih])?;
        let (h0, c0) = (begin(cx, &n, 5, direction)?, begin(cx, &n, 6, direction)?);
        let mut operands = vec![Some(gates), Some(h0), Some(c0), Some(r)];
        operands.extend(b_hh.map(Some));
        let results = cx.emit_all(Lstm { reverse }, operands)?;
        let [y, last_h, last_c] = results.as_slice() else { return wrong("expected three results") };
        outputs.push(*y);
        h.push(*last_h);
        c.push(*last_c);
    }
    finish(cx, &n, &outputs, &[h, c])
}

/// Runs one step for each element of the time axis; gives all states, in the order of the input, and the last.
fn unrolled(
    cx: &mut Cx<'_, '_>,
    n: &Network,
    direction: usize,
    reverse: bool,
    step: impl Fn(&mut Cx<'_, '_>, ValueId, ValueId) -> Res<ValueId>,
) -> Res<(ValueId, ValueId)> {
    let steps = cx.size(n.x, 0)?;
    if steps == 0 || steps > MOST_STEPS {
        return unsupported(format!("a recurrent network of {steps} steps"), format!("use 1 to {MOST_STEPS}"));
    }
    let mut state = begin(cx, n, 5, direction)?;
    let mut all = Vec::with_capacity(steps);
    for i in 0..steps {
        let at = if reverse { steps - 1 - i } else { i };
        let row = of(cx, n.x, at)?;
        state = step(cx, row, state)?;
        all.push(cx.unsqueeze(state, 0)?);
    }
    if reverse {
        all.reverse();
    }
    Ok((cx.concat(&all, 0)?, state))
}

/// The weights and biases of gate `i` of `gates`, for the input and for the state.
fn parts(
    cx: &mut Cx<'_, '_>,
    n: &Network,
    direction: usize,
    i: usize,
    gates: usize,
) -> Res<[(ValueId, Option<ValueId>); 2]> {
    let (w, r) = (of(cx, n.weights, direction)?, of(cx, n.recurrent, direction)?);
    let (w, r) = (gate(cx, w, i, n.hidden)?, gate(cx, r, i, n.hidden)?);
    let Some(biases) = n.biases else { return Ok([(w, None), (r, None)]) };
    let both = of(cx, biases, direction)?;
    Ok([(w, Some(gate(cx, both, i, n.hidden)?)), (r, Some(gate(cx, both, gates + i, n.hidden)?))])
}

fn linear(cx: &mut Cx<'_, '_>, x: ValueId, (weight, bias): (ValueId, Option<ValueId>)) -> Res<ValueId> {
    cx.emit_opt(linear_op(), vec![Some(x), Some(weight), bias])
}

fn sum(cx: &mut Cx<'_, '_>, x: ValueId, h: ValueId, part: [(ValueId, Option<ValueId>); 2]) -> Res<ValueId> {
    let [of_x, of_h] = part;
    let (a, b) = (linear(cx, x, of_x)?, linear(cx, h, of_h)?);
    cx.binary(BinaryFn::Add, a, b)
}

pub(super) fn gru(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let n = network(cx)?;
    check_activations(cx, &["Sigmoid", "Tanh"])?;
    let late = cx.flag("linear_before_reset", false)?;
    let (mut outputs, mut last) = (Vec::new(), Vec::new());
    for (direction, reverse) in n.backwards.iter().copied().enumerate() {
        let (update, reset, new) =
            (parts(cx, &n, direction, 0, 3)?, parts(cx, &n, direction, 1, 3)?, parts(cx, &n, direction, 2, 3)?);
        let step = |cx: &mut Cx<'_, '_>, x: ValueId, h: ValueId| -> Res<ValueId> {
            let (z, r) = (sum(cx, x, h, update)?, sum(cx, x, h, reset)?);
            let (z, r) = (cx.unary(UnaryFn::Sigmoid, z)?, cx.unary(UnaryFn::Sigmoid, r)?);
            let from_x = linear(cx, x, new[0])?;
            let from_h = if late {
                let h = linear(cx, h, new[1])?;
                cx.binary(BinaryFn::Mul, r, h)?
            } else {
                let kept = cx.binary(BinaryFn::Mul, r, h)?;
                linear(cx, kept, new[1])?
            };
            let fresh = cx.binary(BinaryFn::Add, from_x, from_h)?;
            let fresh = cx.unary(UnaryFn::Tanh, fresh)?;
            // (1 - z)·fresh + z·h
            let apart = cx.binary(BinaryFn::Sub, h, fresh)?;
            let part = cx.binary(BinaryFn::Mul, z, apart)?;
            cx.binary(BinaryFn::Add, fresh, part)
        };
        let (y, state) = unrolled(cx, &n, direction, reverse, step)?;
        outputs.push(y);
        last.push(state);
    }
    finish(cx, &n, &outputs, &[last])
}

pub(super) fn rnn(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let n = network(cx)?;
    let names = cx.texts("activations")?;
    let (mut outputs, mut last) = (Vec::new(), Vec::new());
    for (direction, reverse) in n.backwards.iter().copied().enumerate() {
        let f = match names.get(direction).copied().unwrap_or("Tanh") {
            "Tanh" => UnaryFn::Tanh,
            "Relu" => UnaryFn::Relu,
            "Sigmoid" => UnaryFn::Sigmoid,
            other => return unsupported(format!("the activation `{other}`"), "use Tanh, Relu or Sigmoid"),
        };
        let part = parts(cx, &n, direction, 0, 1)?;
        let step = |cx: &mut Cx<'_, '_>, x: ValueId, h: ValueId| {
            let sum = sum(cx, x, h, part)?;
            cx.unary(f, sum)
        };
        let (y, state) = unrolled(cx, &n, direction, reverse, step)?;
        outputs.push(y);
        last.push(state);
    }
    finish(cx, &n, &outputs, &[last])
}
