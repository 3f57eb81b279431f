// Which devices there are, which one a thread uses, and what they are.
#include <atomic>

#include "paddle/phi/backends/device_base.h"
#include "runtime.h"

namespace nvgpu {
namespace {

constexpr int kNone = -1;
thread_local int chosen_here = kNone;
std::atomic<int> chosen_last{kNone};

int Attribute(const C_Device device, cudaDeviceAttr attribute) {
  int value = 0;
  Must(cudaDeviceGetAttribute(&value, attribute, device->id), "cudaDeviceGetAttribute");
  return value;
}

template <cudaDeviceAttr attribute>
C_Status AttributeOf(const C_Device device, size_t* value) {
  return Guarded("device attribute", [&] { *value = Attribute(device, attribute); });
}

// cudaFree(nullptr) makes the context now, on this device alone, rather than in the first copy that is timed.
C_Status InitDevice(const C_Device device) {
  return Guarded("init_device", [&] {
    UseDevice(device->id);
    Must(cudaFree(nullptr), "cudaFree");
  });
}

C_Status SetDevice(const C_Device device) {
  return Guarded("set_device", [&] { UseDevice(device->id); });
}

C_Status GetDevice(const C_Device device) {
  return Guarded("get_device", [&] { device->id = CurrentDevice(); });
}

C_Status DeinitDevice(const C_Device) { return C_SUCCESS; }

C_Status SynchronizeDevice(const C_Device device) {
  return Guarded("synchronize_device", [&] {
    UseDevice(device->id);
    Must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  });
}

C_Status GetDeviceCount(size_t* count) {
  *count = DeviceCount();
  return C_SUCCESS;
}

C_Status GetDeviceList(size_t* devices) {
  for (int i = 0, count = DeviceCount(); i < count; ++i) devices[i] = i;
  return C_SUCCESS;
}

C_Status GetComputeCapability(const C_Device device, size_t* capability) {
  return Guarded("get_compute_capability", [&] {
    *capability = Attribute(device, cudaDevAttrComputeCapabilityMajor) * 10 +
                  Attribute(device, cudaDevAttrComputeCapabilityMinor);
  });
}

// Paddle passes a phi::DeviceProp, whatever the C interface calls it.
C_Status GetDeviceProperties(const C_Device device, void* properties) {
  return Guarded("get_device_properties", [&] {
    cudaDeviceProp have;
    Must(cudaGetDeviceProperties(&have, device->id), "cudaGetDeviceProperties");
    *static_cast<phi::DeviceProp*>(properties) =
        phi::DeviceProp(have.name, have.major, have.minor, have.totalGlobalMem, have.multiProcessorCount,
                        have.isMultiGpuBoard != 0, have.integrated != 0);
  });
}

C_Status GetRuntimeVersion(const C_Device, size_t* version) {
  return Guarded("get_runtime_version", [&] {
    int value = 0;
    Must(cudaRuntimeGetVersion(&value), "cudaRuntimeGetVersion");
    *version = value;
  });
}

C_Status GetDriverVersion(const C_Device, size_t* version) {
  return Guarded("get_driver_version", [&] {
    int value = 0;
    Must(cudaDriverGetVersion(&value), "cudaDriverGetVersion");
    *version = value;
  });
}

C_Status GetMaxGridDimSize(const C_Device device, std::array<unsigned int, 3>* size) {
  return Guarded("get_max_grid_dim_size", [&] {
    *size = {static_cast<unsigned>(Attribute(device, cudaDevAttrMaxGridDimX)),
             static_cast<unsigned>(Attribute(device, cudaDevAttrMaxGridDimY)),
             static_cast<unsigned>(Attribute(device, cudaDevAttrMaxGridDimZ))};
  });
}

C_Status Supported(const C_Device, bool* supported) {
  *supported = true;
  return C_SUCCESS;
}

}  // namespace

void UseDevice(int device) {
  Must(cudaSetDevice(device), "cudaSetDevice");
  chosen_here = device;
  chosen_last = device;
}

// A thread that never chose a device gets the one that this process chose last. CUDA's choice would be device 0, and
// Paddle's guards, which put back what they found, would make a context of half a GiB there in every process.
int CurrentDevice() {
  int device = chosen_last;
  if (device == kNone) return 0;
  if (chosen_here == kNone) UseDevice(device);
  Must(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count < kMaxDevices ? count : kMaxDevices;
  cudaGetLastError();
  return 0;
}

void FillDevice(C_DeviceInterface* interface) {
  interface->init_device = InitDevice;
  interface->set_device = SetDevice;
  interface->get_device = GetDevice;
  interface->deinit_device = DeinitDevice;
  interface->synchronize_device = SynchronizeDevice;
  interface->get_device_count = GetDeviceCount;
  interface->get_device_list = GetDeviceList;
  interface->get_compute_capability = GetComputeCapability;
  interface->get_device_properties = GetDeviceProperties;
  interface->get_runtime_version = GetRuntimeVersion;
  interface->get_driver_version = GetDriverVersion;
  interface->get_multi_process = AttributeOf<cudaDevAttrMultiProcessorCount>;
  interface->get_max_threads_per_mp = AttributeOf<cudaDevAttrMaxThreadsPerMultiProcessor>;
  interface->get_max_threads_per_block = AttributeOf<cudaDevAttrMaxThreadsPerBlock>;
  interface->get_max_grid_dim_size = GetMaxGridDimSize;
  interface->is_float16_supported = Supported;
  interface->is_bfloat16_supported = Supported;
  interface->is_dnn_supported = Supported;
}

}  // namespace nvgpu
