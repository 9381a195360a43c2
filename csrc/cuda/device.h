// The interface to CUDA: the only file that includes its headers, launches kernels or contains PTX.
#pragma once

#if defined(IAAT_CUDA_EMULATED)
#include "emulated_cuda.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

#include "math/half.h"

#define IAAT_DEVICE __device__ __forceinline__

namespace iaat {
namespace cuda {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

// Launches the kernels of one op on a stream of a device, and keeps that device current during its lifetime.
class Launcher {
  public:
    Launcher(const char* op, int device, void* stream) : op_(op), device_(device), stream_(cudaStream_t(stream)) {
        check(cudaGetDevice(&previous_));
        if (device_ != previous_) check(cudaSetDevice(device_));
    }
    ~Launcher() {
        if (device_ != previous_) cudaSetDevice(previous_);
    }
    Launcher(const Launcher&) = delete;
    Launcher& operator=(const Launcher&) = delete;

    int sm_count() const {
        int count = 0;
        check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_));
        return count;
    }

    template <typename... Parameters, typename... Arguments>
    void launch(void (*kernel)(Parameters...), unsigned grid, unsigned block, const Arguments&... arguments) const {
        launch_exactly(kernel, grid, block, Parameters(arguments)...);
    }

  private:
    template <typename... Parameters>
    void launch_exactly(void (*kernel)(Parameters...), unsigned grid, unsigned block, Parameters... parameters) const {
#if defined(IAAT_CUDA_EMULATED)
        check(emulated::launch(kernel, grid, block, parameters...));
#else
        void* addresses[] = {&parameters...};
        check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid), dim3(block), addresses, 0, stream_));
#endif
    }

    void check(cudaError_t error) const {
        if (error == cudaSuccess) return;
        cudaGetLastError();  // clears the error, which would be reported again after the next launch
        throw std::runtime_error(std::string(op_) + ": CUDA error: " + cudaGetErrorName(error) + ": " +
                                 cudaGetErrorString(error));
    }

    const char* op_;
    int device_, previous_ = 0;
    cudaStream_t stream_;
};

// load() and store() of math/half.h in one instruction each; the results are the same except for the bits of NaN.
IAAT_DEVICE float widen(float value) { return value; }
IAAT_DEVICE double widen(double value) { return value; }
IAAT_DEVICE float widen(BFloat16 value) { return load(value); }
IAAT_DEVICE void narrow(float* to, float value) { *to = value; }
IAAT_DEVICE void narrow(double* to, double value) { *to = value; }
#if defined(__CUDA_ARCH__)
IAAT_DEVICE float widen(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
IAAT_DEVICE void narrow(Half* to, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value)); }
#else
IAAT_DEVICE float widen(Half value) { return load(value); }
IAAT_DEVICE void narrow(Half* to, float value) { store(to, value); }
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
IAAT_DEVICE void narrow(BFloat16* to, float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(value)); }
#else
IAAT_DEVICE void narrow(BFloat16* to, float value) { store(to, value); }
#endif

// A seed tensor of 64-bit numbers: the key, then the numbers of the random stream; missing ones are 0.
struct Seed {
    const int64_t* numbers;
    int64_t size;

    IAAT_DEVICE uint64_t operator[](int i) const { return i < size ? uint64_t(numbers[i]) : 0; }
};

}  // namespace cuda
}  // namespace iaat
