// A few entries with their places. Which entries travel is said by two numbers, `found`: those whose
// magnitude, as bits, is larger than found[0], and the first found[1] of those that equal it.
//
//   top_k_histogram, top_k_pick   twice: find both numbers for the k largest (upper 13 bits, lower 18)
//   top_k_mark                    a bit for each entry that is larger, one for each that is equal, and
//                                 how many there are of both in each tile of 8192 entries; where there
//                                 is a residual, vector + residual is left in it
//   top_k_scan                    how many there are before each tile
//   top_k_write                   the marked entries to their places on the wire
//
// With a threshold from the step before, found is known, and mark, scan and write are all: the entries
// are read once, and once more where they are marked.
#include "rows.cuh"

constexpr int K8 = 8;                    // a row is 1024 entries
constexpr int TILE = ROWS * K8 * QUADS;  // entries of a thread block, a thread's word of 32 each
constexpr int UPPER = 13, LOWER = 18;    // bits of the two digits of a magnitude
constexpr int PICKERS = 1024;            // threads of the kernels that are one thread block

// Count magnitudes by their upper digit, or, in the second pass, those whose upper digit is found[0] by
// their lower one.
extern "C" __global__ void __launch_bounds__(THREADS)
top_k_histogram(const float* values, int64 size, int second, const uint32* found, uint32* histogram)
{
    __shared__ uint32 counts[1 << UPPER];
    const int64 first = (int64)blockIdx.x * THREADS + threadIdx.x, step = (int64)gridDim.x * THREADS;
    if (second) {
        for (int64 i = first; i < size; i += step) {
            const uint32 bits = magnitude_of(values[i]);
            if (bits >> LOWER == found[0]) atomicAdd(&histogram[bits & ((1 << LOWER) - 1)], 1u);
        }
        return;
    }
    for (int bin = threadIdx.x; bin < 1 << UPPER; bin += THREADS) counts[bin] = 0;
    __syncthreads();
    for (int64 i = first; i < size; i += step) atomicAdd(&counts[(uint32)magnitude_of(values[i]) >> LOWER], 1u);
    __syncthreads();
    for (int bin = threadIdx.x; bin < 1 << UPPER; bin += THREADS)
        if (counts[bin]) atomicAdd(&histogram[bin], counts[bin]);
}

// Find the bin that holds the found[1]-th largest magnitude: append its number to found[0], and leave in
// found[1] which one of that bin it is.
extern "C" __global__ void __launch_bounds__(PICKERS)
top_k_pick(const uint32* histogram, int bins, int bits, uint32* found)
{
    const int each = bins / PICKERS, top = bins - 1 - threadIdx.x * each;  // from the top downwards
    const uint32 digits = found[0], wanted = found[1];
    uint32 mine = 0;
    for (int bin = top; bin > top - each; bin--) mine += histogram[bin];
    uint32 before = sum_up_to_here<PICKERS / WARP>(mine) - mine;  // also: all have read `found`
    if (before >= wanted || before + mine < wanted) return;
    int bin = top;
    for (; before + histogram[bin] < wanted; bin--) before += histogram[bin];
    found[0] = digits << bits | bin;
    found[1] = wanted - before;
}

extern "C" __global__ void __launch_bounds__(THREADS)
top_k_mark(const float* vector, float* residual, int64 size, const uint32* found, uint32* larger,
           uint32* equal, uint64* counts)
{
    __shared__ uint32 of_rows[ROWS];
    const int64 row = row_of(), start = row * K8 * QUADS, left = size - start;
    const int threshold = (int)found[0];
    uint32 over[K8] = {}, same[K8] = {};
    if (left > 0) {
        float x[K8][4];
        load_given(vector + start, residual ? residual + start : nullptr, left, x);
        if (residual) store_row(residual + start, left, x);
#pragma unroll
        for (int t = 0; t < K8; t++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const bool there = QUADS * t + 4 * lane_of() + c < left;
                over[t] |= (uint32)(there && magnitude_of(x[t][c]) > threshold) << c;
                same[t] |= (uint32)(there && magnitude_of(x[t][c]) == threshold) << c;
            }
    }
    const uint32 over_word = gathered(over), same_word = gathered(same);
    larger[row * WARP + gathered_word()] = over_word;
    equal[row * WARP + gathered_word()] = same_word;
    uint32 both = __popc(over_word) | __popc(same_word) << 16;
    for (int bit = WARP / 2; bit; bit /= 2) both += __shfl_xor_sync(ALL, both, bit);
    if (lane_of() == 0) of_rows[threadIdx.x / WARP] = both;
    __syncthreads();
    if (threadIdx.x) return;
    for (int other = 1; other < ROWS; other++) both += of_rows[other];
    counts[blockIdx.x] = (both & 0xffff) | (uint64)(both >> 16) << 32;
}

