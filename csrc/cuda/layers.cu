// Elementwise kernels of a network under attack and of its backward pass: every tensor is read and written once.
#include <type_traits>

#include "cuda/elementwise.cuh"
#include "cuda/launch.h"
#include "math/activation.h"
#include "math/dtypes.h"

namespace iaat {
namespace cuda {
namespace {

template <typename T>
struct Mask {
    T* grad;
    const T *out, *other;
    int64_t elements;
    Bounds<typename Arithmetic<T>::type> bounds;
};

template <int kWidth, bool kOther, typename T>
IAAT_DEVICE void mask_vector(const Mask<T>& mask, int64_t vector) {
    const int64_t at = vector * kWidth;
    Vector<T, kWidth> grad = read_vector<kWidth>(mask.grad + at);
    const Vector<T, kWidth> out = read_vector<kWidth>(mask.out + at);
    Vector<T, kWidth> other;
    if constexpr (kOther) other = read_vector<kWidth>(mask.other + at);
#pragma unroll
    for (int lane = 0; lane < kWidth; ++lane) {
        auto slope = widen(grad.lane[lane]);
        if constexpr (kOther) slope += widen(other.lane[lane]);
        narrow(&grad.lane[lane], relu_backward(slope, widen(out.lane[lane]), mask.bounds));
    }
    write_vector(mask.grad + at, grad);
}

template <int kWidth, bool kOther, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM) relu_backward_kernel(Mask<T> mask) {
    grid_stride(mask.elements / kWidth, [&](int64_t vector) { mask_vector<kWidth, kOther>(mask, vector); });
    tail<kWidth>(mask.elements, [&](int64_t element) { mask_vector<1, kOther>(mask, element); });
}

// The channels of a vector's elements. OneChannel: all the same. Neighbours (channels_last): consecutive channels, the
// first a multiple of the vector's width. AnyChannels: borders between channels may fall anywhere.
struct OneChannel {};
struct Neighbours {};
struct AnyChannels {};

struct ChannelIndexer {
    int64_t elements;
    FastDivmod channels, inner;
    explicit ChannelIndexer(const Layer& size)
        : elements(size.elements), channels(size.channels), inner(size.channels == 1 ? size.elements : size.inner) {}

    bool one_channel(int width) const { return inner.divisor % width == 0; }
    bool neighbours(int width) const { return inner.divisor == 1 && channels.divisor % width == 0; }
};

// The channel of a vector's first element, and the number of elements from there to the next channel.
struct ChannelPosition {
    int64_t channel, left;
};

template <typename Where>
IAAT_DEVICE ChannelPosition channel_position(const ChannelIndexer& indexer, int64_t at) {
    const int64_t run = std::is_same_v<Where, Neighbours> ? at : indexer.inner.quotient(at);
    const int64_t channel = run - indexer.channels.quotient(run) * indexer.channels.divisor;
    return {channel, (run + 1) * indexer.inner.divisor - at};
}

// The values of a quantity with one value per channel, such as the scale, for each element of a vector.
template <int kWidth, typename A>
struct LaneValues {
    A lane[kWidth];
};

template <int kWidth, typename Where, typename A>
IAAT_DEVICE LaneValues<kWidth, A> lane_values(const A* values, const ChannelIndexer& indexer, ChannelPosition place) {
    LaneValues<kWidth, A> found;
    if constexpr (std::is_same_v<Where, Neighbours>) {
        constexpr int kPart = kFullWidth<A>;
#pragma unroll
        for (int first = 0; first < kWidth; first += kPart) {
            const Vector<A, kPart> part = read_vector<kPart>(values + place.channel + first);
#pragma unroll
            for (int lane = 0; lane < kPart; ++lane) found.lane[first + lane] = part.lane[lane];
        }
    } else if constexpr (std::is_same_v<Where, OneChannel>) {
        const A value = values[place.channel];
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) found.lane[lane] = value;
    } else {
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) {
            found.lane[lane] = values[place.channel];
            if (--place.left == 0) {
                place.left = indexer.inner.divisor;
                if (++place.channel == indexer.channels.divisor) place.channel = 0;
            }
        }
    }
    return found;
}

