// Entries as 4-bit integers; a warp for each group of sixteen blocks, which it holds in registers if the
// blocks have 64 entries and the group is whole, and reads twice if not.
#include "rows.cuh"

constexpr int GROUP = 16;                // blocks of a group
constexpr int K4 = 8;                    // a whole group of blocks of 64 is a row of 1024 entries
constexpr int WHOLE = K4 * QUADS;

__device__ inline float scale_of(uint16 share, float maximum)
{
    return product(product((float)share, SHARE), maximum);
}

// A block's largest magnitude, as bits, in units of SHARE of its group's, rounded up.
__device__ inline uint16 share_of(int top, float maximum)
{
    if (top == 0 || maximum == 0.0f) return 0;
    const float largest = __int_as_float(top);
    int share = min((int)product(largest / maximum, 32768.0f) + 1, 32768);
    if (largest == maximum) share = 32768;
    return __float_as_int(scale_of((uint16)share, maximum)) >= SMALLEST_MAXIMUM ? (uint16)share : 0;
}

__device__ inline float maximum_of(int top)
{
    if (top >= INFINITE) return quiet_nan();
    return top >= SMALLEST_MAXIMUM ? __int_as_float(top) : 0.0f;
}

// The code of an entry, 8 for zero; x becomes what the code does not say.
__device__ inline int encoded(float& x, float inverse, float scale, Rounding& how, int64 i)
{
    const int code = (int)rounded(product(x, inverse), 7.0f, how, i);
    x = x - product(product((float)code, STEP_4), scale);
    return code + 8;
}

__device__ inline void encode_whole(const float* vector, float* residual, Rounding& how, int64 start,
                                    float* maximum_place, uint16* shares, uint8* codes)
{
    float x[K4][4];
    int tops[K4], top = 0;
    load_given(vector, residual, WHOLE, x);
#pragma unroll
    for (int t = 0; t < K4; t++) {
        tops[t] = 0;
        for (int c = 0; c < 4; c++) tops[t] = max(tops[t], magnitude_of(x[t][c]));
        tops[t] = largest(tops[t], 16);  // sixteen lanes hold a block
        top = max(top, tops[t]);
    }
    top = largest(top);
    const float maximum = maximum_of(top);
    const bool bad = top >= INFINITE;
    if (lane_of() == 0) *maximum_place = maximum;
    uint8 packed[K4 / 2][4];
#pragma unroll
    for (int t = 0; t < K4; t++) {
        const uint16 share = bad ? 0 : share_of(tops[t], maximum);
        if (lane_of() % 16 == 0) shares[2 * t + lane_of() / 16] = share;
        const float scale = share ? scale_of(share, maximum) : 0.0f;
        const float inverse = share ? 7.0f / scale : 0.0f;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int code = bad ? 8 : encoded(x[t][c], inverse, scale, how, start + QUADS * t + 4 * lane_of() + c);
            if (t < K4 / 2) packed[t][c] = (uint8)code;
            else packed[t - K4 / 2][c] |= (uint8)(code << 4);
        }
    }
    store_codes(codes, WHOLE / 2, packed);
    if (residual && !bad) store_row(residual, WHOLE, x);
}

// Encode a group of any size; entries and residual are read twice.
__device__ inline void encode_group(const float* vector, float* residual, int64 size, Rounding& how,
                                    int64 start, int64 block, float* maximum_place, uint16* shares,
                                    uint8* codes)
{
    int mine = 0;
    for (int j = 0; j < GROUP && j * block < size; j++) {
        const int top = largest_magnitude_of(vector + j * block, residual ? residual + j * block : nullptr,
                                             min(block, size - j * block));
        if (lane_of() == j) mine = top;
    }
    const int top = largest(mine);
    const float maximum = maximum_of(top);
    const bool bad = top >= INFINITE;
    if (lane_of() == 0) *maximum_place = maximum;
    if (lane_of() < GROUP && lane_of() * block < size) shares[lane_of()] = bad ? 0 : share_of(mine, maximum);
    __syncwarp();  // the shares are read below by other lanes
    const int64 half = (size + 1) / 2;
    for (int64 j = lane_of(); j < half; j += WARP) {
        int code[2] = {8, 8};
        for (int upper = 0; upper < 2 && !bad; upper++) {
            const int64 i = upper ? half + j : j;
            if (i >= size) break;
            const uint16 share = shares[i / block];
            const float scale = share ? scale_of(share, maximum) : 0.0f;
            float x = given(vector, residual, i);
            code[upper] = encoded(x, share ? 7.0f / scale : 0.0f, scale, how, start + i);
            if (residual) residual[i] = x;
        }
        codes[j] = (uint8)(code[0] | code[1] << 4);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_int4(const float* vector, float* residual, int64 size, uint64 key, int has_key, uint64 first,
            int64 block, float* maxima, uint16* shares, uint8* codes)
{
    const int64 group = row_of(), start = group * GROUP * block, left = min(size - start, GROUP * block);
    if (left <= 0) return;
    Rounding how = rounding_by(key, has_key, first);
    float* kept = residual ? residual + start : nullptr;
    if (left == WHOLE && block * GROUP == WHOLE)
        encode_whole(vector + start, kept, how, start, maxima + group, shares + group * GROUP, codes + start / 2);
    else
        encode_group(vector + start, kept, left, how, start, block, maxima + group, shares + group * GROUP,
                     codes + start / 2);
}

__device__ inline float number_of(int code, float scale)
{
    return product(product((float)(code - 8), STEP_4), scale);
}

__device__ inline void decode_whole(float maximum, const uint16* shares, const uint8* codes, float* vector,
                                    int adding)
{
    float x[K4][4] = {};
    uint8 packed[K4 / 2][4];
    load_codes(codes, WHOLE / 2, packed);
    if (adding) load_row(vector, WHOLE, x);
#pragma unroll
    for (int t = 0; t < K4; t++) {
        const float scale = scale_of(shares[2 * t + lane_of() / 16], maximum);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int both = packed[t % (K4 / 2)][c];
            x[t][c] = x[t][c] + number_of(t < K4 / 2 ? both & 15 : both >> 4, scale);
        }
    }
    store_row(vector, WHOLE, x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode_int4(const float* maxima, const uint16* shares, const uint8* codes, int64 size, int64 block,
            float* vector, int adding)
{
    const int64 group = row_of(), start = group * GROUP * block, left = min(size - start, GROUP * block);
    if (left <= 0) return;
    if (left == WHOLE && block * GROUP == WHOLE) {
        decode_whole(maxima[group], shares + group * GROUP, codes + start / 2, vector + start, adding);
        return;
    }
    const int64 half = (left + 1) / 2;
    for (int64 i = lane_of(); i < left; i += WARP) {
        const int both = codes[start / 2 + (i < half ? i : i - half)];
        const float scale = scale_of(shares[group * GROUP + i / block], maxima[group]);
        const float old = adding ? vector[start + i] : 0.0f;
        vector[start + i] = old + number_of(i < half ? both & 15 : both >> 4, scale);
    }
}
