//! Matrix products by cuBLASLt.
//!
//! Matrices are row-major here. The library's are column-major, so that the weight is its first operand and the result is
//! its transpose: `D[n, m] = W[n, k] · X[k, m]`.

mod ffi;

use std::{ffi::c_void, path::Path, ptr, sync::Arc};

use regraft_tensor::DType;

use self::ffi::{CublasLt, Found, Handle};
use crate::{
    driver::{Context, Span, Stream},
    error::CudaError,
    library::{LibraryKind, Lookup, Version},
};

/// Scratch memory that every product may use. Fixed, because the library's choice would otherwise depend on free memory.
pub const WORKSPACE: usize = 32 << 20;

/// The activation of a product's epilogue. The library has no exact GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// None.
    None,
    /// `max(x, 0)`
    Relu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// A matrix operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Distance of rows in memory, in elements.
    pub leading: usize,
    /// Whether memory holds the transpose of the matrix.
    pub turned: bool,
    /// Distance of neighboring matrices of a batch; 0 for one that serves all.
    pub batch_stride: usize,
}

/// `out[m, n] = act(x[m, k] · w[k, n] + bias[n] + residual[m, n])`, for each matrix of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Inner size.
    pub k: usize,
    /// Number of matrices.
    pub batch: usize,
    /// `[m, k]`, or `[k, m]` in memory when turned.
    pub x: Matrix,
    /// `[k, n]`, or `[n, k]` in memory when turned.
    pub w: Matrix,
    /// Distance of rows of the result, and of the residual.
    pub out_leading: usize,
    /// Distance of neighboring matrices of the result.
    pub out_batch_stride: usize,
    /// Type of `x` and `w`.
    pub dtype: DType,
    /// Type of the result, the bias and the residual.
    pub out: DType,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is a residual.
    pub residual: bool,
    /// The activation.
    pub act: Activation,
    /// Whether f32 operands may be rounded to TF32.
    pub tf32: bool,
}

/// An algorithm of this version of the library; plain data, for tuning records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Algorithm {
    words: [u64; 8],
    /// Bytes of workspace that it uses.
    pub workspace: usize,
}

impl Algorithm {
    /// As text, for tuning records. The text holds for one version of the library.
    pub fn to_text(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|w| format!("{w:016x}")).collect();
        format!("{}.{}", words.join(""), self.workspace)
    }

    /// From its text. [`Blas::check`] tells whether it fits a problem.
    pub fn from_text(text: &str) -> Option<Algorithm> {
        let (hex, workspace) = text.split_once('.')?;
        if hex.len() != 128 || !hex.is_ascii() {
            return None;
        }
        let mut words = [0; 8];
        for (i, word) in words.iter_mut().enumerate() {
            *word = u64::from_str_radix(&hex[16 * i..16 * i + 16], 16).ok()?;
        }
        let workspace = workspace.parse().ok().filter(|&w| w <= WORKSPACE)?;
        Some(Algorithm { words, workspace })
    }
}

/// cuBLASLt with a handle.
#[derive(Clone)]
pub struct Blas {
    inner: Arc<Inner>,
}

struct Inner {
    api: CublasLt,
    handle: Handle,
    version: Version,
    context: Context,
}

// SAFETY: the library's handle may be used from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: nobody else has the handle.
            unsafe { (self.api.cublasLtDestroy)(self.handle) };
        }
    }
}

/// Operands of a product in memory.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// The left matrix.
    pub x: Span,
    /// The right matrix.
    pub w: Span,
    /// The bias.
    pub bias: Option<Span>,
    /// The residual; may be the result's own memory.
    pub residual: Option<Span>,
    /// The result.
    pub out: Span,
    /// Scratch memory of at least the algorithm's size.
    pub workspace: Option<Span>,
}

impl Blas {
    /// The library and its version, whatever it is.
    pub(crate) fn found(lookup: &Lookup) -> Result<(CublasLt, Version), CudaError> {
        let api = CublasLt::load(lookup.open(LibraryKind::CublasLt)?)?;
        // SAFETY: the function takes nothing.
        let number = u32::try_from(unsafe { (api.cublasLtGetVersion)() }).unwrap_or(0);
        // 130200 is 13.2.0; 120402 is 12.4.2.
        Ok((api, Version([number / 10_000, number % 10_000 / 100, number % 100])))
    }

