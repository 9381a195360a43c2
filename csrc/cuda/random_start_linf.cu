// The random start: x plus Philox noise within the ball, clamped to the box.
#include <type_traits>

#include "cuda/elementwise.cuh"
#include "cuda/launch.h"
#include "math/dtypes.h"
#include "math/linf.h"
#include "math/philox.h"

namespace iaat {
namespace cuda {
namespace {

// The number of elements per Philox block, one for each of its four words.
constexpr int kBlockElements = 4;

template <typename T>
struct Start {
    using A = typename Arithmetic<T>::type;
    T* out;
    const T* x;
    const A* eps;
    Seed seed;  // key, restart, first candidate
    const int64_t* index;
    Images images;
    A lo, hi;
};

struct Stream {
    uint64_t key;
    uint32_t restart, first_candidate;
};

IAAT_DEVICE uint32_t word_of(const PhiloxState& words, int number) {
    const uint32_t low = number == 0 ? words.c0 : words.c1, high = number == 2 ? words.c2 : words.c3;
    return number < 2 ? low : high;
}

// One vector of x for all candidates, so that x is read once. With kWholeBlocks the length of a row is a multiple of
// kBlockElements, so the word of each element is known at compile time; otherwise a block may end anywhere in a vector.
template <int kWidth, bool kWholeBlocks, typename T>
IAAT_DEVICE void start_vector(const Start<T>& start, const Stream& stream, int64_t vector) {
    using A = typename Start<T>::A;
    const VectorPosition place = vector_position<kWidth>(start.images, vector);
    const Vector<T, kWidth> x = read_vector<kWidth>(start.x + place.at);
    // A vector within one Philox block has no element of the next row.
    const int left = kWholeBlocks && kWidth <= kBlockElements ? kWidth : place.left;
    const RowValues<int64_t> sample = row_values<kWidth>(start.index, place.row, left);
    const int64_t column = place.at - place.row * start.images.row_elems.divisor;
    int64_t at = place.at, row = place.row;
#pragma unroll 1
    for (int64_t k = 0; k < start.images.candidates; ++k) {
        const RowValues<A> radius = row_values<kWidth>(start.eps, row, left);
        Vector<T, kWidth> out;
        PhiloxState words;
#pragma unroll
        for (int lane = 0; lane < kWidth; ++lane) {
            const int64_t j = lane < left ? column + lane : lane - left;
            const int number =
                kWholeBlocks && kWidth >= kBlockElements ? lane % kBlockElements : int(j % kBlockElements);
            if (lane == 0 || number == 0)
                words = philox(stream.key, uint32_t(j / kBlockElements), uint32_t(sample.at(lane, left)),
                               stream.first_candidate + uint32_t(k), stream.restart);
            const A noise = uniform_symmetric<A>(word_of(words, number));
            narrow(&out.lane[lane], clamp(A(widen(x.lane[lane])) + noise * radius.at(lane, left), start.lo, start.hi));
        }
        write_vector(start.out + at, out);
        at += start.images.elements;
        row += start.images.samples;
    }
}

// Most rows consist of whole Philox blocks; registers of their kernel are limited so that five thread blocks fit on an
// SM. The other kernels may use more.
template <int kWidth, bool kWholeBlocks, typename T>
__global__ void __launch_bounds__(kThreads, kWholeBlocks && sizeof(T) < 8 ? 5 : 2)
    random_start_linf_kernel(Start<T> start) {
    const Stream stream{start.seed[0], uint32_t(start.seed[1]), uint32_t(start.seed[2])};
    grid_stride(start.images.elements / kWidth,
                [&](int64_t vector) { start_vector<kWidth, kWholeBlocks>(start, stream, vector); });
    tail<kWidth>(start.images.elements, [&](int64_t element) { start_vector<1, false>(start, stream, element); });
}

}  // namespace

void launch_random_start_linf(DType dtype, void* out, const void* x, const void* eps, const int64_t* seed,
                              int64_t seed_size, const int64_t* index, Rows size, double lo, double hi, int device,
                              void* stream) {
    if (size.rows * size.row_elems == 0) return;
    const Launcher launcher("random_start_linf", device, stream);
    with_type(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using A = typename Start<T>::A;
        const Start<T> start{static_cast<T*>(out),
                             static_cast<const T*>(x),
                             static_cast<const A*>(eps),
                             {seed, seed_size},
                             index,
                             Images(size),
                             A(lo),
                             A(hi)};
        constexpr int kWidth = kFullWidth<T>;
        const bool full = start.images.fits(kWidth) && all_aligned({out, x});
        const auto kernel = !full                                  ? random_start_linf_kernel<1, false, T>
                            : size.row_elems % kBlockElements == 0 ? random_start_linf_kernel<kWidth, true, T>
                                                                   : random_start_linf_kernel<kWidth, false, T>;
        launcher.launch(kernel, grid_size(launcher, start.images.elements / (full ? kWidth : 1)), kThreads, start);
    });
}

}  // namespace cuda
}  // namespace iaat
