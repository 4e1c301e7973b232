// The largest entries of each chunk of 4096, as codes of a few bits: a thread block for each chunk, which
// it holds in registers, 16 consecutive entries a thread. chunk_records.py says where a record's bits lie.
#include "rows.cuh"

constexpr int CHUNK = 4096;
constexpr int MINE = CHUNK / THREADS;  // entries of a thread
constexpr int WORDS = 1280;            // more than the longest record: 512 + 205 + 4096 bytes

struct Layout {
    int kept, low_bits, marks, lows, nbytes;  // what chunk_records.Layout says; the parts in bytes
};

__device__ inline Layout layout_of(int size, int kept, int bits)
{
    const int mine = max(1, (kept * size + CHUNK / 2) / CHUNK);
    int low_bits = 0;
    while ((size - mine) / mine >> (low_bits + 1)) low_bits++;
    const int marks = (mine + ((size - mine) >> low_bits) + 7) / 8, lows = (mine * low_bits + 7) / 8;
    return {mine, low_bits, marks, lows, marks + lows + (mine * bits + 7) / 8};
}

// The largest, or the sum, of a number over the thread block.
__device__ inline int over_block(int number, bool adding)
{
    __shared__ int of_warps[ROWS];
    for (int bit = WARP / 2; bit; bit /= 2) {
        const int other = __shfl_xor_sync(ALL, number, bit);
        number = adding ? number + other : max(number, other);
    }
    if (lane_of() == 0) of_warps[threadIdx.x / WARP] = number;
    __syncthreads();
    number = of_warps[0];
    for (int warp = 1; warp < ROWS; warp++)
        number = adding ? number + of_warps[warp] : max(number, of_warps[warp]);
    __syncthreads();
    return number;
}

__device__ inline int count_from(const float (&x)[MINE], int least)
{
    int mine = 0;
#pragma unroll
    for (int j = 0; j < MINE; j++) mine += magnitude_of(x[j]) >= least;
    return over_block(mine, true);
}

// Set the bits of `number` from bit `first` on; other threads set theirs beside them.
__device__ inline void put_bits(uint32* words, int first, uint32 number)
{
    const uint64 both = (uint64)number << first % 32;
    if ((uint32)both) atomicOr(&words[first / 32], (uint32)both);
    if (both >> 32) atomicOr(&words[first / 32 + 1], (uint32)(both >> 32));
}

__device__ inline uint32 bits_at(const uint8* part, int first, int width)
{
    uint32 number = 0;
    for (int shift = 0; shift < first % 8 + width; shift += 8)
        number |= (uint32)part[(first + shift) / 8] << shift;
    return number >> first % 8 & ((1u << width) - 1);
}

