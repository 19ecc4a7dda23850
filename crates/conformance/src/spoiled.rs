use std::sync::{
    Arc, Mutex,
    atomic::{AtomicIsize, Ordering},
};

use regraft::{
    Tensor,
    ir::{Op, TensorType},
};
use regraft_backend::{
    Backend, BackendError, Candidate, Kernel, KernelId, Operand, OperandType, PieceData, Problem, SlotLayout, Target,
    adapter::Overlay,
};
use regraft_backend_cpu::CpuBackend;

/// A backend whose packing can be made to fail, to panic or to write wrong values.
#[derive(Debug)]
pub struct Spoiled {
    inner: Arc<CpuBackend>,
    how: Mutex<Option<How>>,
    /// Packs that still go well.
    left: AtomicIsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Fail,
    FailOnce,
    Panic,
    Wrong,
}

impl Spoiled {
    /// A backend that works.
    pub fn new(inner: Arc<CpuBackend>) -> Self {
        Spoiled { inner, how: Mutex::new(None), left: AtomicIsize::new(0) }
    }

    /// All packs but the first `good` fail.
    pub fn fail_pack_after(&self, good: usize) {
        self.set(Some(How::Fail), good);
    }

    /// The pack after the first `good` fails.
    pub fn fail_one_pack_after(&self, good: usize) {
        self.set(Some(How::FailOnce), good);
    }

    /// All packs but the first `good` panic.
    pub fn panic_in_pack_after(&self, good: usize) {
        self.set(Some(How::Panic), good);
    }

    /// All packs but the first `good` write a wrong value.
    pub fn spoil_pack_after(&self, good: usize) {
        self.set(Some(How::Wrong), good);
    }

    /// Everything works again.
    pub fn heal(&self) {
        self.set(None, 0);
    }

    fn set(&self, how: Option<How>, good: usize) {
        *self.how.lock().expect("nothing panics while it is held") = how;
        self.left.store(good as isize, Ordering::SeqCst);
    }

    fn fault(&self) -> Option<How> {
        let how = (*self.how.lock().expect("nothing panics while it is held"))?;
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        (left <= 0 && (how != How::FailOnce || left == 0)).then_some(how)
    }
}

impl Backend for Spoiled {
    fn pack(&self, layout: &SlotLayout, matrices: &[Vec<PieceData<'_>>], out: &mut [u8]) -> Result<(), BackendError> {
        let fault = self.fault();
        match fault {
            Some(How::Fail | How::FailOnce) => {
                return Err(BackendError::Pack { format: layout.format, why: "injected".into() });
            }
            Some(How::Panic) => panic!("injected"),
            Some(How::Wrong) | None => {}
        }
        self.inner.pack(layout, matrices, out)?;
        if fault.is_some() {
            out[..4].copy_from_slice(&1234f32.to_ne_bytes());
        }
        Ok(())
    }

    fn target(&self) -> Target {
        self.inner.target()
    }

    fn processor(&self) -> String {
        self.inner.processor()
    }

    fn runs(&self, target: &Target) -> bool {
        self.inner.runs(target)
    }

    fn candidates(&self, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate> {
        self.inner.candidates(op, inputs, outputs)
    }

    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
        self.inner.reads_strided(kernel, op, index, operand)
    }

    fn prepare(&self, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError> {
        self.inner.prepare(problem)
    }

    fn copy_strided(&self, size: usize, shape: &[usize], strides: &[usize], from: &[u8], to: &mut [u8]) {
        self.inner.copy_strided(size, shape, strides, from, to);
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor, first: usize, out: &mut [u8]) -> Result<(), BackendError> {
        self.inner.merge(overlay, source, first, out)
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), BackendError> {
        self.inner.fill_norms(overlay, source)
    }

    fn for_each_staged(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        self.inner.for_each_staged(count, task);
    }

    fn copy_staged(&self, from: &[u8], to: &mut [u8]) {
        self.inner.copy_staged(from, to);
    }

    fn enter(&self, run: &mut (dyn FnMut() + Send)) {
        self.inner.enter(run);
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }
}
