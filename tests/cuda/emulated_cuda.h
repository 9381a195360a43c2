// CUDA on the CPU, as much of it as csrc/cuda uses: the same .cu files compile with g++ and run without a GPU.
//
// The threads of a block are fibers. One runs until it exits or waits at a barrier or a warp intrinsic; those let it go
// on once every thread they name, except those that have exited, has arrived. What CUDA leaves undefined is an error
// here: an access that is not aligned or outside every buffer, a lane read that did not take part, lanes at different
// intrinsics, threads that wait for each other. The launch throws it as std::runtime_error.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
// Blocks run one after the other, so one copy serves them all.
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace emulated {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 64 * 1024;

struct Thread {
    enum State { kReady, kAtBarrier, kAtWarp, kExited };
    ucontext_t context;
    dim3 index;
    int number;
    State state;
    const char* intrinsic;  // what it waits at, and the lanes that are to take part
    unsigned mask;
    uint64_t given;            // its own operand
    uint64_t received[kWarp];  // everybody's, once they are there
    unsigned present;          // the lanes of `mask` that took part
};

struct Device {
    std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
    std::unique_ptr<char[]> stacks{new char[kMaxThreads * kStack]};
    ucontext_t scheduler;
    Thread* running = nullptr;
    dim3 grid, block, block_index;
    void (*body)(const void*) = nullptr;
    const void* arguments = nullptr;
    std::string failure;
    bool descending = false;            // the order in which threads run; no result may depend on it
    int current = 0;                    // cudaSetDevice
    cudaError_t pending = cudaSuccess;  // the error that the next launch is to meet
    int launched_on = -1;
    int64_t launches = 0;
};

// One for all translation units.
inline Device device;

// Ends the kernel from inside a thread; the launch throws the message. Fibers are left where they stand: kernels own
// nothing.
[[noreturn]] inline void fail(const std::string& message) {
    if (!device.running) {
        fprintf(stderr, "emulated CUDA: outside a kernel: %s\n", message.c_str());
        abort();
    }
    const dim3 b = device.block_index, t = device.running->index;
    device.failure = message + " (block " + std::to_string(b.x) + ", thread " + std::to_string(t.x) + ")";
    setcontext(&device.scheduler);
    abort();
}

inline void wait(Thread::State state) {
    Thread* self = device.running;
    self->state = state;
    swapcontext(&self->context, &device.scheduler);
}

inline void enter() {
    device.body(device.arguments);
    device.running->state = Thread::kExited;
    setcontext(&device.scheduler);
}

// Lets the warp's lanes go on whose partners have all arrived; they find what each of them gave.
inline bool release_warp(Thread* lanes, int count) {
    bool released = false;
    for (int lane = 0; lane < count; ++lane) {
        if (lanes[lane].state != Thread::kAtWarp) continue;
        const unsigned mask = lanes[lane].mask;
        unsigned present = 0;
        bool complete = true;
        for (int other = 0; other < count; ++other) {
            if (!(mask >> other & 1) || lanes[other].state == Thread::kExited) continue;
            present |= 1u << other;
            complete &= lanes[other].state == Thread::kAtWarp && lanes[other].mask == mask &&
                        !strcmp(lanes[other].intrinsic, lanes[lane].intrinsic);
        }
        if (!complete) continue;
        uint64_t given[kWarp] = {};
        for (int other = 0; other < count; ++other) given[other] = lanes[other].given;
        for (int other = 0; other < count; ++other) {
            if (!(present >> other & 1)) continue;
            memcpy(lanes[other].received, given, sizeof given);
            lanes[other].present = present;
            lanes[other].state = Thread::kReady;
        }
        released = true;
    }
    return released;
}

inline bool release_block(Thread* threads, int count) {
    const auto blocked = [](const Thread& t) { return t.state != Thread::kAtBarrier && t.state != Thread::kExited; };
    if (std::any_of(threads, threads + count, blocked)) return false;
    bool released = false;
    for (int i = 0; i < count; ++i) {
        if (threads[i].state != Thread::kAtBarrier) continue;
        threads[i].state = Thread::kReady;
        released = true;
    }
    return released;
}

inline void run_thread(Thread& thread) {
    device.running = &thread;
    swapcontext(&device.scheduler, &thread.context);
    device.running = nullptr;
}

inline void prepare(Thread& thread, int number) {
    const unsigned n = unsigned(number), x = device.block.x, y = device.block.y;
    thread.index = dim3(n % x, n / x % y, n / x / y);
    thread.number = number;
    thread.state = Thread::kReady;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = device.stacks.get() + size_t(number) * kStack;
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
}

inline void run_block(int count) {
    Thread* threads = device.threads.data();
    for (int i = 0; i < count; ++i) prepare(threads[i], i);
    for (;;) {
        bool progress = false, all_exited = true;
        for (int i = 0; i < count; ++i) {
            Thread& t = threads[device.descending ? count - 1 - i : i];
            if (t.state != Thread::kReady) continue;
            progress = true;
            run_thread(t);
            if (!device.failure.empty()) return;
        }
        for (int first = 0; first < count; first += kWarp)
            progress |= release_warp(threads + first, std::min(kWarp, count - first));
        progress |= release_block(threads, count);
        for (int i = 0; i < count; ++i) all_exited &= threads[i].state == Thread::kExited;
        if (all_exited) return;
        if (!progress) {
            device.failure = "deadlock: threads wait at barriers or warp intrinsics that others do not reach";
            return;
        }
    }
}

inline cudaError_t take_pending() {
    const cudaError_t error = device.pending;
    device.pending = cudaSuccess;
    return error;
}

// kernel<<<grid, block>>>(arguments...), done when this returns.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    const uint64_t count = uint64_t(block.x) * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || !count || count > kMaxThreads || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (device.pending != cudaSuccess) return take_pending();
    const auto call = [=] { kernel(Parameters(arguments)...); };
    device.arguments = &call;
    device.body = [](const void* body) { (*static_cast<decltype(call)*>(body))(); };
    device.grid = grid;
    device.block = block;
    device.failure.clear();
    device.launched_on = device.current;
    ++device.launches;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                device.block_index = dim3(x, y, z);
                run_block(int(count));
                if (!device.failure.empty()) throw std::runtime_error("emulated CUDA: " + device.failure);
            }
    return cudaSuccess;
}

