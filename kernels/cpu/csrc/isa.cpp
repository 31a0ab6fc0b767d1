#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <iterator>
#include <string>

#include "require.h"

namespace prosparse {
namespace {

#if defined(__x86_64__)
constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512vnni"};  // worst first
#elif defined(__aarch64__)
constexpr const char* kNames[] = {"generic", "neon"};
#else
constexpr const char* kNames[] = {"generic"};
#endif
constexpr int kBest = static_cast<int>(std::size(kNames)) - 1;

const RowKernels* best_up_to([[maybe_unused]] int limit) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (limit >= 3 && avx512 && __builtin_cpu_supports("avx512vnni")) return &kAvx512VnniKernels;
  if (limit >= 2 && avx512) return &kAvx512Kernels;
  // every machine with AVX2 and FMA has F16C, which older compilers cannot ask for
  if (limit >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2Kernels;
#elif defined(__aarch64__)
  if (limit >= 1) return &kNeonKernels;
#endif
  return &kGenericKernels;
}

std::atomic<const RowKernels*>& current() {
  static std::atomic<const RowKernels*> kernels{best_up_to(kBest)};
  return kernels;
}

std::string cpu_isa() { return row_kernels().name; }

std::string cpu_cap_isa(std::string limit) {
  std::string names;
  for (int i = 0; i <= kBest; ++i) {
    if (limit == kNames[i]) {
      current().store(best_up_to(i));
      return cpu_isa();
    }
    names += (i > 0 ? ", " : "") + std::string(kNames[i]);
  }
  fail("cpu_cap_isa: limit is '", limit, "'; supported are ", names);
}

}  // namespace

const RowKernels& row_kernels() { return *current().load(std::memory_order_relaxed); }

STABLE_TORCH_LIBRARY_FRAGMENT(prosparse, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_cap_isa(str limit) -> str");
}
STABLE_TORCH_LIBRARY_IMPL(prosparse, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("cpu_cap_isa", TORCH_BOX(&cpu_cap_isa));
}

}  // namespace prosparse