    /// Opens cuBLASLt for a device.
    ///
    /// # Errors
    /// When it is missing, too old, or cannot start.
    pub fn open(lookup: &Lookup, context: &Context) -> Result<Blas, CudaError> {
        context.bind()?;
        let (api, version) = Blas::found(lookup)?;
        api.opened.require(version)?;
        let mut handle: Handle = ptr::null_mut();
        // SAFETY: `handle` is written; a context is current.
        status("cublasLtCreate", unsafe { (api.cublasLtCreate)(&raw mut handle) })?;
        Ok(Blas { inner: Arc::new(Inner { api, handle, version, context: context.clone() }) })
    }

    /// The library's version.
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        self.inner.api.opened.path()
    }

    /// At most `count` algorithms for a product, what the library thinks best first.
    ///
    /// # Errors
    /// When it has none.
    pub fn candidates(&self, product: &Product, count: usize) -> Result<Vec<Algorithm>, CudaError> {
        self.candidates_aligned(product, count, product.alignment())
    }

    /// [`Blas::candidates`] for operands at multiples of `alignment` bytes, whatever the product's sizes promise.
    ///
    /// # Errors
    /// When it has none.
    pub fn candidates_aligned(
        &self,
        product: &Product,
        count: usize,
        alignment: u32,
    ) -> Result<Vec<Algorithm>, CudaError> {
        self.inner.context.bind()?;
        let api = &self.inner.api;
        let shape = Shape::new(api, product)?;
        let mut raw: Handle = ptr::null_mut();
        // SAFETY: the handle is written.
        status("cublasLtMatmulPreferenceCreate", unsafe { (api.cublasLtMatmulPreferenceCreate)(&raw mut raw) })?;
        let preference = Owned { handle: raw, destroy: api.cublasLtMatmulPreferenceDestroy };
        let set = |attribute: i32, value: *const c_void, size: usize| {
            // SAFETY: the value has the attribute's type.
            let code = unsafe { (api.cublasLtMatmulPreferenceSetAttribute)(preference.handle, attribute, value, size) };
            status("cublasLtMatmulPreferenceSetAttribute", code)
        };
        let workspace = WORKSPACE;
        set(ffi::preference::WORKSPACE, (&raw const workspace).cast(), 8)?;
        for attribute in ffi::preference::ALIGNMENTS {
            set(attribute, (&raw const alignment).cast(), 4)?;
        }
        let empty = Found { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut found = vec![empty; count];
        let mut returned = 0;
        // SAFETY: the array has room for `count` results.
        let code = unsafe {
            (api.cublasLtMatmulAlgoGetHeuristic)(
                self.inner.handle,
                shape.desc.handle,
                shape.w.handle,
                shape.x.handle,
                shape.c.handle,
                shape.c.handle,
                preference.handle,
                count as i32,
                found.as_mut_ptr(),
                &raw mut returned,
            )
        };
        found.truncate(usize::try_from(returned).unwrap_or(0));
        found.retain(|f| f.state == 0 && f.workspace <= WORKSPACE);
        if code != 0 || found.is_empty() {
            return Err(CudaError::NoAlgorithm { library: "cuBLASLt", problem: format!("{product:?}") });
        }
        Ok(found.into_iter().map(|f| Algorithm { words: f.algorithm, workspace: f.workspace }).collect())
    }

    /// The algorithm with the workspace that it needs for `product`, if it fits: one from a record may not.
    pub fn check(&self, product: &Product, algorithm: &Algorithm) -> Option<Algorithm> {
        self.inner.context.bind().ok()?;
        let api = &self.inner.api;
        let shape = Shape::new(api, product).ok()?;
        let mut found = Found { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        // SAFETY: all handles are alive; `found` is written.
        let code = unsafe {
            (api.cublasLtMatmulAlgoCheck)(
                self.inner.handle,
                shape.desc.handle,
                shape.w.handle,
                shape.x.handle,
                shape.c.handle,
                shape.c.handle,
                &raw const algorithm.words,
                &raw mut found,
            )
        };
        (code == 0 && found.workspace <= WORKSPACE)
            .then_some(Algorithm { words: algorithm.words, workspace: found.workspace })
    }

    /// Puts a product into the stream.
    ///
    /// # Errors
    /// When a region is too small, or the library refuses.
    pub fn launch(
        &self,
        stream: &Stream,
        product: &Product,
        algorithm: &Algorithm,
        operands: Operands,
    ) -> Result<(), CudaError> {
        product.check(&operands, algorithm)?;
        self.inner.context.bind()?;
        let api = &self.inner.api;
        let shape = Shape::new(api, product)?;
        if let Some(bias) = operands.bias {
            let address = bias.address();
            shape.set(api, ffi::desc::BIAS_POINTER, (&raw const address).cast(), 8)?;
        }
        let alpha = 1.0f32;
        let beta = if product.residual { 1.0f32 } else { 0.0 };
        let out = operands.out.address() as *mut c_void;
        let added = operands.residual.map_or(out, |r| r.address() as *mut c_void);
        let workspace = operands.workspace.map_or(ptr::null_mut(), |w| w.address() as *mut c_void);
        // SAFETY: the regions hold the matrices that the shape describes, which `check` compared; scalars are on the host.
        status("cublasLtMatmul", unsafe {
            (api.cublasLtMatmul)(
                self.inner.handle,
                shape.desc.handle,
                (&raw const alpha).cast(),
                operands.w.address() as *const c_void,
                shape.w.handle,
                operands.x.address() as *const c_void,
                shape.x.handle,
                (&raw const beta).cast(),
                added,
                shape.c.handle,
                out,
                shape.c.handle,
                &raw const algorithm.words,
                workspace,
                algorithm.workspace,
                stream.raw(),
            )
        })
    }
}

impl Product {
    /// Bytes that all addresses are multiples of.
    fn alignment(&self) -> u32 {
        let bytes = [
            self.x.leading * self.dtype.size(),
            self.w.leading * self.dtype.size(),
            self.out_leading * self.out.size(),
            self.x.batch_stride * self.dtype.size(),
            self.w.batch_stride * self.dtype.size(),
            self.out_batch_stride * self.out.size(),
        ];
        bytes.iter().fold(16u32, |all, &b| if b == 0 { all } else { all.min(1 << b.trailing_zeros().min(4)) })
    }

    /// Compares the operands' sizes with the problem.
    fn check(&self, operands: &Operands, algorithm: &Algorithm) -> Result<(), CudaError> {
        let (ds, os) = (self.dtype.size(), self.out.size());
        let span = |rows: usize, cols: usize, m: &Matrix| {
            let (outer, inner) = if m.turned { (cols, rows) } else { (rows, cols) };
            (self.batch.saturating_sub(1) * m.batch_stride + outer.saturating_sub(1) * m.leading + inner) * ds
        };
        let out = ((self.batch.saturating_sub(1)) * self.out_batch_stride
            + self.m.saturating_sub(1) * self.out_leading
            + self.n)
            * os;
        let at_least = |region: Option<Span>, needed: usize| match region {
            Some(region) if region.len() < needed => Err(CudaError::Region { found: region.len(), needed }),
            None if needed > 0 => Err(CudaError::Region { found: 0, needed }),
            _ => Ok(()),
        };
        at_least(Some(operands.x), span(self.m, self.k, &self.x))?;
        at_least(Some(operands.w), span(self.k, self.n, &self.w))?;
        at_least(Some(operands.out), out)?;
        at_least(operands.bias, if self.bias { self.n * os } else { 0 })?;
        at_least(operands.residual, if self.residual { out } else { 0 })?;
        at_least(operands.workspace, algorithm.workspace)
    }
}

/// The library's objects for a product.
struct Shape {
    desc: Owned,
    w: Owned,
    x: Owned,
    c: Owned,
}

struct Owned {
    handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> i32,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the handle was made by the function that belongs to `destroy`, and nobody else has it.
        unsafe { (self.destroy)(self.handle) };
    }
}

