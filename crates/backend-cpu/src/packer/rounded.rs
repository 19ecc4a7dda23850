//! Slots of weights that are rounded to small integers: what is rounded is computed as its recipe says, then rows are rounded and put
//! in their places side by side.

use regraft_ir::{
    Graph, Op, ValueId,
    ops::{Quantize, WeightFormat},
};
use regraft_tensor::Tensor;

use super::{PackCx, recipe::up_to};
use crate::format::BytePanels;

/// A recipe that ends in one of the two parts of a rounded weight, transposed.
#[derive(Debug)]
pub(super) struct Rounded {
    /// The recipe of what is rounded.
    pub(super) weight: Graph,
    format: WeightFormat,
    /// Whether the slot holds the scales, and not the whole numbers.
    scales: bool,
}

impl Rounded {
    /// Recognizes `permute (quantize weight)`.
    pub(super) fn find(recipe: &Graph) -> Option<Rounded> {
        let [output] = recipe.outputs.as_slice() else { return None };
        let made_by = |value: ValueId| recipe.producer(value).map(|id| recipe.node(id));
        let last = made_by(output.value)?;
        let Op::Permute(permute) = &last.op else { return None };
        let part = last.input(0);
        let node = made_by(part)?;
        let Op::Quantize(Quantize { format }) = node.op else { return None };
        if permute.perm != [1, 0] {
            return None;
        }
        Some(Rounded { weight: up_to(recipe, node.input(0))?, format, scales: part != node.outputs[0] })
    }

    /// Rounds the rows of `weight` and fills the slot: with panels of bytes, or with scales, `[runs, rows]`.
    pub(super) fn fill(
        &self,
        cx: &PackCx,
        weight: &Tensor,
        panels: Option<BytePanels>,
        out: &mut [u8],
    ) -> Result<(), String> {
        let (&[n, k], Some(values)) = (weight.shape(), weight.as_slice::<f32>()) else {
            return Err("what is rounded is a matrix of f32".into());
        };
        if !self.format.takes(k) {
            return Err("rows do not fit".into());
        }
        let (width, runs) = (self.format.row_bytes(k), k / self.format.run(k));
        let round = |row: usize, bytes: &mut [u8], scales: &mut [f32]| {
            self.format.round_row(&values[row * k..][..k], bytes, scales);
        };
        match panels {
            None if self.scales => {
                let out = bytemuck::try_cast_slice_mut::<_, f32>(out).map_err(|_| "the slot is not aligned")?;
                if out.len() != n * runs {
                    return Err("the scales do not fill the slot".into());
                }
                let mut rows = vec![0f32; n * runs];
                cx.threads.for_each_chunk(&mut rows, runs, |row, scales| round(row, &mut vec![0; width], scales));
                for (row, scales) in rows.chunks_exact(runs).enumerate() {
                    scales.iter().enumerate().for_each(|(run, scale)| out[run * n + row] = *scale);
                }
                Ok(())
            }
            Some(panels) if !self.scales && out.len() == n.div_ceil(panels.nr) * panels.panel_bytes(width) => {
                cx.threads.for_each_chunk(out, panels.panel_bytes(width), |panel, out| {
                    out.fill(0);
                    let (mut bytes, mut scales) = (vec![0u8; width], vec![0f32; runs]);
                    for column in 0..panels.nr.min(n - panel * panels.nr) {
                        round(panel * panels.nr + column, &mut bytes, &mut scales);
                        for (step, byte) in bytes.iter().enumerate() {
                            out[panels.place_in_panel(step, column)] = *byte;
                        }
                    }
                });
                Ok(())
            }
            _ => Err("the rows do not make up the slot".into()),
        }
    }
}
