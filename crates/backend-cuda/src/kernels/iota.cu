// start, start + step, ... T: element type; V: what is computed in.
extern "C" __global__ void __launch_bounds__(256) iota(T* out, i64 count, i64 start, i64 step) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256)
        put(out[i], (V)(i64)((u64)start + (u64)i * (u64)step));
}
