// Attention without matrix units: any float types and strides. TQ TK TV TM TO: element types.
// D, E: head sizes of keys and values. MASK 0: none, 1: added, 2: keeps where true. CAUSAL: 0 or 1.
// A block takes 16 queries of one head, 4 for each warp; keys come in tiles of 32, one for each lane.
struct Heads { i64 q[4], k[4], v[4], m[4], o[4]; i32 queries, keys, group; float scale; };

extern "C" __global__ void __launch_bounds__(128)
attention(const TQ* q, const TK* k, const TV* v, const TM* mask, TO* out, const Heads h) {
    AWAIT();
    extern __shared__ float shared[];
    float* keys = shared;                  // [32][D + 1]
    float* values = keys + 32 * (D + 1);   // [32][E]
    float* queries = values + 32 * E;      // [16][D]
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    i64 first = (i64)blockIdx.x * 16, head = blockIdx.y, image = blockIdx.z;
    const TQ* qh = q + image * h.q[0] + head * h.q[1];
    const TK* kh = k + image * h.k[0] + head / h.group * h.k[1];
    const TV* vh = v + image * h.v[0] + head / h.group * h.v[1];
    for (int e = threadIdx.x; e < 16 * D; e += 128) {
        i64 row = first + e / D;
        queries[e] = row < h.queries ? get(qh[row * h.q[2] + e % D * h.q[3]]) : 0.f;
    }
    float top[4], sum[4], acc[4][(E + 31) / 32];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        top[r] = NEG_INF; sum[r] = 0.f;
#pragma unroll
        for (int c = 0; c < (E + 31) / 32; c++) acc[r][c] = 0.f;
    }
    int last = CAUSAL ? (first + 16 < h.keys ? (int)first + 16 : h.keys) : h.keys;
    for (int tile = 0; tile < last; tile += 32) {
        __syncthreads();
        for (int e = threadIdx.x; e < 32 * D; e += 128) {
            i64 row = tile + e / D;
            keys[e / D * (D + 1) + e % D] = row < h.keys ? get(kh[row * h.k[2] + e % D * h.k[3]]) : 0.f;
        }
        for (int e = threadIdx.x; e < 32 * E; e += 128) {
            i64 row = tile + e / E;
            values[e] = row < h.keys ? get(vh[row * h.v[2] + e % E * h.v[3]]) : 0.f;
        }
        __syncthreads();
        float score[4] = {0.f, 0.f, 0.f, 0.f};
        for (int d = 0; d < D; d++) {
            float key = keys[lane * (D + 1) + d];
#pragma unroll
            for (int r = 0; r < 4; r++) score[r] += queries[(warp * 4 + r) * D + d] * key;
        }
        int key = tile + lane;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            i64 row = first + warp * 4 + r;
            float s = score[r] * h.scale;
            if (key >= h.keys || row >= h.queries || (CAUSAL && key > row)) {
                s = NEG_INF;
            } else {
#if MASK == 1
                s += get(mask[image * h.m[0] + head * h.m[1] + row * h.m[2] + key * h.m[3]]);
#elif MASK == 2
                if (!get(mask[image * h.m[0] + head * h.m[1] + row * h.m[2] + key * h.m[3]])) s = NEG_INF;
#endif
            }
            float peak = f_max(top[r], warp_max(s));
            float base = peak == NEG_INF ? 0.f : peak;
            float p = expf(s - base), shrink = expf(top[r] - base);
            sum[r] = sum[r] * shrink + warp_sum(p);
            top[r] = peak;
#pragma unroll
            for (int c = 0; c < (E + 31) / 32; c++) acc[r][c] *= shrink;
            for (int j = 0; j < 32; j++) {
                float pj = __shfl_sync(~0u, p, j);
#pragma unroll
                for (int c = 0; c < (E + 31) / 32; c++) {
                    int at = c * 32 + lane;
                    if (at < E) acc[r][c] += pj * values[j * E + at];
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        i64 row = first + warp * 4 + r;
        if (row >= h.queries) continue;
        float factor = sum[r] > 0.f ? 1.f / sum[r] : sum[r] != sum[r] ? sum[r] : 0.f;
#pragma unroll
        for (int c = 0; c < (E + 31) / 32; c++) {
            int at = c * 32 + lane;
            if (at < E) put(out[image * h.o[0] + head * h.o[1] + row * h.o[2] + at * h.o[3]], acc[r][c] * factor);
        }
    }
}
