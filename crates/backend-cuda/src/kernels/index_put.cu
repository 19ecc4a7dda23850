// Values written at computed positions; of several for one element the last stays, so each element looks for the last point that
// names it. E: an unsigned integer of an element's size; TI: type of the indices; COUNT: how many axes are indexed.
struct Shape { i64 size[6]; i64 stride[6]; };
struct Indices { i64 axis_size[4]; i64 point_size[6]; i64 stride[4][6]; };

// The row of the indexed axes that a point names; -1 where it is out of range.
DEVICE i64 row_of(const TI* const* all, const Indices& d, i64 point, const Report* report) {
    i64 row = 0;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        i64 rest = point, from = 0;
#pragma unroll
        for (int a = 5; a >= 0; a--) { from += rest % d.point_size[a] * d.stride[k][a]; rest /= d.point_size[a]; }
        i64 raw = get(all[k][from]), at = raw < 0 ? raw + d.axis_size[k] : raw;
        if (at < 0 || at >= d.axis_size[k]) {
            if (report) out_of_range(*report, raw, d.axis_size[k]);
            return -1;
        }
        row = row * d.axis_size[k] + at;
    }
    return row;
}

// `written` is the shape of what is written, with the strides of the values there.
extern "C" __global__ void __launch_bounds__(256)
index_put_set(const E* x, const E* values, const TI* i0, const TI* i1, const TI* i2, const TI* i3, E* out, const Report report,
              i64 outer, i64 points, i64 inner, i64 indexed, const Indices d, const Shape written) {
    const TI* all[4] = {i0, i1, i2, i3};
    if (blockIdx.x == 0) {
        for (i64 p = threadIdx.x; p < points; p += 256) row_of(all, d, p, &report);
    }
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < outer * indexed * inner; i += (i64)gridDim.x * 256) {
        i64 row = i / inner % indexed, point = points - 1;
        while (point >= 0 && row_of(all, d, point, nullptr) != row) point--;
        if (point < 0) {
            if (out != x) out[i] = x[i];
            continue;
        }
        i64 rest = (i / inner / indexed * points + point) * inner + i % inner, from = 0;
#pragma unroll
        for (int a = 5; a >= 0; a--) { from += rest % written.size[a] * written.stride[a]; rest /= written.size[a]; }
        out[i] = values[from];
    }
}
