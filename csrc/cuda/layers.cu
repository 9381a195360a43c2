// The elementwise passes of a network under attack and of its gradient: every tensor read and written once.
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/walk.cuh"
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
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) relu_backward_kernel(Mask<T> mask) {
    for_my_vectors(mask.elements / kWidth, [&](int64_t vector) { mask_vector<kWidth, kOther>(mask, vector); });
    for_the_rest<kWidth>(mask.elements, [&](int64_t element) { mask_vector<1, kOther>(mask, element); });
}

// How the channels of a vector's elements lie: one for all; neighbours, of which the first is a multiple of the
// vector's width; or any, with borders between channels wherever they fall.
struct OneChannel {};
struct Neighbours {};
struct AnyChannels {};

struct ChannelWalk {
    int64_t elements;
    Divider channels, inner;
    explicit ChannelWalk(const Layer& size)
        : elements(size.elements), channels(size.channels), inner(size.channels == 1 ? size.elements : size.inner) {}

    bool one_channel(int width) const { return inner.divisor % width == 0; }
    bool neighbours(int width) const { return inner.divisor == 1 && channels.divisor % width == 0; }
};

// The channel of a vector's first element, and how many elements there are from it to the next channel.
struct ChannelPlace {
    int64_t channel, left;
};

template <typename Where>
IAAT_DEVICE ChannelPlace channel_place(const ChannelWalk& walk, int64_t at) {
    const int64_t run = std::is_same_v<Where, Neighbours> ? at : walk.inner.quotient(at);
    const int64_t channel = run - walk.channels.quotient(run) * walk.channels.divisor;
    return {channel, (run + 1) * walk.inner.divisor - at};
}

// A vector's values of something that each channel has one of.
template <int kWidth, typename A>
struct LaneValues {
    A lane[kWidth];
};

template <int kWidth, typename Where, typename A>
IAAT_DEVICE LaneValues<kWidth, A> lane_values(const A* values, const ChannelWalk& walk, ChannelPlace place) {
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
                place.left = walk.inner.divisor;
                if (++place.channel == walk.channels.divisor) place.channel = 0;
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
    ChannelWalk walk;
    Bounds<A> bounds;
};

template <int kWidth, typename Where, bool kResidual, typename T>
IAAT_DEVICE void forward_vector(const Forward<T>& pass, int64_t vector) {
    using A = typename Forward<T>::A;
    const int64_t at = vector * kWidth;
    Vector<T, kWidth> x = read_vector<kWidth>(pass.x + at);
    Vector<T, kWidth> residual;
    if constexpr (kResidual) residual = read_vector<kWidth>(pass.residual + at);
    const ChannelPlace place = channel_place<Where>(pass.walk, at);
    const auto scale = lane_values<kWidth, Where>(pass.scale, pass.walk, place);
    const auto shift = lane_values<kWidth, Where>(pass.shift, pass.walk, place);
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
    ChannelWalk walk;
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
    const ChannelPlace place = channel_place<Where>(pass.walk, at);
    const auto scale = lane_values<kWidth, Where>(pass.scale, pass.walk, place);
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
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) scale_shift_relu_kernel(Forward<T> pass) {
    for_my_vectors(pass.walk.elements / kWidth,
                   [&](int64_t vector) { forward_vector<kWidth, Where, kResidual>(pass, vector); });
    if (std::is_same_v<Where, AnyChannels>)  // elsewhere vectors cover channels exactly
        for_the_rest<kWidth>(pass.walk.elements,
                             [&](int64_t element) { forward_vector<1, OneChannel, kResidual>(pass, element); });
}

template <int kWidth, typename Where, bool kResidual, typename T>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) scale_shift_relu_backward_kernel(Backward<T> pass) {
    for_my_vectors(pass.walk.elements / kWidth,
                   [&](int64_t vector) { backward_vector<kWidth, Where, kResidual>(pass, vector); });
    if (std::is_same_v<Where, AnyChannels>)
        for_the_rest<kWidth>(pass.walk.elements,
                             [&](int64_t element) { backward_vector<1, OneChannel, kResidual>(pass, element); });
}

