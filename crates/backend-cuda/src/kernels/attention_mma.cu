// Attention on matrix units (mma m16n8k16) for f16 and bf16; head elements lie side by side.
// T: element type, MMA: its name in PTX; TM: type of the mask. D: head size, DP: rounded up to 16. BN: keys of a tile.
// MT: times 16 queries of a warp. MASK 0: none, 1: added, 2: keeps where true. CAUSAL: 0 or 1. ASYNC: 1 when rows start at
// multiples of 16 bytes. The scale is positive. A block takes 64 MT queries of one head. Tiles of keys and values are copied
// while the last are used.
struct Heads { i64 q[4], k[4], v[4], m[4], o[4]; i32 queries, keys, group; float scale; };

#define PITCH (DP + 8)
#define BM (64 * MT)
#define LOG2E 1.4426950408889634f
// Fragments of queries stay in registers where there are enough.
#define HELD (DP <= 160)

DEVICE u32 shared_at(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void matrices(u32* r, const T* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_at(at)));
}
DEVICE void matrices_turned(u32* r, const T* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_at(at)));
}
DEVICE void multiply(float* c, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." MMA "." MMA ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE u32 pair(float low, float high) {
    Pack<T, 2> p;
    put(p.v[0], low);
    put(p.v[1], high);
    return *(u32*)&p;
}
// 2^x to about 2 ulp; what is below the smallest normal number is 0.
DEVICE float power(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }

// Copies rows first.. of a head to shared memory; rows and columns beyond the end are zeros.
template <int ROWS> DEVICE void load(T* to, const T* from, i64 stride, int first, int rows) {
    for (int e = threadIdx.x; e < ROWS * (DP / 8); e += 128) {
        int row = e / (DP / 8), col = e % (DP / 8) * 8;
        T* at = to + row * PITCH + col;
        const T* source = from + (i64)(first + row) * stride + col;
        bool there = first + row < rows && col < D;
        // Rows are 16 bytes apart from each other; whether the first begins there is known only now.
        if (ASYNC && ((u64)from & 15) == 0) {
            int bytes = there ? 16 : 0;
            if (!there) source = from;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_at(at)), "l"(source), "r"(bytes));
        } else {
            for (int i = 0; i < 8; i++) at[i] = there && col + i < D ? source[i] : T{0};
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
attention_mma(const T* q, const T* k, const T* v, const TM* mask, T* out, const Heads h) {
    AWAIT();
    extern __shared__ __align__(16) u8 memory[];
    T* queries = (T*)memory;              // [BM][PITCH]
    T* keys = queries + BM * PITCH;     // [2][BN][PITCH]
    T* values = keys + 2 * BN * PITCH;    // [2][BN][PITCH]
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int first = blockIdx.x * BM, mine = first + warp * 16 * MT;
    i64 head = blockIdx.y, image = blockIdx.z;
    const T* qh = q + image * h.q[0] + head * h.q[1];
    const T* kh = k + image * h.k[0] + head / h.group * h.k[1];
    const T* vh = v + image * h.v[0] + head / h.group * h.v[1];
    int last = CAUSAL ? (first + BM < h.keys ? first + BM : h.keys) : h.keys;
    int tiles = (last + BN - 1) / BN;
    load<BM>(queries, qh, h.q[2], first, h.queries);
    load<BN>(keys, kh, h.k[2], 0, h.keys);
    load<BN>(values, vh, h.v[2], 0, h.keys);
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();

    float acc[MT][DP / 8][4], top[MT][2], sum[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
        top[m][0] = top[m][1] = NEG_INF;
        sum[m][0] = sum[m][1] = 0.f;
#pragma unroll
        for (int d = 0; d < DP / 8; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][d][i] = 0.f;
    }
    // Scores are kept as they are and scaled in the exponent, unless a mask is added to them.
    float scale = h.scale * LOG2E, unit = MASK == 1 ? 1.f : scale;
    const T* my_queries = queries + (warp * 16 * MT + (lane & 15)) * PITCH + (lane >> 4) * 8;
#if HELD
    u32 held[MT][DP / 16][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int d = 0; d < DP / 16; d++) matrices(held[m][d], my_queries + m * 16 * PITCH + d * 16);
#endif

    for (int tile = 0; tile < tiles; tile++) {
        int half = tile & 1, start = tile * BN;
        if (tile + 1 < tiles) {
            load<BN>(keys + (1 - half) * BN * PITCH, kh, h.k[2], start + BN, h.keys);
            load<BN>(values + (1 - half) * BN * PITCH, vh, h.v[2], start + BN, h.keys);
            asm volatile("cp.async.commit_group;");
        }
        const T* kt = keys + half * BN * PITCH;
        const T* vt = values + half * BN * PITCH;
        float score[MT][BN / 8][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[m][n][i] = 0.f;
#pragma unroll
        for (int d = 0; d < DP / 16; d++) {
#if HELD
#define QUERIES(m) held[m][d]
#else
            u32 read_now[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) matrices(read_now[m], my_queries + m * 16 * PITCH + d * 16);
#define QUERIES(m) read_now[m]
#endif
#pragma unroll
            for (int n = 0; n < BN / 16; n++) {
                u32 b[4];
                matrices(b, kt + (n * 16 + (lane & 7) + (lane >> 4) * 8) * PITCH + d * 16 + (lane >> 3 & 1) * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    multiply(score[m][2 * n], QUERIES(m), b[0], b[1]);
                    multiply(score[m][2 * n + 1], QUERIES(m), b[2], b[3]);
                }
            }
        }
        // Most tiles are whole: their scores need not be looked at one by one.
        if (MASK || start + BN > h.keys || (CAUSAL && start + BN > mine + 1)) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int n = 0; n < BN / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int row = mine + m * 16 + (lane >> 2) + (i >> 1) * 8, key = start + n * 8 + (lane & 3) * 2 + (i & 1);
                        float s = score[m][n][i];
#if MASK == 1
                        s *= scale;
#endif
                        if (key >= h.keys || row >= h.queries || (CAUSAL && key > row)) {
                            s = NEG_INF;
                        } else {
#if MASK == 1
                            s += get(mask[image * h.m[0] + head * h.m[1] + row * h.m[2] + key * h.m[3]]) * LOG2E;
#elif MASK == 2
                            if (!get(mask[image * h.m[0] + head * h.m[1] + row * h.m[2] + key * h.m[3]])) s = NEG_INF;
#endif
                        }
                        score[m][n][i] = s;
                    }
        }
        // A score that is not a number makes its power, and so the sum, not a number; the maximum may pass it over.
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float peak = top[m][r];
#pragma unroll
                for (int n = 0; n < BN / 8; n++) peak = fmaxf(peak, fmaxf(score[m][n][2 * r], score[m][n][2 * r + 1]));
                peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, 2));
                float base = peak == NEG_INF ? 0.f : peak * unit;
                float shrink = power(top[m][r] * unit - base), part = 0.f;
                top[m][r] = peak;
