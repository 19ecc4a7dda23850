// Rotary position embedding: rows of x turned by rows of cosines and sines, a pair of elements half a row apart at a time.
// TX TA: element types of x and the result, and of the angles. I: an unsigned integer that counts the rows. HALF: half of a row.
// VEC: neighbors in each half that a thread turns. AXES: axes that number the rows.
struct Rows { i64 groups, size[AXES], stride[3][AXES]; };

extern "C" __global__ void __launch_bounds__(256)
rotary(const TX* x, const TA* cosines, const TA* sines, TX* out, const Rows rows) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < rows.groups; i += (i64)gridDim.x * 256) {
        I row = (I)i / (HALF / VEC), rest = row;
        int in_row = (int)((I)i % (HALF / VEC)) * VEC;
        i64 at[3] = {in_row, in_row, in_row};
#pragma unroll
        for (int a = AXES - 1; a >= 0; a--) {
            I n = (I)rows.size[a], k = a == 0 ? rest : rest % n;
            rest /= n;
#pragma unroll
            for (int o = 0; o < 3; o++) at[o] += (i64)k * rows.stride[o][a];
        }
        Pack<TX, VEC> x1 = read<TX, VEC>(x + at[0]), x2 = read<TX, VEC>(x + at[0] + HALF);
        Pack<TA, VEC> cos1 = read<TA, VEC>(cosines + at[1]), cos2 = read<TA, VEC>(cosines + at[1] + HALF);
        Pack<TA, VEC> sin1 = read<TA, VEC>(sines + at[2]), sin2 = read<TA, VEC>(sines + at[2] + HALF);
        Pack<TX, VEC> y1, y2;
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            float a = get(x1.v[e]), b = get(x2.v[e]);
            put(y1.v[e], a * get(cos1.v[e]) - b * get(sin1.v[e]));
            put(y2.v[e], b * get(cos2.v[e]) + a * get(sin2.v[e]));
        }
        TX* to = out + (i64)row * (2 * HALF) + in_row;
        write<TX, VEC>(to, y1);
        write<TX, VEC>(to + HALF, y2);
    }
}
