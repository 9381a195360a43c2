// The Python module iaat_fast._C.cuda; its functions take device addresses, sizes and a stream, and launch a kernel.
// A part of module.cpp, so that pybind11, five seconds of the compiler's time, is read once.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "address.h"
#include "cuda/launch.h"

namespace py = pybind11;

namespace iaat {
namespace cuda {
namespace {

void project_linf(int dtype, Address out, Address x_adv, Address x, Address eps, int64_t rows, int64_t samples,
                  int64_t row_elems, double lo, double hi, int device, Address stream) {
    launch_project_linf(dtype_of(dtype), at(out), at(x_adv), at(x), at(eps), {rows, samples, row_elems}, lo, hi, device,
                        at(stream));
}

void pgd_step_linf(int dtype, Address x_adv, Address grad, Address x, Address eps, Address alpha, Address stats,
                   int64_t rows, int64_t samples, int64_t row_elems, double lo, double hi, bool targeted, int device,
                   Address stream) {
    launch_pgd_step_linf(dtype_of(dtype), at(x_adv), at(grad), at(x), at(eps), at(alpha), {rows, samples, row_elems},
                         lo, hi, targeted, at<int64_t>(stats), device, at(stream));
}

void random_start_linf(int dtype, Address out, Address x, Address eps, Address seed, int64_t seed_size, Address index,
                       int64_t rows, int64_t samples, int64_t row_elems, double lo, double hi, int device,
                       Address stream) {
    launch_random_start_linf(dtype_of(dtype), at(out), at(x), at(eps), at<int64_t>(seed), seed_size, at<int64_t>(index),
                             {rows, samples, row_elems}, lo, hi, device, at(stream));
}

void ce_cotangent(int dtype, Address out, Address logits, Address y, int64_t rows, int64_t samples, int64_t classes,
                  int device, Address stream) {
    launch_ce_cotangent(dtype_of(dtype), at(out), at(logits), at<int64_t>(y), rows, samples, classes, device,
                        at(stream));
}

void saturation_proof(int dtype, Address cotangent, Address logits, Address y, int64_t rows, int64_t samples,
                      int64_t classes, int device, Address stream) {
    launch_saturation_proof(dtype_of(dtype), at(cotangent), at(logits), at<int64_t>(y), rows, samples, classes, device,
                            at(stream));
}

void select_epsilon(int dtype, Address memory, int64_t size, Address index, Address logits, Address y, Address eps,
                    Address choice, Address misclassified, int64_t samples, int64_t classes, double gamma, double beta,
                    double eps_min, double eps_max, bool clamp_candidate, int device, Address stream) {
    launch_select_epsilon(dtype_of(dtype), at<float>(memory), size, at<int64_t>(index), at(logits), at<int64_t>(y),
                          at<float>(eps), at<int64_t>(choice), at<bool>(misclassified), samples, classes, gamma, beta,
                          eps_min, eps_max, clamp_candidate, device, at(stream));
}

void random_crop_flip(Address out, Address images, Address index, Address seed, int64_t seed_size, int64_t n,
                      int64_t size, int64_t height, int64_t width, int64_t channels, int64_t padding, bool flip,
                      int device, Address stream) {
    launch_random_crop_flip(at<float>(out), at<uint8_t>(images), at<int64_t>(index), at<int64_t>(seed), seed_size, n,
                            size, height, width, channels, padding, flip, device, at(stream));
}

void relu_backward(int dtype, Address grad, Address out, Address other, int64_t elements, double floor, double ceiling,
                   int device, Address stream) {
    launch_relu_backward(dtype_of(dtype), at(grad), at(out), at(other), elements, floor, ceiling, device, at(stream));
}

void scale_shift_relu(int dtype, Address out, Address x, Address residual, Address scale, Address shift,
                      int64_t elements, int64_t channels, int64_t inner, double floor, double ceiling, int device,
                      Address stream) {
    launch_scale_shift_relu(dtype_of(dtype), at(out), at(x), at(residual), at(scale), at(shift),
                            {elements, channels, inner}, floor, ceiling, device, at(stream));
}

void scale_shift_relu_backward(int dtype, Address grad, Address out, Address scale, Address residual, int64_t elements,
                               int64_t channels, int64_t inner, double floor, double ceiling, int device,
                               Address stream) {
    launch_scale_shift_relu_backward(dtype_of(dtype), at(grad), at(out), at(scale), at(residual),
                                     {elements, channels, inner}, floor, ceiling, device, at(stream));
}

}  // namespace

// Adds the functions that launch kernels to `module`, iaat_fast._C.cuda.
inline void bind(py::module_& module) {
    module.doc() = "iaat_fast's CUDA kernels; tensors are turned into addresses by iaat_fast.ops.native.signatures";
    module.def("project_linf", &project_linf);
    module.def("pgd_step_linf", &pgd_step_linf);
    module.def("random_start_linf", &random_start_linf);
    module.def("ce_cotangent", &ce_cotangent);
    module.def("saturation_proof", &saturation_proof);
    module.def("select_epsilon", &select_epsilon);
    module.def("random_crop_flip", &random_crop_flip);
    module.def("relu_backward", &relu_backward);
    module.def("scale_shift_relu", &scale_shift_relu);
    module.def("scale_shift_relu_backward", &scale_shift_relu_backward);
    module.attr("PERSISTENT_CLASSES") = kPersistentClasses;
}

}  // namespace cuda
}  // namespace iaat
