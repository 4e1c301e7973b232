// The kernels that treat every entry alike: sums, products, copies, 16-bit floats, low rank.
#include "rows.cuh"

constexpr int DENSE = 2;  // a row is 256 entries

extern "C" __global__ void __launch_bounds__(THREADS)
add(const float* vector, float* total, int64 size)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float x[DENSE][4];
    load_given(vector + start, total + start, left, x);
    store_row(total + start, left, x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
scale(const float* vector, uint32 factor, float* scaled, int64 size)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float x[DENSE][4];
    load_row(vector + start, left, x);
#pragma unroll
    for (int t = 0; t < DENSE; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) x[t][c] = product(x[t][c], __int_as_float((int)factor));
    store_row(scaled + start, left, x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_dense(const float* vector, float* residual, int64 size, float* entries)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float x[DENSE][4];
    load_given(vector + start, residual ? residual + start : nullptr, left, x);
    store_row(entries + start, left, x);
    if (!residual) return;
    const float nothing[DENSE][4] = {};
    store_row(residual + start, left, nothing);
}

template <bool HALF>
__device__ inline float number_of(uint16 code)
{
    return HALF ? number_of_half(code) : number_of_bfloat(code);
}

template <bool HALF>
__device__ inline void encode_16(const float* vector, float* residual, int64 size, uint16* codes)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float x[DENSE][4];
    uint16 code[DENSE][4];
    load_given(vector + start, residual ? residual + start : nullptr, left, x);
#pragma unroll
    for (int t = 0; t < DENSE; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            code[t][c] = HALF ? half_of(x[t][c]) : bfloat_of(x[t][c]);
            x[t][c] = x[t][c] - number_of<HALF>(code[t][c]);
        }
    store_codes(codes + start, left, code);
    if (residual) store_row(residual + start, left, x);
}

template <bool HALF>
__device__ inline void decode_16(const uint16* codes, float* vector, int64 size, int adding)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float x[DENSE][4];
    uint16 code[DENSE][4];
    load_codes(codes + start, left, code);
    if (adding) load_row(vector + start, left, x);
#pragma unroll
    for (int t = 0; t < DENSE; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float number = number_of<HALF>(code[t][c]);
            x[t][c] = adding ? x[t][c] + number : number;
        }
    store_row(vector + start, left, x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_float16(const float* vector, float* residual, int64 size, uint16* codes)
{
    encode_16<true>(vector, residual, size, codes);
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_bfloat16(const float* vector, float* residual, int64 size, uint16* codes)
{
    encode_16<false>(vector, residual, size, codes);
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode_float16(const uint16* codes, float* vector, int64 size, int adding)
{
    decode_16<true>(codes, vector, size, adding);
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode_bfloat16(const uint16* codes, float* vector, int64 size, int adding)
{
    decode_16<false>(codes, vector, size, adding);
}

// Add the vector to the residual, if there is one, and set *bad where the sum is a NaN or an infinity.
extern "C" __global__ void __launch_bounds__(THREADS)
keep_and_check(const float* vector, float* residual, int64 size, uint32* bad)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float x[DENSE][4];
    load_given(vector + start, residual ? residual + start : nullptr, left, x);
    if (residual) store_row(residual + start, left, x);
    if (largest_magnitude(x) >= INFINITE && lane_of() == 0) atomicOr(bad, 1u);
}

// matrix[i, j] = sum over k of p[i, k] q[k, j] in the order of k, or that added to it.
extern "C" __global__ void __launch_bounds__(THREADS)
low_rank(const float* p, const float* q, int64 entries, int64 columns, int rank, float* matrix, int adding)
{
    const int64 place = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (place >= entries) return;
    const int64 row = place / columns, column = place % columns;
    float sum = product(p[row * rank], q[column]);
    for (int k = 1; k < rank; k++) sum = sum + product(p[row * rank + k], q[k * columns + column]);
    matrix[place] = adding ? matrix[place] + sum : sum;
}