// Turn counts[tile] into the sum of all before it, and counts[tiles] into that of all: the larger ones
// in the lower 32 bits, the equal ones in the upper 32.
extern "C" __global__ void __launch_bounds__(PICKERS)
top_k_scan(uint64* counts, int64 tiles)
{
    __shared__ uint64 total;
    uint64 before = 0;
    for (int64 first = 0; first < tiles; first += PICKERS) {
        const int64 tile = first + threadIdx.x;
        const uint64 mine = tile < tiles ? counts[tile] : 0;
        const uint64 sum = before + sum_up_to_here<PICKERS / WARP>(mine);
        if (tile < tiles) counts[tile] = sum - mine;
        if (threadIdx.x == PICKERS - 1) total = sum;
        __syncthreads();
        before = total;
        __syncthreads();
    }
    if (threadIdx.x == 0) counts[tiles] = before;
}

// How many entries are taken before a place, of the larger and of the equal ones before it.
__device__ inline uint32 taken_of(uint64 sums, uint32 ties)
{
    return (uint32)sums + min((uint32)(sums >> 32), ties);
}

extern "C" __global__ void __launch_bounds__(THREADS)
top_k_write(const float* vector, float* residual, int64 size, const uint32* found, const uint32* larger,
            const uint32* equal, const uint64* sums, int64 tiles, uint32* counts, float* entries,
            uint16* positions, int64 wanted)
{
    const int64 tile = blockIdx.x, word = tile * THREADS + threadIdx.x;
    const uint32 ties = found[1], over = larger[word], same = equal[word];
    const uint64 mine = __popc(over) | (uint64)__popc(same) << 32;
    uint64 sum = sums[tile] + sum_up_to_here<ROWS>(mine) - mine;
    for (uint32 marked = over | same; marked; marked &= marked - 1) {
        const int bit = __ffs(marked) - 1;
        const int64 i = word * 32 + bit;
        const bool is_larger = over >> bit & 1;
        const uint32 place = taken_of(sum, ties);
        if ((is_larger || (uint32)(sum >> 32) < ties) && place < wanted) {
            entries[place] = residual ? residual[i] : vector[i];
            positions[place] = (uint16)i;
            if (residual) residual[i] = 0.0f;
        }
        sum += is_larger ? 1 : (uint64)1 << 32;
    }
    constexpr int TILES = POSITIONS / TILE;  // of a block of positions
    if (threadIdx.x == 0 && tile % TILES == 0)
        counts[tile / TILES] = taken_of(sums[min(tile + TILES, tiles)], ties) - taken_of(sums[tile], ties);
    for (int64 i = taken_of(sums[tiles], ties) + word; i < wanted; i += tiles * THREADS) {
        entries[i] = 0.0f;
        positions[i] = 0;
    }
}

// Add entries at their places, a thread block for each block of 65536. A wire whose places do not
// ascend says some of them twice, perhaps: it is added by one thread, in its order.
extern "C" __global__ void __launch_bounds__(THREADS)
add_top_k(const uint32* counts, const float* entries, const uint16* positions, int64 wanted, float* total,
          int64 size)
{
    __shared__ uint64 first_shared;
    __shared__ uint32 descends;
    if (threadIdx.x == 0) first_shared = 0, descends = 0;
    __syncthreads();
    uint64 before = 0;
    for (int64 block = threadIdx.x; block < blockIdx.x; block += THREADS) before += counts[block];
    if (before) atomicAdd(&first_shared, before);
    __syncthreads();
    const int64 first = (int64)min(first_shared, (uint64)wanted), start = (int64)blockIdx.x * POSITIONS;
    const int64 last = min(first + (int64)counts[blockIdx.x], wanted);
    for (int64 i = first + 1 + threadIdx.x; i < last; i += THREADS)
        if (positions[i] <= positions[i - 1]) atomicOr(&descends, 1u);
    __syncthreads();
    const int step = descends ? 1 : THREADS;
    if (descends && threadIdx.x) return;
    for (int64 i = first + threadIdx.x; i < last; i += step) {
        const int64 place = start + positions[i];
        if (place < size) total[place] = total[place] + entries[i];
    }
}
