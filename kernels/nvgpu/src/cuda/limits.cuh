// The largest and smallest value of a type, on the device.
#pragma once
#include <cmath>
#include <limits>

#include "device.cuh"

namespace nvgpu {

template <typename A>
constexpr A kHighest =
    std::numeric_limits<A>::has_infinity ? std::numeric_limits<A>::infinity() : std::numeric_limits<A>::max();
template <typename A>
constexpr A kLowest =
    std::numeric_limits<A>::has_infinity ? -std::numeric_limits<A>::infinity() : std::numeric_limits<A>::lowest();

}  // namespace nvgpu
