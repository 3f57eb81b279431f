// Streams and events.
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>

#include "runtime.h"

namespace nvgpu {
namespace {

cudaStream_t Cuda(C_Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaEvent_t Cuda(C_Event event) { return reinterpret_cast<cudaEvent_t>(event); }

// The streams that Paddle made, by device. Never freed: Paddle destroys streams while the process's statics go.
struct Streams {
  std::mutex lock;
  std::vector<cudaStream_t> of[kMaxDevices];
};
Streams& Known() {
  static Streams* known = new Streams;
  return *known;
}

// Not blocking: neither waits for the other the stream and CUDA's default one, which is illegal inside a capture.
C_Status CreateStream(const C_Device device, C_Stream* stream) {
  return Guarded("create_stream", [&] {
    UseDevice(device->id);
    cudaStream_t made = nullptr;
    Must(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    *stream = reinterpret_cast<C_Stream>(made);
    std::lock_guard<std::mutex> hold(Known().lock);
    Known().of[device->id].push_back(made);
  });
}

C_Status DestroyStream(const C_Device device, C_Stream stream) {
  return Guarded("destroy_stream", [&] {
    {
      std::lock_guard<std::mutex> hold(Known().lock);
      auto& streams = Known().of[device->id];
      streams.erase(std::remove(streams.begin(), streams.end(), Cuda(stream)), streams.end());
    }
    UseDevice(device->id);
    Must(cudaStreamDestroy(Cuda(stream)), "cudaStreamDestroy");
  });
}

// Runs a call on `device`: a thread that chose none would have its context made on device 0 by any call.
template <typename Call>
C_Status On(const C_Device device, const char* what, Call call) {
  return Guarded(what, [&] {
    UseDevice(device->id);
    Must(call(), what);
  });
}

// "Not ready" is an answer; left as CUDA's last error it would be taken for that of the next launch.
template <typename Query>
C_Status Ask(const C_Device device, const char* what, Query query) {
  bool ready = true;
  C_Status status = On(device, what, [&] {
    RelaxedCapture relaxed;
    cudaError_t answer = query();
    ready = answer != cudaErrorNotReady;
    if (!ready) cudaGetLastError();
    return ready ? answer : cudaSuccess;
  });
  return ready ? status : C_FAILED;
}

C_Status QueryStream(const C_Device device, C_Stream stream) {
  return Ask(device, "cudaStreamQuery", [&] { return cudaStreamQuery(Cuda(stream)); });
}

std::atomic<int> skipping{0};

bool IsRecorded(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Must(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

C_Status SynchronizeStream(const C_Device device, C_Stream stream) {
  if (skipping > 0 && IsRecorded(Cuda(stream))) return C_SUCCESS;
  return On(device, "cudaStreamSynchronize", [&] { return cudaStreamSynchronize(Cuda(stream)); });
}

struct Callback {
  C_Device_st device;
  C_Stream stream;
  C_Callback function;
  void* data;
};

void CUDART_CB RunCallback(void* pointer) {
  std::unique_ptr<Callback> call(static_cast<Callback*>(pointer));
  C_Status status = C_SUCCESS;
  call->function(&call->device, call->stream, call->data, &status);
}

C_Status AddCallback(const C_Device device, C_Stream stream, C_Callback function, void* data) {
  auto call = std::make_unique<Callback>(Callback{*device, stream, function, data});
  C_Status status = On(device, "cudaLaunchHostFunc",
                       [&] { return cudaLaunchHostFunc(Cuda(stream), RunCallback, call.get()); });
  if (status == C_SUCCESS) call.release();  // RunCallback's now
  return status;
}

// Paddle's events order streams and are asked whether they have passed; without a time stamp both are cheaper.
C_Status CreateEvent(const C_Device device, C_Event* event) {
  return Guarded("create_event", [&] {
    UseDevice(device->id);
    cudaEvent_t made = nullptr;
    Must(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    *event = reinterpret_cast<C_Event>(made);
  });
}

// Paddle records events in each run of a program, and waits for them when the process ends. One that was recorded in a
// capture last cannot be waited for: CUDA calls it invalid then, and the process would abort.
C_Status RecordEvent(const C_Device device, C_Stream stream, C_Event event) {
  if (skipping > 0 && IsRecorded(Cuda(stream))) return C_SUCCESS;
  return On(device, "cudaEventRecord", [&] { return cudaEventRecord(Cuda(event), Cuda(stream)); });
}

C_Status DestroyEvent(const C_Device device, C_Event event) {
  return On(device, "cudaEventDestroy", [&] { return cudaEventDestroy(Cuda(event)); });
}

C_Status QueryEvent(const C_Device device, C_Event event) {
  return Ask(device, "cudaEventQuery", [&] { return cudaEventQuery(Cuda(event)); });
}

C_Status SynchronizeEvent(const C_Device device, C_Event event) {
  return On(device, "cudaEventSynchronize", [&] {
    RelaxedCapture relaxed;
    return cudaEventSynchronize(Cuda(event));
  });
}

C_Status StreamWaitEvent(const C_Device device, C_Stream stream, C_Event event) {
  return On(device, "cudaStreamWaitEvent", [&] { return cudaStreamWaitEvent(Cuda(stream), Cuda(event), 0); });
}

}  // namespace

// The lock is not held while waiting. A stream that is destroyed meanwhile is its owner's mistake, as everywhere.
void WaitForStreams(int device) {
  std::vector<cudaStream_t> streams;
  {
    std::lock_guard<std::mutex> hold(Known().lock);
    streams = Known().of[device];
  }
  for (cudaStream_t stream : streams) {
    if (!IsRecorded(stream)) Must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
}

void SkipWaits(int change) { skipping += change; }

void FillStream(C_DeviceInterface* interface) {
  interface->create_stream = CreateStream;
  interface->destroy_stream = DestroyStream;
  interface->query_stream = QueryStream;
  interface->synchronize_stream = SynchronizeStream;
  interface->stream_add_callback = AddCallback;
  interface->create_event = CreateEvent;
  interface->record_event = RecordEvent;
  interface->destroy_event = DestroyEvent;
  interface->query_event = QueryEvent;
  interface->synchronize_event = SynchronizeEvent;
  interface->stream_wait_event = StreamWaitEvent;
}

}  // namespace nvgpu
