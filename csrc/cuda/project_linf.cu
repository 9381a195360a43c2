// The projection of x_adv onto the ball around x and onto the box.
#include <type_traits>

#include "cuda/elementwise.cuh"
#include "cuda/launch.h"
#include "math/dtypes.h"
#include "math/linf.h"

namespace iaat {
namespace cuda {
namespace {

template <typename T>
struct Projection {
    using A = typename Arithmetic<T>::type;
    T* out;
    const T *x_adv, *x;
    const A* eps;
    Images images;
    A lo, hi;
};

// One vector of x for all candidates, so that x is read once.
template <int kWidth, typename T>
IAAT_DEVICE void project_vector(const Projection<T>& projection, int64_t vector) {
    using A = typename Projection<T>::A;
    const VectorPosition place = vector_position<kWidth>(projection.images, vector);
    const Vector<T, kWidth> x = read_vector<kWidth>(projection.x + place.at);
    int64_t at = place.at, row = place.row;
#pragma unroll 1
    for (int64_t k = 0; k < projection.images.candidates; ++k) {
        Vector<T, kWidth> a = read_vector<kWidth>(projection.x_adv + at);
        const RowValues<A> radius = row_values<kWidth>(projection.eps, row, place.left);
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane)
            narrow(&a.lane[lane], project_linf(A(widen(a.lane[lane])), A(widen(x.lane[lane])),
                                               radius.at(lane, place.left), projection.lo, projection.hi));
        write_vector(projection.out + at, a);
        at += projection.images.elements;
        row += projection.images.samples;
    }
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM) project_linf_kernel(Projection<T> projection) {
    grid_stride(projection.images.elements / kWidth,
                [&](int64_t vector) { project_vector<kWidth>(projection, vector); });
    tail<kWidth>(projection.images.elements, [&](int64_t element) { project_vector<1>(projection, element); });
}

}  // namespace

void launch_project_linf(DType dtype, void* out, const void* x_adv, const void* x, const void* eps, Rows size,
                         double lo, double hi, int device, void* stream) {
    if (size.rows * size.row_elems == 0) return;
    const Launcher launcher("project_linf", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Projection<T>::A;
        const Projection<T> projection{static_cast<T*>(out),
                                       static_cast<const T*>(x_adv),
                                       static_cast<const T*>(x),
                                       static_cast<const A*>(eps),
                                       Images(size),
                                       A(lo),
                                       A(hi)};
        constexpr int kWidth = kFullWidth<T>;
        const bool full = projection.images.fits(kWidth) && all_aligned({out, x_adv, x});
        launcher.launch(full ? project_linf_kernel<kWidth, T> : project_linf_kernel<1, T>,
                        grid_size(launcher, projection.images.elements / (full ? kWidth : 1)), kThreads, projection);
    });
}

}  // namespace cuda
}  // namespace iaat
