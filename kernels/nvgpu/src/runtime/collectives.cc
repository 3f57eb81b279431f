// Collectives: NCCL behind Paddle's XCCL interface.
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <thread>

#include "lazy.h"
#include "runtime.h"

namespace nvgpu {
namespace {

constexpr std::chrono::seconds kDestroyLimit{5};

ncclComm_t CommOf(C_CCLComm comm) { return reinterpret_cast<ncclComm_t>(comm); }
cudaStream_t StreamOf(C_Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }

ncclDataType_t TypeOf(C_DataType type) {
  switch (type) {
    case BOOL: return ncclUint8;
    case UINT8: return ncclUint8;
    case INT8: return ncclInt8;
    case INT32: return ncclInt32;
    case UINT32: return ncclUint32;
    case INT64: return ncclInt64;
    case UINT64: return ncclUint64;
    case FLOAT16: return ncclFloat16;
    case BFLOAT16: return ncclBfloat16;
    case FLOAT32: return ncclFloat32;
    case FLOAT64: return ncclFloat64;
    default: throw std::runtime_error("NCCL has no such data type; use uint8, int8, int32, int64 or a float");
  }
}

ncclRedOp_t OpOf(C_CCLReduceOp op) {
  switch (op) {
    case SUM: return ncclSum;
    case AVG: return ncclAvg;
    case MAX: return ncclMax;
    case MIN: return ncclMin;
    case PRODUCT: return ncclProd;
  }
  throw std::runtime_error("NCCL has no such reduction; use sum, average, maximum, minimum or product");
}

void MustNccl(ncclResult_t result, const char* call, ncclComm_t comm) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* detail = LAZY(Nccl, ncclGetLastError)(comm);
  throw std::runtime_error(std::string(call) + ": " + LAZY(Nccl, ncclGetErrorString)(result) +
                           (detail != nullptr && *detail != '\0' ? std::string(" (") + detail + ")" : ""));
}

// Runs a call on `comm`; a failure that NCCL met since the last one, on its own threads, is reported here too.
template <typename Call>
C_Status Collective(const char* what, C_CCLComm comm, Call call) {
  return Guarded(what, [&] {
    MustNccl(call(), what, CommOf(comm));
    ncclResult_t meanwhile = ncclSuccess;
    MustNccl(LAZY(Nccl, ncclCommGetAsyncError)(CommOf(comm), &meanwhile), "ncclCommGetAsyncError", CommOf(comm));
    MustNccl(meanwhile, what, CommOf(comm));
  });
}

C_Status GetCommName(C_CCLComm comm, char* name) {
  std::snprintf(name, 64, "nccl%p", static_cast<void*>(comm));
  return C_SUCCESS;
}

C_Status GetUniqueIdSize(size_t* size) {
  *size = sizeof(ncclUniqueId);
  return C_SUCCESS;
}

C_Status GetUniqueId(C_CCLRootId* id) {
  return Guarded("ncclGetUniqueId", [&] {
    ncclUniqueId made;
    MustNccl(LAZY(Nccl, ncclGetUniqueId)(&made), "ncclGetUniqueId", nullptr);
    std::memcpy(id->data, &made, sizeof(made));  // `id` is as large as GetUniqueIdSize said
  });
}

C_Status InitRank(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* comm) {
  return Guarded("ncclCommInitRank", [&] {
    UseDevice(CurrentDevice());  // NCCL takes CUDA's current device, which a new thread has not chosen yet
    ncclUniqueId root;
    if (id->sz != sizeof(root)) throw std::runtime_error("the unique id has another size than this NCCL's");
    std::memcpy(&root, id->data, sizeof(root));
    ncclComm_t made = nullptr;
    MustNccl(LAZY(Nccl, ncclCommInitRank)(&made, ranks, root, rank), "ncclCommInitRank", nullptr);
    *comm = reinterpret_cast<C_CCLComm>(made);
  });
}

// ncclCommDestroy (and ncclCommAbort) wait until every graph that captured a collective of the communicator is gone.
// Paddle destroys communicators when the process ends, and Python may still hold graphs then: seen to wait for ever.
// So a communicator is left to the end of the process while any graph lives, and the wait for it is bounded anyway:
// a peer that died can hold it up too.
C_Status DestroyComm(C_CCLComm comm) {
  static std::atomic<bool> gave_up{false};
  if (comm == nullptr || LiveGraphs() > 0 || gave_up) return C_SUCCESS;
  return Guarded("ncclCommDestroy", [&] {
    auto destroy = LAZY(Nccl, ncclCommDestroy);
    auto done = std::make_shared<std::promise<void>>();
    std::future<void> finished = done->get_future();
    std::thread([destroy, done, comm] {
      destroy(CommOf(comm));
      done->set_value();
    }).detach();
    if (finished.wait_for(kDestroyLimit) == std::future_status::ready) return;
    gave_up = true;
    throw std::runtime_error("did not end within 5 s; left to the end of the process");
  });
}

C_Status AllReduce(void* from, void* to, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm comm,
                   C_Stream stream) {
  return Collective("ncclAllReduce", comm, [&] {
    return LAZY(Nccl, ncclAllReduce)(from, to, count, TypeOf(type), OpOf(op), CommOf(comm), StreamOf(stream));
  });
}

C_Status Broadcast(void* buffer, size_t count, C_DataType type, size_t root, C_CCLComm comm, C_Stream stream) {
  return Collective("ncclBroadcast", comm, [&] {
    return LAZY(Nccl, ncclBroadcast)(buffer, buffer, count, TypeOf(type), root, CommOf(comm), StreamOf(stream));
  });
}

C_Status Reduce(void* from, void* to, size_t count, C_DataType type, C_CCLReduceOp op, size_t root, C_CCLComm comm,
                C_Stream stream) {
  return Collective("ncclReduce", comm, [&] {
    return LAZY(Nccl, ncclReduce)(from, to, count, TypeOf(type), OpOf(op), root, CommOf(comm), StreamOf(stream));
  });
}

C_Status AllGather(void* from, void* to, size_t count, C_DataType type, C_CCLComm comm, C_Stream stream) {
  return Collective("ncclAllGather", comm, [&] {
    return LAZY(Nccl, ncclAllGather)(from, to, count, TypeOf(type), CommOf(comm), StreamOf(stream));
  });
}

C_Status ReduceScatter(void* from, void* to, size_t count, C_DataType type, C_CCLReduceOp op, C_CCLComm comm,
                       C_Stream stream) {
  return Collective("ncclReduceScatter", comm, [&] {
    return LAZY(Nccl, ncclReduceScatter)(from, to, count, TypeOf(type), OpOf(op), CommOf(comm), StreamOf(stream));
  });
}

C_Status GroupStart() {
  return Guarded("ncclGroupStart", [] { MustNccl(LAZY(Nccl, ncclGroupStart)(), "ncclGroupStart", nullptr); });
}

C_Status GroupEnd() {
  return Guarded("ncclGroupEnd", [] { MustNccl(LAZY(Nccl, ncclGroupEnd)(), "ncclGroupEnd", nullptr); });
}

C_Status Send(void* from, size_t count, C_DataType type, size_t peer, C_CCLComm comm, C_Stream stream) {
  return Collective("ncclSend", comm, [&] {
    return LAZY(Nccl, ncclSend)(from, count, TypeOf(type), peer, CommOf(comm), StreamOf(stream));
  });
}

C_Status Receive(void* to, size_t count, C_DataType type, size_t peer, C_CCLComm comm, C_Stream stream) {
  return Collective("ncclRecv", comm, [&] {
    return LAZY(Nccl, ncclRecv)(to, count, TypeOf(type), peer, CommOf(comm), StreamOf(stream));
  });
}

// All pairs in one group, so that NCCL runs them at once. What can throw is done before, and an error inside still ends
// the group: later calls would otherwise be gathered in it and never start.
C_Status AllToAll(const void** from, const size_t* send_counts, const C_DataType* send_types, void** to,
                  const size_t* receive_counts, const C_DataType* receive_types, size_t, size_t ranks, C_CCLComm comm,
                  C_Stream stream) {
  return Collective("ncclSend and ncclRecv", comm, [&] {
    auto send = LAZY(Nccl, ncclSend);
    auto receive = LAZY(Nccl, ncclRecv);
    std::vector<ncclDataType_t> sent, received;
    for (size_t i = 0; i < ranks; ++i) sent.push_back(TypeOf(send_types[i]));
    for (size_t i = 0; i < ranks; ++i) received.push_back(TypeOf(receive_types[i]));
    ncclResult_t result = LAZY(Nccl, ncclGroupStart)();
    for (size_t i = 0; i < ranks && result == ncclSuccess; ++i) {
      if (send_counts[i] > 0) result = send(from[i], send_counts[i], sent[i], i, CommOf(comm), StreamOf(stream));
      if (receive_counts[i] > 0 && result == ncclSuccess)
        result = receive(to[i], receive_counts[i], received[i], i, CommOf(comm), StreamOf(stream));
    }
    ncclResult_t ended = LAZY(Nccl, ncclGroupEnd)();
    return result == ncclSuccess ? ended : result;
  });
}

}  // namespace

void FillCollectives(C_DeviceInterface* interface) {
  interface->xccl_get_comm_name = GetCommName;
  interface->xccl_get_unique_id_size = GetUniqueIdSize;
  interface->xccl_get_unique_id = GetUniqueId;
  interface->xccl_comm_init_rank = InitRank;
  interface->xccl_destroy_comm = DestroyComm;
  interface->xccl_all_reduce = AllReduce;
  interface->xccl_broadcast = Broadcast;
  interface->xccl_reduce = Reduce;
  interface->xccl_all_gather = AllGather;
  interface->xccl_reduce_scatter = ReduceScatter;
  interface->xccl_group_start = GroupStart;
  interface->xccl_group_end = GroupEnd;
  interface->xccl_send = Send;
  interface->xccl_recv = Receive;
  interface->xccl_all_to_all = AllToAll;
}

}  // namespace nvgpu
