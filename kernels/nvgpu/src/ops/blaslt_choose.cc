#include "blaslt_choose.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "../runtime/lazy.h"
#include "../runtime/runtime.h"
#include "blaslt_file.h"

namespace nvgpu {
namespace {

constexpr double kLeastFlop = 1e9;   // below, all algorithms end within microseconds of each other
constexpr int kCandidates = 32;
constexpr int kRounds = 7;           // of which the median counts
constexpr float kRoundsMs = 60;      // fewer rounds of products that take longer together
constexpr float kSlow = 1.25f;       // times the fastest in the first round: not timed again
constexpr float kGain = 0.98f;       // what is not faster than this share of the first choice's time is noise
constexpr double kSecondsAtMost = 10;  // in one process; what comes later gets the first choice
constexpr double kWaitS = 10;        // for another process that times; one product takes 0.1 s

using Algorithm = cublasLtMatmulAlgo_t;
using Results = std::vector<cublasLtMatmulHeuristicResult_t>;

template <typename V>
void Set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, V value) {
  CheckBlas(LAZY(CublasLt, cublasLtMatmulPreferenceSetAttribute)(preference, attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute");
}

// Partial sums of a split k are added in fp32 (COMPUTE_TYPE), never in the output's fp16 or bf16.
void Prefer(cublasLtMatmulPreference_t preference, const LtKey& key) {
  Set<uint64_t>(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kBlasWorkspace);
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::get<4>(key));
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::get<5>(key));
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::get<6>(key));
  Set<uint32_t>(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::get<6>(key));
}

// At most `most` algorithms, by cuBLASLt's heuristics the fastest first; nothing runs on the GPU.
Results Heuristics(const LtCall& call, const LtKey& key, int most) {
  cublasLtMatmulPreference_t preference = nullptr;
  CheckBlas(LAZY(CublasLt, cublasLtMatmulPreferenceCreate)(&preference), "cublasLtMatmulPreferenceCreate");
  std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, cublasStatus_t (*)(cublasLtMatmulPreference_t)> owner(
      preference, LAZY(CublasLt, cublasLtMatmulPreferenceDestroy));
  Prefer(preference, key);
  Results results(most);
  int count = 0;
  const LtPlan& plan = call.plan;
  cublasStatus_t status = LAZY(CublasLt, cublasLtMatmulAlgoGetHeuristic)(
      call.state.lt, plan.operation, plan.a, plan.b, plan.out, plan.out, preference, most, results.data(), &count);
  results.resize(status == CUBLAS_STATUS_SUCCESS ? count : 0);
  auto bad = [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; };
  results.erase(std::remove_if(results.begin(), results.end(), bad), results.end());
  return results;
}

