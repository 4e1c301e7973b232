// The kernels of optimisers: a sum of squares in a fixed order, and steps that read and write each array once.
#include "rows.cuh"

constexpr int DENSE = 2;       // a row is 256 entries
constexpr int SQUARES = 8192;  // entries of a sum of squares

// The sum of squares of each block, a warp a block: lane l has the lanes 4 l ... 4 l + 3 of the reference.
extern "C" __global__ void __launch_bounds__(THREADS)
square_sums(const float* vector, int64 size, double* sums)
{
    const int64 start = row_of() * SQUARES;
    if (start >= size) return;
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    for (int64 first = start; first < start + SQUARES && first < size; first += QUADS) {
        float x[1][4];
        load_row(vector + first, size - first, x);
#pragma unroll
        for (int c = 0; c < 4; c++) sum[c] = sum[c] + (double)x[0][c] * (double)x[0][c];
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
        for (int bit = WARP / 2; bit; bit /= 2) sum[c] = sum[c] + __shfl_xor_sync(ALL, sum[c], bit);
    if (lane_of() == 0) sums[row_of()] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

__device__ inline float number_of_bits(uint32 bits) { return __int_as_float((int)bits); }

// scale gradient + decay parameter: the product itself where decay is 0.
__device__ inline float decayed(float gradient, float scale, float decay, float parameter)
{
    const float g = product(gradient, scale);
    return decay == 0.0f ? g : g + product(parameter, decay);
}

extern "C" __global__ void __launch_bounds__(THREADS)
step_sgd(const float* gradient, uint32 scale, uint32 decay, uint32 factor, int nesterov, uint32 rate,
         float* momentum, float* parameters, int64 size)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    const float keep = number_of_bits(factor), change = -number_of_bits(rate);
    float d[DENSE][4], m[DENSE][4], x[DENSE][4];
    load_row(gradient + start, left, d);
    load_row(parameters + start, left, x);
    if (momentum) load_row(momentum + start, left, m);
#pragma unroll
    for (int t = 0; t < DENSE; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            d[t][c] = decayed(d[t][c], number_of_bits(scale), number_of_bits(decay), x[t][c]);
            if (momentum) {
                m[t][c] = product(m[t][c], keep) + d[t][c];
                d[t][c] = nesterov ? d[t][c] + product(m[t][c], keep) : m[t][c];
            }
            x[t][c] = x[t][c] + product(d[t][c], change);
        }
    if (momentum) store_row(momentum + start, left, m);
    store_row(parameters + start, left, x);
}

extern "C" __global__ void __launch_bounds__(THREADS)
step_adam(const float* gradient, uint32 scale, uint32 decay, uint32 shrink, uint32 beta1, uint32 less1,
          uint32 beta2, uint32 less2, uint32 rate, uint32 correction, uint32 epsilon, float* mean,
          float* square, float* parameters, int64 size)
{
    const int64 start = row_of() * DENSE * QUADS, left = size - start;
    if (left <= 0) return;
    float g[DENSE][4], m[DENSE][4], v[DENSE][4], x[DENSE][4];
    load_row(gradient + start, left, g);
    load_row(mean + start, left, m);
    load_row(square + start, left, v);
    load_row(parameters + start, left, x);
#pragma unroll
    for (int t = 0; t < DENSE; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float d = decayed(g[t][c], number_of_bits(scale), number_of_bits(decay), x[t][c]);
            m[t][c] = product(m[t][c], number_of_bits(beta1)) + product(d, number_of_bits(less1));
            v[t][c] = product(v[t][c], number_of_bits(beta2)) + product(product(d, number_of_bits(less2)), d);
            const float spread = product(__fsqrt_rn(v[t][c]), number_of_bits(correction));
            const float step = __fdiv_rn(m[t][c], spread + number_of_bits(epsilon));
            x[t][c] = product(x[t][c], number_of_bits(shrink)) + product(step, -number_of_bits(rate));
        }
    store_row(mean + start, left, m);
    store_row(square + start, left, v);
    store_row(parameters + start, left, x);
}
