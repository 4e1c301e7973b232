// Numbers by their bits, and the arithmetic of reference.py.
//
// NumPy rounds after a product and again after a sum, so no product here may be fused with the sum
// behind it: products are `__fmul_rn`, which nvcc never fuses, and the sources are compiled with
// -fmad=false besides. Denormals count, so never -ftz=true (which CuPy sets where it compiles) nor
// --use_fast_math. Magnitudes are compared
// as integers: a NaN is larger than an infinity. A NaN that arithmetic makes has the bits of its
// machine; those on a wire that mean "this block is NaN" are always 0x7fc00000.
#pragma once

typedef unsigned char uint8;
typedef signed char int8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

constexpr int MAGNITUDE = 0x7fffffff;
constexpr int INFINITE = 0x7f800000;
constexpr int SMALLEST_MAXIMUM = 0x04000000;  // below it 127 / maximum overflows
constexpr float STEP = (float)(1.0 / 127.0);
constexpr float STEP_4 = (float)(1.0 / 7.0);
constexpr float SHARE = 1.0f / 32768;
constexpr int POSITIONS = 65536;  // positions of one block of TopK fit in 16 bits

__device__ inline float quiet_nan() { return __int_as_float(0x7fc00000); }

__device__ inline int magnitude_of(float x) { return __float_as_int(x) & MAGNITUDE; }

__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }

// vector[i] + residual[i]; there may be no residual.
__device__ inline float given(const float* vector, const float* residual, int64 i)
{
    return residual ? vector[i] + residual[i] : vector[i];
}

// Word number % 4 of Philox4x32-10 of the counter number / 4, what stochastic rounding and RandomK are made
// of. The four words of a counter are kept: entries that follow each other share them.
struct Words {
    uint64 key, counter;
    bool known;
    uint32 x0, x1, x2, x3;

    __device__ inline uint32 operator()(uint64 number)
    {
        if (!known || counter != number / 4) make(number / 4);
        return number & 2 ? (number & 1 ? x3 : x2) : (number & 1 ? x1 : x0);
    }

    __device__ inline void make(uint64 of_counter)
    {
        known = true, counter = of_counter;
        x0 = (uint32)counter, x1 = (uint32)(counter >> 32), x2 = 0, x3 = 0;
        uint32 k0 = (uint32)key, k1 = (uint32)(key >> 32);
#pragma unroll
        for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
            const uint64 one = (uint64)x0 * 0xd2511f53u, other = (uint64)x2 * 0xcd9e8d57u;
            x0 = (uint32)(other >> 32) ^ x1 ^ k0, x1 = (uint32)other;
            x2 = (uint32)(one >> 32) ^ x3 ^ k1, x3 = (uint32)one;
        }
    }
};

// How to round: to nearest, or, with a key, up or down by lot. `first` numbers the vector's entries.
struct Rounding {
    Words words;
    int has_key;
    uint64 first;
};

__device__ inline Rounding rounding_by(uint64 key, int has_key, uint64 first)
{
    return {{key, 0, false, 0, 0, 0, 0}, has_key, first};
}

// The integer within +-limit that x is rounded to, as a float; of a tie the even one.
__device__ inline float rounded(float x, float limit, Rounding& how, int64 i)
{
    if (how.has_key) {
        const float share = product((float)(how.words(how.first + i) >> 8), 1.0f / 16777216);
        x = x + (share - 0.5f);
    }
    return fminf(fmaxf(rintf(x), -limit), limit);
}

// The binary16 code of x, to nearest even (after F. Giesen, "float->half variants", 2012).
__device__ inline uint16 half_of(float x)
{
    const int bits = __float_as_int(x), magnitude = bits & MAGNITUDE;
    int code = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    if (magnitude < 0x38800000) code = __float_as_int(__int_as_float(magnitude) + 0.5f) - 0x3f000000;
    if (magnitude >= 0x47800000) code = 0x7c00;
    code |= (bits >> 16) & 0x8000;
    return (uint16)(magnitude > INFINITE ? 0x7e00 : code);
}

__device__ inline float number_of_half(uint16 code)
{
    const int magnitude = (code & 0x7fff) << 13;
    float value = __int_as_float(magnitude + 0x38000000);
    if (magnitude < 0x00800000) value = __int_as_float(magnitude + 0x38800000) - __int_as_float(0x38800000);
    if (magnitude >= 0x0f800000) value = __int_as_float(magnitude + 0x70000000);
    return __int_as_float(__float_as_int(value) | ((code & 0x8000) << 16));
}

__device__ inline uint16 bfloat_of(float x)
{
    const uint32 bits = (uint32)__float_as_int(x);
    return (uint16)(magnitude_of(x) > INFINITE ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

__device__ inline float number_of_bfloat(uint16 code) { return __int_as_float((int)((uint32)code << 16)); }
