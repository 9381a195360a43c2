// The Python module iaat_fast._C; its functions take addresses and sizes, so that it does not depend on torch.
#include <pybind11/pybind11.h>

#include <string>

#include "address.h"
#include "cpu/kernels.h"
#if defined(IAAT_CUDA)
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using iaat::Address;
using iaat::at;
using iaat::dtype_of;

const iaat::Kernels* active = &iaat::best_kernels();

bool project_linf(int dtype, Address out, Address x_adv, Address x, Address eps, int64_t rows, int64_t samples,
                  int64_t row_elems, double lo, double hi) {
    return active->project_linf(dtype_of(dtype), at(out), at(x_adv), at(x), at(eps), {rows, samples, row_elems}, lo,
                                hi);
}

bool pgd_step_linf(int dtype, Address x_adv, Address grad, Address x, Address eps, Address alpha, Address stats,
                   int64_t rows, int64_t samples, int64_t row_elems, double lo, double hi, bool targeted) {
    return active->pgd_step_linf(dtype_of(dtype), at(x_adv), at(grad), at(x), at(eps), at(alpha),
                                 {rows, samples, row_elems}, lo, hi, targeted, at<int64_t>(stats));
}

bool random_start_linf(int dtype, Address out, Address x, Address eps, Address stream, Address index, int64_t rows,
                       int64_t samples, int64_t row_elems, double lo, double hi) {
    return active->random_start_linf(dtype_of(dtype), at(out), at(x), at(eps), at<int64_t>(stream), at<int64_t>(index),
                                     {rows, samples, row_elems}, lo, hi);
}

bool minus_onehot(int dtype, Address rows, Address y, int64_t n_rows, int64_t samples, int64_t classes) {
    return active->minus_onehot(dtype_of(dtype), at(rows), at<int64_t>(y), n_rows, samples, classes);
}

bool saturation_proof(int dtype, Address cotangent, Address logits, Address y, int64_t rows, int64_t samples,
                      int64_t classes) {
    return active->saturation_proof(dtype_of(dtype), at(cotangent), at(logits), at<int64_t>(y), rows, samples, classes);
}

bool select_epsilon(int dtype, Address memory, int64_t size, Address index, Address logits, Address y, Address eps,
                    Address choice, Address misclassified, int64_t samples, int64_t classes, double gamma, double beta,
                    double eps_min, double eps_max, bool clamp_candidate) {
    return active->select_epsilon(dtype_of(dtype), at<float>(memory), size, at<int64_t>(index), at(logits),
                                  at<int64_t>(y), at<float>(eps), at<int64_t>(choice), at<bool>(misclassified), samples,
                                  classes, gamma, beta, eps_min, eps_max, clamp_candidate);
}

bool random_crop_flip(Address out, Address images, Address index, Address stream, int64_t n, int64_t size,
                      int64_t height, int64_t width, int64_t channels, int64_t padding, bool flip) {
    return active->random_crop_flip(at<float>(out), at<uint8_t>(images), at<int64_t>(index), at<int64_t>(stream), n,
                                    size, height, width, channels, padding, flip);
}

void relu_backward(int dtype, Address grad, Address out, Address other, int64_t elements, double floor,
                   double ceiling) {
    active->relu_backward(dtype_of(dtype), at(grad), at(out), at(other), elements, floor, ceiling);
}

void scale_shift_relu(int dtype, Address out, Address x, Address residual, Address scale, Address shift,
                      int64_t elements, int64_t channels, int64_t inner, double floor, double ceiling) {
    active->scale_shift_relu(dtype_of(dtype), at(out), at(x), at(residual), at(scale), at(shift),
                             {elements, channels, inner}, floor, ceiling);
}

void scale_shift_relu_backward(int dtype, Address grad, Address out, Address scale, Address residual, int64_t elements,
                               int64_t channels, int64_t inner, double floor, double ceiling) {
    active->scale_shift_relu_backward(dtype_of(dtype), at(grad), at(out), at(scale), at(residual),
                                      {elements, channels, inner}, floor, ceiling);
}

void use_isa(const std::string& name) {
    const iaat::Kernels* named = iaat::kernels_named(name.c_str());
    if (!named) throw py::value_error("isa '" + name + "': not built, or this processor cannot run it");
    active = named;
}

py::dict build_info() {
    py::dict info;
    info["version"] = IAAT_VERSION;
    info["commit"] = IAAT_COMMIT;
    info["compiler"] = IAAT_COMPILER;
    info["build_type"] = IAAT_BUILD_TYPE;
    info["isa"] = active->isa;
    py::list isas;
    for (const char* name : {"baseline", "avx2", "avx512"})
        if (iaat::kernels_named(name)) isas.append(name);
    info["isas"] = isas;
#if defined(IAAT_OPENMP)
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    py::list cuda_archs;
#if defined(IAAT_CUDA)
    info["cuda"] = true;
    for (int arch : {IAAT_CUDA_ARCHS}) cuda_archs.append(arch);
    info["cuda_ptx"] = IAAT_CUDA_PTX;
    info["cuda_compiler"] = IAAT_CUDA_COMPILER;
#else
    info["cuda"] = false;
    info["cuda_ptx"] = 0;
#endif
    info["cuda_archs"] = cuda_archs;
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "iaat_fast's compiled kernels; tensors are turned into addresses by iaat_fast.ops.native.signatures";
    module.def("project_linf", &project_linf, py::call_guard<py::gil_scoped_release>());
    module.def("pgd_step_linf", &pgd_step_linf, py::call_guard<py::gil_scoped_release>());
    module.def("random_start_linf", &random_start_linf, py::call_guard<py::gil_scoped_release>());
    module.def("minus_onehot", &minus_onehot, py::call_guard<py::gil_scoped_release>());
    module.def("saturation_proof", &saturation_proof, py::call_guard<py::gil_scoped_release>());
    module.def("select_epsilon", &select_epsilon, py::call_guard<py::gil_scoped_release>());
    module.def("random_crop_flip", &random_crop_flip, py::call_guard<py::gil_scoped_release>());
    module.def("relu_backward", &relu_backward, py::call_guard<py::gil_scoped_release>());
    module.def("scale_shift_relu", &scale_shift_relu, py::call_guard<py::gil_scoped_release>());
    module.def("scale_shift_relu_backward", &scale_shift_relu_backward, py::call_guard<py::gil_scoped_release>());
    module.def("use_isa", &use_isa, "Switch to the kernels of one instruction set: for tests and benchmarks.");
    module.def("build_info", &build_info, "Version, compiler, instruction sets and GPUs of this build.");
#if defined(IAAT_CUDA)
    py::module_ cuda = module.def_submodule("cuda");
    iaat::cuda::bind(cuda);
#endif
}
