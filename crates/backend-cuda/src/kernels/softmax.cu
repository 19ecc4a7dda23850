// Softmax along an axis. TX TO: element types. LOG: 0 or 1.
// Rows that lie in one piece: one block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_rows(const TX* x, TO* out, i64 cols) {
    AWAIT();
    const TX* row = x + (i64)blockIdx.x * cols;
    TO* to = out + (i64)blockIdx.x * cols;
    float top = NEG_INF;
    for (i64 i = threadIdx.x; i < cols; i += THREADS) top = f_max(top, get(row[i]));
    top = block_max(top);
    float sum = 0.f;
    for (i64 i = threadIdx.x; i < cols; i += THREADS) sum += expf(get(row[i]) - top);
    sum = block_sum(sum);
    float factor = LOG ? logf(sum) : 1.f / sum;
    for (i64 i = threadIdx.x; i < cols; i += THREADS) {
        float shifted = get(row[i]) - top;
        put(to[i], LOG ? shifted - factor : expf(shifted) * factor);
    }
}

// Any axis: one thread a row.
extern "C" __global__ void __launch_bounds__(256)
softmax_inner(const TX* x, TO* out, i64 rows, i64 cols, i64 inner) {
    AWAIT();
    i64 r = (i64)blockIdx.x * 256 + threadIdx.x;
    if (r >= rows) return;
    i64 base = r / inner * cols * inner + r % inner;
    float top = NEG_INF, sum = 0.f;
    for (i64 i = 0; i < cols; i++) top = f_max(top, get(x[base + i * inner]));
    for (i64 i = 0; i < cols; i++) sum += expf(get(x[base + i * inner]) - top);
    float factor = LOG ? logf(sum) : 1.f / sum;
    for (i64 i = 0; i < cols; i++) {
        float shifted = get(x[base + i * inner]) - top;
        put(out[base + i * inner], LOG ? shifted - factor : expf(shifted) * factor);
    }
}
