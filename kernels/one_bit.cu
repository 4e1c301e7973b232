// Signs and a mean magnitude a block; a warp for each block, which it holds in registers if it has 128,
// 256, 512 or 1024 entries, and reads twice if not. Sums are by halves, in the order of reference.py.
#include "rows.cuh"

// The sum of the same number over all lanes: lane l with l + 16, then l + 8, and so on.
__device__ inline float sum_of_lanes(float number)
{
    for (int bit = WARP / 2; bit; bit /= 2) number = number + __shfl_xor_sync(ALL, number, bit);
    return number;
}

// The sum of |x| x `share` over a row: by halves inside each 128 entries, then over these.
template <int K>
__device__ inline float sum_by_halves(const float (&x)[K][4], float share)
{
    float sums[K];
#pragma unroll
    for (int t = 0; t < K; t++) {
        float four[4];
#pragma unroll
        for (int c = 0; c < 4; c++) four[c] = sum_of_lanes(product(fabsf(x[t][c]), share));
        sums[t] = (four[0] + four[2]) + (four[1] + four[3]);
    }
#pragma unroll
    for (int half = K / 2; half; half /= 2)
#pragma unroll
        for (int t = 0; t < half; t++) sums[t] = sums[t] + sums[half + t];
    return sums[0];
}

// What a mean of fewer entries than `block` is multiplied with: block / entries, divided as a double.
__device__ inline float correction(int64 block, int64 entries)
{
    return entries == block ? 1.0f : (float)((double)block / (double)entries);
}

__device__ inline bool finite(float x) { return magnitude_of(x) < INFINITE; }

// What plus or minus `mean` does not say of x.
__device__ inline float unsaid(float x, float mean)
{
    return x - __int_as_float(__float_as_int(mean) | (__float_as_int(x) & ~MAGNITUDE));
}

// Write the bits of a row whose words the lanes hold as `gathered` leaves them.
template <int K>
__device__ inline void store_bits(uint32 word, int64 left, uint8* codes)
{
    if (lane_of() % 8 >= K) return;
    const int place = 4 * gathered_word();
    if (left >= K * QUADS && aligned(codes, 4)) {
        *reinterpret_cast<uint32*>(codes + place) = word;
        return;
    }
    for (int c = 0; c < 4; c++)
        if (place + c < (left + 7) / 8) codes[place + c] = (uint8)(word >> 8 * c);
}

template <int K>
__device__ inline void encode_row(const float* vector, float* residual, int64 size, float* scales, uint8* codes)
{
    const int64 block = K * QUADS, row = row_of(), start = row * block, left = min(size - start, block);
    if (left <= 0) return;
    float x[K][4];
    uint32 minus[K];
    load_given(vector + start, residual ? residual + start : nullptr, left, x);
    const float mean = product(sum_by_halves(x, 1.0f / block), correction(block, left));
    if (lane_of() == 0) scales[row] = finite(mean) ? mean : quiet_nan();
#pragma unroll
    for (int t = 0; t < K; t++) {
        minus[t] = 0;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            minus[t] |= (uint32)(__float_as_int(x[t][c]) < 0) << c;
            x[t][c] = unsaid(x[t][c], mean);
        }
    }
    const uint32 word = gathered(minus);
    store_bits<K>(finite(mean) ? word : 0, left, codes + start / 8);
    if (residual && finite(mean)) store_row(residual + start, left, x);
}

template <int K>
__device__ inline void decode_row(const float* scales, const uint8* codes, int64 size, float* vector, int adding)
{
    const int64 row = row_of(), start = row * K * QUADS, left = size - start;
    if (left <= 0) return;
    float x[K][4] = {};
    if (adding) load_row(vector + start, left, x);
    const float scale = scales[row];
#pragma unroll
    for (int t = 0; t < K; t++) {
        const int place = QUADS * t + 4 * lane_of();
        const int bits = place < left ? codes[(start + place) / 8] >> place % 8 : 0;
#pragma unroll
        for (int c = 0; c < 4; c++) x[t][c] = x[t][c] + (bits >> c & 1 ? -scale : scale);
    }
    store_row(vector + start, left, x);
}

#define FOR_BLOCKS_OF(ENTRIES)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                \
    encode_one_bit_##ENTRIES(const float* vector, float* residual, int64 size, float* scales,            \
                             uint8* codes)                                                               \
    {                                                                                                    \
        encode_row<ENTRIES / QUADS>(vector, residual, size, scales, codes);                              \
    }                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                \
    decode_one_bit_##ENTRIES(const float* scales, const uint8* codes, int64 size, float* vector,         \
                             int adding)                                                                 \
    {                                                                                                    \
        decode_row<ENTRIES / QUADS>(scales, codes, size, vector, adding);                                \
    }

FOR_BLOCKS_OF(128)
FOR_BLOCKS_OF(256)
FOR_BLOCKS_OF(512)
FOR_BLOCKS_OF(1024)

// The sum by halves of 128 entries from `first` on, each |x| x `share`, 0 from `size` on.
__device__ inline float sum_of_chunk(const float* vector, const float* residual, int64 first, int64 size,
                                     float share)
{
    float x[4];
    for (int c = 0; c < 4; c++) {
        const int64 i = first + WARP * c + lane_of();
        x[c] = i < size ? product(fabsf(given(vector, residual, i)), share) : 0.0f;
    }
    return sum_of_lanes((x[0] + x[2]) + (x[1] + x[3]));
}

// The sum by halves over all chunks of a block. Halves meet as a tree: chunks are visited in the order
// of their reversed bits, and two sums of equally many chunks become one as soon as both are there.
__device__ inline float sum_of_chunks(const float* vector, const float* residual, int64 size, int64 block)
{
    const float share = 1.0f / block;
    const uint32 chunks = block > QUADS ? (uint32)(block / QUADS) : 1;
    float waiting[32], sum = 0.0f;
    for (uint32 visit = 0; visit < chunks; visit++) {
        const uint32 chunk = chunks > 1 ? __brev(visit) >> (__clz(chunks) + 1) : 0;
        sum = sum_of_chunk(vector, residual, (int64)chunk * QUADS, size, share);
        int level = 0;
        for (; visit >> level & 1; level++) sum = waiting[level] + sum;
        waiting[level] = sum;
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_one_bit_any(const float* vector, float* residual, int64 size, float* scales, uint8* codes, int64 block)
{
    const int64 row = row_of(), start = row * block, left = min(size - start, block);
    if (left <= 0) return;
    const float* entries = vector + start;
    float* kept = residual ? residual + start : nullptr;
    const float mean = product(sum_of_chunks(entries, kept, left, block), correction(block, left));
    if (lane_of() == 0) scales[row] = finite(mean) ? mean : quiet_nan();
    for (int64 base = 0; base < left; base += WARP) {
        const int64 i = base + lane_of();
        const float x = i < left ? given(entries, kept, i) : 0.0f;
        const uint32 word = __ballot_sync(ALL, __float_as_int(x) < 0);
        const int64 place = base / 8 + lane_of();
        if (lane_of() < 4 && place < (left + 7) / 8)
            codes[start / 8 + place] = finite(mean) ? (uint8)(word >> 8 * lane_of()) : 0;
        if (kept && i < left && finite(mean)) kept[i] = unsaid(x, mean);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
decode_one_bit_any(const float* scales, const uint8* codes, int64 size, float* vector, int adding, int64 block)
{
    const int64 i = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= size) return;
    const float scale = scales[i / block];
    vector[i] = (adding ? vector[i] : 0.0f) + (codes[i / 8] >> i % 8 & 1 ? -scale : scale);
}
