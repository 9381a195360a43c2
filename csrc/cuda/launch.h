// The interface of the CUDA kernels: each function launches one kernel on a device and stream, and does not wait.
#pragma once

#include "types.h"

namespace iaat {
namespace cuda {

// Pointers are to contiguous memory on `device`; `stream` is a cudaStream_t. Nothing is allocated and nothing
// synchronises, so every call can be captured in a CUDA graph. A launch that fails throws std::runtime_error with the
// name of the op. Values are not checked, as the host would have to wait for them: radii and step sizes are used as
// they are, and a class or index out of range gives NaN (see each op), never an access out of bounds.

void launch_project_linf(DType, void* out, const void* x_adv, const void* x, const void* eps, Rows, double lo,
                         double hi, int device, void* stream);

// stats: two int64 counters, zero and NaN gradient entries, added to; or null.
void launch_pgd_step_linf(DType, void* x_adv, const void* grad, const void* x, const void* eps, const void* alpha, Rows,
                          double lo, double hi, bool targeted, int64_t* stats, int device, void* stream);

// seed: key, restart and first candidate, the last `3 - seed_size` of them 0.
void launch_random_start_linf(DType, void* out, const void* x, const void* eps, const int64_t* seed, int64_t seed_size,
                              const int64_t* index, Rows, double lo, double hi, int device, void* stream);

// For rows of up to kPersistentClasses classes, not in float64. The bits of softmax - onehot are those of torch's own
// kernels for such rows. y[r % samples] is row r's class; one out of range makes row r NaN.
constexpr int64_t kPersistentClasses = 1024;
void launch_ce_cotangent(DType, void* out, const void* logits, const int64_t* y, int64_t rows, int64_t samples,
                         int64_t classes, int device, void* stream);

// For any number of classes, and float64. cotangent: softmax - onehot in float (double for double logits), replaced in
// place.
void launch_saturation_proof(DType, void* cotangent, const void* logits, const int64_t* y, int64_t rows,
                             int64_t samples, int64_t classes, int device, void* stream);

// logits: [3, samples, classes]. An index out of range leaves memory alone and gives eps NaN and choice -1.
void launch_select_epsilon(DType, float* memory, int64_t size, const int64_t* index, const void* logits,
                           const int64_t* y, float* eps, int64_t* choice, const bool* misclassified, int64_t samples,
                           int64_t classes, double gamma, double beta, double eps_min, double eps_max,
                           bool clamp_candidate, int device, void* stream);

// images: uint8 [size, height, width, channels]; out: float [n, channels, height, width]; seed: key and stream, the
// second 0 where seed_size is 1. An index out of range gives an image of NaN.
void launch_random_crop_flip(float* out, const uint8_t* images, const int64_t* index, const int64_t* seed,
                             int64_t seed_size, int64_t n, int64_t size, int64_t height, int64_t width,
                             int64_t channels, int64_t padding, bool flip, int device, void* stream);

// other: a second gradient, or null.
void launch_relu_backward(DType, void* grad, const void* out, const void* other, int64_t elements, double floor,
                          double ceiling, int device, void* stream);

// residual: null, or a tensor added to x before all else (backward: to grad after all else). scale, shift: a value per
// channel.
void launch_scale_shift_relu(DType, void* out, void* x, const void* residual, const void* scale, const void* shift,
                             Layer, double floor, double ceiling, int device, void* stream);
void launch_scale_shift_relu_backward(DType, void* grad, const void* out, const void* scale, const void* residual,
                                      Layer, double floor, double ceiling, int device, void* stream);

}  // namespace cuda
}  // namespace iaat
