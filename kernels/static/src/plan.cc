#include "plan.h"

#include <algorithm>

namespace sd3par {
namespace {

// Microseconds on H200, as in kernels/attention_hopper_split.py, where they are explained.
constexpr double kLaunch = 6.9, kTile = 2.6, kBlock = 0.88, kPartBlock = 0.925, kParts = 0.7, kThreeParts = 1.4;

std::int64_t Up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// In the order of Python's sum, so that ways that cost the same are chosen between alike.
double Cost(const Plan& plan, std::int64_t tiles, std::int64_t blocks, std::int64_t programs) {
  double turns = kLaunch + static_cast<double>(Up(plan.whole, programs)) * (kTile + static_cast<double>(blocks) * kBlock);
  if (plan.whole == tiles) return turns;
  std::int64_t crossing = plan.span % plan.share != 0;
  std::int64_t parts = Up(blocks, plan.share) + crossing;
  double cost = turns + kTile * static_cast<double>(1 + crossing);
  cost += static_cast<double>(plan.share) * kPartBlock;
  cost += kParts;
  return cost + static_cast<double>(Up(parts, 3)) * kThreeParts;
}

}  // namespace

Plan Planned(std::int64_t tiles, std::int64_t blocks, std::int64_t programs) {
  Plan best{tiles, 0, blocks};
  double least = Cost(best, tiles, blocks, programs);
  auto consider = [&](const Plan& plan) {
    double cost = Cost(plan, tiles, blocks, programs);
    if (cost < least) best = plan, least = cost;
  };
  std::int64_t rest = tiles % programs;
  if (rest == 0) return best;
  for (std::int64_t parts = 2; parts <= std::min(programs / rest, blocks); ++parts) {
    std::int64_t share = Up(blocks, parts);
    consider({tiles - rest, share, share * Up(blocks, share)});
  }
  std::int64_t even = Up(rest * blocks, programs);
  if (even < blocks) consider({tiles - rest, even, blocks});
  return best;
}

std::int64_t ProgramsOf(const Plan& plan, std::int64_t tiles, std::int64_t programs) {
  std::int64_t parts = plan.whole < tiles ? Up((tiles - plan.whole) * plan.span, plan.share) : 0;
  return std::min(programs, std::max(plan.whole, parts));
}

}  // namespace sd3par

// For tests, which compare it with Python's. found: whole, share, span, programs with something to do.
extern "C" void sd3par_planned(std::int64_t tiles, std::int64_t blocks, std::int64_t programs, std::int64_t* found) {
  auto plan = sd3par::Planned(tiles, blocks, programs);
  found[0] = plan.whole;
  found[1] = plan.share;
  found[2] = plan.span;
  found[3] = sd3par::ProgramsOf(plan, tiles, programs);
}