#pragma unroll
                for (int n = 0; n < BN / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float p = power(fmaf(score[m][n][2 * r + i], unit, -base));
                        score[m][n][2 * r + i] = p;
                        part += p;
                    }
                sum[m][r] = sum[m][r] * shrink + part;
#pragma unroll
                for (int d = 0; d < DP / 8; d++) { acc[m][d][2 * r] *= shrink; acc[m][d][2 * r + 1] *= shrink; }
            }
#pragma unroll
        for (int n = 0; n < BN / 16; n++) {
            u32 a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) {
                a[m][0] = pair(score[m][2 * n][0], score[m][2 * n][1]);
                a[m][1] = pair(score[m][2 * n][2], score[m][2 * n][3]);
                a[m][2] = pair(score[m][2 * n + 1][0], score[m][2 * n + 1][1]);
                a[m][3] = pair(score[m][2 * n + 1][2], score[m][2 * n + 1][3]);
            }
#pragma unroll
            for (int d = 0; d < DP / 16; d++) {
                u32 b[4];
                matrices_turned(b, vt + (n * 16 + (lane & 15)) * PITCH + d * 16 + (lane >> 4) * 8);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    multiply(acc[m][2 * d], a[m], b[0], b[1]);
                    multiply(acc[m][2 * d + 1], a[m], b[2], b[3]);
                }
            }
        }
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = sum[m][r];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            int row = mine + m * 16 + (lane >> 2) + r * 8;
            if (row >= h.queries) continue;
            float factor = total > 0.f ? 1.f / total : total != total ? total : 0.f;
            T* to = out + image * h.o[0] + head * h.o[1] + (i64)row * h.o[2];
#pragma unroll
            for (int d = 0; d < DP / 8; d++) {
                int col = d * 8 + (lane & 3) * 2;
                Pack<T, 2> both;
                put(both.v[0], acc[m][d][2 * r] * factor);
                put(both.v[1], acc[m][d][2 * r + 1] * factor);
                if (col + 1 < D) write<T, 2>(to + col, both);
                else if (col < D) to[col] = both.v[0];
            }
        }
}
