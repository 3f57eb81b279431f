// Streams, events and graphs: everything has happened when it is asked for. Captures are followed only so far that a
// call which CUDA forbids inside one fails here too.
#include <atomic>
#include <map>
#include <mutex>
#include <set>

#include "dry.h"

namespace {

struct Captures {
  std::mutex lock;
  std::set<cudaStream_t> streams;
};
Captures& Now() {
  static Captures* now = new Captures;
  return *now;
}

// CUDA forbids by thread and by the mode that the capture began with; here one strict capture forbids it all.
std::atomic<int> strict{0};
thread_local cudaStreamCaptureMode mode_here = cudaStreamCaptureModeGlobal;

// Handles that are made and not destroyed yet: CUDA may crash on any other.
struct Handles {
  std::mutex lock;
  std::set<void*> live;
};
Handles& Made() {
  static Handles* made = new Handles;
  return *made;
}

template <typename Handle>
cudaError_t Make(Handle* handle) {
  *handle = reinterpret_cast<Handle>(new char);
  std::lock_guard<std::mutex> hold(Made().lock);
  Made().live.insert(*handle);
  return cudaSuccess;
}

template <typename Handle>
cudaError_t Destroy(Handle handle) {
  std::lock_guard<std::mutex> hold(Made().lock);
  if (Made().live.erase(handle) == 0)
    return dry::Fail(cudaErrorInvalidResourceHandle, "destroys what is destroyed, or was never made");
  delete reinterpret_cast<char*>(handle);
  return cudaSuccess;
}

// When events were recorded, by the device's clock. Never freed, as the others.
struct Clock {
  std::mutex lock;
  float now = 0;
  std::map<cudaEvent_t, float> events;
};
Clock& Time() {
  static Clock* time = new Clock;
  return *time;
}

cudaError_t WaitFor(cudaStream_t stream, const char* what) {
  return dry::IsCapturing(stream) ? dry::Fail(cudaErrorStreamCaptureUnsupported, what) : cudaSuccess;
}

}  // namespace

namespace dry {

bool IsCapturing(cudaStream_t stream) {
  std::lock_guard<std::mutex> hold(Now().lock);
  return Now().streams.count(stream) > 0;
}

void Pass(float milliseconds) {
  std::lock_guard<std::mutex> hold(Time().lock);
  Time().now += milliseconds;
}

bool CaptureForbids() { return strict > 0 && mode_here != cudaStreamCaptureModeRelaxed; }

}  // namespace dry

DRY cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) { return Make(stream); }
DRY cudaError_t cudaStreamDestroy(cudaStream_t stream) { return Destroy(stream); }
DRY cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return WaitFor(stream, "a wait inside a capture"); }
DRY cudaError_t cudaStreamQuery(cudaStream_t stream) { return WaitFor(stream, "cudaStreamQuery inside a capture"); }
DRY cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned int) { return cudaSuccess; }

DRY cudaError_t cudaDeviceSynchronize() {
  return strict > 0 ? dry::Fail(cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize inside a capture")
                    : cudaSuccess;
}

DRY cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}

DRY cudaError_t cudaEventCreate(cudaEvent_t* event) { return Make(event); }
DRY cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) { return Make(event); }
DRY cudaError_t cudaEventDestroy(cudaEvent_t event) { return Destroy(event); }
DRY cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
DRY cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

DRY cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  std::lock_guard<std::mutex> hold(Time().lock);
  Time().events[event] = Time().now;
  return cudaSuccess;
}

DRY cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  std::lock_guard<std::mutex> hold(Time().lock);
  *milliseconds = Time().events[end] - Time().events[start];
  return cudaSuccess;
}

DRY cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, mode_here);
  return cudaSuccess;
}

DRY cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = dry::IsCapturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

DRY cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                         size_t*) {
  cudaStreamIsCapturing(stream, status);
  if (id != nullptr) *id = 1;
  if (graph != nullptr) *graph = nullptr;
  return cudaSuccess;
}

DRY cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  std::lock_guard<std::mutex> hold(Now().lock);
  Now().streams.insert(stream);
  if (mode != cudaStreamCaptureModeRelaxed) ++strict;
  return cudaSuccess;
}

DRY cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  std::lock_guard<std::mutex> hold(Now().lock);
  if (Now().streams.erase(stream) == 0) return dry::Fail(cudaErrorInvalidValue, "this stream is not captured");
  if (Now().streams.empty()) strict = 0;
  return Make(graph);
}

DRY cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t, unsigned long long) { return Make(exec); }
DRY cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
DRY cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return Destroy(graph); }
DRY cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return Destroy(exec); }
DRY cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char*, unsigned int) { return cudaSuccess; }

DRY cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
  *count = 0;
  return cudaSuccess;
}

// No graph has nodes here, so nobody comes to ask about one.
DRY cudaError_t cudaGraphNodeGetType(cudaGraphNode_t, cudaGraphNodeType*) { return cudaErrorInvalidValue; }
DRY cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t, cudaMemsetParams*) { return cudaErrorInvalidValue; }
DRY cudaError_t cudaGraphDestroyNode(cudaGraphNode_t) { return cudaErrorInvalidValue; }
DRY cudaError_t cudaGraphGetRootNodes(cudaGraph_t, cudaGraphNode_t*, size_t*) { return cudaErrorInvalidValue; }
DRY cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t*) {
  return cudaErrorInvalidValue;
}
DRY cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t*) {
  return cudaErrorInvalidValue;
}
DRY cudaError_t cudaGraphAddDependencies(cudaGraph_t, const cudaGraphNode_t*, const cudaGraphNode_t*,
                                         const cudaGraphEdgeData*, size_t) {
  return cudaErrorInvalidValue;
}
DRY cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t*, cudaGraph_t, const cudaGraphNode_t*, size_t,
                                       const cudaMemsetParams*) {
  return cudaErrorInvalidValue;
}
