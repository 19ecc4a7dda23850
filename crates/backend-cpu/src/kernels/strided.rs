//! Makes a strided value row-major.

use regraft_backend::{BackendError, DataError, NodeSpec};

use super::{
    CpuKernel, Cx,
    support::{elements, elements_mut, expect_plain, operand, read, unsupported},
};
use crate::nn::transpose::copy_strided;

struct Prepared {
    cx: Cx,
    /// Bytes of an element.
    size: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

pub(super) fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    expect_plain(node, [0])?;
    let x = operand(node, 0)?;
    if node.outputs.len() != 1 || (node.outputs[0].dtype, node.outputs[0].shape) != (x.dtype, x.shape) {
        return Err(unsupported(node, "a copy has the type of what it copies"));
    }
    let (shape, strides) = (x.shape.to_vec(), x.strides.to_vec());
    Ok(Box::new(Prepared { cx: cx.clone(), size: x.dtype.size(), shape, strides }))
}

impl CpuKernel for Prepared {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let (from, to) = (read(inputs, 0), &mut *outputs[0]);
        match self.size {
            8 => self.copy::<u64>(from, to),
            4 => self.copy::<u32>(from, to),
            2 => self.copy::<u16>(from, to),
            _ => self.copy::<u8>(from, to),
        }
        Ok(())
    }
}

impl Prepared {
    fn copy<T: bytemuck::Pod + Send + Sync>(&self, from: &[u8], to: &mut [u8]) {
        let (from, to) = (elements::<T>(from), elements_mut::<T>(to));
        copy_strided(&self.cx.threads, self.cx.isa, from, &self.shape, &self.strides, to);
    }
}
