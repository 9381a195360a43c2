// Elementwise kernels of a network under attack and of its backward pass: every tensor is read and written once.
#pragma once

#include "cpu/loops.h"
#include "math/activation.h"
#include "math/dtypes.h"
#include "types.h"

namespace iaat {
inline namespace IAAT_ISA {

// Splits a flat range into pieces and calls piece(offset, channel, length). With kFastest, channels being the fastest
// dimension, the elements of a piece belong to consecutive channels from `channel` on; else all belong to `channel`.
template <bool kFastest, typename Piece>
void for_each_channel_piece(const Layer& size, int64_t begin, int64_t end, const Piece& piece) {
    int64_t channel = begin / size.inner % size.channels, column = begin % size.inner;
    while (begin < end) {
        int64_t length = kFastest ? size.channels - channel : size.inner - column;
        if (length > end - begin) length = end - begin;
        if (length > kTile) length = kTile;
        piece(begin, channel, length);
        begin += length;
        if (kFastest) {
            channel += length;
        } else if ((column += length) == size.inner) {
            column = 0;
            ++channel;
        }
        if (channel == size.channels) channel = 0;
    }
}

template <bool kOther, typename T>
void relu_backward_typed(T* grad, const T* out, const T* other, int64_t elements,
                         Bounds<typename Arithmetic<T>::type> bounds) {
    parallel_for(elements, [=](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) {
            const auto slope = kOther ? load(grad[j]) + load(other[j]) : load(grad[j]);
            store(grad + j, relu_backward(slope, load(out[j]), bounds));
        }
    });
}

template <bool kResidual, bool kFastest, typename T>
void scale_shift_relu_typed(T* out, T* x, const T* residual, const void* scales, const void* shifts, const Layer& size,
                            Bounds<typename Arithmetic<T>::type> bounds) {
    using A = typename Arithmetic<T>::type;
    const A *scale = static_cast<const A*>(scales), *shift = static_cast<const A*>(shifts);
    parallel_for(size.elements, [=](int64_t begin, int64_t end) {
        for_each_channel_piece<kFastest>(size, begin, end, [=](int64_t at, int64_t channel, int64_t length) {
#pragma omp simd
            for (int64_t j = 0; j < length; ++j) {
                if (kResidual) store(x + at + j, load(x[at + j]) + load(residual[at + j]));
                const int64_t c = kFastest ? channel + j : channel;
                store(out + at + j, scale_shift_relu(A(load(x[at + j])), scale[c], shift[c], bounds));
            }
        });
    });
}

template <bool kResidual, bool kFastest, typename T>
void scale_shift_relu_backward_typed(T* grad, const T* out, const void* scales, const T* residual, const Layer& size,
                                     Bounds<typename Arithmetic<T>::type> bounds) {
    using A = typename Arithmetic<T>::type;
    const A* scale = static_cast<const A*>(scales);
    parallel_for(size.elements, [=](int64_t begin, int64_t end) {
        for_each_channel_piece<kFastest>(size, begin, end, [=](int64_t at, int64_t channel, int64_t length) {
#pragma omp simd
            for (int64_t j = 0; j < length; ++j) {
                const A factor = scale[kFastest ? channel + j : channel];
                const A passed = scale_shift_relu_backward(A(load(grad[at + j])), A(load(out[at + j])), factor, bounds);
                store(grad + at + j, kResidual ? passed + load(residual[at + j]) : passed);
            }
        });
    });
}

// Calls run(Bool<whether there is a residual>, Bool<whether channels are the fastest>).
template <typename Run>
void with_paths(bool residual, const Layer& size, const Run& run) {
    const bool fastest = size.inner == 1 && size.channels > 1;
    if (residual)
        fastest ? run(Bool<true>{}, Bool<true>{}) : run(Bool<true>{}, Bool<false>{});
    else
        fastest ? run(Bool<false>{}, Bool<true>{}) : run(Bool<false>{}, Bool<false>{});
}

// A tensor with one channel is one long run of that channel.
inline Layer merged(Layer size) {
    if (size.channels == 1) size.inner = size.elements;
    return size;
}

inline void relu_backward_any(DType dtype, void* grad, const void* out, const void* other, int64_t elements,
                              double floor, double ceiling) {
    with_type(dtype, [=](auto* type) {
        const auto bounds = blocking_bounds<std::remove_pointer_t<decltype(type)>>(floor, ceiling);
        if (other)
            relu_backward_typed<true>(as(grad, type), as(out, type), as(other, type), elements, bounds);
        else
            relu_backward_typed<false>(as(grad, type), as(out, type), as(other, type), elements, bounds);
    });
}

inline void scale_shift_relu_any(DType dtype, void* out, void* x, const void* residual, const void* scale,
                                 const void* shift, Layer given, double floor, double ceiling) {
    const Layer size = merged(given);
    with_type(dtype, [=](auto* type) {
        using A = typename Arithmetic<std::remove_pointer_t<decltype(type)>>::type;
        const Bounds<A> bounds{A(floor), A(ceiling)};
        with_paths(residual, size, [=](auto summed, auto fastest) {
            scale_shift_relu_typed<decltype(summed)::value, decltype(fastest)::value>(
                as(out, type), as(x, type), as(residual, type), scale, shift, size, bounds);
        });
    });
}

inline void scale_shift_relu_backward_any(DType dtype, void* grad, const void* out, const void* scale,
                                          const void* residual, Layer given, double floor, double ceiling) {
    const Layer size = merged(given);
    with_type(dtype, [=](auto* type) {
        const auto bounds = blocking_bounds<std::remove_pointer_t<decltype(type)>>(floor, ceiling);
        with_paths(residual, size, [=](auto summed, auto fastest) {
            scale_shift_relu_backward_typed<decltype(summed)::value, decltype(fastest)::value>(
                as(grad, type), as(out, type), scale, as(residual, type), size, bounds);
        });
    });
}

}  // namespace IAAT_ISA
}  // namespace iaat
