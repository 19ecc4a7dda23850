// Many slots in one launch: blocks take pieces of a table of jobs, mostly one each, so that urgent kernels of others come between. A launch
// of few blocks leaves the device to others.
// RESIDENT: blocks of a multiprocessor. ROOM: bytes of shared memory.
struct Job {
    u64 source, target, scale;
    i64 first_piece, count;   // pieces are numbered over all jobs
    i32 kind, dims;
    i32 piece, inner;         // elements of a piece; of the last axis, where it is short and a thread takes all of it
    i64 size[5], from[5], to[5], by[5];   // strides in the source, the target, the vector of factors
};
#define THREADS 256
// Loads of a thread that are on their way at once.
#define AHEAD 4

// The last job that begins at `piece` or before. A warp looks at 32 of them at a time, and all of its lanes are here: each step waits for
// memory.
template <typename J> DEVICE int find(const J* jobs, int count, i64 piece) {
    int low = 0, lane = threadIdx.x & 31;
    while (count > 1) {
        int step = (count + 31) / 32, at = lane * step;
        bool begins = at < count && jobs[low + at].first_piece <= piece;
        int last = (__popc(__ballot_sync(~0u, begins)) - 1) * step;
        low += last;
        count = count - last < step ? count - last : step;
    }
    return low;
}

template <typename S, typename T> DEVICE T convert(S v, const float* scale, i64 at) {
    T r;
    float f = get(v);
    if (scale) f *= scale[at];
    put(r, f);
    return r;
}

// Where element i of a job is.
struct At { i64 from, to, by; };
DEVICE At find_element(const Job& job, u32 i) {
    At at = {0, 0, 0};
#pragma unroll
    for (int d = 4; d >= 0; d--) {
        if (d >= 5 - job.dims) {
            u32 n = (u32)job.size[d], k = i % n;
            i /= n;
            at.from += k * job.from[d]; at.to += k * job.to[d]; at.by += k * job.by[d];
        }
    }
    return at;
}

// Elements of a float type, scaled and rounded.
template <typename S, typename T> DEVICE void run(const Job& job, u32 first, u32 end) {
    const S* source = (const S*)job.source;
    T* target = (T*)job.target;
    const float* scale = (const float*)job.scale;
    bool neighbors = job.size[4] % 4 == 0 && job.from[4] == 1 && job.to[4] == 1;
    u32 step = neighbors ? 4 : job.inner;
    for (u32 i = first + threadIdx.x * step; i < end; i += THREADS * step) {
        At at = find_element(job, i);
        if (neighbors) {
            Pack<S, 4> in = read<S, 4>(source + at.from);
            Pack<T, 4> out;
#pragma unroll
            for (int e = 0; e < 4; e++) out.v[e] = convert<S, T>(in.v[e], scale, at.by + e * job.by[4]);
            write<T, 4>(target + at.to, out);
        } else {
            for (u32 e = 0; e < step; e++)
                target[at.to + e * job.to[4]] = convert<S, T>(source[at.from + e * job.from[4]], scale, at.by + e * job.by[4]);
        }
    }
}

// Elements as they are.
template <typename E> DEVICE void move(const Job& job, u32 first, u32 end) {
    const E* source = (const E*)job.source;
    E* target = (E*)job.target;
    constexpr int N = 16 / sizeof(E);
    bool neighbors = job.size[4] % N == 0 && job.from[4] == 1 && job.to[4] == 1;
    u32 step = neighbors ? N : job.inner;
    for (u32 i = first + threadIdx.x * step; i < end; i += THREADS * step) {
        At at = find_element(job, i);
        if (neighbors) write<E, N>(target + at.to, read<E, N>(source + at.from));
        else for (u32 e = 0; e < step; e++) target[at.to + e * job.to[4]] = source[at.from + e * job.from[4]];
    }
}

typedef Pack<u32, 4> Wide;

// Words of a piece, several for each thread on the way at a time.
DEVICE void copy_words(const Wide* source, Wide* target, u32 wide) {
    for (u32 i = threadIdx.x; i < wide; i += AHEAD * THREADS) {
        Wide on_the_way[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) if (i + a * THREADS < wide) on_the_way[a] = source[i + a * THREADS];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) if (i + a * THREADS < wide) target[i + a * THREADS] = on_the_way[a];
    }
}

