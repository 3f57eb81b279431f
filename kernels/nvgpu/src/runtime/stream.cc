// Streams and events.
#include <algorithm>
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
    Must(cudaStreamDestroy(Cuda(stream)), "cudaStreamDestroy");
  });
}

// "Not ready" is an answer; left as CUDA's last error it would be taken for that of the next launch.
C_Status Answer(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return C_SUCCESS;
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return C_FAILED;
  }
  return Guarded("query", [&] { Must(status, call); });
}

C_Status QueryStream(const C_Device, C_Stream stream) {
  RelaxedCapture relaxed;
  return Answer(cudaStreamQuery(Cuda(stream)), "cudaStreamQuery");
}

C_Status SynchronizeStream(const C_Device, C_Stream stream) {
  return Guarded("synchronize_stream", [&] { Must(cudaStreamSynchronize(Cuda(stream)), "cudaStreamSynchronize"); });
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
  return Guarded("stream_add_callback", [&] {
    auto call = std::make_unique<Callback>(Callback{*device, stream, function, data});
    Must(cudaLaunchHostFunc(Cuda(stream), RunCallback, call.get()), "cudaLaunchHostFunc");
    call.release();  // RunCallback's now
  });
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

C_Status RecordEvent(const C_Device, C_Stream stream, C_Event event) {
  return Guarded("record_event", [&] { Must(cudaEventRecord(Cuda(event), Cuda(stream)), "cudaEventRecord"); });
}

C_Status DestroyEvent(const C_Device, C_Event event) {
  return Guarded("destroy_event", [&] { Must(cudaEventDestroy(Cuda(event)), "cudaEventDestroy"); });
}

C_Status QueryEvent(const C_Device, C_Event event) {
  RelaxedCapture relaxed;
  return Answer(cudaEventQuery(Cuda(event)), "cudaEventQuery");
}

C_Status SynchronizeEvent(const C_Device, C_Event event) {
  return Guarded("synchronize_event", [&] {
    RelaxedCapture relaxed;
    Must(cudaEventSynchronize(Cuda(event)), "cudaEventSynchronize");
  });
}

C_Status StreamWaitEvent(const C_Device, C_Stream stream, C_Event event) {
  return Guarded("stream_wait_event", [&] {
    Must(cudaStreamWaitEvent(Cuda(stream), Cuda(event), 0), "cudaStreamWaitEvent");
  });
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
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    Must(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    if (status == cudaStreamCaptureStatusNone) Must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }
}

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
