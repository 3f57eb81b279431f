// How everything here fails: with a line of words, in Paddle's own exception, since any other ends the process where a
// program runs.
#pragma once

#include <string>

#include "paddle/common/enforce.h"
#include "paddle/common/errors.h"

namespace sd3par {

[[noreturn]] inline void Fail(const std::string& why) {
  PADDLE_THROW(common::errors::PreconditionNotMet("sd3par operators: %s", why));
}

inline void Require(bool holds, const char* why) {
  if (!holds) Fail(why);
}

}  // namespace sd3par
