//! LSTM networks: a linear op and the recurrent op per layer and direction.

use regraft_ir::ops::{Activation, Concat, Linear, Lstm};
use regraft_tensor::Dim;

use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

pub(super) fn lstm(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    if cx.bool_or("train", false)? && cx.float_or("dropout", 0.0)? != 0.0 {
        return unsupported("an LSTM in training mode", "call model.eval() before exporting");
    }
    let mut x = cx.tensor("input")?;
    let (states, params) = (cx.tensors("hx")?, cx.tensors("params")?);
    let [h0, c0] = states.as_slice() else { return wrong("expected two states of the LSTM") };
    let (mut h0, mut c0) = (*h0, *c0);
    let biases = cx.bool_or("has_biases", true)?;
    let directions = if cx.bool_or("bidirectional", false)? { 2 } else { 1 };
    let batch_first = cx.bool_or("batch_first", false)?;
    let layers = cx.int("num_layers")?;
    let Some(layers) = usize::try_from(layers).ok().filter(|l| *l <= params.len()) else {
        return wrong(format!("expected parameters for {layers} layers, found {}", params.len()));
    };
    let per = if biases { 4 } else { 2 };
    if params.len() == layers * directions * (per + 1) {
        return unsupported("an LSTM with projections (proj_size)", "use an LSTM without proj_size");
    }
    if params.len() != layers * directions * per {
        return wrong(format!("expected {} parameters of the LSTM, found {}", layers * directions * per, params.len()));
    }
    // Without a batch axis: `[t, features]`, states `[layers, h]`.
    let alone = cx.rank(x) == 2;
    if alone {
        (x, h0, c0) = (cx.unsqueeze(x, 1)?, cx.unsqueeze(h0, 1)?, cx.unsqueeze(c0, 1)?);
    } else if batch_first {
        x = cx.permute(x, vec![1, 0, 2])?;
    }
    if cx.rank(x) != 3 || cx.rank(h0) != 3 || cx.rank(c0) != 3 {
        return wrong("expected an input and states with three axes");
    }
    let (mut last_h, mut last_c) = (Vec::new(), Vec::new());
    let mut sets = params.chunks_exact(per);
    for layer in 0..layers {
        let mut outputs = Vec::new();
        for direction in 0..directions {
            let Some([w_ih, w_hh, rest @ ..]) = sets.next() else { return wrong("expected parameters") };
            let (b_ih, b_hh) = match rest {
                [b_ih, b_hh] => (Some(*b_ih), Some(*b_hh)),
                _ => (None, None),
            };
            let linear = Linear { act: Activation::None, act_first: false };
            let gates = cx.emit_opt(linear, vec![Some(x), Some(*w_ih), b_ih])?;
            let at = layer * directions + direction;
            let (h, c) = (state(cx, h0, at)?, state(cx, c0, at)?);
            let op = Lstm { reverse: direction == 1 };
            let mut inputs = vec![Some(gates), Some(h), Some(c), Some(*w_hh)];
            inputs.extend(b_hh.map(Some));
            let out = cx.emit_all(op, inputs)?;
            let [y, h, c] = out.as_slice() else { return wrong("expected three results") };
            outputs.push(*y);
            last_h.push(cx.unsqueeze(*h, 0)?);
            last_c.push(cx.unsqueeze(*c, 0)?);
        }
        x = concat(cx, &outputs, 2)?;
    }
    let (mut h, mut c) = (concat(cx, &last_h, 0)?, concat(cx, &last_c, 0)?);
    if alone {
        (x, h, c) = (cx.squeeze(x, 1)?, cx.squeeze(h, 1)?, cx.squeeze(c, 1)?);
    } else if batch_first {
        x = cx.permute(x, vec![1, 0, 2])?;
    }
    Ok(vec![Some(x), Some(h), Some(c)])
}

fn concat(cx: &mut Cx<'_, '_>, parts: &[ValueId], axis: usize) -> Res<ValueId> {
    match parts {
        [one] => Ok(*one),
        parts => cx.emit(Concat { axis }, parts),
    }
}

/// The state of one layer and direction.
fn state(cx: &mut Cx<'_, '_>, all: ValueId, at: usize) -> Res<ValueId> {
    let row = cx.slice(all, 0, Dim::from(at), Dim::from(at + 1))?;
    cx.squeeze(row, 0)
}
