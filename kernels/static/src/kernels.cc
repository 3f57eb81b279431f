#include "kernels.h"

#include <dlfcn.h>

#include <deque>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>

#include "failure.h"

namespace sd3par {
namespace {

constexpr char kMagic[] = "sd3par-kernels";
constexpr int kVersion = 2;  // that of table.py
constexpr char kFile[] = "sd3par_kernels.bin";
constexpr int kExactFrom = 90;  // from here on Triton compiles for one GPU alone (sm_90a), below for later ones too

struct Known {
  std::mutex lock;
  std::set<std::string> files;
  std::map<std::string, std::deque<Kernel>> kernels;  // by name; addresses of kernels stay
};
Known& All() {
  static Known* known = new Known;  // never freed: operators may run while the process's statics go
  return *known;
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// none | p:TYPE:DIVISOR | i32:DIVISOR | i64:DIVISOR | =VALUE | t:TYPE:SWIZZLE:SIZE:ELEMENT:AxBxC
Leaf ReadLeaf(const std::string& text) {
  Leaf leaf;
  auto parts = Split(text, ':');
  if (text[0] == '=') {
    leaf.kind = Leaf::kFixed;
    leaf.value = std::stoll(text.substr(1));
  } else if (parts[0] == "p") {
    leaf.kind = Leaf::kPointer;
    leaf.type = parts.at(1);
    leaf.divisor = std::stoll(parts.at(2));
  } else if (parts[0] == "i32" || parts[0] == "i64") {
    leaf.kind = parts[0] == "i32" ? Leaf::kInt32 : Leaf::kInt64;
    leaf.divisor = std::stoll(parts.at(1));
  } else if (parts[0] == "t") {
    leaf.kind = Leaf::kTensorMap;
    leaf.type = parts.at(1);
    leaf.swizzle = std::stoi(parts.at(2));
    leaf.element_size = std::stoi(parts.at(3));
    leaf.element_type = std::stoi(parts.at(4));
    for (const auto& side : Split(parts.at(5), 'x')) leaf.box.push_back(std::stoul(side));
  } else if (text != "none") {
    Fail("an argument of an unknown kind: " + text);
  }
  return leaf;
}

struct Place {
  std::size_t offset, size;
};

Place ReadLine(const std::string& line, Kernel* kernel) {
  std::istringstream stream(line);
  std::string constants, leaves;
  Place place{};
  stream >> kernel->name >> kernel->architecture >> kernel->function >> kernel->warps >> kernel->shared >>
      place.offset >> place.size >> constants >> leaves;
  if (!stream) Fail("a line of a file of kernels is not whole: " + line);
  for (const auto& constant : Split(constants == "-" ? "" : constants, ',')) {
    auto at = constant.find('=');
    kernel->constants[constant.substr(0, at)] = std::stoll(constant.substr(at + 1));
  }
  for (const auto& leaf : Split(leaves, ',')) kernel->leaves.push_back(ReadLeaf(leaf));
  return place;
}

std::vector<Kernel> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string name = path.substr(path.rfind('/') + 1);
  if (!file) Fail("there is no " + name + ", which holds the compiled kernels, beside the library");
  std::string first, magic;
  std::getline(file, first);
  std::istringstream head(first);
  int version = 0, count = 0;
  head >> magic >> version >> count;
  if (magic != kMagic || version != kVersion) {
    Fail(name + " is of version " + std::to_string(version) + "; this library reads " + std::to_string(kVersion));
  }
  std::vector<Kernel> kernels(count);
  std::vector<Place> places;
  for (auto& kernel : kernels) {
    std::string line;
    std::getline(file, line);
    places.push_back(ReadLine(line, &kernel));
  }
  std::streamoff begin = file.tellg();
  for (int i = 0; i < count; ++i) {
    kernels[i].cubin.resize(places[i].size);
    file.seekg(begin + static_cast<std::streamoff>(places[i].offset));
    file.read(&kernels[i].cubin[0], static_cast<std::streamsize>(places[i].size));
    if (!file) Fail(name + " is shorter than it says it is");
  }
  return kernels;
}

void OpenLocked(const std::string& path) {
  if (All().files.count(path) > 0) return;
  for (auto& kernel : ReadFile(path)) All().kernels[kernel.name].push_back(std::move(kernel));
  All().files.insert(path);
}

void OpenBesideLocked() {
  if (All().files.empty()) OpenLocked(KernelsBeside());
}

bool RunsOn(const Kernel& kernel, int architecture) {
  int own = kernel.architecture;
  return own == architecture || (own < kExactFrom && own / 10 == architecture / 10 && own <= architecture);
}

bool Divides(const Leaf& leaf, const Argument& argument) {
  auto address = reinterpret_cast<std::uintptr_t>(argument.pointer);
  return address % static_cast<std::uintptr_t>(leaf.divisor) == 0;
}

bool Fits(const Leaf& leaf, const Argument& argument) {
  bool integer = argument.kind == Argument::kInteger;
  switch (leaf.kind) {
    case Leaf::kNone:
      return argument.kind == Argument::kNone;
    case Leaf::kPointer:
      return argument.kind == Argument::kPointer && leaf.type == argument.type && Divides(leaf, argument);
    case Leaf::kInt32:
      return integer && argument.integer % leaf.divisor == 0 && argument.integer == std::int32_t(argument.integer);
    case Leaf::kInt64:
      return integer && argument.integer % leaf.divisor == 0;
    case Leaf::kFixed:
      return integer && argument.integer == leaf.value;
    case Leaf::kTensorMap:
      return argument.kind == Argument::kTensorMap && leaf.type == argument.type &&
             leaf.box.size() == argument.view.shape.size();
  }
  return false;
}

bool Fits(const Kernel& kernel, const Arguments& arguments, const Constants& constants) {
  for (const auto& [name, value] : constants) {
    auto found = kernel.constants.find(name);
    if (found == kernel.constants.end() || found->second != value) return false;
  }
  if (kernel.leaves.size() != arguments.size()) return false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (!Fits(kernel.leaves[i], arguments[i])) return false;
  }
  return true;
}

std::string Described(const Arguments& arguments, const Constants& constants) {
  std::ostringstream text;
  for (const auto& [name, value] : constants) text << name << "=" << value << " ";
  for (const auto& one : arguments) {
    if (one.kind == Argument::kInteger) text << one.integer << ",";
    if (one.kind == Argument::kNone) text << "none,";
    if (one.kind == Argument::kPointer) text << one.type << "@" << one.pointer << ",";
    if (one.kind == Argument::kTensorMap) text << "map of " << one.type << "@" << one.pointer << ",";
  }
  return text.str();
}

}  // namespace

