// Products of few rows with a weight [n, k]: WARPS of a block's four warps an output column, all M rows at once.
// TX TW TB TR TO: element types. M: rows; VEC: elements of a load. HAS_BIAS, HAS_RESIDUAL, ACT_FIRST: 0 or 1. ACT: a function.
extern "C" __global__ void __launch_bounds__(128)
matvec(const TX* x, const TW* weight, const TB* bias, const TR* residual, TO* out, i64 n, i64 k, i64 x_stride) {
    __shared__ float parts[4][M];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 col = (i64)blockIdx.x * (4 / WARPS) + warp / WARPS;
    // Weights are on their way to the second-level cache while the kernels before still run.
    if (col < n) {
        const u8* row = (const u8*)(weight + col * k);
        for (i64 at = (warp % WARPS * 32 + lane) * 128; at < k * (i64)sizeof(TW); at += WARPS * 32 * 128)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(row + at));
    }
    AWAIT();
    float acc[M] = {};
    if (col < n) {
        const TW* w = weight + col * k;
#pragma unroll 4
        for (i64 at = (warp % WARPS * 32 + lane) * VEC; at < k; at += WARPS * 32 * VEC) {
            Pack<TW, VEC> a = read<TW, VEC>(w + at);
#pragma unroll
            for (int m = 0; m < M; m++) {
                Pack<TX, VEC> b = read<TX, VEC>(x + m * x_stride + at);
#pragma unroll
                for (int i = 0; i < VEC; i++) acc[m] += get(a.v[i]) * get(b.v[i]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++) acc[m] = warp_sum(acc[m]);
    if (WARPS > 1) {
        if (lane == 0) {
#pragma unroll
            for (int m = 0; m < M; m++) parts[warp][m] = acc[m];
        }
        __syncthreads();
    }
    if (col >= n || lane != 0 || warp % WARPS != 0) return;
#pragma unroll
    for (int m = 0; m < M; m++) {
        float y = acc[m];
        for (int other = 1; other < WARPS; other++) y += parts[warp + other][m];
        if (HAS_BIAS) y += get(bias[col]);
        if (HAS_RESIDUAL && !ACT_FIRST) y += get(residual[m * n + col]);
        y = ACT(y);
        if (HAS_RESIDUAL && ACT_FIRST) y += get(residual[m * n + col]);
        put(out[m * n + col], y);
    }
}
