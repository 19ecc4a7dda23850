//! Recurrent networks.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Lstm, UnaryFn},
};
use regraft_tensor::{DType, Dim};

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
    /// How many steps each sequence has, when not all have those of the time axis: `[batch, 1]`.
    lengths: Option<ValueId>,
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
        other => return wrong(format!("`{other}` is not a direction")),
    };
    if cx.optional_float_attr("clip")?.is_some() {
        return unsupported("a recurrent network with `clip`", "use one without");
    }
    cx.ignore("activation_alpha");
    cx.ignore("activation_beta");
    let mut lengths = None;
    if cx.has(4) {
        let length = cx.ty(x).shape.first().cloned().unwrap_or(Dim::new(1));
        let given = cx.plain(4)?;
        let known = cx.known(given).and_then(|k| k.dims());
        if known.is_none_or(|list| list.iter().any(|l| *l != length)) {
            let given = cx.cast(given, DType::I64)?;
            lengths = Some(cx.unsqueeze(given, 1)?);
        }
    }
    Ok(Network { x, weights, recurrent, biases, hidden, backwards, batch_first, lengths })
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
    let coupled = cx.flag("input_forget", false)?;
    let peepholes = cx.optional(7)?;
    let plain = !coupled && peepholes.is_none() && n.lengths.is_none();
    let (mut outputs, mut h, mut c) = (Vec::new(), Vec::new(), Vec::new());
    for (direction, reverse) in n.backwards.iter().copied().enumerate() {
        let [y, last_h, last_c] = if plain {
            lstm_op(cx, &n, direction, reverse)?
        } else {
            lstm_steps(cx, &n, direction, reverse, peepholes, coupled)?
        };
        outputs.push(y);
        h.push(last_h);
        c.push(last_c);
    }
    finish(cx, &n, &outputs, &[h, c])
}

/// One direction as an op: all states, and the last of both kinds.
fn lstm_op(cx: &mut Cx<'_, '_>, n: &Network, direction: usize, reverse: bool) -> Res<[ValueId; 3]> {
    // ONNX has input, output, forget and cell; the op has input, forget, cell and output.
    let ordered = |cx: &mut Cx<'_, '_>, x: ValueId| -> Res<ValueId> {
        let mut parts = Vec::new();
        for i in [0, 2, 3, 1] {
            parts.push(gate(cx, x, i, n.hidden)?);
        }
        cx.concat(&parts, 0)
    };
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
    let (h0, c0) = (begin(cx, n, 5, direction)?, begin(cx, n, 6, direction)?);
    let mut operands = vec![Some(gates), Some(h0), Some(c0), Some(r)];
    operands.extend(b_hh.map(Some));
    let results = cx.emit_all(Lstm { reverse }, operands)?;
    let [y, last_h, last_c] = results.as_slice() else { return wrong("expected three results") };
    Ok([*y, *last_h, *last_c])
}

