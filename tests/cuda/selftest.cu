// Small kernels that use, or misuse, each feature of the emulated device.
#include "emulated_cuda.h"
#include "selftest.h"

namespace {

// out[i] = sum of in[0 ... block) by a butterfly in each warp, then through shared memory.
__global__ void block_sum_kernel(int* out, const int* in, bool barrier) {
    __shared__ int partial[32];
    int value = in[blockIdx.x * blockDim.x + threadIdx.x];
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    if (barrier) __syncthreads();
    int sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Lanes from `n` on leave; the others count themselves, and the first adds the count to out[0].
__global__ void count_lanes_kernel(unsigned long long* out, int n) {
    if (int(threadIdx.x) >= n) return;
    const unsigned votes = __ballot_sync(0xffffffffu, threadIdx.x % 2);
    const unsigned all = __reduce_add_sync(0xffffffffu, 1u);
    if (threadIdx.x == 0) atomicAdd(out, (unsigned long long)(100 * __popc(votes) + all));
}

// Reads lane n although it has left.
__global__ void read_an_exited_lane_kernel(int* out, int n) {
    if (int(threadIdx.x) >= n) return;
    out[threadIdx.x] = __shfl_sync(0xffffffffu, int(threadIdx.x), n);
}

// Odd and even lanes wait at different intrinsics.
__global__ void diverge_kernel(int* out) {
    if (threadIdx.x % 2)
        out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
    else
        out[threadIdx.x] = int(__ballot_sync(0xffffffffu, 1));
}

__global__ void copy_vectors_kernel(float4* out, const float4* in, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) out[i] = in[i];
}

template <typename T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

namespace selftest {

void block_sum(uintptr_t out, uintptr_t in, int blocks, int threads, bool barrier) {
    emulated::launch(block_sum_kernel, unsigned(blocks), unsigned(threads), at<int>(out), at<int>(in), barrier);
}

void count_lanes(uintptr_t out, int n) {
    emulated::launch(count_lanes_kernel, 1u, 32u, at<unsigned long long>(out), n);
}

void read_an_exited_lane(uintptr_t out, int n) {
    emulated::launch(read_an_exited_lane_kernel, 1u, 32u, at<int>(out), n);
}

void diverge(uintptr_t out) { emulated::launch(diverge_kernel, 1u, 32u, at<int>(out)); }

int copy_vectors(uintptr_t out, uintptr_t in, int n, int threads) {
    const unsigned blocks = threads > 0 ? unsigned((n + threads - 1) / threads) : 1;
    return emulated::launch(copy_vectors_kernel, blocks, unsigned(threads), at<float4>(out), at<float4>(in), n);
}

}  // namespace selftest
