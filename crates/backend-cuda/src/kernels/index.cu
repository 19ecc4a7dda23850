// Elements at computed positions. E: an unsigned integer of an element's size; TI: type of the indices; N: what places
// are computed in.
// Rows of a table: VEC elements at once.
extern "C" __global__ void __launch_bounds__(256)
embedding_rows(const E* table, const TI* ids, E* out, const Report report, i64 count, i64 rows, i64 row_size) {
    AWAIT();
    N groups = (N)(row_size / VEC);
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count * groups; i += (i64)gridDim.x * 256) {
        i64 id = get(ids[(N)i / groups]);
        N at = (N)i % groups * VEC;
        if (id < 0 || id >= rows) { if (at == 0) out_of_range(report, id, rows); id = 0; }
        write<E, VEC>(out + i * VEC, read<E, VEC>(table + id * row_size + at));
    }
}

struct Shape { i64 size[6]; i64 stride[6]; };

// Where element `i` lies.
DEVICE N place(const i64* size, const i64* stride, N i) {
    N at = 0;
#pragma unroll
    for (int d = 5; d >= 0; d--) { at += i % (N)size[d] * (N)stride[d]; i /= (N)size[d]; }
    return at;
}

// x[i][index[i][j][k]][k] for axis 1: `stride` are those of x, 0 along the axis, whose own is `step`.
extern "C" __global__ void __launch_bounds__(256)
gather_axis(const E* x, const TI* index, E* out, const Report report, i64 count, i64 axis_size, i64 step, const Shape shape) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 at = get(index[i]);
        if (at < 0 || at >= axis_size) { out_of_range(report, at, axis_size); at = 0; }
        out[i] = x[place(shape.size, shape.stride, (N)i) + at * step];
    }
}

struct Indices { i64 axis_size[4]; i64 point_size[6]; i64 stride[4][6]; };

// The row of the indexed axes that a point names; -1 where it is out of range.
DEVICE i64 row_of(const TI* const* all, const Indices& d, N point, const Report* report) {
    i64 row = 0;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        i64 raw = get(all[k][place(d.point_size, d.stride[k], point)]), at = raw < 0 ? raw + d.axis_size[k] : raw;
        if (at < 0 || at >= d.axis_size[k]) {
            if (report) out_of_range(*report, raw, d.axis_size[k]);
            return -1;
        }
        row = row * d.axis_size[k] + at;
    }
    return row;
}

// Several index tensors on consecutive axes; negative ones count from the end.
extern "C" __global__ void __launch_bounds__(256)
index_axes(const E* x, const TI* i0, const TI* i1, const TI* i2, const TI* i3, E* out, const Report report,
           i64 outer, i64 points, i64 inner, i64 indexed, const Indices d) {
    AWAIT();
    const TI* all[4] = {i0, i1, i2, i3};
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < outer * points * inner; i += (i64)gridDim.x * 256) {
        N group = (N)i / (N)inner;
        i64 row = row_of(all, d, group % (N)points, &report);
        out[i] = x[((i64)(group / (N)points) * indexed + (row < 0 ? 0 : row)) * inner + (N)i % (N)inner];
    }
}

// Values written at computed positions; of several for one element the last stays. `written` is the shape of what is written,
// with the strides of the values there.
extern "C" __global__ void __launch_bounds__(256)
index_put_set(const E* x, const E* values, const TI* i0, const TI* i1, const TI* i2, const TI* i3, E* out, const Report report,
              i64 outer, i64 points, i64 inner, i64 indexed, const Indices d, const Shape written) {
    AWAIT();
    const TI* all[4] = {i0, i1, i2, i3};
    if (blockIdx.x == 0) {
        for (i64 p = threadIdx.x; p < points; p += 256) row_of(all, d, p, &report);
    }
    // In place only what is written is touched; elsewhere every element looks for the last point that names it.
    bool in_place = out == x;
    i64 count = outer * inner * (in_place ? points : indexed);
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        N group = (N)i / (N)inner, inside = (N)i % (N)inner, block;
        i64 point, row;
        if (in_place) {
            block = group / (N)points;
            point = group % (N)points;
            row = row_of(all, d, (N)point, nullptr);
            i64 later = point + 1;
            while (later < points && row_of(all, d, (N)later, nullptr) != row) later++;
            if (row < 0 || later < points) continue;
        } else {
            block = group / (N)indexed;
            row = group % (N)indexed;
            point = points - 1;
            while (point >= 0 && row_of(all, d, (N)point, nullptr) != row) point--;
            if (point < 0) { out[i] = x[i]; continue; }
        }
        N from = place(written.size, written.stride, (N)((block * points + point) * inner + inside));
        out[(block * indexed + row) * inner + inside] = values[from];
    }
}
