#include "lazy.h"

#include <dlfcn.h>
#include <link.h>

#include <mutex>
#include <stdexcept>
#include <vector>

namespace nvgpu {
namespace {

// Recursive: opening cuDNN opens others first. Never freed: functions may be called while the process's statics go.
std::recursive_mutex& Lock() {
  static auto* lock = new std::recursive_mutex;
  return *lock;
}

// The folder that is `levels` above the file at `path`.
std::string Above(std::string path, int levels) {
  for (; levels > 0; --levels) path = path.substr(0, path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  return path;
}

int AddIfPaddle(dl_phdr_info* loaded, size_t, void* found) {
  std::string path = loaded->dlpi_name;
  if (path.find("/paddle/libs/libphi_core.so") == std::string::npos) return 0;
  static_cast<std::vector<std::string>*>(found)->push_back(Above(path, 3));
  return 1;
}

// Folders that NVIDIA's wheels may be unpacked in: the site-packages of this plug-in (paddle_custom_device/
// libpaddle-nvgpu.so) and that of Paddle itself (paddle/libs/libphi_core.so), which a virtual environment shares.
std::vector<std::string> SitePackages() {
  std::vector<std::string> found;
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&SitePackages), &self) != 0 && self.dli_fname != nullptr)
    found.push_back(Above(self.dli_fname, 2));
  dl_iterate_phdr(AddIfPaddle, &found);
  return found;
}

std::vector<std::string> Candidates(const std::string& soname, const std::string& folder) {
  std::vector<std::string> paths = {soname};  // loaded already, on LD_LIBRARY_PATH, or installed system-wide
  for (const std::string& site : SitePackages()) paths.push_back(site + "/" + folder + "/" + soname);
  paths.push_back("/usr/local/cuda/lib64/" + soname);
  return paths;
}

std::string LoaderError() {
  const char* error = dlerror();
  return error == nullptr ? "unknown error" : error;
}

// cuDNN and cuBLAS compile some kernels when they run, with a library that they find only beside themselves, or loaded.
Library& Nvrtc() {
  static auto* library = new Library("libnvrtc.so.13", "nvidia/cu13/lib", "nvidia-cuda-nvrtc");
  return *library;
}

void OpenNvrtc() {
  std::string ignored;  // most of what they do needs no compiler
  Nvrtc().Open(&ignored);
}

void OpenCublasLt() {
  std::string ignored;  // cuDNN says itself what it lacks
  CublasLt().Open(&ignored);
}

}  // namespace

bool Library::Open(std::string* why) {
  std::lock_guard<std::recursive_mutex> hold(Lock());
  if (handle_ != nullptr) return true;
  if (before_ != nullptr) before_();
  std::string said;
  for (const std::string& path : Candidates(soname_, folder_)) {
    handle_ = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (handle_ != nullptr) return true;
    said += (said.empty() ? "" : "; ") + LoaderError();
  }
  *why = std::string(soname_) + " cannot be opened: pip install " + wheel_ + " (the loader said: " + said + ")";
  return false;
}

void* Library::Symbol(const char* name) {
  std::string why;
  if (!Open(&why)) throw std::runtime_error(why);
  dlerror();
  void* address = dlsym(handle_, name);
  if (address == nullptr)
    throw std::runtime_error(std::string(soname_) + " has no " + name + ": pip install --upgrade " + wheel_);
  return address;
}

Library& CublasLt() {
  static auto* library = new Library("libcublasLt.so.13", "nvidia/cu13/lib", "nvidia-cublas", OpenNvrtc);
  return *library;
}

Library& Cublas() {
  static auto* library = new Library("libcublas.so.13", "nvidia/cu13/lib", "nvidia-cublas", OpenCublasLt);
  return *library;
}

Library& Cudnn() {
  static auto* library = new Library("libcudnn.so.9", "nvidia/cudnn/lib", "nvidia-cudnn-cu13", OpenCublasLt);
  return *library;
}

Library& Nccl() {
  static auto* library = new Library("libnccl.so.2", "nvidia/nccl/lib", "nvidia-nccl-cu13");
  return *library;
}

}  // namespace nvgpu
