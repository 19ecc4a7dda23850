// Products of few rows with a weight [n, k]: one warp an output column, all M rows at once.
// TX TW TB TR TO: element types. M: rows; VEC: elements of a load. HAS_BIAS, HAS_RESIDUAL, ACT_FIRST: 0 or 1. ACT: a function.
extern "C" __global__ void __launch_bounds__(128)
matvec(const TX* x, const TW* weight, const TB* bias, const TR* residual, TO* out, i64 n, i64 k, i64 x_stride) {
    i64 col = (i64)blockIdx.x * 4 + (threadIdx.x >> 5);
    int lane = threadIdx.x & 31;
    if (col >= n) return;
    const TW* w = weight + col * k;
    float acc[M] = {};
#pragma unroll 4
    for (i64 at = lane * VEC; at < k; at += 32 * VEC) {
        Pack<TW, VEC> a = read<TW, VEC>(w + at);
#pragma unroll
        for (int m = 0; m < M; m++) {
            Pack<TX, VEC> b = read<TX, VEC>(x + m * x_stride + at);
#pragma unroll
            for (int i = 0; i < VEC; i++) acc[m] += get(a.v[i]) * get(b.v[i]);
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        float y = warp_sum(acc[m]);
        if (lane == 0) {
            if (HAS_BIAS) y += get(bias[col]);
            if (HAS_RESIDUAL && !ACT_FIRST) y += get(residual[m * n + col]);
            y = ACT(y);
            if (HAS_RESIDUAL && ACT_FIRST) y += get(residual[m * n + col]);
            put(out[m * n + col], y);
        }
    }
}
