#include "launch.h"

#include <cstring>
#include <map>
#include <mutex>

#include "failure.h"
#include "paddle/phi/backends/context_pool.h"
#include "paddle/phi/backends/custom/custom_context.h"

namespace sd3par {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kPlainShared = 49152;  // bytes of shared memory that a kernel gets without asking
constexpr int kPreferShared = 1;          // CU_FUNC_CACHE_PREFER_SHARED
constexpr int kPromotion = 2;             // CU_TENSOR_MAP_L2_PROMOTION_L2_128B, as Triton has it
constexpr int kMostAxes = 5;

struct Properties {
  Context context = nullptr;
  int architecture = 0, processors = 0;
};

int Attribute(Device device, DeviceAttribute attribute) {
  int value = 0;
  Must(Cuda().cuDeviceGetAttribute(&value, attribute, device), "cuDeviceGetAttribute");
  return value;
}

const Properties& PropertiesOf(int index) {
  static std::mutex lock;
  static auto* known = new std::map<int, Properties>;
  std::lock_guard<std::mutex> hold(lock);
  auto& found = (*known)[index];
  if (found.context == nullptr) {
    Device device = 0;
    Must(Cuda().cuDeviceGet(&device, index), "cuDeviceGet");
    found.architecture = 10 * Attribute(device, DeviceAttribute::kMajor) + Attribute(device, DeviceAttribute::kMinor);
    found.processors = Attribute(device, DeviceAttribute::kProcessors);
    Must(Cuda().cuDevicePrimaryCtxRetain(&found.context, device), "cuDevicePrimaryCtxRetain");
  }
  return found;
}

// As Triton's own loader does it.
void AllowShared(Function function, int index, unsigned shared) {
  int most = Attribute(index, DeviceAttribute::kSharedMemoryOptIn), fixed = 0;
  if (shared <= kPlainShared || most <= static_cast<int>(kPlainShared)) return;
  Must(Cuda().cuFuncSetCacheConfig(function, kPreferShared), "cuFuncSetCacheConfig");
  Must(Cuda().cuFuncGetAttribute(&fixed, FunctionAttribute::kSharedSize, function), "cuFuncGetAttribute");
  Must(Cuda().cuFuncSetAttribute(function, FunctionAttribute::kMaxDynamicSharedSize, most - fixed),
       "cuFuncSetAttribute");
}

Function Loaded(Kernel* kernel, int index) {
  static std::mutex lock;
  std::lock_guard<std::mutex> hold(lock);
  Function& function = kernel->loaded[index];
  if (function == nullptr) {
    Module module = nullptr;
    Function made = nullptr;
    Must(Cuda().cuModuleLoadData(&module, kernel->cubin.data()), "cuModuleLoadData");
    Must(Cuda().cuModuleGetFunction(&made, module, kernel->function.c_str()), "cuModuleGetFunction");
    AllowShared(made, index, kernel->shared);
    function = made;
  }
  return function;
}

// The values of a launch in the order and the widths that Triton's kernels take them.
class Packed {
 public:
  void Add(const Leaf& leaf, const Argument& argument) {
    if (leaf.kind == Leaf::kPointer) Put(&argument.pointer, sizeof(void*));
    if (leaf.kind == Leaf::kInt32) PutInt32(argument.integer);
    if (leaf.kind == Leaf::kInt64) Put(&argument.integer, sizeof(std::int64_t));
    if (leaf.kind == Leaf::kTensorMap) AddMap(leaf, argument);
  }

  // Behind the arguments: two addresses of scratch memory, which no kernel here has.
  void** Finish() {
    const void* none = nullptr;
    Put(&none, sizeof(none));
    Put(&none, sizeof(none));
    for (auto offset : offsets_) pointers_.push_back(&bytes_[offset]);
    return pointers_.data();
  }

 private:
  void Put(const void* value, std::size_t size, std::size_t alignment = 8) {
    used_ = (used_ + alignment - 1) / alignment * alignment;
    if (used_ + size > sizeof(bytes_)) Fail("more arguments than a kernel can have");
    std::memcpy(&bytes_[used_], value, size);
    offsets_.push_back(used_);
    used_ += size;
  }

  void PutInt32(std::int64_t value) {
    auto narrow = static_cast<std::int32_t>(value);
    Put(&narrow, sizeof(narrow));
  }

  void AddMap(const Leaf& leaf, const Argument& argument) {
    TensorMap map = Encoded(leaf, argument);
    Put(&map, sizeof(map), alignof(TensorMap));
    for (auto side : argument.view.shape) PutInt32(side);
    for (auto stride : argument.view.strides) Put(&stride, sizeof(stride));
  }

