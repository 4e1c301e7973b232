// Rows: consecutive entries that one warp holds in its registers, and what a warp does with them.
//
// A row has K x 128 entries; lane l holds those at 128 t + 4 l for t < K, four at a time, so that each
// access is one of 16 bytes and a warp's accesses lie side by side. Where the array does not start at a
// multiple of 16 bytes, and in the last row, entries are accessed one by one.
#pragma once
#include "numbers.cuh"

constexpr uint32 ALL = 0xffffffffu;
constexpr int WARP = 32;
constexpr int THREADS = 256;              // of a thread block
constexpr int ROWS = THREADS / WARP;      // of a thread block
constexpr int QUADS = 128;                // entries that the lanes of a warp hold four at a time

__device__ inline int lane_of() { return threadIdx.x % WARP; }

// The number of this warp in the whole launch: it is that of its row.
__device__ inline int64 row_of() { return (int64)blockIdx.x * ROWS + threadIdx.x / WARP; }

// Whether accesses of `nbytes` bytes at `array` are allowed; no array allows all.
__device__ inline bool aligned(const void* array, int nbytes) { return (uint64)array % nbytes == 0; }

__device__ inline void load_quad(const float* array, float (&x)[4])
{
    const float4 quad = *reinterpret_cast<const float4*>(array);
    x[0] = quad.x, x[1] = quad.y, x[2] = quad.z, x[3] = quad.w;
}

// Load a row of `array`, of which `left` entries are there; the others become 0.
template <int K>
__device__ inline void load_row(const float* array, int64 left, float (&x)[K][4])
{
    if (left >= K * QUADS && aligned(array, 16)) {
#pragma unroll
        for (int t = 0; t < K; t++) load_quad(array + QUADS * t + 4 * lane_of(), x[t]);
        return;
    }
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int place = QUADS * t + 4 * lane_of() + c;
            x[t][c] = place < left ? array[place] : 0.0f;
        }
}

// Load a row of vector + residual; there may be no residual.
template <int K>
__device__ inline void load_given(const float* vector, const float* residual, int64 left, float (&x)[K][4])
{
    load_row<K>(vector, left, x);
    if (!residual) return;
    float kept[K][4];
    load_row<K>(residual, left, kept);
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) x[t][c] = x[t][c] + kept[t][c];
}

template <int K>
__device__ inline void store_row(float* array, int64 left, const float (&x)[K][4])
{
    if (left >= K * QUADS && aligned(array, 16)) {
#pragma unroll
        for (int t = 0; t < K; t++)
            *reinterpret_cast<float4*>(array + QUADS * t + 4 * lane_of()) =
                make_float4(x[t][0], x[t][1], x[t][2], x[t][3]);
        return;
    }
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int place = QUADS * t + 4 * lane_of() + c;
            if (place < left) array[place] = x[t][c];
        }
}

// Four 8-bit or 16-bit codes that are stored and loaded as one word.
template <typename Code> struct Word;
template <> struct Word<uint16> { typedef ushort4 Four; };
template <> struct Word<int8> { typedef char4 Four; };
template <> struct Word<uint8> { typedef uchar4 Four; };

template <int K, typename Code>
__device__ inline void load_codes(const Code* array, int64 left, Code (&x)[K][4])
{
    typedef typename Word<Code>::Four Four;
    if (left >= K * QUADS && aligned(array, sizeof(Four))) {
#pragma unroll
        for (int t = 0; t < K; t++) {
            const Four four = *reinterpret_cast<const Four*>(array + QUADS * t + 4 * lane_of());
            x[t][0] = four.x, x[t][1] = four.y, x[t][2] = four.z, x[t][3] = four.w;
        }
        return;
    }
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int place = QUADS * t + 4 * lane_of() + c;
            x[t][c] = place < left ? array[place] : (Code)0;
        }
}

template <int K, typename Code>
__device__ inline void store_codes(Code* array, int64 left, const Code (&x)[K][4])
{
    typedef typename Word<Code>::Four Four;
    if (left >= K * QUADS && aligned(array, sizeof(Four))) {
#pragma unroll
        for (int t = 0; t < K; t++) {
            const Four four = {x[t][0], x[t][1], x[t][2], x[t][3]};
            *reinterpret_cast<Four*>(array + QUADS * t + 4 * lane_of()) = four;
        }
        return;
    }
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int place = QUADS * t + 4 * lane_of() + c;
            if (place < left) array[place] = x[t][c];
        }
}

// The largest of a number over groups of `lanes` lanes.
__device__ inline int largest(int number, int lanes = WARP)
{
    for (int bit = lanes / 2; bit; bit /= 2) number = max(number, __shfl_xor_sync(ALL, number, bit));
    return number;
}

template <int K>
__device__ inline int largest_magnitude(const float (&x)[K][4])
{
    int top = 0;
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) top = max(top, magnitude_of(x[t][c]));
    return largest(top);
}

// The largest magnitude of `size` entries that a warp reads one a lane.
__device__ inline int largest_magnitude_of(const float* vector, const float* residual, int64 size)
{
    int top = 0;
    for (int64 i = lane_of(); i < size; i += WARP) top = max(top, magnitude_of(given(vector, residual, i)));
    return largest(top);
}

// Gather a bit an entry of a row: each lane gives K x 4 bits and gets word `word_of<K>()` of the row,
// bit j of which is entry 32 word + j. With K < 8 only lanes with lane % 8 < K get one.
template <int K>
__device__ inline uint32 gathered(const uint32 (&four)[K])
{
    uint32 mine = 0;
#pragma unroll
    for (int t = 0; t < K; t++) {
        uint32 word = four[t] << 4 * (lane_of() % 8);
        for (int bit = 4; bit; bit /= 2) word |= __shfl_xor_sync(ALL, word, bit);
        if (lane_of() % 8 == t) mine = word;
    }
    return mine;
}

__device__ inline int gathered_word() { return lane_of() % 8 * 4 + lane_of() / 8; }

// The sum of `number` over this thread and those before it in a thread block of `WARPS` warps.
template <int WARPS, typename Number>
__device__ inline Number sum_up_to_here(Number number)
{
    __shared__ Number of_warps[WARPS];
    const int warp = threadIdx.x / WARP;
    for (int step = 1; step < WARP; step *= 2) {
        const Number before = __shfl_up_sync(ALL, number, step);
        if (lane_of() >= step) number += before;
    }
    if (lane_of() == WARP - 1) of_warps[warp] = number;
    __syncthreads();
    for (int other = 0; other < warp; other++) number += of_warps[other];
    __syncthreads();
    return number;
}