// Bytes as they are, from and to addresses of wide words.
DEVICE void copy(const Job& job, u32 first, u32 end) {
    u32 wide = (end - first) / 16;
    copy_words((const Wide*)(job.source + first), (Wide*)(job.target + first), wide);
    for (u32 i = first + wide * 16 + threadIdx.x; i < end; i += THREADS) ((u8*)job.target)[i] = ((const u8*)job.source)[i];
}

// The last two axes change places, as channels go last: the source is one run of neighbors, and is read as such; neighbors of the target
// are gathered in shared memory. A warp has 8 stretches of columns and 4 elements of the last axis at a time, which lie in different banks.
template <typename E> DEVICE void turn(const Job& job, u32 first, u32 end, Wide* room) {
    constexpr int N = 16 / sizeof(E);
    copy_words((const Wide*)((const E*)job.source + first), room, (end - first) / N);
    __syncthreads();
    u32 inner = job.inner, columns = (end - first) / inner;
    for (u32 column = (threadIdx.x / 32 * 8 + threadIdx.x % 8) * N; column < columns; column += THREADS / 4 * N) {
        const E* from = (const E*)room + column * inner;
        E* to = (E*)job.target + find_element(job, first + column * inner).to;
        for (u32 e = threadIdx.x / 8 % 4; e < inner; e += 4) {
            Pack<E, N> out;
#pragma unroll
            for (int c = 0; c < N; c++) out.v[c] = from[c * inner + e];
            *(Pack<E, N>*)(to + e * job.to[4]) = out;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) pack(const Job* jobs, int count, i64 pieces) {
    AWAIT();
    __shared__ Job job;
    __shared__ Wide room[ROOM / sizeof(Wide)];
    for (i64 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const u64* found = (const u64*)(jobs + find(jobs, count, piece));
        // The piece before is done with.
        __syncthreads();
        if (threadIdx.x < sizeof(Job) / 8) ((u64*)&job)[threadIdx.x] = found[threadIdx.x];
        __syncthreads();
        i64 begin = (piece - job.first_piece) * job.piece;
        u32 first = (u32)begin, end = (u32)(begin + job.piece < job.count ? begin + job.piece : job.count);
        switch (job.kind) {
            case 0: run<f32, f32>(job, first, end); break;
            case 1: run<f32, f16>(job, first, end); break;
            case 2: run<f32, bf16>(job, first, end); break;
            case 3: run<f16, f32>(job, first, end); break;
            case 4: run<f16, f16>(job, first, end); break;
            case 5: run<f16, bf16>(job, first, end); break;
            case 6: run<bf16, f32>(job, first, end); break;
            case 7: run<bf16, f16>(job, first, end); break;
            case 8: run<bf16, bf16>(job, first, end); break;
            case 9: move<u8>(job, first, end); break;
            case 10: move<u16>(job, first, end); break;
            case 11: move<u32>(job, first, end); break;
            case 12: move<u64>(job, first, end); break;
            case 13: copy(job, first, end); break;
            case 14: turn<u16>(job, first, end, room); break;
            default: turn<u32>(job, first, end, room); break;
        }
    }
}

// W + up·down in f32, W added last, rounded to the type of W. `up` is scaled, rounded once.
struct Merge {
    u64 source, target, up, down;
    i64 first_piece;          // pieces are tiles of 64 rows and 64 columns
    i64 rows, cols, rank;
    i32 kind, columns;        // tiles side by side
    double scale;
};

// Adds N products to each of the sums of a thread, one after the other.
template <int N> DEVICE void add_products(float (&sums)[4][4], const float (*up)[20], const float (*down)[64], int first, int ty, int tx) {
    Pack<float, 4> b[N];
#pragma unroll
    for (int r = 0; r < N; r++) b[r] = *(const Pack<float, 4>*)&down[first + r][tx * 4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        Pack<float, N> a = *(const Pack<float, N>*)&up[ty + i * 16][first];
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a.v[r], b[r].v[j], sums[i][j]);
    }
}

// A thread has 4 neighbors in each of 4 rows.
template <typename E> DEVICE void merge_tile(const Merge& job, int tile, float (*up)[20], float (*down)[64]) {
    int rows = (int)job.rows, cols = (int)job.cols, rank = (int)job.rank;
    int row0 = tile / job.columns * 64, col0 = tile % job.columns * 64;
    int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    int row = row0 + ty, col = col0 + tx * 4, left = cols - col;
    i64 first = (i64)row * cols + col, step = (i64)cols * 16;
    // On its way while the product is computed.
    Pack<E, 4> w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row + i * 16 >= rows || left <= 0) continue;
        const E* source = (const E*)job.source + first + i * step;
        if (left >= 4) {
            w[i] = read<E, 4>(source);
        } else {
#pragma unroll
            for (int j = 0; j < 3; j++) if (j < left) w[i].v[j] = source[j];
        }
    }
    float acc[4][4] = {};
    for (int r0 = 0; r0 < rank; r0 += 16) {
        __syncthreads();
        for (int e = threadIdx.x; e < 1024; e += 256) {
            int at = row0 + e / 16, r = r0 + e % 16;
            float x = at < rows && r < rank ? ((const float*)job.up)[(i64)at * rank + r] : 0.f;
            up[e / 16][e % 16] = job.scale == 1. ? x : (float)(x * job.scale);
            int c = col0 + e % 64, q = r0 + e / 64;
            down[e / 64][e % 64] = c < cols && q < rank ? ((const float*)job.down)[(i64)q * cols + c] : 0.f;
        }
        __syncthreads();
        int many = rank - r0 < 16 ? rank - r0 : 16;
        int r = 0;
        for (; r + 4 <= many; r += 4) add_products<4>(acc, up, down, r, ty, tx);
        for (; r < many; r++) add_products<1>(acc, up, down, r, ty, tx);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row + i * 16 >= rows || left <= 0) continue;
        E* target = (E*)job.target + first + i * step;
        Pack<E, 4> out;
