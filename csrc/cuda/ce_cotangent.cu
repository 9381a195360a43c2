// The gradient of the cross-entropy with respect to the logits, kept from saturating; one warp per row.
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/warps.cuh"
#include "math/cotangent.h"
#include "math/dtypes.h"

namespace iaat {
namespace cuda {
namespace {

template <typename T>
struct Cotangent {
    using A = typename Arithmetic<T>::type;
    T* out;    // of ce_cotangent_kernel
    A* plain;  // of saturation_proof_kernel, replaced in place
    const T* logits;
    const int64_t* y;
    int64_t rows, samples, classes;
};

// exp(z - largest) for one class of a row; 0 for the row's own class (is_label) and for masked classes.
template <typename A>
IAAT_DEVICE A shifted(A z, A largest, bool is_label) {
    return is_label || z == -A(INFINITY) ? A(0) : exp_nonpositive(z - largest);
}

// Rows of up to kPerLane * 32 classes; class lane + 32 * n is in the n-th register of a lane. softmax - onehot is
// computed like in torch's kernels for rows of up to 1024 classes (PersistentSoftmax.cuh), so that it has the bits of
// autograd: sums have the same order, and the log-softmax is rounded before it is exponentiated. torch's gradient is
// -onehot - exp(log p) * sum(-onehot); the sum is exactly -1. torch is compiled with fused multiply-adds, this file is
// not: expf and logf give the same bits nevertheless, but log of double does not, so float64 is not supported.
template <int kPerLane, typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize) ce_cotangent_kernel(Cotangent<T> c) {
    const auto [row, lane] = warp_row();
    if (row >= c.rows) return;
    const T* logits = c.logits + row * c.classes;
    float z[kPerLane], cotangent[kPerLane];
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
        const int j = lane + kWarpSize * n;
        z[n] = j < c.classes ? widen(logits[j]) : -INFINITY;
    }
    const int64_t label = c.y[row % c.samples];

    float largest = z[0];
#pragma unroll
    for (int n = 1; n < kPerLane; ++n) largest = largest > z[n] ? largest : z[n];
    largest = warp_max(largest);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) sum += expf(z[n] - largest);
    const float log_sum = logf(warp_sum(sum));
    float own = 0;
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
        const bool is_label = lane + kWarpSize * n == label;
        const float p = expf(z[n] - largest - log_sum);
        cotangent[n] = is_label ? p - 1.0f : p;
        if (is_label) own = cotangent[n];
    }

    const float missing = -__shfl_sync(kFullMask, own, int(label) & (kWarpSize - 1));  // 1 - p_y
    if (label < 0 || label >= c.classes) {
#pragma unroll
        for (int n = 0; n < kPerLane; ++n) cotangent[n] = NAN;
    } else if (missing <= float(kSaturation)) {
        float largest_other = -INFINITY;
#pragma unroll
        for (int n = 0; n < kPerLane; ++n)
            if (lane + kWarpSize * n != label && z[n] > largest_other) largest_other = z[n];
        largest_other = warp_max(largest_other);
        double others = 0;
#pragma unroll
        for (int n = 0; n < kPerLane; ++n) {
            cotangent[n] = shifted(z[n], largest_other, lane + kWarpSize * n == label);
            others += double(cotangent[n]);
        }
        others = warp_sum(others);
#pragma unroll
        for (int n = 0; n < kPerLane; ++n)
            if (lane + kWarpSize * n == label) cotangent[n] = -float(others);
    } else {
        const float scale = normalising_power(missing);
#pragma unroll
        for (int n = 0; n < kPerLane; ++n) cotangent[n] *= scale;
    }
    T* out = c.out + row * c.classes;
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
        const int j = lane + kWarpSize * n;
        if (j < c.classes) narrow(out + j, cotangent[n]);
    }
}

// Only the second half, given softmax - onehot, for rows that do not fit into a warp's registers; saturated rows are
// read twice.
template <typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize) saturation_proof_kernel(Cotangent<T> c) {
    using A = typename Cotangent<T>::A;
    const auto [row, lane] = warp_row();
    if (row >= c.rows) return;
    const T* logits = c.logits + row * c.classes;
    A* plain = c.plain + row * c.classes;
    const int64_t label = c.y[row % c.samples];
    const bool known = label >= 0 && label < c.classes;
    // Read by one lane for all, so that no lane overwrites it before another reads it.
    A own = lane == 0 && known ? plain[label] : A(NAN);
    const A missing = -__shfl_sync(kFullMask, own, 0);  // 1 - p_y
    if (!known || !(missing <= A(kSaturation))) {
        const A scale = known ? normalising_power(missing) : A(NAN);
        for (int64_t j = lane; j < c.classes; j += kWarpSize) plain[j] *= scale;
        return;
    }
    A largest = -A(INFINITY);
    for (int64_t j = lane; j < c.classes; j += kWarpSize) {
        const A z = widen(logits[j]);
        if (j != label && z > largest) largest = z;
    }
    largest = warp_max(largest);
    double others = 0;
    for (int64_t j = lane; j < c.classes; j += kWarpSize) {
        const A term = shifted(A(widen(logits[j])), largest, j == label);
        others += double(term);
        if (j != label) plain[j] = term;
    }
    others = warp_sum(others);
    if (lane == 0) plain[label] = -A(others);
}

}  // namespace

void launch_ce_cotangent(DType dtype, void* out, const void* logits, const int64_t* y, int64_t rows, int64_t samples,
                         int64_t classes, int device, void* stream) {
    if (rows == 0) return;
    if (classes < 1 || classes > kPersistentClasses)
        throw std::invalid_argument("ce_cotangent: " + std::to_string(classes) + " classes, expected 1 to " +
                                    std::to_string(kPersistentClasses));
    const Launcher launcher("ce_cotangent", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if constexpr (std::is_same_v<T, double>) {
            throw std::invalid_argument("ce_cotangent: float64, expected float32, float16 or bfloat16");
        } else {
            const Cotangent<T> cotangent{
                static_cast<T*>(out), nullptr, static_cast<const T*>(logits), y, rows, samples, classes};
            const auto kernel = classes <= kWarpSize       ? ce_cotangent_kernel<1, T>
                                : classes <= 4 * kWarpSize ? ce_cotangent_kernel<4, T>
                                : classes <= 8 * kWarpSize ? ce_cotangent_kernel<8, T>
                                                           : ce_cotangent_kernel<kPersistentClasses / kWarpSize, T>;
            launcher.launch(kernel, warp_grid_size(rows), kWarpsPerBlock * kWarpSize, cotangent);
        }
    });
}

void launch_saturation_proof(DType dtype, void* plain, const void* logits, const int64_t* y, int64_t rows,
                             int64_t samples, int64_t classes, int device, void* stream) {
    if (rows == 0) return;
    const Launcher launcher("ce_cotangent", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Cotangent<T>::A;
        const Cotangent<T> cotangent{nullptr, static_cast<A*>(plain), static_cast<const T*>(logits), y, rows, samples,
                                     classes};
        launcher.launch(saturation_proof_kernel<T>, warp_grid_size(rows), kWarpsPerBlock * kWarpSize, cotangent);
    });
}

}  // namespace cuda
}  // namespace iaat