// Whether an algorithm of the file is one for this product here.
bool Fits(const LtCall& call, const Algorithm& algorithm) {
  cublasLtMatmulHeuristicResult_t result = {};
  const LtPlan& plan = call.plan;
  cublasStatus_t status = LAZY(CublasLt, cublasLtMatmulAlgoCheck)(call.state.lt, plan.operation, plan.a, plan.b,
                                                                  plan.out, plan.out, &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= kBlasWorkspace;
}

// Pairs of events around runs.
class Stopwatch {
 public:
  Stopwatch(size_t runs, cudaStream_t stream) : events_(2 * runs), stream_(stream) {
    for (cudaEvent_t& event : events_) Must(cudaEventCreate(&event), "cudaEventCreate");
  }
  ~Stopwatch() {
    for (cudaEvent_t event : events_)
      if (event != nullptr) cudaEventDestroy(event);
  }
  void Begin(size_t run) { Must(cudaEventRecord(events_[2 * run], stream_), "cudaEventRecord"); }
  void End(size_t run) { Must(cudaEventRecord(events_[2 * run + 1], stream_), "cudaEventRecord"); }
  float Ms(size_t run) {
    float ms = 0;
    Must(cudaEventSynchronize(events_[2 * run + 1]), "cudaEventSynchronize");
    Must(cudaEventElapsedTime(&ms, events_[2 * run], events_[2 * run + 1]), "cudaEventElapsedTime");
    return ms;
  }

 private:
  std::vector<cudaEvent_t> events_;
  cudaStream_t stream_;
};

// What lies between two runs in a model: other weights and activations, which take the cache.
struct Flush {
  void* memory;
  size_t bytes;
};

// Milliseconds of one run of each; a clock that changes meets all candidates alike.
std::vector<float> Round(const LtCall& call, const Results& candidates, const Flush& flush, Stopwatch* watch) {
  for (size_t i = 0; i < candidates.size(); ++i) {
    Must(cudaMemsetAsync(flush.memory, 0, flush.bytes, call.stream), "cudaMemsetAsync");
    watch->Begin(i);
    CheckBlas(call.Run(candidates[i].algo), "cublasLtMatmul");
    watch->End(i);
  }
  std::vector<float> ms;
  for (size_t i = 0; i < candidates.size(); ++i) ms.push_back(watch->Ms(i));
  return ms;
}

// Runs each once, which loads its kernels; those that do not run go.
void WarmUp(const LtCall& call, Results* candidates) {
  auto fails = [&](const auto& candidate) { return call.Run(candidate.algo) != CUBLAS_STATUS_SUCCESS; };
  candidates->erase(std::remove_if(candidates->begin(), candidates->end(), fails), candidates->end());
}

// Drops those that one round shows to be slow, but the first.
void DropSlow(const std::vector<float>& ms, Results* candidates) {
  const float most = kSlow * *std::min_element(ms.begin(), ms.end());
  Results kept;
  for (size_t i = 0; i < ms.size(); ++i)
    if (i == 0 || ms[i] <= most) kept.push_back((*candidates)[i]);
  *candidates = kept;
}

std::vector<float> Medians(const std::vector<std::vector<float>>& rounds) {
  std::vector<float> medians;
  for (size_t i = 0; i < rounds[0].size(); ++i) {
    std::vector<float> of;
    for (const auto& round : rounds) of.push_back(round[i]);
    std::nth_element(of.begin(), of.begin() + of.size() / 2, of.end());
    medians.push_back(of[of.size() / 2]);
  }
  return medians;
}

std::string Note(size_t timed, float first_ms, float best_ms) {
  char text[96];
  std::snprintf(text, sizeof(text), "%zu timed, first %.1f us, this %.1f us", timed, 1e3 * first_ms, 1e3 * best_ms);
  return text;
}

// Times are those of a card that is not hot. On a hot H200, each running for 0.12 s without a pause, others are the fastest of some
// products; with those a loop at 1024 x 1024 took 0.996 of the time for two rows, and as long for one.
TunedAlgorithm Fastest(const LtCall& call, Results candidates, const Flush& flush) {
  TunedAlgorithm found{candidates[0].algo, "none runs"};
  WarmUp(call, &candidates);
  if (candidates.empty()) return found;
  const size_t timed = candidates.size();
  Stopwatch watch(timed, call.stream);
  const auto first = Round(call, candidates, flush, &watch);
  DropSlow(first, &candidates);
  float sum = 0;
  for (float ms : first) sum += ms;
  const int count = std::clamp(static_cast<int>(kRoundsMs / (sum + 1e-3f)), 3, kRounds);
  std::vector<std::vector<float>> rounds;
  for (int i = 0; i < count; ++i) rounds.push_back(Round(call, candidates, flush, &watch));
  const auto ms = Medians(rounds);
  size_t best = std::min_element(ms.begin(), ms.end()) - ms.begin();
  if (ms[best] > kGain * ms[0]) best = 0;
  found = {candidates[best].algo, Note(timed, ms[0], ms[best])};
  return found;
}

// What this process has chosen. Never destroyed: products may be asked for while the process's statics go.
struct Choices {
  std::mutex lock;  // also: two threads do not time at once
  std::map<std::string, Algorithm> made;
  std::map<std::string, TunedAlgorithm> kept;  // of the file, as it was read last
  std::map<int, std::string> cards;            // their names: CUDA takes its time for properties
  TuningSettings settings = ReadTuningSettings();
  TuningFile file{settings.path};
  double spent_s = 0;

  Choices() {
    if (settings.on) kept = file.Read();
  }
};
Choices& Made() {
  static auto& choices = *new Choices;
  return choices;
}

const std::string& Card(Choices* choices) {
  int device = 0;
  Must(cudaGetDevice(&device), "cudaGetDevice");
  std::string& name = choices->cards[device];
  if (name.empty()) {
    cudaDeviceProp properties;
    Must(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    name = properties.name;
  }
  return name;
}

// Equal products on cards of the same name have the same text, in every process.
std::string Text(Choices* choices, const LtKey& key) {
  auto [kind, m, n, k, y, x, out, pitch_y, pitch_x, pitch_out] = key;
  std::string text = Card(choices) + " " + std::to_string(LAZY(CublasLt, cublasLtGetVersion)()) + " kind";
  for (int64_t number : {int64_t(kind), m, n, k, int64_t(y), int64_t(x), int64_t(out), pitch_y, pitch_x, pitch_out})
    text += " " + std::to_string(number);
  std::replace(text.begin(), text.end(), '|', ' ');
  return text;
}

bool Capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Must(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// In fp32 a model is checked, not served.
bool WorthTiming(const Choices& choices, const LtCall& call, const LtKey& key) {
  const auto dtype = static_cast<Dtype>(std::get<0>(key) / kKindsOfDtype);
  if (dtype != Dtype::kFloat16 && dtype != Dtype::kBFloat16) return false;
  const double flop = 2.0 * std::get<1>(key) * std::get<2>(key) * std::get<3>(key);
  return choices.settings.on && flop >= kLeastFlop && choices.spent_s < kSecondsAtMost && !Capturing(call.stream);
}

bool Kept(const Choices& choices, const LtCall& call, const std::string& product, Algorithm* algorithm) {
  auto found = choices.kept.find(product);
  if (found == choices.kept.end() || !Fits(call, found->second.algorithm)) return false;
  *algorithm = found->second.algorithm;
  return true;
}

// The stream has nothing left to do when the lock is taken: what it does may need another process (a collective), which
// may be waiting for the lock.
bool Time(Choices* choices, const LtCall& call, const LtKey& key, const Scratch& scratch, const std::string& product,
          Algorithm* algorithm) {
  TuningLock lock(choices->settings.path, kWaitS);
  if (lock.busy()) return false;
  choices->kept = choices->file.Read();
  if (Kept(*choices, call, product, algorithm)) return true;
  const Results candidates = Heuristics(call, key, kCandidates);
  if (candidates.size() < 2) return false;
  int device = 0, cache = 0;
  Must(cudaGetDevice(&device), "cudaGetDevice");
  Must(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute");
  const size_t bytes = std::max<size_t>(2 * size_t(cache), 1 << 20);
  const TunedAlgorithm found = Fastest(call, candidates, {scratch(bytes), bytes});
  if (lock.held()) choices->file.Add(product, found);
  *algorithm = found.algorithm;
  return true;
}

// As Time, but whatever goes wrong (no memory, say) is no reason not to compute the product.
bool TryTime(Choices* choices, const LtCall& call, const LtKey& key, const Scratch& scratch,
             const std::string& product, Algorithm* algorithm) {
  RelaxedCapture relaxed;  // another thread may be capturing
  Must(cudaStreamSynchronize(call.stream), "cudaStreamSynchronize");
  const auto start = std::chrono::steady_clock::now();
  bool found = false;
  try {
    found = Time(choices, call, key, scratch, product, algorithm);
  } catch (const std::exception&) {
    cudaGetLastError();
  }
  choices->spent_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return found;
}

}  // namespace

bool ChooseAlgorithm(const LtCall& call, const LtKey& key, const Scratch& scratch, Algorithm* algorithm) {
  Choices& choices = Made();
  std::lock_guard<std::mutex> hold(choices.lock);
  const std::string product = Text(&choices, key);
  auto made = choices.made.find(product);
  if (made != choices.made.end()) {
    *algorithm = made->second;
    return true;
  }
  bool chosen = choices.settings.on && Kept(choices, call, product, algorithm);
  if (!chosen && WorthTiming(choices, call, key))
    chosen = TryTime(&choices, call, key, scratch, product, algorithm);
  if (!chosen) {
    const Results first = Heuristics(call, key, 1);
    if (first.empty()) return false;
    *algorithm = first[0].algo;
  }
  choices.made[product] = *algorithm;
  return true;
}

}  // namespace nvgpu
