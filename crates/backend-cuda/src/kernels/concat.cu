// Values one after the other along an axis of the result, each copied by the blocks of its number.
// E: an unsigned integer of an element's size. I: an unsigned integer that counts the elements of a value. VEC: neighbors that are
// copied at once. AXES: axes of each value. PARTS: how many values there are.
// The parts stay where arguments are: one chosen by a number would otherwise be copied by every thread.
struct Part { i64 groups, first, size[AXES], from[AXES], to[AXES]; };
struct Parts { Part part[PARTS]; };

extern "C" __global__ void __launch_bounds__(256)
concat(const E* a, const E* b, const E* c, const E* d, E* out, const __grid_constant__ Parts parts) {
    AWAIT();
    const Part& part = parts.part[blockIdx.y];
    const E* x = blockIdx.y == 0 ? a : blockIdx.y == 1 ? b : blockIdx.y == 2 ? c : d;
    for (i64 i = (i64)blockIdx.x * 256 + threadIdx.x; i < part.groups; i += (i64)gridDim.x * 256) {
        I rest = (I)i;
        i64 from = 0, to = part.first;
#pragma unroll
        for (int axis = AXES - 1; axis >= 0; axis--) {
            I n = (I)part.size[axis], k = axis == 0 ? rest : rest % n;
            rest /= n;
            from += (i64)k * part.from[axis];
            to += (i64)k * part.to[axis];
        }
        write<E, VEC>(out + to, read<E, VEC>(x + from));
    }
}