extern "C" __global__ void __launch_bounds__(THREADS)
encode_top_k_codes(const float* vector, float* residual, int64 size, int kept, int bits, float* scales,
                   uint8* records)
{
    __shared__ uint32 words[WORDS];
    const int64 start = (int64)blockIdx.x * CHUNK;
    const int there = (int)min(size - start, (int64)CHUNK), mine = threadIdx.x * MINE;
    const Layout own = layout_of(there, kept, bits);
    for (int i = threadIdx.x; i < WORDS; i += THREADS) words[i] = 0;
    vector += start;
    if (residual) residual += start;
    float x[MINE];
#pragma unroll
    for (int j = 0; j < MINE; j++) x[j] = mine + j < there ? given(vector, residual, mine + j) : 0.0f;
    int top = 0;
#pragma unroll
    for (int j = 0; j < MINE; j++) top = max(top, magnitude_of(x[j]));
    top = over_block(top, false);
    const bool bad = top >= INFINITE, sends = !bad && top >= SMALLEST_MAXIMUM;
    const float maximum = sends ? __int_as_float(top) : 0.0f;
    if (threadIdx.x == 0) scales[blockIdx.x] = bad ? quiet_nan() : maximum;
    if (sends) {
        int threshold = 0, over = top + 1;
        while (over - threshold > 1) {
            const int middle = threshold + (over - threshold) / 2;
            if (count_from(x, middle) >= own.kept) threshold = middle;
            else over = middle;
        }
        const int ties = own.kept - count_from(x, threshold + 1);
        const float parts = (float)(1 << (bits - 1)), inverse = parts / maximum;
        const float step = product(maximum, 1.0f / parts);
        int equal = 0;
#pragma unroll
        for (int j = 0; j < MINE; j++) equal += mine + j < there && magnitude_of(x[j]) == threshold;
        int before = sum_up_to_here<ROWS>(equal) - equal, sent = 0;
        uint32 sending = 0;
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            const int magnitude = magnitude_of(x[j]);
            const bool same = mine + j < there && magnitude == threshold;
            const bool chosen = magnitude > threshold || (same && before < ties);
            before += same;
            if (chosen && rintf(product(__int_as_float(magnitude), inverse)) > 0.0f) sending |= 1u << j;
        }
        sent = sum_up_to_here<ROWS>(__popc(sending)) - __popc(sending);
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            if (!(sending >> j & 1)) continue;
            const float said = fminf(rintf(product(fabsf(x[j]), inverse)), parts);
            const bool minus = x[j] < 0.0f;
            const int gap = mine + j - sent;
            put_bits(words, (gap >> own.low_bits) + sent, 1);
            put_bits(words, 8 * own.marks + sent * own.low_bits, gap & ((1 << own.low_bits) - 1));
            put_bits(words, 8 * (own.marks + own.lows) + sent * bits,
                     (uint32)said - 1 + (minus ? 1u << (bits - 1) : 0));
            const float told = product(said, step);
            x[j] = minus ? x[j] + told : x[j] - told;
            sent++;
        }
    }
    __syncthreads();
    records += blockIdx.x * (int64)layout_of(CHUNK, kept, bits).nbytes;
    for (int i = threadIdx.x; i < own.nbytes; i += THREADS) records[i] = (uint8)(words[i / 4] >> 8 * (i % 4));
    if (!residual || bad) return;
#pragma unroll
    for (int j = 0; j < MINE; j++)
        if (mine + j < there) residual[mine + j] = x[j];
}

// Add what records say; a warp for each chunk takes 32 marks at once. Marks whose places do not ascend, as
// no encoder writes them, are added one after the other.
extern "C" __global__ void __launch_bounds__(THREADS)
add_top_k_codes(int kept, int bits, const float* scales, const uint8* records, float* total, int64 size)
{
    const int64 chunk = row_of(), start = chunk * CHUNK;
    if (start >= size) return;
    const int there = (int)min(size - start, (int64)CHUNK);
    const Layout own = layout_of(there, kept, bits);
    records += chunk * layout_of(CHUNK, kept, bits).nbytes;
    total += start;
    if (magnitude_of(scales[chunk]) > INFINITE) {
        for (int i = lane_of(); i < there; i += WARP) total[i] = total[i] + scales[chunk];
        return;
    }
    const float step = product(scales[chunk], 1.0f / (1 << (bits - 1)));
    int before = 0;
    for (int first = 0; first < 8 * own.marks && before < own.kept; first += WARP) {
        const int bit = first + lane_of();
        const bool marked = bit < 8 * own.marks && records[bit / 8] >> bit % 8 & 1;
        const uint32 word = __ballot_sync(ALL, marked), below = word & ((1u << lane_of()) - 1);
        const int rank = before + __popc(below);
        const bool holds = marked && rank < own.kept;
        int place = CHUNK;
        float told = 0.0f;
        if (holds) {
            const uint32 low = bits_at(records + own.marks, rank * own.low_bits, own.low_bits);
            const uint32 code = bits_at(records + own.marks + own.lows, rank * bits, bits);
            place = ((bit - rank) << own.low_bits | (int)low) + rank;
            told = product((float)((code & ((1u << (bits - 1)) - 1)) + 1), step);
            if (code >> (bits - 1)) told = -told;
        }
        const int previous = __shfl_sync(ALL, place, below ? WARP - 1 - __clz(below) : lane_of());
        const bool adds = holds && place < there;
        if (__ballot_sync(ALL, holds && below && place <= previous)) {
            for (int lane = 0; lane < WARP; lane++) {
                if (adds && lane_of() == lane) total[place] = total[place] + told;
                __syncwarp();
            }
        } else if (adds) total[place] = total[place] + told;
        __syncwarp();
        before += __popc(word);
    }
}
