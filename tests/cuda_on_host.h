// CUDA C++ as C++ for the host: a test compiles kernels/*.cu with this in front and runs them.
//
// Each thread of a thread block is a coroutine. Lanes wait for each other at every shuffle, threads at
// every barrier; a lane that left before its warp is done with shuffles, or a thread before a barrier,
// is an error: `launch` returns it. Thread blocks run one after the other, so shared memory is static,
// and filled with junk before each. Kernels take pointers and integers only, each passed as a word.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <algorithm>
using std::max;
using std::min;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct float4 { float x, y, z, w; };
struct ushort4 { unsigned short x, y, z, w; };
struct char4 { signed char x, y, z, w; };
struct uchar4 { unsigned char x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Place { unsigned x; };
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace host {
enum State { READY, AT_WARP, AT_BLOCK, DONE };
const int MOST = 1024, STACK = 64 * 1024;
static jmp_buf scheduler, places[MOST];
static bool begun[MOST];
static char* stacks;
static State states[MOST];
static uint64_t slots[2][MOST];
static int turns[MOST];
static int thread;
typedef void (*Kernel)(int64_t, ...);
static void (*kernel)();
static int64_t words[16];

// Stacks are changed by longjmp: swapcontext asks the system for the signal mask each time.
static void wait(State state)
{
    states[thread] = state;
    if (!_setjmp(places[thread])) _longjmp(scheduler, 1);
}

static void run_kernel()
{
    typedef void (*Full)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                         int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
    ((Full)kernel)(words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7],
                   words[8], words[9], words[10], words[11], words[12], words[13], words[14], words[15]);
}

// A coroutine runs one kernel after another.
static void run_thread()
{
    for (;;) run_kernel(), wait(DONE);
}

static void resume()
{
    if (_setjmp(scheduler)) return;
    if (begun[thread]) _longjmp(places[thread], 1);
    begun[thread] = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + (size_t)thread * STACK;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, run_thread, 0);
    setcontext(&context);
}

// Give a number to the other lanes of the warp and return where theirs are.
static const uint64_t* exchanged(uint64_t number)
{
    const int turn = turns[thread]++ & 1;
    slots[turn][thread] = number;
    wait(AT_WARP);
    return slots[turn] + thread / 32 * 32;
}

// Let go on the threads from `first` on that wait at `state`, if all do; -1 if some have left.
static int release(int first, int last, State state)
{
    int waiting = 0, done = 0;
    for (int i = first; i < last; i++) waiting += states[i] == state, done += states[i] == DONE;
    if (waiting && waiting + done == last - first && done) return -1;
    if (waiting != last - first) return 0;
    for (int i = first; i < last; i++) states[i] = READY;
    return 1;
}

static int run_block(int threads)
{
    for (int i = 0; i < threads; i++) states[i] = READY, turns[i] = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int warp = 0; warp < threads; warp += 32)
            for (int released = 1; released;) {
                for (thread = warp; thread < warp + 32; thread++)
                    if (states[thread] == READY) {
                        threadIdx.x = thread;
                        moved = true;
                        resume();
                    }
                released = release(warp, warp + 32, AT_WARP);
                if (released < 0) return 1;
            }
        const int released = release(0, threads, AT_BLOCK);
        if (released < 0) return 2;
    }
    for (int i = 0; i < threads; i++)
        if (states[i] != DONE) return 3;
    return 0;
}
}  // namespace host

extern "C" int launch(void (*kernel)(), unsigned blocks, unsigned threads, const int64_t* words, int count)
{
    if (!host::stacks) host::stacks = (char*)malloc((size_t)host::MOST * host::STACK);
    host::kernel = kernel;
    memcpy(host::words, words, count * sizeof(int64_t));
    gridDim.x = blocks, blockDim.x = threads;
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx.x = block;
        if (const int error = host::run_block(threads)) {
            std::fill(host::begun, host::begun + host::MOST, false);  // those that wait never go on
            return error;
        }
    }
    return 0;
}

template <typename To, typename From>
static To same_bits(From number)
{
    To result = {};
    memcpy(&result, &number, std::min(sizeof result, sizeof number));
    return result;
}

static float __int_as_float(int bits) { return same_bits<float>(bits); }
static int __float_as_int(float number) { return same_bits<int>(number); }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fsqrt_rn(float a) { return sqrtf(a); }
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static int __ffs(unsigned bits) { return __builtin_ffs(bits); }
static int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
static unsigned __brev(unsigned bits)
{
    unsigned result = 0;
    for (int i = 0; i < 32; i++) result = result << 1 | (bits >> i & 1);
    return result;
}

static int this_lane() { return threadIdx.x % 32; }
template <typename T> static T __shfl_xor_sync(unsigned, T number, int bit)
{
    const uint64_t* all = host::exchanged(same_bits<uint64_t>(number));
    return same_bits<T>(all[this_lane() ^ bit]);
}
template <typename T> static T __shfl_sync(unsigned, T number, int lane)
{
    return same_bits<T>(host::exchanged(same_bits<uint64_t>(number))[lane]);
}
template <typename T> static T __shfl_up_sync(unsigned, T number, int step)
{
    const uint64_t* all = host::exchanged(same_bits<uint64_t>(number));
    return same_bits<T>(all[this_lane() >= step ? this_lane() - step : this_lane()]);
}
static unsigned __ballot_sync(unsigned, int holds)
{
    const uint64_t* all = host::exchanged(holds != 0);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= (unsigned)all[lane] << lane;
    return bits;
}
static void __syncwarp() { host::exchanged(0); }
static void __syncthreads() { host::wait(host::AT_BLOCK); }
template <typename T> static T atomicAdd(T* place, T number) { return *place += number, *place - number; }
template <typename T> static T atomicOr(T* place, T number) { const T old = *place; return *place |= number, old; }
