//! The functions and numbers of cuDNN's backend interface that are used.

use std::ffi::{c_char, c_int, c_void};

use crate::library::api;

/// An opaque handle of the library.
pub(super) type Handle = *mut c_void;

/// `cudnnBackendDescriptorType_t`.
pub(super) mod kind {
    pub(in super::super) const POINTWISE: i32 = 0;
    pub(in super::super) const CONVOLUTION: i32 = 1;
    pub(in super::super) const ENGINE: i32 = 2;
    pub(in super::super) const ENGINE_CONFIG: i32 = 3;
    pub(in super::super) const HEURISTICS: i32 = 4;
    pub(in super::super) const PLAN: i32 = 5;
    pub(in super::super) const CONVOLUTION_FORWARD: i32 = 10;
    pub(in super::super) const POINTWISE_OP: i32 = 13;
    pub(in super::super) const GRAPH: i32 = 15;
    pub(in super::super) const VARIANT_PACK: i32 = 16;
    pub(in super::super) const TENSOR: i32 = 17;
}

/// `cudnnBackendAttributeType_t`.
pub(super) mod ty {
    pub(in super::super) const HANDLE: i32 = 0;
    pub(in super::super) const DATA_TYPE: i32 = 1;
    pub(in super::super) const BOOLEAN: i32 = 2;
    pub(in super::super) const INT64: i32 = 3;
    pub(in super::super) const FLOAT: i32 = 4;
    pub(in super::super) const DOUBLE: i32 = 5;
    pub(in super::super) const VOID_PTR: i32 = 6;
    pub(in super::super) const CONVOLUTION_MODE: i32 = 7;
    pub(in super::super) const HEURISTICS_MODE: i32 = 8;
    pub(in super::super) const NUMERICAL_NOTE: i32 = 11;
    pub(in super::super) const POINTWISE_MODE: i32 = 14;
    pub(in super::super) const DESCRIPTOR: i32 = 15;
}

/// `cudnnBackendAttributeName_t`.
pub(super) mod name {
    pub(in super::super) const POINTWISE_MODE: i32 = 0;
    pub(in super::super) const POINTWISE_PRECISION: i32 = 1;
    pub(in super::super) const RELU_UPPER: i32 = 4;
    pub(in super::super) const CONV_COMPUTE: i32 = 100;
    pub(in super::super) const CONV_MODE: i32 = 101;
    pub(in super::super) const CONV_DILATIONS: i32 = 102;
    pub(in super::super) const CONV_STRIDES: i32 = 103;
    pub(in super::super) const CONV_POST_PADDINGS: i32 = 104;
    pub(in super::super) const CONV_PRE_PADDINGS: i32 = 105;
    pub(in super::super) const CONV_SPATIAL: i32 = 106;
    pub(in super::super) const HEURISTICS_MODE: i32 = 200;
    pub(in super::super) const HEURISTICS_GRAPH: i32 = 201;
    pub(in super::super) const HEURISTICS_RESULTS: i32 = 202;
    pub(in super::super) const CONFIG_ENGINE: i32 = 300;
    pub(in super::super) const PLAN_HANDLE: i32 = 400;
    pub(in super::super) const PLAN_CONFIG: i32 = 401;
    pub(in super::super) const PLAN_WORKSPACE: i32 = 402;
    pub(in super::super) const FORWARD_ALPHA: i32 = 700;
    pub(in super::super) const FORWARD_BETA: i32 = 701;
    pub(in super::super) const FORWARD_CONV: i32 = 702;
    pub(in super::super) const FORWARD_W: i32 = 703;
    pub(in super::super) const FORWARD_X: i32 = 704;
    pub(in super::super) const FORWARD_Y: i32 = 705;
    pub(in super::super) const OP_POINTWISE: i32 = 750;
    pub(in super::super) const OP_POINTWISE_X: i32 = 751;
    pub(in super::super) const OP_POINTWISE_B: i32 = 752;
    pub(in super::super) const OP_POINTWISE_Y: i32 = 753;
    pub(in super::super) const GRAPH_HANDLE: i32 = 800;
    pub(in super::super) const GRAPH_OPS: i32 = 801;
    pub(in super::super) const TENSOR_ALIGNMENT: i32 = 900;
    pub(in super::super) const TENSOR_TYPE: i32 = 901;
    pub(in super::super) const TENSOR_SIZES: i32 = 902;
    pub(in super::super) const TENSOR_STRIDES: i32 = 903;
    pub(in super::super) const TENSOR_ID: i32 = 906;
    pub(in super::super) const TENSOR_VIRTUAL: i32 = 907;
    pub(in super::super) const PACK_IDS: i32 = 1000;
    pub(in super::super) const PACK_POINTERS: i32 = 1001;
    pub(in super::super) const PACK_WORKSPACE: i32 = 1003;
    pub(in super::super) const ENGINE_NUMERICAL_NOTE: i32 = 1303;
}

/// `cudnnBackendNumericalNote_t`.
pub(super) mod note {
    pub(in super::super) const TENSOR_CORE: i32 = 0;
    pub(in super::super) const DOWN_CONVERT_INPUTS: i32 = 1;
    pub(in super::super) const REDUCED_PRECISION_REDUCTION: i32 = 2;
    pub(in super::super) const NONDETERMINISTIC: i32 = 4;
}

api! {
    /// `libcudnn`.
    struct Cudnn {
        fn cudnnGetVersion() -> usize;
        fn cudnnCreate(*mut Handle) -> c_int;
        fn cudnnDestroy(Handle) -> c_int;
        fn cudnnSetStream(Handle, Handle) -> c_int;
        fn cudnnGetLastErrorString(*mut c_char, usize) -> ();
        fn cudnnBackendCreateDescriptor(c_int, *mut Handle) -> c_int;
        fn cudnnBackendDestroyDescriptor(Handle) -> c_int;
        fn cudnnBackendFinalize(Handle) -> c_int;
        fn cudnnBackendSetAttribute(Handle, c_int, c_int, i64, *const c_void) -> c_int;
        fn cudnnBackendGetAttribute(Handle, c_int, c_int, i64, *mut i64, *mut c_void) -> c_int;
        fn cudnnBackendExecute(Handle, Handle, Handle) -> c_int;
    }
}