std::int64_t Kernel::operator[](const char* constant) const {
  auto found = constants.find(constant);
  if (found == constants.end()) Fail(name + ": compiled without " + constant);
  return found->second;
}

std::string KernelsBeside() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&KernelsBeside), &info) == 0) Fail("this library does not know its path");
  std::string path = info.dli_fname;
  auto slash = path.rfind('/');
  return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + kFile;
}

void OpenKernels(const std::string& path) {
  std::lock_guard<std::mutex> hold(All().lock);
  OpenLocked(path);
}

bool HasKernelsFor(int architecture) {
  std::lock_guard<std::mutex> hold(All().lock);
  OpenBesideLocked();
  for (const auto& [name, kernels] : All().kernels) {
    for (const auto& kernel : kernels) {
      if (RunsOn(kernel, architecture)) return true;
    }
  }
  return false;
}

Kernel& FindKernel(const char* name, int architecture, const Arguments& arguments, const Constants& constants) {
  std::lock_guard<std::mutex> hold(All().lock);
  OpenBesideLocked();
  bool any = false;
  for (auto& kernel : All().kernels[name]) {
    bool runs = RunsOn(kernel, architecture);
    any = any || runs;
    if (runs && Fits(kernel, arguments, constants)) return kernel;
  }
  std::string where = std::string(name) + " for sm_" + std::to_string(architecture);
  if (!any) Fail("no kernel " + where + ": export for this architecture");
  Fail("no kernel " + where + " was compiled for " + Described(arguments, constants));
}

}  // namespace sd3par
