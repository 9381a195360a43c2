// Algorithm 2 for a batch: chooses radii and updates their memory; one warp per sample.
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/warps.cuh"
#include "math/dtypes.h"
#include "math/epsilon.h"

namespace iaat {
namespace cuda {
namespace {

template <typename T>
struct Selection {
    float* memory;
    int64_t size;
    const int64_t* index;
    const T* logits;
    const int64_t* y;
    float* eps;
    int64_t* choice;
    const bool* misclassified;
    int64_t samples, classes;
    float gamma, beta, keep, eps_min, eps_max;
    bool clamp_candidate;
};

// The largest logit seen so far and its class. As in torch.argmax, NaN is larger than any number, and the first of
// equal logits wins.
template <typename A>
struct ArgMax {
    A value = -A(INFINITY);
    int64_t index = INT64_MAX;

    IAAT_DEVICE void update(A other, int64_t other_index) {
        const bool nan = value != value, other_nan = other != other;
        const bool equal = value == other || (nan && other_nan);
        if (equal ? other_index < index : (other_nan || (!nan && other > value))) {
            value = other;
            index = other_index;
        }
    }
    IAAT_DEVICE void reduce_over_warp() {
#pragma unroll
        for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
            const A other = __shfl_xor_sync(kFullMask, value, offset);
            update(other, __shfl_xor_sync(kFullMask, index, offset));
        }
    }
};

template <typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize) select_epsilon_kernel(Selection<T> s) {
    using A = typename Arithmetic<T>::type;
    const auto [i, lane] = warp_row();
    if (i >= s.samples) return;
    const int64_t at = s.index[i], label = s.y[i];
    const bool known = at >= 0 && at < s.size;
    const float prev = known ? s.memory[at] : NAN;

    const T *first = s.logits + i * s.classes, *second = first + s.samples * s.classes;
    ArgMax<A> at_first, at_second;
    for (int64_t j = lane; j < s.classes; j += kWarpSize) {
        const A a = widen(first[j]), b = widen(second[j]);
        at_first.update(a, j);
        at_second.update(b, j);
    }
    at_first.reduce_over_warp();
    at_second.reduce_over_warp();
    if (lane != 0) return;
    const int64_t choice = choose_candidate(at_first.index == label, at_second.index == label);
    const float eps = smooth_epsilon(prev, choice, s.gamma, s.beta, s.keep, s.clamp_candidate,
                                     s.misclassified && s.misclassified[i], s.eps_min, s.eps_max);
    s.eps[i] = known ? eps : NAN;
    s.choice[i] = known ? choice : -1;
    if (known) s.memory[at] = eps;
}

}  // namespace

void launch_select_epsilon(DType dtype, float* memory, int64_t size, const int64_t* index, const void* logits,
                           const int64_t* y, float* eps, int64_t* choice, const bool* misclassified, int64_t samples,
                           int64_t classes, double gamma, double beta, double eps_min, double eps_max,
                           bool clamp_candidate, int device, void* stream) {
    if (samples == 0) return;
    const Launcher launcher("select_epsilon", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        // All are rounded from double to float, as torch rounds Python scalars.
        const Selection<T> selection{memory,
                                     size,
                                     index,
                                     static_cast<const T*>(logits),
                                     y,
                                     eps,
                                     choice,
                                     misclassified,
                                     samples,
                                     classes,
                                     float(gamma),
                                     float(beta),
                                     float(1.0 - beta),
                                     float(eps_min),
                                     float(eps_max),
                                     clamp_candidate};
        launcher.launch(select_epsilon_kernel<T>, warp_grid_size(samples), kWarpsPerBlock * kWarpSize, selection);
    });
}

}  // namespace cuda
}  // namespace iaat
