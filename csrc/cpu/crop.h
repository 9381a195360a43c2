// One sample of random_crop_flip: bytes [H, W, C] to floats [C, H, W], read and written once, row by row.
#pragma once

#include "math/augment.h"

namespace iaat {
inline namespace IAAT_ISA {

// Pixels converted at a time; the last block of a row overlaps the one before it.
constexpr int64_t kBlock = 16;

// Converts `length` pixels of a row, with one channel or three interleaved ones, to floats from `out` on, or backwards
// from `out` if kStep is -1. `stride` is the distance between pixels in `in`, `plane` that between channels in `out`.
template <int kStep, int kChannels>
inline void convert_row(float* out, const uint8_t* in, int64_t length, int64_t stride, int64_t plane) {
    if (kChannels > 1) stride = kChannels;  // a constant, so that the compiler separates the channels with shuffles
    if (length < kBlock) {
        for (int64_t j = 0; j < length; ++j)
            for (int64_t c = 0; c < kChannels; ++c) out[c * plane + kStep * j] = unit_pixel(in[stride * j + c]);
        return;
    }
    for (int64_t j = 0; j < length; j += kBlock) {
        const int64_t first = j < length - kBlock ? j : length - kBlock;
        float values[kChannels][kBlock];
#pragma omp simd
        for (int64_t k = 0; k < kBlock; ++k)
            for (int64_t c = 0; c < kChannels; ++c) values[c][k] = unit_pixel(in[stride * (first + k) + c]);
        for (int64_t c = 0; c < kChannels; ++c)
#pragma omp simd
            for (int64_t k = 0; k < kBlock; ++k) out[c * plane + kStep * (first + k)] = values[c][k];
    }
}

template <int kStep>
inline void convert_channels(float* out, const uint8_t* in, int64_t length, int64_t channels, int64_t plane) {
    if (channels == 3) return convert_row<kStep, 3>(out, in, length, 3, plane);
    if (channels == 1) return convert_row<kStep, 1>(out, in, length, 1, plane);
    for (int64_t c = 0; c < channels; ++c) convert_row<kStep, 1>(out + c * plane, in + c, length, channels, plane);
}

// A row shifted by `right`: the columns inside the image, and the reflected ones next to them, which are a part of the
// same row reversed. kStep is -1 to flip; `out` is then the last column.
template <int kStep>
inline void crop_row(float* out, const uint8_t* in, int64_t right, int64_t width, int64_t channels, int64_t plane) {
    if (right >= 0) {
        convert_channels<kStep>(out, in + right * channels, width - right, channels, plane);
        convert_channels<-kStep>(out + kStep * (width - 1), in + (width - 1 - right) * channels, right, channels,
                                 plane);
    } else {
        convert_channels<kStep>(out - kStep * right, in, width + right, channels, plane);
        convert_channels<-kStep>(out - kStep * (right + 1), in + channels, -right, channels, plane);
    }
}

inline void crop_flip_image(float* out, const uint8_t* image, const CropFlip& draw, int64_t height, int64_t width,
                            int64_t channels) {
    for (int64_t row = 0; row < height; ++row) {
        const uint8_t* in = image + source_row(draw, row, height) * width * channels;
        if (draw.flip)
            crop_row<-1>(out + row * width + width - 1, in, draw.right, width, channels, height * width);
        else
            crop_row<1>(out + row * width, in, draw.right, width, channels, height * width);
    }
}

}  // namespace IAAT_ISA
}  // namespace iaat