fn data_type(dtype: DType) -> Result<i32, CudaError> {
    match dtype {
        DType::F32 => Ok(ffi::data::F32),
        DType::F16 => Ok(ffi::data::F16),
        DType::BF16 => Ok(ffi::data::BF16),
        other => Err(CudaError::NoAlgorithm { library: "cuBLASLt", problem: format!("matrices of {other}") }),
    }
}

impl Shape {
    fn new(api: &CublasLt, p: &Product) -> Result<Shape, CudaError> {
        let compute = if p.dtype == DType::F32 && p.tf32 { ffi::compute::TF32 } else { ffi::compute::F32 };
        let mut desc: Handle = ptr::null_mut();
        // SAFETY: the handle is written.
        status("cublasLtMatmulDescCreate", unsafe {
            (api.cublasLtMatmulDescCreate)(&raw mut desc, compute, ffi::data::F32)
        })?;
        let desc = Owned { handle: desc, destroy: api.cublasLtMatmulDescDestroy };
        let data = data_type(p.dtype)?;
        let matrix = |rows: usize, cols: usize, m: &Matrix| {
            layout(api, data, if m.turned { (cols, rows) } else { (rows, cols) }, m.leading, p.batch, m.batch_stride)
        };
        // Column-major views: the library sees rows and columns exchanged.
        let w = matrix(p.n, p.k, &p.w)?;
        let x = matrix(p.k, p.m, &p.x)?;
        let c = layout(api, data_type(p.out)?, (p.n, p.m), p.out_leading, p.batch, p.out_batch_stride)?;
        let shape = Shape { desc, w, x, c };
        for (attribute, turned) in [(ffi::desc::TRANSA, p.w.turned), (ffi::desc::TRANSB, p.x.turned)] {
            let value = i32::from(turned);
            shape.set(api, attribute, (&raw const value).cast(), 4)?;
        }
        let epilogue = match p.act {
            Activation::None if p.bias => ffi::epilogue::BIAS,
            Activation::None => ffi::epilogue::NONE,
            Activation::Relu => ffi::epilogue::RELU + if p.bias { ffi::epilogue::BIAS } else { 0 },
            Activation::GeluTanh => ffi::epilogue::GELU_TANH + if p.bias { ffi::epilogue::BIAS } else { 0 },
        };
        shape.set(api, ffi::desc::EPILOGUE, (&raw const epilogue).cast(), 4)?;
        if p.bias {
            let bias = data_type(p.out)?;
            shape.set(api, ffi::desc::BIAS_TYPE, (&raw const bias).cast(), 4)?;
        }
        Ok(shape)
    }