  // Axes turned round: the driver wants the fastest first, and strides in bytes of all but that.
  static TensorMap Encoded(const Leaf& leaf, const Argument& argument) {
    std::size_t rank = argument.view.shape.size();
    std::uint64_t shape[kMostAxes], strides[kMostAxes];
    std::uint32_t box[kMostAxes], ones[kMostAxes] = {1, 1, 1, 1, 1};
    Require(rank >= 2 && rank <= kMostAxes, "a tensor map of 2 to 5 axes");
    for (std::size_t i = 0; i < rank; ++i) {
      shape[rank - 1 - i] = argument.view.shape[i];
      box[rank - 1 - i] = leaf.box[i];
      if (i + 1 < rank) strides[rank - 2 - i] = argument.view.strides[i] * leaf.element_size;
    }
    TensorMap map{};
    Must(Cuda().cuTensorMapEncodeTiled(&map, leaf.element_type, rank, const_cast<void*>(argument.pointer), shape,
                                       strides, box, ones, 0, leaf.swizzle, kPromotion, 0),
         "cuTensorMapEncodeTiled");
    return map;
  }

  alignas(64) unsigned char bytes_[4096];
  std::size_t used_ = 0;
  std::vector<std::size_t> offsets_;
  std::vector<void*> pointers_;
};

}  // namespace

Stream StreamOf(const Tensor& x) {
  auto place = x.place();
#if defined(PADDLE_WITH_CUDA)
  if (place.GetType() == phi::AllocationType::GPU) return x.stream();
#endif
  if (place.GetType() != phi::AllocationType::CUSTOM) {
    Fail("this program was exported for a GPU, and its tensors are on " + place.DebugString());
  }
  return static_cast<phi::CustomContext*>(phi::DeviceContextPool::Instance().Get(place))->stream();
}

Gpu::Gpu(const Tensor& like) : device_(like.place().GetDeviceId()), stream_(StreamOf(like)) {
  const auto& properties = PropertiesOf(device_);
  architecture_ = properties.architecture;
  processors_ = properties.processors;
  Must(Cuda().cuCtxSetCurrent(properties.context), "cuCtxSetCurrent");  // an executor's thread may have none
}

Kernel& Gpu::Find(const char* name, const Arguments& arguments, const Constants& constants) const {
  return FindKernel(name, architecture_, arguments, constants);
}

void Gpu::Launch(Kernel& kernel, std::int64_t x, std::int64_t y, std::int64_t z, const Arguments& arguments) const {
  if (x == 0 || y == 0 || z == 0) return;
  Function function = Loaded(&kernel, device_);
  Packed packed;
  for (std::size_t i = 0; i < arguments.size(); ++i) packed.Add(kernel.leaves[i], arguments[i]);
  Must(Cuda().cuLaunchKernel(function, x, y, z, kWarp * kernel.warps, 1, 1, kernel.shared, stream_, packed.Finish(),
                             nullptr),
       kernel.name.c_str());
}

void Gpu::CopyPart(const Tensor& from, std::int64_t start, Tensor* to, std::int64_t place, std::int64_t count) const {
  auto size = phi::SizeOf(from.dtype());
  if (count == 0) return;
  Must(Cuda().cuMemcpyDtoDAsync(reinterpret_cast<Address>(to->data()) + place * size,
                                reinterpret_cast<Address>(from.data()) + start * size, count * size, stream_),
       "cuMemcpyDtoDAsync");
}

const char* TypeName(DataType type) {
  switch (type) {
    case DataType::BFLOAT16:
      return "bf16";
    case DataType::FLOAT16:
      return "fp16";
    case DataType::FLOAT32:
      return "fp32";
    case DataType::INT32:
      return "i32";
    case DataType::INT64:
      return "i64";
    default:
      Fail("a tensor of a dtype that no kernel takes");
  }
}

Argument Pointer(const Tensor& x, std::int64_t offset) {
  auto bytes = offset * static_cast<std::int64_t>(phi::SizeOf(x.dtype()));
  return {TypeName(x.dtype()), static_cast<const char*>(x.data()) + bytes};
}

Argument Pointer(const Maybe& x) { return x ? Pointer(*x) : Argument(); }

Argument Mapped(const Tensor& x, const Shape& shape) {
  return {TypeName(x.dtype()), x.data(), View{shape, Contiguous(shape)}};
}

Tensor Empty(const Shape& shape, const Tensor& like) { return Empty(shape, like, like.dtype()); }

Tensor Empty(const Shape& shape, const Tensor& like, DataType type) {
  return paddle::empty(shape, type, like.place());
}

Shape ShapeOf(const Tensor& x) { return common::vectorize(x.dims()); }

std::int64_t Product(const Shape& shape) {
  std::int64_t product = 1;
  for (auto side : shape) product *= side;
  return product;
}

Shape Contiguous(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t i = shape.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

}  // namespace sd3par