#pragma unroll
        for (int j = 0; j < 4; j++) put(out.v[j], acc[i][j] + get(w[i].v[j]));
        if (left >= 4) {
            write<E, 4>(target, out);
        } else {
#pragma unroll
            for (int j = 0; j < 3; j++) if (j < left) target[j] = out.v[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) merge(const Merge* jobs, int count, i64 pieces) {
    AWAIT();
    __shared__ __align__(16) float up[64][20], down[16][64];
    for (i64 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        const Merge& job = jobs[find(jobs, count, piece)];
        int tile = (int)(piece - job.first_piece);
        switch (job.kind) {
            case 0: merge_tile<f32>(job, tile, up, down); break;
            case 1: merge_tile<f16>(job, tile, up, down); break;
            default: merge_tile<bf16>(job, tile, up, down); break;
        }
    }
}

// Which of many pairs differ in a bit. `flags` begins with zeros.
struct Pair { u64 first, second; i64 first_piece, bytes; };
#define PAIR_PIECE 65536

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) differ(const Pair* pairs, int count, i64 pieces, u32* flags) {
    AWAIT();
    for (i64 piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        int found = find(pairs, count, piece);
        const Pair& pair = pairs[found];
        i64 first = (piece - pair.first_piece) * PAIR_PIECE;
        i64 end = first + PAIR_PIECE < pair.bytes ? first + PAIR_PIECE : pair.bytes;
        const u8* a = (const u8*)pair.first;
        const u8* b = (const u8*)pair.second;
        bool other = false;
        for (i64 i = first + threadIdx.x * 16; i < end; i += 256 * 16) {
            if (i + 16 <= end) {
                Pack<u8, 16> p = read<u8, 16>(a + i), q = read<u8, 16>(b + i);
                const u64 *x = (const u64*)&p, *y = (const u64*)&q;
                other |= x[0] != y[0] || x[1] != y[1];
            } else {
                for (i64 j = i; j < end; j++) other |= a[j] != b[j];
            }
        }
        if (__any_sync(~0u, other) && (threadIdx.x & 31) == 0) flags[found] = 1u;
    }
}
