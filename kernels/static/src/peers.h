// Memory that processes map into each other, as the loader makes it (sd3par/static/peers.py): where it lies, on every
// rank, and how tensors are laid into it (sd3par/peer_sums.py, peer_memory.py).
#pragma once

#include <cstdint>
#include <vector>

#include "launch.h"

namespace sd3par {

// The tokens of a rank.
struct Tokens {
  std::int64_t start, length, size;
};
Tokens TokensFor(std::int64_t rank, std::int64_t ranks, std::int64_t total);

// Tensors side by side in a pool, each from a multiple of 128 numbers on.
class Pool {
 public:
  // bases: where each rank's begins; room: numbers.
  std::vector<std::int64_t> bases;
  std::int64_t room = 0;

  // Takes room for `count` numbers; returns where it begins, in numbers. Throws if the loader has made less.
  std::int64_t Take(std::int64_t count, std::int64_t* used) const;
};

enum PoolName { kNorms, kLast, kParts, kMixed, kPools };

// What a process knows of its peers.
struct Peers {
  std::int64_t rank = 0, size = 0;
  std::int64_t flags = 0, targets = 0;  // of the meeting: this rank's memory; 0 while it rehearses alone
  Pool pools[kPools];
};

// Throws where the loader has told of none.
const Peers& ThePeers();

// Waits on the stream for all peers; what they stored before can be read behind it.
void Meet(const Gpu& gpu, const Peers& peers);

// Memory of the device with these numbers, which stays; the first call with them must come before a recording.
Address NumbersOn(const Gpu& gpu, const std::vector<std::int64_t>& numbers);

// A tensor over a place in this rank's part of a pool.
Tensor Over(const Peers& peers, const Pool& pool, std::int64_t place, const Shape& shape, const Tensor& like);

}  // namespace sd3par
