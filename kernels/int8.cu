// Entries as 8-bit integers; a warp for each block, which holds it in registers if it has 128, 256, 512
// or 1024 entries, and reads it twice if not.
#include "rows.cuh"

// What the largest magnitude of a block makes of it: its maximum on the wire, the factor before rounding
// and whether the residual stays as it was.
struct Block8 {
    float maximum, inverse;
    bool bad;
};

__device__ inline Block8 block_of(int top)
{
    if (top >= INFINITE) return {quiet_nan(), 0.0f, true};
    if (top < SMALLEST_MAXIMUM) return {0.0f, 0.0f, false};
    return {__int_as_float(top), 127.0f / __int_as_float(top), false};
}

// The code of an entry; x becomes what the code does not say.
__device__ inline int8 encoded(float& x, const Block8& block, Rounding& how, int64 i)
{
    const int code = block.inverse == 0.0f ? 0 : (int)rounded(product(x, block.inverse), 127.0f, how, i);
    x = x - product(product((float)code, STEP), block.maximum);
    return (int8)code;
}

template <int K>
__device__ inline void encode_row(const float* vector, float* residual, int64 size, Rounding& how,
                                  float* maxima, int8* codes)
{
    const int64 row = row_of(), start = row * K * QUADS, left = size - start;
    if (left <= 0) return;
    float x[K][4];
    int8 code[K][4];
    load_given(vector + start, residual ? residual + start : nullptr, left, x);
    const Block8 block = block_of(largest_magnitude(x));
    if (lane_of() == 0) maxima[row] = block.maximum;
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            code[t][c] = encoded(x[t][c], block, how, start + QUADS * t + 4 * lane_of() + c);
    store_codes(codes + start, left, code);
    if (residual && !block.bad) store_row(residual + start, left, x);
}

template <int K>
__device__ inline void decode_row(const float* maxima, const int8* codes, int64 size, float* vector,
                                  int adding)
{
    const int64 row = row_of(), start = row * K * QUADS, left = size - start;
    if (left <= 0) return;
    float x[K][4];
    int8 code[K][4];
    load_codes(codes + start, left, code);
    if (adding) load_row(vector + start, left, x);
    const float maximum = maxima[row];
#pragma unroll
    for (int t = 0; t < K; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float number = product(product((float)code[t][c], STEP), maximum);
            x[t][c] = adding ? x[t][c] + number : number;
        }
    store_row(vector + start, left, x);
}

#define FOR_BLOCKS_OF(ENTRIES)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                \
    encode_int8_##ENTRIES(const float* vector, float* residual, int64 size, uint64 key, int has_key,     \
                          uint64 first, float* maxima, int8* codes)                                      \
    {                                                                                                    \
        Rounding how = rounding_by(key, has_key, first);                                                 \
        encode_row<ENTRIES / QUADS>(vector, residual, size, how, maxima, codes);                         \
    }                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                \
    decode_int8_##ENTRIES(const float* maxima, const int8* codes, int64 size, float* vector, int adding) \
    {                                                                                                    \
        decode_row<ENTRIES / QUADS>(maxima, codes, size, vector, adding);                                \
    }

FOR_BLOCKS_OF(128)
FOR_BLOCKS_OF(256)
FOR_BLOCKS_OF(512)
FOR_BLOCKS_OF(1024)

extern "C" __global__ void __launch_bounds__(THREADS)
encode_int8_any(const float* vector, float* residual, int64 size, uint64 key, int has_key, uint64 first,
                float* maxima, int8* codes, int64 entries)
{
    const int64 row = row_of(), start = row * entries, last = min(start + entries, size);
    if (start >= size) return;
    const Block8 block = block_of(largest_magnitude_of(
        vector + start, residual ? residual + start : nullptr, last - start));
    if (lane_of() == 0) maxima[row] = block.maximum;
    Rounding how = rounding_by(key, has_key, first);
    for (int64 i = start + lane_of(); i < last; i += WARP) {
        float x = given(vector, residual, i);
        codes[i] = encoded(x, block, how, i);
        if (residual && !block.bad) residual[i] = x;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode_int8_any(const float* maxima, const int8* codes, int64 size, float* vector, int adding, int64 entries)
{
    const int64 i = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= size) return;
    const float number = product(product((float)codes[i], STEP), maxima[i / entries]);
    vector[i] = adding ? vector[i] + number : number;
}
