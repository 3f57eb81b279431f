// The fastest algorithms that were found, in a small text file for the user's later processes.
#pragma once
#include <cublasLt.h>

#include <map>
#include <string>

namespace nvgpu {

// The environment's NVGPU_TUNING: "off" (cuBLASLt's first choice is taken, nothing is timed), or the path of the file.
// Unset: $XDG_CACHE_HOME/sd3par/gemm.txt or ~/.cache/sd3par/gemm.txt.
struct TuningSettings {
  bool on = true;
  std::string path;  // empty: nothing is kept
};
TuningSettings ReadTuningSettings();

struct TunedAlgorithm {
  cublasLtMatmulAlgo_t algorithm = {};  // cuBLASLt: may be stored, and restored by the same version
  std::string note;                     // for who reads the file: what was timed
};

// Lines "product|algorithm in hex|note|checksum". Lines that are none of ours are passed over, and gone at the next Add.
class TuningFile {
 public:
  explicit TuningFile(std::string path) : path_(std::move(path)) {}

  // Of a product that was ever timed, the one that was kept first. Nothing is thrown: a file that cannot be read is empty.
  std::map<std::string, TunedAlgorithm> Read() const;

  // The whole file is written anew and renamed: readers see the old one or the new one. The caller holds a TuningLock.
  void Add(const std::string& product, const TunedAlgorithm& found) const;

 private:
  std::string path_;
};

// Held by one process of the user's at a time; the system frees it when its process ends, however it ends.
class TuningLock {
 public:
  // Waits `seconds` at most; without a path, or where the folder cannot be written, nobody needs to be waited for.
  TuningLock(const std::string& path, double seconds);
  ~TuningLock();
  TuningLock(const TuningLock&) = delete;
  TuningLock& operator=(const TuningLock&) = delete;

  bool held() const { return file_ >= 0; }
  bool busy() const { return busy_; }  // another process held it all the time

 private:
  int file_ = -1;
  bool busy_ = false;
};

}  // namespace nvgpu