template <typename T>
struct Forward {
    using A = typename Arithmetic<T>::type;
    T *out, *x;
    const T* residual;
    const A *scale, *shift;
    ChannelIndexer indexer;
    Bounds<A> bounds;
};

template <int kWidth, typename Where, bool kResidual, typename T>
IAAT_DEVICE void forward_vector(const Forward<T>& pass, int64_t vector) {
    using A = typename Forward<T>::A;
    const int64_t at = vector * kWidth;
    Vector<T, kWidth> x = read_vector<kWidth>(pass.x + at);
    Vector<T, kWidth> residual;
    if constexpr (kResidual) residual = read_vector<kWidth>(pass.residual + at);
    const ChannelPosition place = channel_position<Where>(pass.indexer, at);
    const auto scale = lane_values<kWidth, Where>(pass.scale, pass.indexer, place);
    const auto shift = lane_values<kWidth, Where>(pass.shift, pass.indexer, place);
    if constexpr (kResidual) {
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane)
            narrow(&x.lane[lane], widen(x.lane[lane]) + widen(residual.lane[lane]));
        write_vector(pass.x + at, x);
    }
#pragma unroll
    for (int lane = 0; lane < kWidth; ++lane)
        narrow(&x.lane[lane],
               scale_shift_relu(A(widen(x.lane[lane])), scale.lane[lane], shift.lane[lane], pass.bounds));
    write_vector(pass.out + at, x);
}

template <typename T>
struct Backward {
    using A = typename Arithmetic<T>::type;
    T* grad;
    const T* out;
    const A* scale;
    const T* residual;
    ChannelIndexer indexer;
    Bounds<A> bounds;
};

template <int kWidth, typename Where, bool kResidual, typename T>
IAAT_DEVICE void backward_vector(const Backward<T>& pass, int64_t vector) {
    using A = typename Backward<T>::A;
    const int64_t at = vector * kWidth;
    Vector<T, kWidth> grad = read_vector<kWidth>(pass.grad + at);
    const Vector<T, kWidth> out = read_vector<kWidth>(pass.out + at);
    Vector<T, kWidth> residual;
    if constexpr (kResidual) residual = read_vector<kWidth>(pass.residual + at);
    const ChannelPosition place = channel_position<Where>(pass.indexer, at);
    const auto scale = lane_values<kWidth, Where>(pass.scale, pass.indexer, place);
#pragma unroll
    for (int lane = 0; lane < kWidth; ++lane) {
        A slope = scale_shift_relu_backward(A(widen(grad.lane[lane])), A(widen(out.lane[lane])), scale.lane[lane],
                                            pass.bounds);
        if constexpr (kResidual) slope += widen(residual.lane[lane]);
        narrow(&grad.lane[lane], slope);
    }
    write_vector(pass.grad + at, grad);
}

template <int kWidth, typename Where, bool kResidual, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM) scale_shift_relu_kernel(Forward<T> pass) {
    grid_stride(pass.indexer.elements / kWidth,
                [&](int64_t vector) { forward_vector<kWidth, Where, kResidual>(pass, vector); });
    if (std::is_same_v<Where, AnyChannels>)  // otherwise full vectors cover all elements
        tail<kWidth>(pass.indexer.elements,
                     [&](int64_t element) { forward_vector<1, OneChannel, kResidual>(pass, element); });
}

template <int kWidth, typename Where, bool kResidual, typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerSM) scale_shift_relu_backward_kernel(Backward<T> pass) {
    grid_stride(pass.indexer.elements / kWidth,
                [&](int64_t vector) { backward_vector<kWidth, Where, kResidual>(pass, vector); });
    if (std::is_same_v<Where, AnyChannels>)
        tail<kWidth>(pass.indexer.elements,
                     [&](int64_t element) { backward_vector<1, OneChannel, kResidual>(pass, element); });
}

// The kernels of forward and backward, as arguments of launch().
template <bool kResidual, typename T>
struct ForwardKernels {
    template <int kWidth, typename Where>
    static constexpr auto kernel = scale_shift_relu_kernel<kWidth, Where, kResidual, T>;
};

