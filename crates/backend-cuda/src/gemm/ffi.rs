//! The functions of cuBLASLt that are used.

use std::ffi::{c_int, c_void};

use crate::library::api;

/// An opaque handle of the library.
pub(super) type Handle = *mut c_void;

/// `cudaDataType`.
pub(super) mod data {
    pub(in super::super) const F32: i32 = 0;
    pub(in super::super) const F16: i32 = 2;
    pub(in super::super) const BF16: i32 = 14;
}

/// `cublasComputeType_t`.
pub(super) mod compute {
    pub(in super::super) const F32: i32 = 68;
    pub(in super::super) const TF32: i32 = 77;
}

/// `cublasLtMatmulDescAttributes_t`.
pub(super) mod desc {
    pub(in super::super) const TRANSA: i32 = 3;
    pub(in super::super) const TRANSB: i32 = 4;
    pub(in super::super) const EPILOGUE: i32 = 7;
    pub(in super::super) const BIAS_POINTER: i32 = 8;
    pub(in super::super) const BIAS_TYPE: i32 = 26;
}

/// `cublasLtEpilogue_t`; a bias adds 4.
pub(super) mod epilogue {
    pub(in super::super) const NONE: i32 = 1;
    pub(in super::super) const RELU: i32 = 2;
    pub(in super::super) const BIAS: i32 = 4;
    pub(in super::super) const GELU_TANH: i32 = 32;
}

/// `cublasLtMatrixLayoutAttribute_t`.
pub(super) mod layout {
    pub(in super::super) const BATCH_COUNT: i32 = 5;
    pub(in super::super) const BATCH_STRIDE: i32 = 6;
}

/// `cublasLtMatmulPreferenceAttributes_t`.
pub(super) mod preference {
    pub(in super::super) const WORKSPACE: i32 = 1;
    pub(in super::super) const ALIGNMENTS: [i32; 4] = [5, 6, 7, 8];
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(super) algorithm: [u64; 8],
    pub(super) workspace: usize,
    pub(super) state: c_int,
    pub(super) waves: f32,
    pub(super) reserved: [c_int; 4],
}

api! {
    /// `libcublasLt`.
    struct CublasLt {
        fn cublasLtGetVersion() -> usize;
        fn cublasLtCreate(*mut Handle) -> c_int;
        fn cublasLtDestroy(Handle) -> c_int;
        fn cublasLtMatmulDescCreate(*mut Handle, c_int, c_int) -> c_int;
        fn cublasLtMatmulDescDestroy(Handle) -> c_int;
        fn cublasLtMatmulDescSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
        fn cublasLtMatrixLayoutCreate(*mut Handle, c_int, u64, u64, i64) -> c_int;
        fn cublasLtMatrixLayoutDestroy(Handle) -> c_int;
        fn cublasLtMatrixLayoutSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
        fn cublasLtMatmulPreferenceCreate(*mut Handle) -> c_int;
        fn cublasLtMatmulPreferenceDestroy(Handle) -> c_int;
        fn cublasLtMatmulPreferenceSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
        fn cublasLtMatmulAlgoGetHeuristic(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Found, *mut c_int,
        ) -> c_int;
        fn cublasLtMatmulAlgoCheck(
            Handle, Handle, Handle, Handle, Handle, Handle, *const [u64; 8], *mut Found,
        ) -> c_int;
        fn cublasLtMatmul(
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void,
            *const c_void, Handle, *mut c_void, Handle, *const [u64; 8], *mut c_void, usize, Handle,
        ) -> c_int;
    }
}
