// What Paddle calls when it loads this library.
#include <cstring>

#include "runtime.h"

namespace nvgpu {
namespace {

C_Status Nothing() { return C_SUCCESS; }

// Paddle's profiler records host events of every device; GPU timelines are Nsight's business.
C_Status ProfilerBegin(C_Profiler, void**) { return C_SUCCESS; }
C_Status ProfilerStep(C_Profiler, void*) { return C_SUCCESS; }
C_Status ProfilerCollect(C_Profiler, uint64_t, void*) { return C_SUCCESS; }

void FillProfiler(C_DeviceInterface* interface) {
  interface->profiler_initialize = ProfilerBegin;
  interface->profiler_finalize = ProfilerStep;
  interface->profiler_prepare_tracing = ProfilerStep;
  interface->profiler_start_tracing = ProfilerStep;
  interface->profiler_stop_tracing = ProfilerStep;
  interface->profiler_collect_trace_data = ProfilerCollect;
}

char device_type[] = "nvgpu";
char sub_device_type[] = "cuda";

}  // namespace
}  // namespace nvgpu

extern "C" void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  params->device_type = nvgpu::device_type;
  params->sub_device_type = nvgpu::sub_device_type;
  C_DeviceInterface* interface = params->interface;
  std::memset(static_cast<void*>(interface), 0, sizeof(*interface));
  interface->size = sizeof(*interface);
  interface->initialize = nvgpu::Nothing;
  interface->finalize = nvgpu::Nothing;
  nvgpu::FillDevice(interface);
  nvgpu::FillMemory(interface);
  nvgpu::FillStream(interface);
  nvgpu::FillCollectives(interface);
  nvgpu::FillBlas(interface);
  nvgpu::FillGraph(interface);
  nvgpu::FillProfiler(interface);
}
