// Reductions, positions of extrema, running sums.
// TX TO: element types; ACC: what is accumulated in; START, JOIN(a, b), LOAD(v), FINISH(a, n): the reduction.
struct Axes { i64 kept[6]; i64 kept_stride[6]; i64 gone[6]; i64 gone_stride[6]; i64 outputs; i64 each; };

DEVICE i64 at_kept(const Axes& a, i64 i) {
    i64 at = 0;
#pragma unroll
    for (int d = 5; d >= 0; d--) { at += i % a.kept[d] * a.kept_stride[d]; i /= a.kept[d]; }
    return at;
}
DEVICE i64 at_gone(const Axes& a, i64 i) {
    i64 at = 0;
#pragma unroll
    for (int d = 5; d >= 0; d--) { at += i % a.gone[d] * a.gone_stride[d]; i /= a.gone[d]; }
    return at;
}

#ifdef REDUCE
// One thread an output.
extern "C" __global__ void __launch_bounds__(256) reduce_threads(const TX* x, TO* out, const Axes a) {
    AWAIT();
    i64 o = (i64)blockIdx.x * 256 + threadIdx.x;
    if (o >= a.outputs) return;
    i64 base = at_kept(a, o);
    ACC acc = START;
    for (i64 i = 0; i < a.each; i++) { ACC v = LOAD(get(x[base + at_gone(a, i)])); acc = JOIN(acc, v); }
    put(out[o], FINISH(acc, a.each));
}

// One block an output.
extern "C" __global__ void __launch_bounds__(256) reduce_blocks(const TX* x, TO* out, const Axes a) {
    AWAIT();
    __shared__ ACC parts[256];
    i64 base = at_kept(a, blockIdx.x);
    ACC acc = START;
    for (i64 i = threadIdx.x; i < a.each; i += 256) { ACC v = LOAD(get(x[base + at_gone(a, i)])); acc = JOIN(acc, v); }
    parts[threadIdx.x] = acc;
    __syncthreads();
    for (int o = 128; o > 0; o >>= 1) {
        if (threadIdx.x < o) parts[threadIdx.x] = JOIN(parts[threadIdx.x], parts[threadIdx.x + o]);
        __syncthreads();
    }
    if (threadIdx.x == 0) put(out[blockIdx.x], FINISH(parts[0], a.each));
}
#endif

#ifdef ARG
// Whether `a` comes before `b`: NaN before all, the first of equals.
template <typename V> DEVICE bool before(V a, i64 i, V b, i64 j) {
    if (j < 0) return true;
    if (i < 0) return false;
    bool na = a != a, nb = b != b;
    if (na || nb) return na && (!nb || i < j);
    return a == b ? i < j : ARG_LESS ? a < b : a > b;
}
// One block an output: the index along the axis.
extern "C" __global__ void __launch_bounds__(256) arg_blocks(const TX* x, i64* out, const Axes a) {
    AWAIT();
    __shared__ ACC values[256];
    __shared__ i64 indices[256];
    i64 base = at_kept(a, blockIdx.x);
    ACC best = 0;
    i64 at = -1;
    for (i64 i = threadIdx.x; i < a.each; i += 256) {
        ACC v = get(x[base + at_gone(a, i)]);
        if (before<ACC>(v, i, best, at)) { best = v; at = i; }
    }
    values[threadIdx.x] = best;
    indices[threadIdx.x] = at;
    __syncthreads();
    for (int o = 128; o > 0; o >>= 1) {
        if (threadIdx.x < o && before<ACC>(values[threadIdx.x + o], indices[threadIdx.x + o], values[threadIdx.x], indices[threadIdx.x])) {
            values[threadIdx.x] = values[threadIdx.x + o];
            indices[threadIdx.x] = indices[threadIdx.x + o];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = indices[0];
}
#endif

#ifdef SCAN
// One warp a line of `cols` elements at distance `inner`.
extern "C" __global__ void __launch_bounds__(256) scan_lines(const TX* x, TO* out, i64 lines, i64 cols, i64 inner) {
    AWAIT();
    i64 line = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (line >= lines) return;
    int lane = threadIdx.x & 31;
    i64 base = line / inner * cols * inner + line % inner;
    ACC carry = 0;
    for (i64 first = 0; first < cols; first += 32) {
        i64 i = first + lane;
        ACC v = i < cols ? (ACC)get(x[base + i * inner]) : (ACC)0;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) { ACC up = __shfl_up_sync(~0u, v, o); if (lane >= o) v += up; }
        v += carry;
        if (i < cols) put(out[base + i * inner], v);
        carry = __shfl_sync(~0u, v, 31);
    }
}
#endif
