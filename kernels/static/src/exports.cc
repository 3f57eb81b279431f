// Plain C functions for Python (kernels/static/__init__.py calls them through ctypes). They return 0 on success, else
// `why` says what is wrong.
#include <cstdio>
#include <exception>

#include "failure.h"
#include "kernels.h"

namespace {

template <typename Body>
int Guarded(char* why, std::size_t size, Body body) {
  try {
    body();
    return 0;
  } catch (const common::enforce::EnforceNotMet& error) {
    std::string text = error.simple_error_str();
    std::snprintf(why, size, "%s", text.substr(0, text.find(" (at ")).c_str());
  } catch (const std::exception& error) {
    std::snprintf(why, size, "%s", error.what());
  }
  return 1;
}

}  // namespace

extern "C" {

// Kernels of this file are found from now on.
int sd3par_open_kernels(const char* path, char* why, std::size_t size) {
  return Guarded(why, size, [&] { sd3par::OpenKernels(path); });
}

// architecture: 90 for 9.0.
int sd3par_has_kernels(int architecture, int* has, char* why, std::size_t size) {
  return Guarded(why, size, [&] { *has = sd3par::HasKernelsFor(architecture); });
}

}  // extern "C"
