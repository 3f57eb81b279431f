#include "blaslt_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

namespace nvgpu {
namespace {

constexpr size_t kMostLines = 4096;  // then the file starts anew
constexpr size_t kWords = sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t);
constexpr auto kPause = std::chrono::milliseconds(5);

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string Hex(uint64_t word) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, word);
  return text;
}

// FNV-1a: against torn lines and slips of an editor.
uint64_t Checksum(const std::string& text) {
  uint64_t sum = 14695981039346656037u;
  for (unsigned char c : text) sum = (sum ^ c) * 1099511628211u;
  return sum;
}

std::string Line(const std::string& product, const TunedAlgorithm& found) {
  std::string line = product + "|";
  for (uint64_t word : found.algorithm.data) line += Hex(word);
  line += "|" + found.note;
  return line + "|" + Hex(Checksum(line));
}

std::vector<std::string> Fields(const std::string& line) {
  std::vector<std::string> fields(1);
  for (char c : line) {
    if (c == '|') fields.emplace_back();
    else fields.back() += c;
  }
  return fields;
}

bool Parse(const std::string& line, std::string* product, TunedAlgorithm* found) {
  const auto fields = Fields(line);
  if (fields.size() != 4 || fields[1].size() != 16 * kWords) return false;
  if (fields[3] != Hex(Checksum(line.substr(0, line.size() - fields[3].size() - 1)))) return false;
  for (size_t i = 0; i < kWords; ++i)
    found->algorithm.data[i] = std::strtoull(fields[1].substr(16 * i, 16).c_str(), nullptr, 16);
  *product = fields[0];
  found->note = fields[2];
  return true;
}

}  // namespace

TuningSettings ReadTuningSettings() {
  TuningSettings settings;
  const std::string given = Variable("NVGPU_TUNING"), cache = Variable("XDG_CACHE_HOME"), home = Variable("HOME");
  settings.on = given != "off";
  if (!given.empty()) settings.path = given;
  else if (!cache.empty()) settings.path = cache + "/sd3par/gemm.txt";
  else if (!home.empty()) settings.path = home + "/.cache/sd3par/gemm.txt";
  return settings;
}

std::map<std::string, TunedAlgorithm> TuningFile::Read() const {
  std::map<std::string, TunedAlgorithm> all;
  std::ifstream file(path_);
  std::string line, product;
  TunedAlgorithm found;
  while (std::getline(file, line))
    if (Parse(line, &product, &found)) all.emplace(product, found);
  return all;
}

void TuningFile::Add(const std::string& product, const TunedAlgorithm& found) const {
  auto all = Read();
  if (all.size() >= kMostLines) all.clear();
  all[product] = found;
  const std::string unfinished = path_ + "." + std::to_string(getpid());
  std::ofstream file(unfinished);
  for (const auto& [one, algorithm] : all) file << Line(one, algorithm) << '\n';
  file.close();
  if (!file || std::rename(unfinished.c_str(), path_.c_str()) != 0) std::remove(unfinished.c_str());
}

TuningLock::TuningLock(const std::string& path, double seconds) {
  if (path.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  file_ = open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (file_ >= 0 && flock(file_, LOCK_EX | LOCK_NB) != 0) {
    busy_ = errno == EWOULDBLOCK || errno == EINTR;
    if (busy_ && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(kPause);
      continue;
    }
    close(file_);
    file_ = -1;
  }
  if (held()) busy_ = false;
}

// A process that was forked meanwhile has the file too: closing it here would leave the lock held.
TuningLock::~TuningLock() {
  if (!held()) return;
  flock(file_, LOCK_UN);
  close(file_);
}

}  // namespace nvgpu
