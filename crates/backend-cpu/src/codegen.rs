//! The CPU as the compiler sees it.

use std::sync::Arc;

use regraft_backend::{Candidate, Codegen, FormatId, Lowering, OperandType, Plain, SlotFormat, Target};
use regraft_ir::{
    Op, TensorType,
    ops::{Fused, SpatialLayout, WeightFormat},
};
use regraft_tensor::DType;

use crate::{
    Isa,
    format::{BytePanels, Panels},
    kernels,
    simd::FloatType,
};

/// Chooses kernels for one instruction set of an x86-64 or other CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuCodegen {
    isa: Isa,
}

impl CpuCodegen {
    /// For an instruction set, which this machine need not have.
    pub fn new(isa: Isa) -> Self {
        CpuCodegen { isa }
    }
}

impl Codegen for CpuCodegen {
    fn target(&self) -> Target {
        let level = self.isa.of_engines();
        Target {
            backend: "cpu".into(),
            arch: std::env::consts::ARCH.into(),
            level: level.name().into(),
            features: level.features().iter().map(|&feature| feature.into()).collect(),
        }
    }

    fn lowering(&self) -> &dyn Lowering {
        self
    }

    fn candidates(&self, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate> {
        kernels::candidates(self.isa, op, inputs, outputs)
    }

    fn format(&self, id: &FormatId) -> Option<Arc<dyn SlotFormat>> {
        if id.is_plain() {
            return Some(Arc::new(Plain));
        }
        match Panels::parse(id) {
            Some(panels) => Some(Arc::new(panels)),
            None => Some(Arc::new(BytePanels::parse(id)?)),
        }
    }
}

impl Lowering for CpuCodegen {
    fn image_layout(&self, dtype: DType) -> SpatialLayout {
        // What convolution kernels want; where there is none, a change of layout would be a pass for nothing.
        if FloatType::of(dtype).is_some() { SpatialLayout::Nhwc } else { SpatialLayout::Nchw }
    }

    fn fuses(&self, op: &Fused, operands: &[DType]) -> bool {
        kernels::fuses(op, operands)
    }

    fn takes_epilogue(&self, _: &Op, _: DType) -> bool {
        true
    }

    fn pairs_convs(&self, between: &TensorType) -> bool {
        kernels::pairs(between)
    }

    fn rotates(&self, dtype: DType) -> bool {
        FloatType::of(dtype).is_some()
    }

    fn stores_weights(&self, _: WeightFormat) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_need_no_tiles() {
        let [with, without] = [Isa::Amx, Isa::Avx512Bf16].map(|isa| CpuCodegen::new(isa).target());
        assert_eq!(with, without);
        assert_ne!(without, CpuCodegen::new(Isa::Avx512).target());
    }
}
