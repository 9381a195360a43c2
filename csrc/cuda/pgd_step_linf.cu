// The fused step: x_adv + alpha * sign(grad), projected onto the ball round x and into the box, in place.
#include "cuda/dtypes.cuh"
#include "cuda/launch.h"
#include "cuda/walk.cuh"
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
    bool targeted;
    unsigned long long* stats;
};

struct Counts {
    int32_t zero = 0, nan = 0;
};

// The vectors first, first + kThreads, ... of x, each with all its candidates, so that x is read once.
template <int kWidth, int kCount, bool kStats, typename T>
IAAT_DEVICE void step_vectors(const Step<T>& step, int64_t first, int64_t vectors, Counts& counts) {
    using A = typename Step<T>::A;
    bool exists[kCount];
    Place place[kCount];
    Vector<T, kWidth> x[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
        exists[u] = first + u * kThreads < vectors;
        place[u] = place_of(step.images, (first + u * kThreads) * kWidth);
        if (exists[u]) x[u] = read_vector<kWidth>(step.x + place[u].at);
    }
    T* x_adv = step.x_adv;
    const T* grad = step.grad;
    const A *eps = step.eps, *alpha = step.alpha;
#pragma unroll 1
    for (int64_t k = 0; k < step.images.candidates; ++k) {
        Vector<T, kWidth> a[kCount], g[kCount];
        RowValues<A> radius[kCount], size[kCount];
#pragma unroll
        for (int u = 0; u < kCount; ++u) {
            if (!exists[u]) continue;
            a[u] = read_vector<kWidth>(x_adv + place[u].at);
            g[u] = read_vector<kWidth>(grad + place[u].at);
            radius[u] = row_values<kWidth>(eps, place[u].row, place[u].left);
            size[u] = row_values<kWidth>(alpha, place[u].row, place[u].left);
        }
#pragma unroll
        for (int u = 0; u < kCount; ++u) {
            if (!exists[u]) continue;
#pragma unroll
            for (int lane = 0; lane < kWidth; ++lane) {
                const A slope = widen(g[u].lane[lane]);
                const A signed_size = step.targeted ? -size[u][lane] : size[u][lane];
                narrow(&a[u].lane[lane],
                       pgd_step_linf(A(widen(a[u].lane[lane])), slope, A(widen(x[u].lane[lane])), radius[u][lane],
                                     signed_size, step.lo, step.hi));
                if (kStats) {
                    counts.zero += slope == A(0);
                    counts.nan += slope != slope;
                }
            }
            write_vector(x_adv + place[u].at, a[u]);
        }
        x_adv += step.images.elements;
        grad += step.images.elements;
        eps += step.images.samples;
        alpha += step.images.samples;
    }
}

// One atomic addition a block and counter, and none of zero.
IAAT_DEVICE void add_counts(const Counts& counts, unsigned long long* stats) {
    __shared__ int32_t zeros[kThreads / kWarp], nans[kThreads / kWarp];
    const int32_t zero = warp_sum(counts.zero), nan = warp_sum(counts.nan);
    if (threadIdx.x % kWarp == 0) {
        zeros[threadIdx.x / kWarp] = zero;
        nans[threadIdx.x / kWarp] = nan;
    }
    __syncthreads();
    if (threadIdx.x >= 2) return;
    const int32_t* warps = threadIdx.x == 0 ? zeros : nans;
    unsigned long long total = 0;
    for (int warp = 0; warp < kThreads / kWarp; ++warp) total += uint32_t(warps[warp]);
    if (total) atomicAdd(stats + threadIdx.x, total);
}

template <int kWidth, bool kStats, typename T>
__global__ void __launch_bounds__(kThreads) pgd_step_linf_kernel(Step<T> step) {
    const int64_t vectors = step.images.elements / kWidth;
    Counts counts;
    for_my_vectors(vectors, [&](int64_t first) {
        step_vectors<kWidth, kInFlight, kStats>(step, first, vectors, counts);
    });
    // What is left behind the last full vector, by a thread each.
    if (kWidth > 1 && blockIdx.x == 0 && threadIdx.x < kWidth)
        step_vectors<1, 1, kStats>(step, vectors * kWidth + threadIdx.x, step.images.elements, counts);
    if (kStats) add_counts(counts, step.stats);
}

}  // namespace

void launch_pgd_step_linf(DType dtype, void* x_adv, const void* grad, const void* x, const void* eps, const void* alpha,
                          Rows size, double lo, double hi, bool targeted, int64_t* stats, int device, void* stream) {
    if (size.rows * size.row_elems == 0) return;
    const Queue queue("pgd_step_linf", device, stream);
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
                           targeted,
                           reinterpret_cast<unsigned long long*>(stats)};
        constexpr int kWidth = kFullWidth<T>;
        const bool full = step.images.fits(kWidth) && all_aligned({x_adv, grad, x});
        const auto kernel = full ? (stats ? pgd_step_linf_kernel<kWidth, true, T> : pgd_step_linf_kernel<kWidth, false, T>)
                                 : (stats ? pgd_step_linf_kernel<1, true, T> : pgd_step_linf_kernel<1, false, T>);
        queue.launch(kernel, blocks_for(queue, step.images.elements / (full ? kWidth : 1)), kThreads, step);
    });
}

}  // namespace cuda
}  // namespace iaat
