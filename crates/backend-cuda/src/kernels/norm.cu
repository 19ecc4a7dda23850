// Layer norm and RMS norm of rows: one block a row, the row in registers.
// TX TW TB TO: element types. COLS: size of a row. RMS, HAS_WEIGHT, HAS_BIAS: 0 or 1. VEC, PER, THREADS: each thread holds
// PER groups of VEC neighbors.
extern "C" __global__ void __launch_bounds__(THREADS)
norm_rows(const TX* x, const TW* weight, const TB* bias, TO* out, i64 row_stride, float eps) {
    AWAIT();
    const TX* row = x + (i64)blockIdx.x * row_stride;
    float v[PER][VEC];
    float sum = 0.f;
#pragma unroll
    for (int p = 0; p < PER; p++) {
        int at = (p * THREADS + threadIdx.x) * VEC;
        if (at < COLS) {
            Pack<TX, VEC> pack = read<TX, VEC>(row + at);
#pragma unroll
            for (int i = 0; i < VEC; i++) { v[p][i] = get(pack.v[i]); sum += RMS ? v[p][i] * v[p][i] : v[p][i]; }
        } else {
#pragma unroll
            for (int i = 0; i < VEC; i++) v[p][i] = 0.f;
        }
    }
    float mean = 0.f, square;
    if (RMS) {
        square = block_sum(sum) / COLS;
    } else {
        mean = block_sum(sum) / COLS;
        float squares = 0.f;
#pragma unroll
        for (int p = 0; p < PER; p++) {
            if ((p * THREADS + threadIdx.x) * VEC < COLS) {
#pragma unroll
                for (int i = 0; i < VEC; i++) { float d = v[p][i] - mean; squares += d * d; }
            }
        }
        square = block_sum(squares) / COLS;
    }
    float factor = 1.f / sqrtf(square + eps);
    TO* to = out + (i64)blockIdx.x * COLS;
#pragma unroll
    for (int p = 0; p < PER; p++) {
        int at = (p * THREADS + threadIdx.x) * VEC;
        if (at < COLS) {
            Pack<TW, VEC> w;
            Pack<TB, VEC> b;
            if (HAS_WEIGHT) w = read<TW, VEC>(weight + at);
            if (HAS_BIAS) b = read<TB, VEC>(bias + at);
            Pack<TO, VEC> pack;
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                float y = (v[p][i] - mean) * factor;
                if (HAS_WEIGHT) y *= get(w.v[i]);
                if (HAS_BIAS) y += get(b.v[i]);
                put(pack.v[i], y);
            }
            write<TO, VEC>(to + at, pack);
        }
    }
}
