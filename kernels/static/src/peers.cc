#include "peers.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "failure.h"

namespace sd3par {
namespace {

constexpr std::int64_t kAligned = 128;  // numbers: ALIGNED of sd3par/peer_memory.py

Peers& Told() {
  static Peers* told = new Peers;
  return *told;
}

}  // namespace

Tokens TokensFor(std::int64_t rank, std::int64_t ranks, std::int64_t total) {
  std::int64_t size = DivideUp(total, ranks), start = std::min(rank * size, total);
  return {start, std::min(start + size, total) - start, size};
}

std::int64_t Pool::Take(std::int64_t count, std::int64_t* used) const {
  std::int64_t place = *used;
  *used += DivideUp(count, kAligned) * kAligned;
  if (place + count > room) Fail("less shared memory than this request needs");
  return place;
}

const Peers& ThePeers() {
  if (Told().size == 0) Fail("this program stores to peers' memory, and was loaded without it");
  return Told();
}

void Meet(const Gpu& gpu, const Peers& peers) {
  if (peers.flags == 0) return;
  Arguments arguments = {{"i32", reinterpret_cast<const void*>(peers.flags)},
                         {"i64", reinterpret_cast<const void*>(peers.targets)}};
  gpu.Launch(gpu.Find("_meet", arguments, {{"SIZE", peers.size}, {"MOST", 0}}), 1, 1, 1, arguments);
}

Address NumbersOn(const Gpu& gpu, const std::vector<std::int64_t>& numbers) {
  static std::mutex lock;
  static auto* known = new std::map<std::pair<int, std::vector<std::int64_t>>, Address>;
  std::lock_guard<std::mutex> hold(lock);
  Address& found = (*known)[{gpu.device(), numbers}];
  if (found == 0) {
    Address made = 0;
    Must(Cuda().cuMemAlloc(&made, numbers.size() * sizeof(numbers[0])), "cuMemAlloc");
    Must(Cuda().cuMemcpyHtoD(made, numbers.data(), numbers.size() * sizeof(numbers[0])), "cuMemcpyHtoD");
    found = made;
  }
  return found;
}

Tensor Over(const Peers& peers, const Pool& pool, std::int64_t place, const Shape& shape, const Tensor& like) {
  std::int64_t address = pool.bases[peers.rank] + place * static_cast<std::int64_t>(phi::SizeOf(like.dtype()));
  return paddle::from_blob(reinterpret_cast<void*>(address), shape, like.dtype(), phi::DataLayout::NCHW, like.place(),
                           [](void*) {});
}

}  // namespace sd3par

extern "C" {

// flags: [size + 1] int32 and targets: [size] int64 of the meeting, in this device's memory; 0: nobody is met.
void sd3par_peers(std::int64_t rank, std::int64_t size, std::int64_t flags, std::int64_t targets) {
  auto& told = sd3par::Told();
  told.rank = rank;
  told.size = size;
  told.flags = flags;
  told.targets = targets;
}

// which: a PoolName; bases: of every rank; room: numbers.
void sd3par_peer_pool(int which, const std::int64_t* bases, std::int64_t room) {
  auto& told = sd3par::Told();
  told.pools[which].bases.assign(bases, bases + told.size);
  told.pools[which].room = room;
}

}  // extern "C"
