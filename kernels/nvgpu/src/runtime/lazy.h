// NVIDIA's libraries, opened at the first call of one of their functions: `import paddle` needs none of them.
#pragma once
#include <string>

namespace nvgpu {

class Library {
 public:
  // soname: "libcublas.so.13"; folder: where NVIDIA's wheel puts it below site-packages, "nvidia/cu13/lib";
  // wheel: what to install when it is missing; before: opens what this one looks for itself, in fewer places.
  Library(const char* soname, const char* folder, const char* wheel, void (*before)() = nullptr)
      : soname_(soname), folder_(folder), wheel_(wheel), before_(before) {}

  // The function's address. Throws std::runtime_error that names the library and the wheel that has it.
  void* Symbol(const char* name);

  // Whether the library can be opened; if not, `why` says what the loader said.
  bool Open(std::string* why);

 private:
  const char* soname_;
  const char* folder_;
  const char* wheel_;
  void (*before_)();
  void* handle_ = nullptr;
};

Library& Cublas();
Library& CublasLt();
Library& Cudnn();
Library& Nccl();

// LAZY(Cublas, cublasCreate_v2)(&handle): functions by their true names, since <cublas_v2.h> renames some by macro.
#define LAZY(library, function)                                                                      \
  ([]() {                                                                                            \
    static auto address = reinterpret_cast<decltype(&::function)>(::nvgpu::library().Symbol(#function)); \
    return address;                                                                                  \
  }())

}  // namespace nvgpu
