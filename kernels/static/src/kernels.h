// Compiled kernels: what a file of them holds (kernels/static/table.py writes it), and which one a launch wants.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda.h"

namespace sd3par {

// One argument that a kernel was compiled for, tuples flattened.
struct Leaf {
  enum Kind { kNone, kPointer, kInt32, kInt64, kFixed, kTensorMap };
  Kind kind = kNone;
  std::string type;          // of what a pointer or a tensor map is to, as Triton calls it: "bf16"
  std::int64_t divisor = 1;  // of every address or integer
  std::int64_t value = 0;    // of a fixed integer, which the code has built in
  int swizzle = 0, element_size = 0, element_type = 0;  // of a tensor map
  std::vector<std::uint32_t> box;
};

// Names and values that a kernel was compiled with; a float is the bits of its fp32, a bool 0 or 1.
using Constants = std::map<std::string, std::int64_t>;

struct Kernel {
  std::string name, function;
  int architecture = 0, warps = 0;
  unsigned shared = 0;  // bytes
  Constants constants;
  std::vector<Leaf> leaves;
  std::string cubin;
  std::map<int, Function> loaded;  // by device

  // Returns a constant, which must be there.
  std::int64_t operator[](const char* constant) const;
};

// A tensor as TMA sees it, the last axis the fastest: elements, not bytes.
struct View {
  std::vector<std::int64_t> shape, strides;
};

// One argument of a launch, tuples flattened.
struct Argument {
  enum Kind { kNone, kPointer, kInteger, kTensorMap };
  Kind kind = kNone;
  const char* type = "";  // of what is pointed to
  const void* pointer = nullptr;
  std::int64_t integer = 0;
  View view;

  Argument() = default;
  Argument(std::int64_t value) : kind(kInteger), integer(value) {}  // NOLINT: lists of arguments read better
  Argument(const char* type_, const void* pointer_) : kind(kPointer), type(type_), pointer(pointer_) {}
  Argument(const char* type_, const void* pointer_, View view_)
      : kind(kTensorMap), type(type_), pointer(pointer_), view(std::move(view_)) {}
};
using Arguments = std::vector<Argument>;

// Reads a file of kernels; they are found from now on. Does nothing for a file that it has read already.
void OpenKernels(const std::string& path);

// The file beside this library.
std::string KernelsBeside();

// Whether there are any kernels that a GPU of this architecture runs; opens the file beside where none was opened.
bool HasKernelsFor(int architecture);

// Returns the kernel of that name, with those constants, for arguments such as these.
Kernel& FindKernel(const char* name, int architecture, const Arguments& arguments, const Constants& constants);

}  // namespace sd3par
