// The CIFAR augmentation in one kernel: gathers samples of bytes, crops, flips and converts them to floats.
#include "cuda/elementwise.cuh"
#include "cuda/launch.h"
#include "math/augment.h"

namespace iaat {
namespace cuda {
namespace {

struct CropFlipBatch {
    float* out;
    const uint8_t* images;
    const int64_t* index;
    Seed seed;  // key, stream
    int64_t n, size, height, channels, padding;
    FastDivmod width, pixels;  // pixels per row, and per image
    bool flip;
};

// kWidth consecutive pixels of an output row, in all channels: their bytes are close together, often in one cache line.
template <int kWidth>
IAAT_DEVICE void crop_pixels(const CropFlipBatch& b, int64_t first) {
    const int64_t i = b.pixels.quotient(first), in_image = first - i * b.pixels.divisor;
    const int64_t row = b.width.quotient(in_image), column = in_image - row * b.width.divisor;
    float* out = b.out + i * b.pixels.divisor * b.channels + in_image;
    const int64_t sample = b.index[i];
    if (sample < 0 || sample >= b.size) {
        Vector<float, kWidth> nans;
        for (float& nan : nans.lane) nan = NAN;
#pragma unroll 1
        for (int64_t channel = 0; channel < b.channels; ++channel) write_vector(out + channel * b.pixels.divisor, nans);
        return;
    }
    const CropFlip draw = draw_crop_flip(b.seed[0], uint32_t(b.seed[1]), uint32_t(sample), int32_t(b.padding), b.flip);
    const uint8_t* line =
        b.images + (sample * b.height + source_row(draw, row, b.height)) * b.width.divisor * b.channels;
    int64_t from[kWidth];
#pragma unroll
    for (int lane = 0; lane < kWidth; ++lane)
        from[lane] = source_column(draw, column + lane, b.width.divisor) * b.channels;
#pragma unroll 1
    for (int64_t channel = 0; channel < b.channels; ++channel) {
        Vector<float, kWidth> pixels;
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) pixels.lane[lane] = unit_pixel(line[from[lane] + channel]);
        write_vector(out + channel * b.pixels.divisor, pixels);
    }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) random_crop_flip_kernel(CropFlipBatch batch) {
    grid_stride(batch.n * batch.pixels.divisor / kWidth,
                [&](int64_t vector) { crop_pixels<kWidth>(batch, vector * kWidth); });
}

}  // namespace

void launch_random_crop_flip(float* out, const uint8_t* images, const int64_t* index, const int64_t* seed,
                             int64_t seed_size, int64_t n, int64_t size, int64_t height, int64_t width,
                             int64_t channels, int64_t padding, bool flip, int device, void* stream) {
    if (n * height * width * channels == 0) return;
    if (padding < 0 || padding >= height || padding >= width)
        throw std::invalid_argument("random_crop_flip: padding " + std::to_string(padding) +
                                    ", expected 0 to less than " + std::to_string(height < width ? height : width) +
                                    " pixels");
    const Launcher launcher("random_crop_flip", device, stream);
    const CropFlipBatch batch{out,
                              images,
                              index,
                              {seed, seed_size},
                              n,
                              size,
                              height,
                              channels,
                              padding,
                              FastDivmod(width),
                              FastDivmod(height * width),
                              flip};
    constexpr int kWidth = kFullWidth<float>;
    const bool full = width % kWidth == 0 && all_aligned({out});
    launcher.launch(full ? random_crop_flip_kernel<kWidth> : random_crop_flip_kernel<1>,
                    grid_size(launcher, n * height * width / (full ? kWidth : 1)), kThreads, batch);
}

}  // namespace cuda
}  // namespace iaat
