// The fused step, in place: x_adv + alpha * sign(grad), projected onto the ball around x and onto the box.
#include <type_traits>

#include "cuda/elementwise.cuh"
#include "cuda/launch.h"
#include "cuda/warps.cuh"
#include "math/dtypes.h"
#include "math/linf.h"

namespace iaat {
namespace cuda {
namespace {

template <typename T>
struct Step {
    using A = typename Arithmetic<T>::type;
    T* x_adv;
    const T *grad, *x;
    const A *eps, *alpha;
    Images images;
    A lo, hi;
    A direction;  // 1 ascends the loss, -1 descends it
    unsigned long long* stats;
};

struct Counts {
    int32_t zero = 0, nan = 0;
};

// One vector of x for all candidates, so that x is read once.
template <int kWidth, bool kStats, typename T>
IAAT_DEVICE void step_vector(const Step<T>& step, int64_t vector, Counts& counts) {
    using A = typename Step<T>::A;
    const VectorPosition place = vector_position<kWidth>(step.images, vector);
    const Vector<T, kWidth> x = read_vector<kWidth>(step.x + place.at);
    int64_t at = place.at, row = place.row;
#pragma unroll 1
    for (int64_t k = 0; k < step.images.candidates; ++k) {
        Vector<T, kWidth> a = read_vector<kWidth>(step.x_adv + at);
        const Vector<T, kWidth> g = read_vector<kWidth>(step.grad + at);
        const RowValues<A> radius = row_values<kWidth>(step.eps, row, place.left);
        const RowValues<A> size = row_values<kWidth>(step.alpha, row, place.left);
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) {
            const A slope = widen(g.lane[lane]);
            narrow(&a.lane[lane],
                   pgd_step_linf(A(widen(a.lane[lane])), slope, A(widen(x.lane[lane])), radius.at(lane, place.left),
                                 size.at(lane, place.left) * step.direction, step.lo, step.hi));
            if (kStats) {
                counts.zero += slope == A(0);
                counts.nan += slope != slope;
            }
        }
        write_vector(step.x_adv + at, a);
        at += step.images.elements;
        row += step.images.samples;
    }
}

// At most one atomic addition per block and counter; none if the count is 0.
IAAT_DEVICE void add_counts(const Counts& counts, unsigned long long* stats) {
    __shared__ int32_t zeros[kThreads / kWarpSize], nans[kThreads / kWarpSize];
    const int32_t zero = warp_sum(counts.zero), nan = warp_sum(counts.nan);
    if (threadIdx.x % kWarpSize == 0) {
        zeros[threadIdx.x / kWarpSize] = zero;
        nans[threadIdx.x / kWarpSize] = nan;
    }
    __syncthreads();
    if (threadIdx.x >= 2) return;
    const int32_t* warps = threadIdx.x == 0 ? zeros : nans;
    unsigned long long total = 0;
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) total += uint32_t(warps[warp]);
    if (total) atomicAdd(stats + threadIdx.x, total);
}

template <int kWidth, bool kStats, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM) pgd_step_linf_kernel(Step<T> step) {
    const int64_t vectors = step.images.elements / kWidth;
    Counts counts;
    grid_stride(vectors, [&](int64_t vector) { step_vector<kWidth, kStats>(step, vector, counts); });
    tail<kWidth>(step.images.elements, [&](int64_t element) { step_vector<1, kStats>(step, element, counts); });
    if (kStats) add_counts(counts, step.stats);
}

template <bool kStats, typename T>
void launch(const Launcher& launcher, const Step<T>& step) {
    constexpr int kWidth = kFullWidth<T>;
    const bool full = step.images.fits(kWidth) && all_aligned({step.x_adv, step.grad, step.x});
    launcher.launch(full ? pgd_step_linf_kernel<kWidth, kStats, T> : pgd_step_linf_kernel<1, kStats, T>,
                    grid_size(launcher, step.images.elements / (full ? kWidth : 1)), kThreads, step);
}

}  // namespace

void launch_pgd_step_linf(DType dtype, void* x_adv, const void* grad, const void* x, const void* eps, const void* alpha,
                          Rows size, double lo, double hi, bool targeted, int64_t* stats, int device, void* stream) {
    if (size.rows * size.row_elems == 0) return;
    const Launcher launcher("pgd_step_linf", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Step<T>::A;
        const Step<T> step{static_cast<T*>(x_adv),
                           static_cast<const T*>(grad),
                           static_cast<const T*>(x),
                           static_cast<const A*>(eps),
                           static_cast<const A*>(alpha),
                           Images(size),
                           A(lo),
                           A(hi),
                           A(targeted ? -1 : 1),
                           reinterpret_cast<unsigned long long*>(stats)};
        stats ? launch<true>(launcher, step) : launch<false>(launcher, step);
    });
}

}  // namespace cuda
}  // namespace iaat
