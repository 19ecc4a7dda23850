//! The CPU as a [`Backend`].

use regraft_backend::{
    Backend, BackendError, Candidate, Kernel, KernelId, Operand, OperandType, PackFormat, PieceData, Problem,
    SlotLayout, Target, adapter::Overlay,
};
use regraft_ir::{Op, TensorType};
use regraft_tensor::{DType, Tensor};

use crate::{
    Isa, Threads,
    kernels::{self, Cx},
    nn::transpose::copy_strided,
    pack::{LANES, MatrixView, SourceElement, fill_norms, for_float, merge, pack_panels, panels_len},
};

/// Bytes that one task copies.
const COPY_CHUNK: usize = 1 << 20;

/// The CPU of this machine: an instruction set, threads for runs, and threads of their own for refits.
#[derive(Debug)]
pub struct CpuBackend {
    cx: Cx,
    staging: Threads,
}

impl CpuBackend {
    /// The best instruction set of this machine, with `threads` threads for runs and as many for refits; `None` for one per
    /// core.
    pub fn new(threads: Option<usize>) -> Self {
        CpuBackend::with_isa(Isa::detect(), threads)
    }

    /// An instruction set that this machine has, which need not be its best.
    ///
    /// # Panics
    /// When this machine does not have `isa`.
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // A machine that cannot start threads still runs, on the calling one.
        let pool = |count| Threads::new(count).unwrap_or_else(|_| Threads::single());
        let count = threads.unwrap_or(cores);
        CpuBackend { cx: Cx { isa: isa.verified(), threads: pool(count) }, staging: pool(count) }
    }
}

impl Backend for CpuBackend {
    fn target(&self) -> Target {
        Target {
            backend: "cpu".into(),
            arch: std::env::consts::ARCH.into(),
            level: self.cx.isa.name().into(),
            features: self.cx.isa.features().iter().map(|&feature| feature.into()).collect(),
        }
    }

    fn processor(&self) -> String {
        processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned())
    }

    fn runs(&self, target: &Target) -> bool {
        let own = self.target();
        // A lower level would run too, but by other kernels than its slots are packed for.
        let level = (&target.backend, &target.arch, &target.level) == (&own.backend, &own.arch, &own.level);
        level && target.missing_on(&own).is_empty()
    }

    fn candidates(&self, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate> {
        kernels::candidates(&self.cx, op, inputs, outputs)
    }

    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
        kernels::reads_strided(kernel, op, index, operand)
    }

    fn prepare(&self, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError> {
        kernels::prepare(&self.cx, problem)
    }

    fn copy_strided(&self, size: usize, shape: &[usize], strides: &[usize], from: &[u8], to: &mut [u8]) {
        let (threads, isa) = (&self.cx.threads, self.cx.isa);
        match size {
            8 => copy::<u64>(threads, isa, shape, strides, from, to),
            4 => copy::<u32>(threads, isa, shape, strides, from, to),
            2 => copy::<u16>(threads, isa, shape, strides, from, to),
            _ => copy::<u8>(threads, isa, shape, strides, from, to),
        }
    }

    fn pack(&self, layout: &SlotLayout, matrices: &[Vec<PieceData<'_>>], out: &mut [u8]) -> Result<(), BackendError> {
        let refuse = |why: &str| Err(BackendError::Pack { format: layout.format, why: why.to_owned() });
        let (PackFormat::PanelsF32 { nr }, [lead @ .., k, n]) = (layout.format, layout.shape.as_slice()) else {
            return refuse("only matrices are packed");
        };
        if nr == 0 || !nr.is_multiple_of(LANES) {
            return refuse("the panels are not of whole cache lines");
        }
        let each = panels_len(*k, *n, nr);
        let Ok(out) = bytemuck::try_cast_slice_mut::<u8, f32>(out) else { return refuse("the slot is not aligned") };
        if matrices.len() != lead.iter().product::<usize>() || matrices.len() * each != out.len() {
            return refuse("the matrices do not make up the slot");
        }
        for (pieces, out) in matrices.iter().zip(out.chunks_exact_mut(each.max(1))) {
            let fits = pieces.iter().all(|p| p.k_dims.iter().map(|d| d.0).product::<usize>() == *k && in_bounds(p));
            if !fits || pieces.iter().map(|p| p.n_len).sum::<usize>() != *n {
                return refuse("the pieces do not make up the matrix");
            }
            self.pack_matrix(pieces, nr, out).map_or_else(|| refuse("the pieces differ in dtype or alignment"), Ok)?;
        }
        Ok(())
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor, first: usize, out: &mut [u8]) -> Result<(), BackendError> {
        let size = source.dtype().size();
        let last = first.checked_add(out.len() / size).filter(|_| out.len().is_multiple_of(size));
        if source.dtype() != overlay.dtype {
            return Err(BackendError::Merge("the source is of another dtype"));
        }
        if source.numel() != overlay.rows * overlay.cols || last.is_none_or(|last| last > source.numel()) {
            return Err(BackendError::Merge("the source is of another size"));
        }
        let (threads, isa) = (&self.staging, self.cx.isa);
        let merged = for_float!(source.dtype(), T => {
            let data = bytemuck::try_cast_slice::<u8, T>(source.bytes()).ok();
            let out = bytemuck::try_cast_slice_mut::<u8, T>(out).ok();
            data.zip(out).map(|(data, out)| merge(threads, isa, overlay, data, first, out))
        });
        merged.flatten().ok_or(BackendError::Merge("the source is of no float type"))
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), BackendError> {
        if source.numel() != overlay.rows * overlay.cols {
            return Err(BackendError::Merge("the source is of another size"));
        }
        let (threads, isa) = (&self.staging, self.cx.isa);
        let filled = for_float!(source.dtype(), T => {
            bytemuck::try_cast_slice(source.bytes()).ok().map(|data: &[T]| fill_norms(threads, isa, overlay, data))
        });
        filled.flatten().ok_or(BackendError::Merge("the source is of no float type"))
    }

    fn for_each_staged(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        self.staging.for_each(count, task);
    }

    fn copy_staged(&self, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "a copy has the size of what it copies");
        self.staging.for_each_chunk(to, COPY_CHUNK, |i, chunk| {
            let start = i * COPY_CHUNK;
            chunk.copy_from_slice(&from[start..start + chunk.len()]);
        });
    }

    fn enter(&self, run: &mut (dyn FnMut() + Send)) {
        self.cx.threads.install(run);
    }

    fn threads(&self) -> usize {
        self.cx.threads.count()
    }
}