template <bool kResidual, typename T>
struct BackwardKernels {
    template <int kWidth, typename Where>
    static constexpr auto kernel = scale_shift_relu_backward_kernel<kWidth, Where, kResidual, T>;
};

// `aligned`, `values_aligned`: whether the tensors, and the values per channel, are aligned for vector accesses.
template <typename Kernels, int kWidth, typename Pass>
void launch(const Launcher& launcher, const Pass& pass, bool aligned, bool values_aligned) {
    if (!aligned)
        return launcher.launch(Kernels::template kernel<1, OneChannel>, grid_size(launcher, pass.indexer.elements),
                               kThreads, pass);
    const unsigned blocks = grid_size(launcher, pass.indexer.elements / kWidth);
    if (pass.indexer.one_channel(kWidth))
        launcher.launch(Kernels::template kernel<kWidth, OneChannel>, blocks, kThreads, pass);
    else if (pass.indexer.neighbours(kWidth) && values_aligned)
        launcher.launch(Kernels::template kernel<kWidth, Neighbours>, blocks, kThreads, pass);
    else
        launcher.launch(Kernels::template kernel<kWidth, AnyChannels>, blocks, kThreads, pass);
}

}  // namespace

void launch_relu_backward(DType dtype, void* grad, const void* out, const void* other, int64_t elements, double floor,
                          double ceiling, int device, void* stream) {
    if (elements == 0) return;
    const Launcher launcher("relu_backward", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Mask<T> mask{static_cast<T*>(grad), static_cast<const T*>(out), static_cast<const T*>(other), elements,
                           blocking_bounds<T>(floor, ceiling)};
        constexpr int kWidth = kFullWidth<T>;
        const bool full = all_aligned({grad, out, other});
        const auto kernel = other ? (full ? relu_backward_kernel<kWidth, true, T> : relu_backward_kernel<1, true, T>)
                                  : (full ? relu_backward_kernel<kWidth, false, T> : relu_backward_kernel<1, false, T>);
        launcher.launch(kernel, grid_size(launcher, elements / (full ? kWidth : 1)), kThreads, mask);
    });
}

void launch_scale_shift_relu(DType dtype, void* out, void* x, const void* residual, const void* scale,
                             const void* shift, Layer size, double floor, double ceiling, int device, void* stream) {
    if (size.elements == 0) return;
    const Launcher launcher("scale_shift_relu", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Forward<T>::A;
        const Forward<T> pass{
            static_cast<T*>(out),         static_cast<T*>(x),           static_cast<const T*>(residual),
            static_cast<const A*>(scale), static_cast<const A*>(shift), ChannelIndexer(size),
            {A(floor), A(ceiling)}};
        const bool aligned = all_aligned({out, x, residual}), values_aligned = all_aligned({scale, shift});
        if (residual)
            launch<ForwardKernels<true, T>, kFullWidth<T>>(launcher, pass, aligned, values_aligned);
        else
            launch<ForwardKernels<false, T>, kFullWidth<T>>(launcher, pass, aligned, values_aligned);
    });
}

void launch_scale_shift_relu_backward(DType dtype, void* grad, const void* out, const void* scale, const void* residual,
                                      Layer size, double floor, double ceiling, int device, void* stream) {
    if (size.elements == 0) return;
    const Launcher launcher("scale_shift_relu_backward", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Backward<T>::A;
        const Backward<T> pass{static_cast<T*>(grad),        static_cast<const T*>(out),
                               static_cast<const A*>(scale), static_cast<const T*>(residual),
                               ChannelIndexer(size),         blocking_bounds<T>(floor, ceiling)};
        const bool aligned = all_aligned({grad, out, residual}), values_aligned = all_aligned({scale});
        if (residual)
            launch<BackwardKernels<true, T>, kFullWidth<T>>(launcher, pass, aligned, values_aligned);
        else
            launch<BackwardKernels<false, T>, kFullWidth<T>>(launcher, pass, aligned, values_aligned);
    });
}

}  // namespace cuda
}  // namespace iaat
