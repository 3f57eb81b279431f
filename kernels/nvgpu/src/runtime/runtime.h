// What the files of the runtime share: status at the C interface, the current device, streams, and who fills what.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "paddle/phi/backends/device_ext.h"

namespace nvgpu {

constexpr int kMaxDevices = 64;

// Throws if a call of the CUDA runtime failed. While the process ends Paddle still frees what it has, after CUDA's own
// exit handlers have run: there is nothing left to free then, and nothing to say.
inline void Must(cudaError_t status, const char* call) {
  if (status == cudaSuccess || status == cudaErrorCudartUnloading) return;
  cudaGetLastError();  // a launch that comes later must not be blamed for this
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// Nothing may be thrown across the C interface: an exception becomes one line on stderr, and `C_ERROR` an exception of
// Paddle's.
template <typename Body>
C_Status Guarded(const char* what, Body body) {
  try {
    body();
    return C_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nvgpu: %s: %s\n", what, error.what());
  } catch (...) {
    std::fprintf(stderr, "nvgpu: %s: failed\n", what);
  }
  return C_ERROR;
}

// Makes `device` the one that this thread's CUDA calls mean.
void UseDevice(int device);
int CurrentDevice();  // for a thread that chose none: chooses the one that the process chose last
int DeviceCount();  // 0 without a GPU or a driver

// While it lives, this thread may allocate, copy and ask, although a CUDA graph is being captured (by this thread or
// another): none of those calls are on a stream that is captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Waits for the work of all streams that Paddle made on `device`, other than those that a graph is captured from.
void WaitForStreams(int device);

// Lets waits for a stream, and records of events on it, return at once while a graph is captured from it, as long as
// changes add up to more than 0.
void SkipWaits(int change);

// CUDA graphs, captured or instantiated, that are not destroyed yet.
int LiveGraphs();

void FillDevice(C_DeviceInterface* interface);
void FillMemory(C_DeviceInterface* interface);
void FillStream(C_DeviceInterface* interface);
void FillCollectives(C_DeviceInterface* interface);
void FillBlas(C_DeviceInterface* interface);
void FillGraph(C_DeviceInterface* interface);

}  // namespace nvgpu
