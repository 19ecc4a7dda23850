//! Kernels are compiled at run time, for the architecture of the device, and the results are kept in a folder.

mod cache;
mod ffi;

use std::{
    ffi::{CStr, CString, c_char, c_int},
    path::{Path, PathBuf},
    ptr,
    sync::Arc,
};

pub use self::cache::CubinCache;
use self::ffi::Nvrtc;
use crate::{
    error::CudaError,
    library::{LibraryKind, Lookup, Version},
};

/// The source of a kernel, complete: nothing is included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Its name in messages.
    pub name: String,
    /// CUDA C++.
    pub text: String,
}

/// The compiler of kernels.
#[derive(Clone)]
pub struct Compiler {
    api: Arc<Nvrtc>,
    version: Version,
}

impl Compiler {
    /// Opens NVRTC.
    ///
    /// # Errors
    /// When it is missing or too old.
    pub fn open(lookup: &Lookup) -> Result<Compiler, CudaError> {
        let (api, version) = Compiler::found(lookup)?;
        api.opened.require(version)?;
        Ok(Compiler { api: Arc::new(api), version })
    }

    /// The library and its version, whatever it is.
    pub(crate) fn found(lookup: &Lookup) -> Result<(Nvrtc, Version), CudaError> {
        let api = Nvrtc::load(lookup.open(LibraryKind::Nvrtc)?)?;
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // SAFETY: both are written.
        status("nvrtcVersion", unsafe { (api.nvrtcVersion)(&raw mut major, &raw mut minor) })?;
        Ok((api, Version([major.unsigned_abs(), minor.unsigned_abs(), 0])))
    }

    /// The compiler's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        self.api.opened.path()
    }

    /// Where it was found.
    pub fn path_buf(&self) -> PathBuf {
        self.path().to_owned()
    }

    /// The cubin of `source` for `arch`, such as `sm_90`.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with the compiler's log.
    pub fn compile(&self, source: &Source, arch: &str) -> Result<Vec<u8>, CudaError> {
        let text = CString::new(source.text.as_str()).unwrap_or_default();
        let name = CString::new(source.name.as_str()).unwrap_or_default();
        let options = OPTIONS.map(str::to_owned).into_iter().chain([format!("--gpu-architecture={arch}")]);
        let options: Vec<CString> = options.map(|o| CString::new(o).unwrap_or_default()).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let program = Program::new(&self.api, &text, &name)?;
        // SAFETY: the program is alive, and so are the options during the call.
        let compiled =
            unsafe { (self.api.nvrtcCompileProgram)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        if compiled != 0 {
            let log = program.log().unwrap_or_default();
            return Err(CudaError::Compile { name: source.name.clone(), arch: arch.to_owned(), log });
        }
        program.cubin()
    }
}

/// What every kernel is compiled with. Divisions and square roots stay exact, and products are fused with sums: the same
/// bits everywhere.
const OPTIONS: [&str; 1] = ["--std=c++17"];

/// Part of the key of compiled kernels.
fn options() -> String {
    OPTIONS.join(" ")
}

/// A program of NVRTC.
struct Program<'a> {
    api: &'a Nvrtc,
    handle: ffi::ProgramHandle,
}

impl<'a> Program<'a> {
    fn new(api: &'a Nvrtc, text: &CStr, name: &CStr) -> Result<Program<'a>, CudaError> {
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is written; the strings are copied; there are no headers.
        status("nvrtcCreateProgram", unsafe {
            (api.nvrtcCreateProgram)(&raw mut handle, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        })?;
        Ok(Program { api, handle })
    }

    fn log(&self) -> Result<String, CudaError> {
        let mut size = 0usize;
        // SAFETY: `size` is written, and the log has that many bytes.
        let bytes = unsafe {
            status("nvrtcGetProgramLogSize", (self.api.nvrtcGetProgramLogSize)(self.handle, &raw mut size))?;
            let mut bytes = vec![0u8; size];
            status("nvrtcGetProgramLog", (self.api.nvrtcGetProgramLog)(self.handle, bytes.as_mut_ptr().cast()))?;
            bytes
        };
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, CudaError> {
        let mut size = 0usize;
        // SAFETY: `size` is written, and the cubin has that many bytes.
        unsafe {
            status("nvrtcGetCUBINSize", (self.api.nvrtcGetCUBINSize)(self.handle, &raw mut size))?;
            let mut bytes = vec![0u8; size];
            status("nvrtcGetCUBIN", (self.api.nvrtcGetCUBIN)(self.handle, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is alive, and nobody else has it.
        unsafe { (self.api.nvrtcDestroyProgram)(&raw mut self.handle) };
    }
}

fn status(call: &'static str, code: c_int) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Status { library: "NVRTC", call, code }) }
}
