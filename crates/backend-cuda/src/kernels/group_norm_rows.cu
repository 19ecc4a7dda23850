// Group norm with channels last in two launches, each thread with the same neighboring channels all along.
// TX TW TB TO: element types. CHANNELS, GROUPS: sizes. V: channels of a thread. ROWS: pixels that a block takes at once.
// THREADS: of a block. HAS_WEIGHT, HAS_BIAS: 0 or 1. ACT: a function applied last.
#define LANES (CHANNELS / V)
#define WIDTH (CHANNELS / GROUPS)
// Threads that join the statistics of one group: a power of two, at most a warp.
#define TEAM (GROUPS * 32 <= THREADS ? 32 : GROUPS * 16 <= THREADS ? 16 : GROUPS * 8 <= THREADS ? 8 : GROUPS * 4 <= THREADS ? 4 : 1)

DEVICE void join_team(float& n, float& mean, float& dev) {
#pragma unroll
    for (int o = TEAM / 2; o > 0; o >>= 1) {
        float n2 = __shfl_down_sync(~0u, n, o), mean2 = __shfl_down_sync(~0u, mean, o), dev2 = __shfl_down_sync(~0u, dev, o);
        join(n, mean, dev, n2, mean2, dev2);
    }
}

// Block (image, part): some pixels. `partial` holds {count, mean, deviation} of each group and part.
extern "C" __global__ void __launch_bounds__(THREADS)
group_norm_rows_stats(const TX* x, float* partial, i64 pixels, int parts) {
    AWAIT();
    extern __shared__ float shared[];
    float* means = shared;                     // [ROWS][CHANNELS]
    float* devs = shared + ROWS * CHANNELS;    // [ROWS][CHANNELS]
    i64 image = blockIdx.x, first = pixels * blockIdx.y / parts, end = pixels * (blockIdx.y + 1) / parts;
    int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (row < ROWS) {
        // Sums about the first value: nothing cancels however far the mean is from zero.
        float base[V] = {}, sum[V] = {}, square[V] = {};
        float n = 0.f;
        for (i64 p = first + row; p < end; p += ROWS) {
            Pack<TX, V> in = read<TX, V>(x + (image * pixels + p) * CHANNELS + lane * V);
#pragma unroll
            for (int i = 0; i < V; i++) {
                float v = get(in.v[i]);
                if (n == 0.f) base[i] = v;
                float d = v - base[i];
                sum[i] += d; square[i] += d * d;
            }
            n += 1.f;
        }
#pragma unroll
        for (int i = 0; i < V; i++) {
            float d = n > 0.f ? sum[i] / n : 0.f;
            means[row * CHANNELS + lane * V + i] = base[i] + d;
            devs[row * CHANNELS + lane * V + i] = f_max(square[i] - sum[i] * d, 0.f);
        }
    }
    __syncthreads();
    for (int g0 = 0; g0 < GROUPS; g0 += THREADS / TEAM) {
        int g = g0 + threadIdx.x / TEAM;
        float n = 0.f, mean = 0.f, dev = 0.f;
        if (g < GROUPS) {
            for (int e = threadIdx.x % TEAM; e < ROWS * WIDTH; e += TEAM) {
                int r = e / WIDTH, at = r * CHANNELS + g * WIDTH + e % WIDTH;
                i64 left = end - first - r;
                join(n, mean, dev, left > 0 ? (float)((left + ROWS - 1) / ROWS) : 0.f, means[at], devs[at]);
            }
        }
        join_team(n, mean, dev);
        if (g < GROUPS && threadIdx.x % TEAM == 0) {
            float* to = partial + ((image * GROUPS + g) * parts + blockIdx.y) * 3;
            to[0] = n; to[1] = mean; to[2] = dev;
        }
    }
}

// Block (image, part): some pixels; the statistics of the image's groups first.
extern "C" __global__ void __launch_bounds__(THREADS)
group_norm_rows_apply(const TX* x, const TW* weight, const TB* bias, const float* partial, TO* out,
                      i64 pixels, int parts, float eps) {
    AWAIT();
    __shared__ float stats[GROUPS * 2];
    i64 image = blockIdx.x;
    for (int g0 = 0; g0 < GROUPS; g0 += THREADS / TEAM) {
        int g = g0 + threadIdx.x / TEAM;
        float n = 0.f, mean = 0.f, dev = 0.f;
        if (g < GROUPS) {
            const float* from = partial + (image * GROUPS + g) * parts * 3;
            for (int p = threadIdx.x % TEAM; p < parts; p += TEAM) join(n, mean, dev, from[p * 3], from[p * 3 + 1], from[p * 3 + 2]);
        }
        join_team(n, mean, dev);
        if (g < GROUPS && threadIdx.x % TEAM == 0) {
            stats[2 * g] = mean;
            stats[2 * g + 1] = 1.f / sqrtf(dev / n + eps);
        }
    }
    __syncthreads();
    int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (row >= ROWS) return;
    float mean[V], rate[V], w[V], b[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        int c = lane * V + i, g = c / WIDTH;
        mean[i] = stats[2 * g]; rate[i] = stats[2 * g + 1];
        w[i] = HAS_WEIGHT ? get(weight[c]) : 1.f;
        b[i] = HAS_BIAS ? get(bias[c]) : 0.f;
    }
    i64 first = pixels * blockIdx.y / gridDim.y, end = pixels * (blockIdx.y + 1) / gridDim.y;
    for (i64 p = first + row; p < end; p += ROWS) {
        i64 at = (image * pixels + p) * CHANNELS + lane * V;
        Pack<TX, V> in = read<TX, V>(x + at);
        Pack<TO, V> to;
#pragma unroll
        for (int i = 0; i < V; i++) put(to.v[i], ACT((get(in.v[i]) - mean[i]) * rate[i] * w[i] + b[i]));
        write<TO, V>(out + at, to);
    }
}
