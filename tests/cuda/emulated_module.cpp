// The Python module of the emulated kernels: the functions of _C.cuda, and a watch over the memory they touch.
//
// The .cu files are compiled with -fsanitize=thread,alignment, with which g++ calls a function before every access;
// here are these functions. No sanitizer runtime is linked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "cuda/bindings.h"
#include "emulated_cuda.h"
#include "selftest.h"

namespace py = pybind11;

namespace {

// What a launch may touch of the emulated device's memory, and how many bytes of it were read and written.
struct Buffer {
    std::string name;
    uintptr_t begin, end;
    int64_t read, written;
};

struct Memory {
    uintptr_t begin = 0, end = 0;
    std::vector<Buffer> buffers;
} memory;

void touch(uintptr_t address, size_t size, bool write) {
    if (address + size <= memory.begin || address >= memory.end) return;  // a stack, or shared memory
    const char* verb = write ? "writes " : "reads ";
    const Buffer* before = nullptr;
    for (Buffer& buffer : memory.buffers) {
        if (address >= buffer.begin && address + size <= buffer.end) {
            (write ? buffer.written : buffer.read) += int64_t(size);
            return;
        }
        if (buffer.begin <= address) before = &buffer;
    }
    std::string place = "before the first buffer";
    if (before)
        place = "at byte " + std::to_string(address - before->begin) + " of " + before->name + ", which has " +
                std::to_string(before->end - before->begin);
    emulated::fail(verb + std::to_string(size) + " bytes " + place);
}

void watch(uintptr_t begin, uintptr_t end, const std::vector<std::tuple<std::string, uintptr_t, size_t>>& buffers) {
    memory = {begin, end, {}};
    for (const auto& [name, address, size] : buffers) memory.buffers.push_back({name, address, address + size, 0, 0});
}

py::dict traffic() {
    py::dict bytes;
    for (const Buffer& buffer : memory.buffers)
        bytes[py::str(buffer.name)] = py::make_tuple(buffer.read, buffer.written);
    return bytes;
}

}  // namespace

extern "C" {
#define IAAT_WATCH(size)                                                       \
    void __tsan_read##size(uintptr_t address) { touch(address, size, false); } \
    void __tsan_write##size(uintptr_t address) { touch(address, size, true); }
IAAT_WATCH(1)
IAAT_WATCH(2)
IAAT_WATCH(4)
IAAT_WATCH(8)
IAAT_WATCH(16)
void __tsan_read_range(uintptr_t address, size_t size) { touch(address, size, false); }
void __tsan_write_range(uintptr_t address, size_t size) { touch(address, size, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
void __ubsan_handle_type_mismatch_v1(const SourceLocation* at, uintptr_t address) {
    emulated::fail("an access that is not aligned, at address " + std::to_string(address % 16) + " modulo 16, in " +
                   at->file + ":" + std::to_string(at->line));
}
}

PYBIND11_MODULE(emulated, module) {
    iaat::cuda::bind(module);
    module.def("watch", &watch, "From now on kernels may touch, of the memory [begin, end), only these buffers.");
    module.def("traffic", &traffic, "{buffer: (bytes read, bytes written)} since `watch`.");
    module.def("launches", [] { return emulated::device.launches; }, "Kernels launched since the module was loaded.");
    module.def("run_threads_descending", [](bool descending) { emulated::device.descending = descending; });
    module.def("fail_next_launch", [] { emulated::device.pending = cudaErrorInvalidValue; });
    module.def("current_device", [] { return emulated::device.current; });
    module.def("last_device", [] { return emulated::device.launched_on; }, "Where the last kernel was launched.");
    py::module_ test = module.def_submodule("selftest");
    test.def("block_sum", &selftest::block_sum);
    test.def("count_lanes", &selftest::count_lanes);
    test.def("read_an_exited_lane", &selftest::read_an_exited_lane);
    test.def("diverge", &selftest::diverge);
    test.def("copy_vectors", &selftest::copy_vectors);
}