/// As [`lstm_op`], step by step: with gates that see the cell, or whose forget gate is what the input gate leaves.
fn lstm_steps(
    cx: &mut Cx<'_, '_>,
    n: &Network,
    direction: usize,
    reverse: bool,
    peepholes: Option<ValueId>,
    coupled: bool,
) -> Res<[ValueId; 3]> {
    let mut gates = Vec::new();
    for i in 0..4 {
        gates.push(parts(cx, n, direction, i, 4)?);
    }
    let &[input, output, forget, cell] = gates.as_slice() else { return wrong("expected four gates") };
    let mut holes = [None; 3];
    if let Some(peepholes) = peepholes {
        let all = of(cx, peepholes, direction)?;
        for (i, hole) in holes.iter_mut().enumerate() {
            *hole = Some(gate(cx, all, i, n.hidden)?);
        }
    }
    let [see_input, see_output, see_forget] = holes;
    let seen = |cx: &mut Cx<'_, '_>, gate: ValueId, cell: ValueId, hole: Option<ValueId>| -> Res<ValueId> {
        let gate = match hole {
            Some(hole) => {
                let part = cx.binary(BinaryFn::Mul, hole, cell)?;
                cx.binary(BinaryFn::Add, gate, part)?
            }
            None => gate,
        };
        cx.unary(UnaryFn::Sigmoid, gate)
    };
    let step = |cx: &mut Cx<'_, '_>, x: ValueId, states: &[ValueId]| -> Res<Vec<ValueId>> {
        let &[h, c] = states else { return wrong("expected two states") };
        let i = sum(cx, x, h, input)?;
        let i = seen(cx, i, c, see_input)?;
        let f = if coupled {
            let one = cx.float_like(1.0, i)?;
            cx.binary(BinaryFn::Sub, one, i)?
        } else {
            let f = sum(cx, x, h, forget)?;
            seen(cx, f, c, see_forget)?
        };
        let fresh = sum(cx, x, h, cell)?;
        let fresh = cx.unary(UnaryFn::Tanh, fresh)?;
        let (kept, added) = (cx.binary(BinaryFn::Mul, f, c)?, cx.binary(BinaryFn::Mul, i, fresh)?);
        let c = cx.binary(BinaryFn::Add, kept, added)?;
        let o = sum(cx, x, h, output)?;
        let o = seen(cx, o, c, see_output)?;
        let shown = cx.unary(UnaryFn::Tanh, c)?;
        Ok(vec![cx.binary(BinaryFn::Mul, o, shown)?, c])
    };
    let states = vec![begin(cx, n, 5, direction)?, begin(cx, n, 6, direction)?];
    let (y, last) = unrolled(cx, n, reverse, states, step)?;
    match last.as_slice() {
        [h, c] => Ok([y, *h, *c]),
        _ => wrong("expected two states"),
    }
}

/// Runs one step for each element of the time axis, whose first state is the output; gives all outputs, in the order of the input,
/// and the last states. A sequence that is over keeps its states and gives zeros.
fn unrolled(
    cx: &mut Cx<'_, '_>,
    n: &Network,
    reverse: bool,
    mut states: Vec<ValueId>,
    step: impl Fn(&mut Cx<'_, '_>, ValueId, &[ValueId]) -> Res<Vec<ValueId>>,
) -> Res<(ValueId, Vec<ValueId>)> {
    let steps = cx.size(n.x, 0)?;
    if steps == 0 || steps > MOST_STEPS {
        return unsupported(format!("a recurrent network of {steps} steps"), format!("use 1 to {MOST_STEPS}"));
    }
    let mut all = Vec::with_capacity(steps);
    for i in 0..steps {
        let at = if reverse { steps - 1 - i } else { i };
        let row = of(cx, n.x, at)?;
        let mut next = step(cx, row, &states)?;
        let mut output = next.first().copied();
        if let Some(lengths) = n.lengths {
            let at = cx.literal(Scalar::Int(at as i64), DType::I64)?;
            let on = cx.compare(CompareFn::Lt, at, lengths)?;
            for (new, old) in next.iter_mut().zip(&states) {
                *new = cx.select(on, *new, *old)?;
            }
            if let Some(shown) = output {
                let zero = cx.float_like(0.0, shown)?;
                output = Some(cx.select(on, shown, zero)?);
            }
        }
        states = next;
        let Some(output) = output else { return wrong("expected a state") };
        all.push(cx.unsqueeze(output, 0)?);
    }
    if reverse {
        all.reverse();
    }
    Ok((cx.concat(&all, 0)?, states))
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
        let step = |cx: &mut Cx<'_, '_>, x: ValueId, states: &[ValueId]| -> Res<Vec<ValueId>> {
            let &[h] = states else { return wrong("expected one state") };
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
            Ok(vec![cx.binary(BinaryFn::Add, fresh, part)?])
        };
        let states = vec![begin(cx, &n, 5, direction)?];
        let (y, states) = unrolled(cx, &n, reverse, states, step)?;
        outputs.push(y);
        last.extend(states);
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
        let step = |cx: &mut Cx<'_, '_>, x: ValueId, states: &[ValueId]| -> Res<Vec<ValueId>> {
            let &[h] = states else { return wrong("expected one state") };
            let sum = sum(cx, x, h, part)?;
            Ok(vec![cx.unary(f, sum)?])
        };
        let states = vec![begin(cx, &n, 5, direction)?];
        let (y, states) = unrolled(cx, &n, reverse, states, step)?;
        outputs.push(y);
        last.extend(states);
    }
    finish(cx, &n, &outputs, &[last])
}
