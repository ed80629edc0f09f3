// The Python modules. Importing one runs the operator registrations of */ops.cpp; what is bound
// here is only what is not a tensor operator: build facts, and handles for tests.
#include <pybind11/pybind11.h>

#include <string>

#ifdef FASTEBM_SIMT
#include "simt/simt.h"

PYBIND11_MODULE(_simt, m) {
  m.doc() = "CUDA kernels of fastebm on an emulated device, for tests";
  m.def("set_schedule_seed", [](uint64_t seed) { simt::schedule_seed = seed; });
  m.def("launched", [] {  // kernels, since it was asked last
    pybind11::set names;
    for (const std::string& name : simt::launched) names.add(name);
    simt::launched.clear();
    return names;
  });
}

#else
#include "neighbor/bytes.h"
#include "random/philox.h"
#include "simd/simd.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "operators of fastebm, and how they were built";
  m.attr("cuda_archs") = FASTEBM_CUDA_ARCHS;  // "" without CUDA
  m.attr("cuda_version") = FASTEBM_CUDA_VERSION;
  m.attr("compiler") = FASTEBM_COMPILER;
  m.attr("torch_version") = FASTEBM_TORCH_VERSION;  // that it was built against
  m.def("simd", [] { return fastebm::cpu_level().name; });
  m.def("detected_simd", [] { return fastebm::detect_level().name; });
  m.def("simd_levels", [] {  // all that this CPU offers
    py::list names;
    for (const fastebm::CpuLevel& level : fastebm::kCpuLevels)
      if (fastebm::has_level(level)) names.append(level.name);
    return names;
  });
  m.def("set_simd", [](const char* name) {
    if (!fastebm::set_cpu_level(name))
      throw py::value_error(std::string("this CPU does not offer ") + name);
  });
  m.def("search_bytes_in_any_size", [](bool always) { fastebm::bytes_in_any_size() = always; });
  m.def("philox4x32",
        [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
          const fastebm::Words4 w = fastebm::philox4x32({{c0, c1, c2, c3}}, k0, k1);
          return py::make_tuple(w.v[0], w.v[1], w.v[2], w.v[3]);
        });
}
#endif
