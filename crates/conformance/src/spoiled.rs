use std::sync::{
    Arc, Mutex,
    atomic::{AtomicIsize, Ordering},
};

use regraft::{Buffer, RefitMap, Tensor, ir::Op};
use regraft_backend::{
    BackendError, Codegen, Comparison, Device, Given, KeptSource, Kernel, KernelId, Memory, MemoryKind, NodeSpec,
    Operand, OutOfMemory, Pace, PackError, PackJob, Packer, Queue, QueueClass, RegionMut, SlotLayout, StageObserver,
    Target, adapter::Overlay,
};

/// A device whose packing can be made to fail, to panic or to write wrong values.
pub struct Spoiled {
    inner: Arc<dyn Device>,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    how: Mutex<Option<How>>,
    /// Slots that still go well.
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
    /// A device that works.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Spoiled { inner, faults: Arc::default() }
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
        *self.faults.how.lock().expect("nothing panics while it is held") = how;
        self.faults.left.store(good as isize, Ordering::SeqCst);
    }
}

impl Faults {
    fn fault(&self) -> Option<How> {
        let how = (*self.how.lock().expect("nothing panics while it is held"))?;
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        (left <= 0 && (how != How::FailOnce || left == 0)).then_some(how)
    }
}

/// The packer of a spoiled device.
#[derive(Debug)]
struct SpoiledPacker {
    inner: Arc<dyn Packer>,
    faults: Arc<Faults>,
    /// A queue to write wrong values with.
    queue: SpoiledQueue,
}

struct SpoiledQueue(Arc<dyn Queue>);

impl std::fmt::Debug for SpoiledQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SpoiledQueue")
    }
}

impl SpoiledPacker {
    /// Slot by slot, so that some are made before one fails.
    fn pack_one(&self, mut job: PackJob<'_>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        let (slot, fault) = (job.slot, self.faults.fault());
        match fault {
            Some(How::Fail | How::FailOnce) => return Err(PackError::Recipe { slot, why: "injected".into() }),
            Some(How::Panic) => panic!("injected"),
            Some(How::Wrong) | None => {}
        }
        let PackJob { given, out, .. } = &mut job;
        let (given, out) = (std::mem::take(given), out.reborrow());
        self.inner.pack(vec![PackJob { slot, given, out }], pace, observer)?;
        if fault.is_some() {
            let first: RegionMut<'_> = job.out.part(0..4);
            self.queue.0.write(&1234f32.to_ne_bytes(), first);
            self.queue.0.fence().wait().expect("a write of four bytes");
        }
        Ok(())
    }
}

impl Packer for SpoiledPacker {
    fn pack(&self, jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        jobs.into_iter().try_for_each(|job| self.pack_one(job, pace, observer))
    }

    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool {
        self.inner.is_one_pass(slot, given)
    }

    fn keeps(&self, slot: usize, source: usize) -> bool {
        self.inner.keeps(slot, source)
    }

    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        self.inner.read_back(kept)
    }

    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        self.inner.differ(pairs)
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError> {
        self.inner.merge(overlay, source)
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError> {
        self.inner.fill_norms(overlay, source)
    }
}

impl Device for Spoiled {
    fn packer(&self, map: &RefitMap, layouts: &[SlotLayout]) -> Result<Arc<dyn Packer>, BackendError> {
        let inner = self.inner.packer(map, layouts)?;
        let queue = SpoiledQueue(self.inner.queue(QueueClass::Stage)?);
        Ok(Arc::new(SpoiledPacker { inner, faults: self.faults.clone(), queue }))
    }

    fn codegen(&self) -> &dyn Codegen {
        self.inner.codegen()
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn processor(&self) -> String {
        self.inner.processor()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn runs(&self, target: &Target) -> bool {
        self.inner.runs(target)
    }

    fn reads_host(&self) -> bool {
        self.inner.reads_host()
    }

    fn alloc(&self, bytes: usize, kind: MemoryKind) -> Result<Box<dyn Memory>, OutOfMemory> {
        self.inner.alloc(bytes, kind)
    }

    fn adopt(&self, contents: &Buffer) -> Result<Box<dyn Memory>, BackendError> {
        self.inner.adopt(contents)
    }

    fn queue(&self, class: QueueClass) -> Result<Arc<dyn Queue>, BackendError> {
        self.inner.queue(class)
    }

    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
        self.inner.reads_strided(kernel, op, index, operand)
    }

    fn prepare(&self, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError> {
        self.inner.prepare(node)
    }
}