template <typename T>
uint64_t bits_of(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "what a lane can hand over");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline int lane() { return device.running->number % kWarp; }

// Waits for the other lanes of the mask and returns this thread, which then holds what each of them gave.
inline const Thread& exchange(const char* intrinsic, unsigned mask, uint64_t given) {
    Thread& self = *device.running;
    if (!(mask >> lane() & 1)) fail(std::string(intrinsic) + ": the lane is not in its own mask");
    self.intrinsic = intrinsic;
    self.mask = mask;
    self.given = given;
    wait(Thread::kAtWarp);
    return self;
}

// The operand of lane `source`; a source outside the segment of `width` lanes gives the lane's own, as in CUDA.
template <typename T>
T shuffle(const char* intrinsic, unsigned mask, T value, int source, bool inside) {
    const Thread& self = exchange(intrinsic, mask, bits_of(value));
    if (!inside) return value;
    if (!(self.present >> source & 1))
        fail(std::string(intrinsic) + ": reads lane " + std::to_string(source) + ", which takes no part");
    return from_bits<T>(self.received[source]);
}

template <typename T, typename Combine>
T reduce(const char* intrinsic, unsigned mask, T value, Combine combine) {
    const Thread& self = exchange(intrinsic, mask, bits_of(value));
    bool first = true;
    T result = value;
    for (int other = 0; other < kWarp; ++other) {
        if (!(self.present >> other & 1)) continue;
        const T operand = from_bits<T>(self.received[other]);
        result = first ? operand : combine(result, operand);
        first = false;
    }
    return result;
}

}  // namespace emulated

#define threadIdx (::emulated::device.running->index)
#define blockIdx (::emulated::device.block_index)
#define blockDim (::emulated::device.block)
#define gridDim (::emulated::device.grid)
constexpr int warpSize = emulated::kWarp;

inline void __syncthreads() { emulated::wait(emulated::Thread::kAtBarrier); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::exchange("__syncwarp", mask, 0); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int first = emulated::lane() / width * width;
    return emulated::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const int source = emulated::lane() ^ lanes, first = emulated::lane() / width * width;
    return emulated::shuffle("__shfl_xor_sync", mask, value, source, source < first + width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int source = emulated::lane() + int(delta), first = emulated::lane() / width * width;
    return emulated::shuffle("__shfl_down_sync", mask, value, source, source < first + width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int source = emulated::lane() - int(delta), first = emulated::lane() / width * width;
    return emulated::shuffle("__shfl_up_sync", mask, value, source, source >= first);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const emulated::Thread& self = emulated::exchange("__ballot_sync", mask, predicate != 0);
    unsigned votes = 0;
    for (int other = 0; other < emulated::kWarp; ++other)
        votes |= unsigned(self.present >> other & 1 & self.received[other]) << other;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline unsigned __activemask() { emulated::fail("__activemask: which lanes run together is not defined; name them"); }

template <typename T>
T __reduce_add_sync(unsigned mask, T value) {
    return emulated::reduce("__reduce_add_sync", mask, value, [](T a, T b) { return T(a + b); });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value) {
    return emulated::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value) {
    return emulated::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return a < b ? a : b; });
}

template <typename T, typename U>
T atomicAdd(T* address, U value) {
    const T before = *address;
    *address = T(before + T(value));
    return before;
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}
template <typename T>
T __ldcs(const T* address) {
    return *address;
}
template <typename T>
T __ldcg(const T* address) {
    return *address;
}
template <typename T>
void __stcs(T* address, T value) {
    *address = value;
}
template <typename T>
void __stcg(T* address, T value) {
    *address = value;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __float_as_uint(float value) { return emulated::from_bits<unsigned>(emulated::bits_of(value)); }
inline float __uint_as_float(unsigned value) { return emulated::from_bits<float>(value); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
using std::max;
using std::min;

inline cudaError_t cudaGetLastError() { return emulated::take_pending(); }
inline const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaSuccess                     ? "cudaSuccess"
           : error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
                                                    : "cudaErrorInvalidValue";
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess                     ? "no error"
           : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                    : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = emulated::device.current;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    emulated::device.current = device;
    return cudaSuccess;
}
// One processor, so that grids stay small and grid-stride loops take several turns.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 1;
    return cudaSuccess;
}
