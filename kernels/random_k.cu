// One entry of each of k equal strata, at a place that a key says; a thread for each stratum.
#include "rows.cuh"

// The place that is taken in a stratum.
__device__ inline int64 random_place(uint64 size, uint64 key, uint64 strata, uint64 number)
{
    const uint64 first = size * number / strata, last = size * (number + 1) / strata;
    return (int64)(first + ((Words{key, 0, false, 0, 0, 0, 0})(number) * (last - first) >> 32));
}

extern "C" __global__ void __launch_bounds__(THREADS)
take_random(const float* vector, float* residual, int64 size, uint64 key, const uint32* bad, float* entries,
            int64 strata)
{
    const int64 number = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (number >= strata) return;
    const int64 place = random_place(size, key, strata, number);
    const float x = residual ? residual[place] : vector[place];
    entries[number] = number == 0 && *bad ? quiet_nan() : x;
    if (residual) residual[place] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(THREADS)
add_random_k(uint64 key, const float* entries, int64 strata, float* total, int64 size)
{
    const int64 number = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (number >= strata) return;
    const int64 place = random_place(size, key, strata, number);
    total[place] = total[place] + entries[number];
}
