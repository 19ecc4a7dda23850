// Attention of one query over many keys, split over the keys: a step of decoding. T: element type of everything but the mask,
// TM: that of the mask. D: head size. GROUP: heads that share a block and a head of keys. LANES: lanes that hold one key.
// MASK 0: none, 1: added, 2: keeps where true. MOST_SPLITS: parts that the keys may be in.
struct Heads { i64 q[4], k[4], v[4], m[4], o[4]; i32 queries, keys, group; float scale; };

#define N (D / LANES)
#define TEAMS (128 / LANES)

// Block (split, heads, image): some of the keys for GROUP heads. `partial` holds {values[D], top, sum} for each head and split.
extern "C" __global__ void __launch_bounds__(128)
attention_decode(const T* q, const T* k, const T* v, const TM* mask, float* partial, const Heads h) {
    AWAIT();
    __shared__ float tops[TEAMS][GROUP], sums[TEAMS][GROUP], values[TEAMS][GROUP][D];
    int lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    i64 head0 = (i64)blockIdx.y * GROUP, image = blockIdx.z, shared = head0 / h.group;
    const T* kh = k + image * h.k[0] + shared * h.k[1] + lane * N;
    const T* vh = v + image * h.v[0] + shared * h.v[1] + lane * N;
    float query[GROUP][N], top[GROUP], sum[GROUP], acc[GROUP][N];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        const T* from = q + image * h.q[0] + (head0 + g) * h.q[1] + lane * N;
        top[g] = NEG_INF; sum[g] = 0.f;
#pragma unroll
        for (int i = 0; i < N; i++) { query[g][i] = get(from[i]) * h.scale; acc[g][i] = 0.f; }
    }
    i64 first = (i64)h.keys * blockIdx.x / gridDim.x, end = (i64)h.keys * (blockIdx.x + 1) / gridDim.x;
    // All teams go round together: shuffles take whole warps.
    for (i64 base = first; base < end; base += TEAMS) {
        i64 key = base + team;
        bool there = key < end;
        float extra[GROUP];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            extra[g] = there ? 0.f : NEG_INF;
#if MASK
            if (there) {
                TM m = mask[image * h.m[0] + (head0 + g) * h.m[1] + key * h.m[3]];
#if MASK == 1
                extra[g] = get(m);
#else
                extra[g] = get(m) ? 0.f : NEG_INF;
#endif
            }
#endif
        }
#if MASK
        bool any = false;
#pragma unroll
        for (int g = 0; g < GROUP; g++) any |= extra[g] != NEG_INF;
        // What is masked out for everyone is not read.
        if (!__any_sync(~0u, any)) continue;
#endif
        Pack<T, N> kk, vv;
        if (there) { kk = read<T, N>(kh + key * h.k[2]); vv = read<T, N>(vh + key * h.v[2]); }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float s = 0.f;
            if (there) {
#pragma unroll
                for (int i = 0; i < N; i++) s += query[g][i] * get(kk.v[i]);
            }
#pragma unroll
            for (int o = LANES / 2; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
            s += extra[g];
            if (!there) continue;
            float peak = f_max(top[g], s), level = peak == NEG_INF ? 0.f : peak;
            float p = expf(s - level), shrink = expf(top[g] - level);
            sum[g] = sum[g] * shrink + p;
            top[g] = peak;
#pragma unroll
            for (int i = 0; i < N; i++) acc[g][i] = acc[g][i] * shrink + p * get(vv.v[i]);
        }
    }
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        if (lane == 0) { tops[team][g] = top[g]; sums[team][g] = sum[g]; }
#pragma unroll
        for (int i = 0; i < N; i++) values[team][g][lane * N + i] = acc[g][i];
    }
    __syncthreads();
    for (int e = threadIdx.x; e < GROUP * D; e += 128) {
        int g = e / D, d = e % D;
        float peak = NEG_INF, total = 0.f, y = 0.f;
#pragma unroll
        for (int t = 0; t < TEAMS; t++) peak = f_max(peak, tops[t][g]);
        float level = peak == NEG_INF ? 0.f : peak;
#pragma unroll
        for (int t = 0; t < TEAMS; t++) {
            float weight = expf(tops[t][g] - level);
            y += values[t][g][d] * weight;
            total += sums[t][g] * weight;
        }
        float* to = partial + ((image * gridDim.y * GROUP + head0 + g) * gridDim.x + blockIdx.x) * (D + 2);
        to[d] = y;
        if (d == 0) { to[D] = peak; to[D + 1] = total; }
    }
}

// Block (head, image): the splits of one head together.
extern "C" __global__ void __launch_bounds__(128)
attention_join(const float* partial, T* out, const Heads h, int splits) {
    AWAIT();
    __shared__ float weights[MOST_SPLITS];
    i64 head = blockIdx.x, image = blockIdx.y;
    const float* from = partial + (image * gridDim.x + head) * splits * (D + 2);
    float peak = NEG_INF, total = 0.f;
    for (int s = threadIdx.x; s < splits; s += 128) peak = f_max(peak, from[s * (D + 2) + D]);
    peak = block_max(peak);
    float level = peak == NEG_INF ? 0.f : peak;
    for (int s = threadIdx.x; s < splits; s += 128) {
        weights[s] = expf(from[s * (D + 2) + D] - level);
        total += from[s * (D + 2) + D + 1] * weights[s];
    }
    // Its barriers also stand between the weights and those who read them.
    total = block_sum(total);
    float factor = total > 0.f ? 1.f / total : total != total ? total : 0.f;
    for (int d = threadIdx.x; d < D; d += 128) {
        float y = 0.f;
#pragma unroll 8
        for (int s = 0; s < splits; s++) y += from[s * (D + 2) + d] * weights[s];
        put(out[image * h.o[0] + head * h.o[1] + d * h.o[3]], y * factor);
    }
}
