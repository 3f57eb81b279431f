// How everything here fails: by an exception of one line, which Paddle hands on.
#pragma once

#include <stdexcept>
#include <string>

namespace sd3par {

[[noreturn]] inline void Fail(const std::string& why) { throw std::runtime_error("sd3par operators: " + why); }

inline void Require(bool holds, const char* why) {
  if (!holds) Fail(why);
}

}  // namespace sd3par
