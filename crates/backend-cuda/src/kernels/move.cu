// Moving elements. E: an unsigned integer of an element's size.
// Matrices transposed: out[b][c][r] = x[b][r][c].
extern "C" __global__ void __launch_bounds__(256)
transpose(const E* x, E* out, i64 rows, i64 cols) {
    AWAIT();
    __shared__ E tile[32][33];
    i64 base = (i64)blockIdx.z * rows * cols;
    i64 r0 = (i64)blockIdx.y * 32, c0 = (i64)blockIdx.x * 32;
    int tx = threadIdx.x & 31, ty = threadIdx.x >> 5;
    for (int i = ty; i < 32; i += 8)
        if (r0 + i < rows && c0 + tx < cols) tile[i][tx] = x[base + (r0 + i) * cols + c0 + tx];
    __syncthreads();
    for (int i = ty; i < 32; i += 8)
        if (c0 + i < cols && r0 + tx < rows) out[base + (c0 + i) * rows + r0 + tx] = tile[tx][i];
}

struct Padding { i64 size[6]; i64 from[6]; i64 stride[6]; i64 before[6]; };

// MODE 0: a literal, 1: mirrored, 2: the edge.
extern "C" __global__ void __launch_bounds__(256)
pad(const E* x, E* out, i64 count, E value, const Padding d) {
    AWAIT();
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < count; i += (i64)gridDim.x * 256) {
        i64 rest = i, at = 0;
        bool inside = true;
#pragma unroll
        for (int a = 5; a >= 0; a--) {
            i64 k = rest % d.size[a] - d.before[a], n = d.from[a];
            rest /= d.size[a];
            if (MODE == 1) { if (k < 0) k = -k; if (k >= n) k = 2 * (n - 1) - k; }
            if (MODE == 2) k = k < 0 ? 0 : k >= n ? n - 1 : k;
            inside = inside && k >= 0 && k < n;
            at += k * d.stride[a];
        }
        out[i] = inside ? x[at] : value;
    }
}
