//! The functions of NVRTC that are used.

use std::ffi::{c_char, c_int, c_void};

use crate::library::api;

pub(super) type ProgramHandle = *mut c_void;

api! {
    /// `libnvrtc`.
    struct Nvrtc {
        fn nvrtcVersion(*mut c_int, *mut c_int) -> c_int;
        fn nvrtcCreateProgram(
            *mut ProgramHandle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
        ) -> c_int;
        fn nvrtcDestroyProgram(*mut ProgramHandle) -> c_int;
        fn nvrtcCompileProgram(ProgramHandle, c_int, *const *const c_char) -> c_int;
        fn nvrtcGetProgramLogSize(ProgramHandle, *mut usize) -> c_int;
        fn nvrtcGetProgramLog(ProgramHandle, *mut c_char) -> c_int;
        fn nvrtcGetCUBINSize(ProgramHandle, *mut usize) -> c_int;
        fn nvrtcGetCUBIN(ProgramHandle, *mut c_char) -> c_int;
    }
}
