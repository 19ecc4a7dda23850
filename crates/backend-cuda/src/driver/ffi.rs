//! The functions of `libcuda` that are used, under the names of their current revisions.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::library::api;

/// An opaque handle of the driver.
pub(crate) type Handle = *mut c_void;
/// An address in device memory.
pub(crate) type DevicePtr = u64;
/// `CUresult`.
pub(crate) type Status = c_int;

pub(crate) const SUCCESS: Status = 0;
pub(crate) const ERROR_OUT_OF_MEMORY: Status = 2;
pub(crate) const ERROR_NOT_READY: Status = 600;

/// `CU_STREAM_NON_BLOCKING`.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(crate) const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(crate) const FUNC_MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
pub(crate) const POOL_RELEASE_THRESHOLD: c_int = 4;

/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`.
pub(crate) const POINTER_MEMORY_TYPE: c_int = 2;
/// `CU_MEMORYTYPE_HOST`.
pub(crate) const MEMORY_TYPE_HOST: c_uint = 1;

/// Device attributes.
pub(crate) mod attribute {
    use std::ffi::c_int;
    pub(crate) const MULTIPROCESSORS: c_int = 16;
    pub(crate) const L2_BYTES: c_int = 38;
    pub(crate) const MAJOR: c_int = 75;
    pub(crate) const MINOR: c_int = 76;
    pub(crate) const SHARED_PER_BLOCK_OPTIN: c_int = 97;
    pub(crate) const MEMORY_POOLS: c_int = 115;
}

/// `CUmemPoolProps`.
#[repr(C)]
pub(crate) struct PoolProps {
    pub(crate) alloc_type: c_int,
    pub(crate) handle_types: c_int,
    pub(crate) location_type: c_int,
    pub(crate) location_id: c_int,
    pub(crate) security: *mut c_void,
    pub(crate) max_size: usize,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 54],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) attribute_count: c_uint,
}

/// `CUlaunchAttribute` whose value is a number.
#[repr(C)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: c_int,
    pub(crate) pad: c_int,
    pub(crate) value: c_int,
    pub(crate) rest: [c_int; 15],
}

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
pub(crate) const PROGRAMMATIC_STREAM_SERIALIZATION: c_int = 6;

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
pub(crate) struct UpdateInfo {
    pub(crate) result: c_int,
    pub(crate) error_node: Handle,
    pub(crate) error_from_node: Handle,
}

api! {
    /// `libcuda`.
    struct Cuda {
        fn cuInit(c_uint) -> Status;
        fn cuDriverGetVersion(*mut c_int) -> Status;
        fn cuGetErrorName(Status, *mut *const c_char) -> Status;
        fn cuGetErrorString(Status, *mut *const c_char) -> Status;
        fn cuDeviceGetCount(*mut c_int) -> Status;
        fn cuDeviceGet(*mut c_int, c_int) -> Status;
        fn cuDeviceGetName(*mut c_char, c_int, c_int) -> Status;
        fn cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> Status;
        fn cuDeviceTotalMem_v2(*mut usize, c_int) -> Status;
        fn cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> Status;
        fn cuDevicePrimaryCtxRelease_v2(c_int) -> Status;
        fn cuCtxSetCurrent(Handle) -> Status;
        fn cuCtxSynchronize() -> Status;
        fn cuCtxGetStreamPriorityRange(*mut c_int, *mut c_int) -> Status;
        fn cuMemGetInfo_v2(*mut usize, *mut usize) -> Status;
        fn cuMemPoolCreate(*mut Handle, *const PoolProps) -> Status;
        fn cuMemPoolDestroy(Handle) -> Status;
        fn cuMemPoolSetAttribute(Handle, c_int, *mut c_void) -> Status;
        fn cuMemPoolTrimTo(Handle, usize) -> Status;
        fn cuMemAllocFromPoolAsync(*mut DevicePtr, usize, Handle, Handle) -> Status;
        fn cuMemFreeAsync(DevicePtr, Handle) -> Status;
        fn cuMemAlloc_v2(*mut DevicePtr, usize) -> Status;
        fn cuMemFree_v2(DevicePtr) -> Status;
        fn cuMemHostAlloc(*mut *mut c_void, usize, c_uint) -> Status;
        fn cuMemFreeHost(*mut c_void) -> Status;
        fn cuPointerGetAttribute(*mut c_void, c_int, DevicePtr) -> Status;
        fn cuMemcpyAsync(DevicePtr, DevicePtr, usize, Handle) -> Status;
        fn cuMemcpyHtoDAsync_v2(DevicePtr, *const c_void, usize, Handle) -> Status;
        fn cuMemcpyDtoHAsync_v2(*mut c_void, DevicePtr, usize, Handle) -> Status;
        fn cuMemsetD8Async(DevicePtr, u8, usize, Handle) -> Status;
        fn cuStreamCreateWithPriority(*mut Handle, c_uint, c_int) -> Status;
        fn cuStreamDestroy_v2(Handle) -> Status;
        fn cuStreamSynchronize(Handle) -> Status;
        fn cuStreamWaitEvent(Handle, Handle, c_uint) -> Status;
        fn cuStreamBeginCapture_v2(Handle, c_int) -> Status;
        fn cuStreamEndCapture(Handle, *mut Handle) -> Status;
        fn cuEventCreate(*mut Handle, c_uint) -> Status;
        fn cuEventDestroy_v2(Handle) -> Status;
        fn cuEventRecord(Handle, Handle) -> Status;
        fn cuEventQuery(Handle) -> Status;
        fn cuEventSynchronize(Handle) -> Status;
        fn cuEventElapsedTime(*mut f32, Handle, Handle) -> Status;
        fn cuModuleLoadData(*mut Handle, *const c_void) -> Status;
        fn cuModuleUnload(Handle) -> Status;
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> Status;
        fn cuFuncSetAttribute(Handle, c_int, c_int) -> Status;
        fn cuLaunchKernelEx(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void) -> Status;
        fn cuGraphDestroy(Handle) -> Status;
        fn cuGraphInstantiateWithFlags(*mut Handle, Handle, u64) -> Status;
        fn cuGraphExecDestroy(Handle) -> Status;
        fn cuGraphExecUpdate_v2(Handle, Handle, *mut UpdateInfo) -> Status;
        fn cuGraphUpload(Handle, Handle) -> Status;
        fn cuGraphLaunch(Handle, Handle) -> Status;
    }
}