impl CpuBackend {
    /// Packs one matrix whose pieces have one dtype; `None` when they do not.
    fn pack_matrix(&self, pieces: &[PieceData<'_>], nr: usize, out: &mut [f32]) -> Option<()> {
        let dtype = pieces.first().map_or(DType::F32, |p| p.dtype);
        if pieces.iter().any(|p| p.dtype != dtype) {
            return None;
        }
        for_float!(dtype, T => self.pack_elements::<T>(pieces, nr, out)).flatten()
    }

    fn pack_elements<T: SourceElement + bytemuck::Pod>(
        &self,
        pieces: &[PieceData<'_>],
        nr: usize,
        out: &mut [f32],
    ) -> Option<()> {
        let views = pieces.iter().map(view::<T>).collect::<Option<Vec<_>>>()?;
        pack_panels(&self.staging, self.cx.isa, &views, nr, out);
        Some(())
    }
}

/// The name of the first processor, where the system tells it.
fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn copy<T: bytemuck::Pod + Send + Sync>(
    threads: &Threads,
    isa: Isa,
    shape: &[usize],
    strides: &[usize],
    from: &[u8],
    to: &mut [u8],
) {
    let whole = from.len() / size_of::<T>() * size_of::<T>();
    let (from, to) = (bytemuck::cast_slice::<u8, T>(&from[..whole]), bytemuck::cast_slice_mut(to));
    copy_strided(threads, isa, from, shape, strides, to);
}

fn view<'a, T: bytemuck::Pod>(piece: &PieceData<'a>) -> Option<MatrixView<'a, T>> {
    Some(MatrixView {
        data: bytemuck::try_cast_slice(piece.data).ok()?,
        offset: piece.offset,
        k_dims: piece.k_dims.to_vec(),
        n_len: piece.n_len,
        n_stride: piece.n_stride,
        scale: piece.scale,
        overlay: piece.overlay,
    })
}

/// Whether every element of a piece lies inside its source, and there is a scale for each column.
fn in_bounds(piece: &PieceData<'_>) -> bool {
    let dims = || piece.k_dims.iter().copied().chain([(piece.n_len, piece.n_stride)]);
    if piece.scale.is_some_and(|s| s.len() != piece.n_len) {
        return false;
    }
    if dims().any(|(size, _)| size == 0) {
        return true;
    }
    let last = dims().try_fold(piece.offset, |at, (size, stride)| at.checked_add((size - 1).checked_mul(stride)?));
    last.is_some_and(|last| last < piece.data.len() / piece.dtype.size())
}