    fn set(&self, api: &CublasLt, attribute: i32, value: *const c_void, size: usize) -> Result<(), CudaError> {
        // SAFETY: the callers give a value of the attribute's type and size.
        let code = unsafe { (api.cublasLtMatmulDescSetAttribute)(self.desc.handle, attribute, value, size) };
        status("cublasLtMatmulDescSetAttribute", code)
    }
}

fn layout(
    api: &CublasLt,
    data: i32,
    (rows, cols): (usize, usize),
    leading: usize,
    batch: usize,
    batch_stride: usize,
) -> Result<Owned, CudaError> {
    let mut handle: Handle = ptr::null_mut();
    // SAFETY: the handle is written.
    status("cublasLtMatrixLayoutCreate", unsafe {
        (api.cublasLtMatrixLayoutCreate)(&raw mut handle, data, rows as u64, cols as u64, leading as i64)
    })?;
    let layout = Owned { handle, destroy: api.cublasLtMatrixLayoutDestroy };
    if batch > 1 {
        let (count, stride) = (batch as i32, batch_stride as i64);
        // SAFETY: the values have the attributes' types.
        unsafe {
            let set = api.cublasLtMatrixLayoutSetAttribute;
            status(
                "cublasLtMatrixLayoutSetAttribute",
                set(handle, ffi::layout::BATCH_COUNT, (&raw const count).cast(), 4),
            )?;
            status(
                "cublasLtMatrixLayoutSetAttribute",
                set(handle, ffi::layout::BATCH_STRIDE, (&raw const stride).cast(), 8),
            )?;
        }
    }
    Ok(layout)
}

fn status(call: &'static str, code: i32) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Status { library: "cuBLASLt", call, code }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_data() {
        let algorithm = Algorithm { words: [1, 2, 3, 4, 5, 6, 7, u64::MAX], workspace: 1 << 20 };
        assert_eq!(Algorithm::from_text(&algorithm.to_text()), Some(algorithm));
        for text in ["", ".1", "00.0", &format!("{}.x", "0".repeat(128)), &format!("{}.99999999999", "0".repeat(128))] {
            assert_eq!(Algorithm::from_text(text), None, "{text}");
        }
    }
}