// What differs between the launches of the two passes: kernels, and which values per channel they read.
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

// `aligned`: whether vectors of the tensors may be read; `values_aligned`: of the values per channel.
template <typename Kernels, int kWidth, typename Pass>
void launch(const Queue& queue, const Pass& pass, bool aligned, bool values_aligned) {
    if (!aligned)
        return queue.launch(Kernels::template kernel<1, OneChannel>, blocks_for(queue, pass.walk.elements), kThreads,
                            pass);
    const unsigned blocks = blocks_for(queue, pass.walk.elements / kWidth);
    if (pass.walk.one_channel(kWidth))
        queue.launch(Kernels::template kernel<kWidth, OneChannel>, blocks, kThreads, pass);
    else if (pass.walk.neighbours(kWidth) && values_aligned)
        queue.launch(Kernels::template kernel<kWidth, Neighbours>, blocks, kThreads, pass);
    else
        queue.launch(Kernels::template kernel<kWidth, AnyChannels>, blocks, kThreads, pass);
}

}  // namespace

void launch_relu_backward(DType dtype, void* grad, const void* out, const void* other, int64_t elements, double floor,
                          double ceiling, int device, void* stream) {
    if (elements == 0) return;
    const Queue queue("relu_backward", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Mask<T> mask{static_cast<T*>(grad), static_cast<const T*>(out), static_cast<const T*>(other), elements,
                           blocking_bounds<T>(floor, ceiling)};
        constexpr int kWidth = kFullWidth<T>;
        const bool full = all_aligned({grad, out, other});
        const auto kernel = other ? (full ? relu_backward_kernel<kWidth, true, T> : relu_backward_kernel<1, true, T>)
                                  : (full ? relu_backward_kernel<kWidth, false, T> : relu_backward_kernel<1, false, T>);
        queue.launch(kernel, blocks_for(queue, elements / (full ? kWidth : 1)), kThreads, mask);
    });
}

void launch_scale_shift_relu(DType dtype, void* out, void* x, const void* residual, const void* scale,
                             const void* shift, Layer size, double floor, double ceiling, int device, void* stream) {
    if (size.elements == 0) return;
    const Queue queue("scale_shift_relu", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Forward<T>::A;
        const Forward<T> pass{
            static_cast<T*>(out),         static_cast<T*>(x),           static_cast<const T*>(residual),
            static_cast<const A*>(scale), static_cast<const A*>(shift), ChannelWalk(size),
            {A(floor), A(ceiling)}};
        const bool aligned = all_aligned({out, x, residual}), values_aligned = all_aligned({scale, shift});
        if (residual)
            launch<ForwardKernels<true, T>, kFullWidth<T>>(queue, pass, aligned, values_aligned);
        else
            launch<ForwardKernels<false, T>, kFullWidth<T>>(queue, pass, aligned, values_aligned);
    });
}

void launch_scale_shift_relu_backward(DType dtype, void* grad, const void* out, const void* scale, const void* residual,
                                      Layer size, double floor, double ceiling, int device, void* stream) {
    if (size.elements == 0) return;
    const Queue queue("scale_shift_relu_backward", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Backward<T>::A;
        const Backward<T> pass{
            static_cast<T*>(grad),           static_cast<const T*>(out), static_cast<const A*>(scale),
            static_cast<const T*>(residual), ChannelWalk(size),          blocking_bounds<T>(floor, ceiling)};
        const bool aligned = all_aligned({grad, out, residual}), values_aligned = all_aligned({scale});
        if (residual)
            launch<BackwardKernels<true, T>, kFullWidth<T>>(queue, pass, aligned, values_aligned);
        else
            launch<BackwardKernels<false, T>, kFullWidth<T>>(queue, pass, aligned, values_aligned);
    });
}

}  // namespace cuda
}  // namespace iaat
