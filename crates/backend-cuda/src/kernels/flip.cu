// Elements read with steps that may be negative. E: an unsigned integer of an element's size.
struct Steps { i64 size[6], step[6]; };
extern "C" __global__ void __launch_bounds__(256) flip(const E* x, E* out, i64 count, i64 first, const Steps s) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 rest = i, at = first;
#pragma unroll
        for (int d = 5; d >= 0; d--) { at += rest % s.size[d] * s.step[d]; rest /= s.size[d]; }
        out[i] = x[at];
    }
}
