// CUDA graphs, for paddle.device.cuda.graphs.CUDAGraph.
#include <atomic>

#include "pieces.h"
#include "runtime.h"

namespace nvgpu {
namespace {

std::atomic<int> live{0};

cudaStream_t Cuda(C_Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaGraph_t Cuda(C_CudaGraph graph) { return reinterpret_cast<cudaGraph_t>(graph); }
cudaGraphExec_t Cuda(C_GraphExec exec) { return reinterpret_cast<cudaGraphExec_t>(exec); }

// Paddle's modes and states are numbered as CUDA's.
static_assert(int(C_StreamCaptureModeRelaxed) == int(cudaStreamCaptureModeRelaxed));
static_assert(int(C_StreamCaptureStatusInvalidated) == int(cudaStreamCaptureStatusInvalidated));

C_Status BeginCapture(const C_Device device, C_Stream stream, C_StreamCaptureMode mode) {
  return Guarded("begin_capture", [&] {
    UseDevice(device->id);
    Must(cudaStreamBeginCapture(Cuda(stream), static_cast<cudaStreamCaptureMode>(mode)), "cudaStreamBeginCapture");
  });
}

C_Status EndCapture(const C_Device device, C_Stream stream, C_CudaGraph* graph) {
  return Guarded("end_capture", [&] {
    UseDevice(device->id);
    cudaGraph_t made = nullptr;
    Must(cudaStreamEndCapture(Cuda(stream), &made), "cudaStreamEndCapture");
    try {
      ZeroPiecesOnce(made);
    } catch (...) {  // half of it may be done
      cudaGraphDestroy(made);
      throw;
    }
    *graph = reinterpret_cast<C_CudaGraph>(made);
    ++live;
  });
}

C_Status Instantiate(C_GraphExec* exec, C_CudaGraph* graph, void**, char*, size_t) {
  return Guarded("graph_instantiate", [&] {
    cudaGraphExec_t made = nullptr;
    Must(cudaGraphInstantiate(&made, Cuda(*graph), 0), "cudaGraphInstantiate");
    *exec = reinterpret_cast<C_GraphExec>(made);
    ++live;
  });
}

C_Status Launch(const C_Device device, C_GraphExec exec, C_Stream stream) {
  return Guarded("graph_launch", [&] {
    UseDevice(device->id);
    Must(cudaGraphLaunch(Cuda(exec), Cuda(stream)), "cudaGraphLaunch");
  });
}

C_Status DestroyGraph(C_CudaGraph graph) {
  return Guarded("graph_destroy", [&] {
    Must(cudaGraphDestroy(Cuda(graph)), "cudaGraphDestroy");
    --live;
  });
}

C_Status DestroyExec(C_GraphExec exec) {
  return Guarded("graph_exec_destroy", [&] {
    Must(cudaGraphExecDestroy(Cuda(exec)), "cudaGraphExecDestroy");
    --live;
  });
}

C_Status GetNodes(C_CudaGraph graph, C_CudaGraphNode* nodes, size_t* count) {
  return Guarded("graph_get_nodes", [&] {
    Must(cudaGraphGetNodes(Cuda(graph), reinterpret_cast<cudaGraphNode_t*>(nodes), count), "cudaGraphGetNodes");
  });
}

// Paddle asks for the state, the id and the graph; dependencies would have to outlive this call, and are left out.
C_Status CaptureInfo(const C_Device device, C_Stream stream, C_StreamCaptureStatus* status, unsigned long long* id,
                     C_CudaGraph* graph, C_CudaGraphNode*, void**, size_t* dependencies) {
  return Guarded("capture_info", [&] {
    UseDevice(device->id);
    cudaStreamCaptureStatus state = cudaStreamCaptureStatusNone;
    unsigned long long number = 0;
    cudaGraph_t captured = nullptr;
    Must(cudaStreamGetCaptureInfo(Cuda(stream), &state, &number, &captured), "cudaStreamGetCaptureInfo");
    if (status != nullptr) *status = static_cast<C_StreamCaptureStatus>(state);
    if (id != nullptr) *id = number;
    if (graph != nullptr) *graph = reinterpret_cast<C_CudaGraph>(captured);
    if (dependencies != nullptr) *dependencies = 0;
  });
}

// For graphs whose kernels' parameters change between replays; ours have none.
C_Status NoParameterSetters(C_CudaGraph, C_GraphHookManager* hooks) {
  if (hooks != nullptr) hooks->size = 0;
  return C_SUCCESS;
}

C_Status DebugDotPrint(C_CudaGraph graph, const char* path, unsigned int flags) {
  return Guarded("graph_debug_dot_print",
                 [&] { Must(cudaGraphDebugDotPrint(Cuda(graph), path, flags), "cudaGraphDebugDotPrint"); });
}

C_Status ExchangeCaptureMode(C_StreamCaptureMode* mode) {
  return Guarded("exchange_capture_mode", [&] {
    auto cuda = static_cast<cudaStreamCaptureMode>(*mode);
    Must(cudaThreadExchangeStreamCaptureMode(&cuda), "cudaThreadExchangeStreamCaptureMode");
    *mode = static_cast<C_StreamCaptureMode>(cuda);
  });
}

}  // namespace

int LiveGraphs() { return live; }

void FillGraph(C_DeviceInterface* interface) {
  interface->cuda_stream_begin_capture = BeginCapture;
  interface->cuda_stream_end_captrue = EndCapture;
  interface->cuda_graph_launch = Launch;
  interface->cuda_graph_destroy = DestroyGraph;
  interface->cuda_graph_exec_destroy = DestroyExec;
  interface->cuda_graph_instantiate = Instantiate;
  interface->cuda_graph_get_nodes = GetNodes;
  interface->cuda_stream_capture_info = CaptureInfo;
  interface->get_parameter_setter_for_exec_graph = NoParameterSetters;
  interface->cuda_graph_debug_dot_print = DebugDotPrint;
  interface->cuda_thread_exchange_stream_capthure_mode = ExchangeCaptureMode;
}

}  // namespace nvgpu
