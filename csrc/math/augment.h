// The CIFAR augmentation of one sample: a random crop of the reflect-padded image, a horizontal flip, bytes to floats.
#pragma once

#include "math/philox.h"

namespace iaat {
inline namespace IAAT_ISA {

// The last Philox counter word of the augmentation. The attacks use that word for the restart, counted from 0, so the
// same seed never gives both the same random words.
constexpr uint32_t kAugmentation = 0xFFFFFFFFu;

struct CropFlip {
    int32_t down, right;  // offset of the crop from the image, -padding to padding
    bool flip;
};

// An integer in [0, bound), uniform up to 2^-32 (Lemire 2019, without rejection).
IAAT_HD uint32_t bounded(uint32_t word, uint32_t bound) { return uint32_t((uint64_t(word) * bound) >> 32); }

IAAT_HD CropFlip draw_crop_flip(uint64_t key, uint32_t stream, uint32_t sample, int32_t padding, bool may_flip) {
    const PhiloxState words = philox(key, 0, sample, stream, kAugmentation);
    const uint32_t places = 2 * uint32_t(padding) + 1;
    return {int32_t(bounded(words.c0, places)) - padding, int32_t(bounded(words.c1, places)) - padding,
            may_flip && words.c2 >> 31 != 0};
}

// A position, at most size - 1 outside [0, size), mirrored at the edge pixels, which are not repeated.
template <typename Int>
IAAT_HD Int reflect(Int position, Int size) {
    const Int last = size - 1;
    const Int beyond = last - (position < 0 ? -position : position);
    return last - (beyond < 0 ? -beyond : beyond);
}

// The row, and the column, of the image that an output pixel is copied from.
template <typename Int>
IAAT_HD Int source_row(const CropFlip& draw, Int row, Int height) {
    return reflect(Int(row + draw.down), height);
}
template <typename Int>
IAAT_HD Int source_column(const CropFlip& draw, Int column, Int width) {
    return reflect(Int((draw.flip ? width - 1 - column : column) + draw.right), width);
}

// pixel / 255, correctly rounded, without a division: 1 / 255 is 2^-8 + 2^-16 plus 2^-16 times itself. The first
// product is exact, so a compiler that fuses it with the sum changes nothing.
IAAT_HD float unit_pixel(uint8_t pixel) {
    const float value = float(pixel);
    return value * (257.0f / 65536) + value * (1.0f / (255.0f * 65536));
}

}  // namespace IAAT_ISA
}  // namespace iaat
