// Generation for many requests at once: prompts are read in packed chunks, every running sequence gets one token per
// step, and new requests join as others end (continuous batching). One engine serves every way to generate.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "inference/cached_decoder.h"
#include "inference/sampler.h"

namespace uniattn {

struct EngineOptions {
  int64_t max_batch = 32;        // sequences at once; more requests wait
  int64_t prefill_chunk = 1024;  // tokens of prompts read in one pass: what bounds memory

  // Throws UsageError naming the option that is below 1.
  void validate() const;
};

struct GenerationRequest {
  std::vector<int64_t> prompt{};
  int64_t max_new_tokens = 64;
  SamplingOptions sampling{};
  std::vector<int64_t> stop_ids{};  // they end an answer and are not part of it

  // Called with each token; false ends the answer with it. May not call the engine.
  std::function<bool(int64_t token)> on_token{};
};

class Engine {
 public:
  // Throws UsageError for options out of range. The model must outlive this object.
  explicit Engine(const Decoder& model, const EngineOptions& options = {});
  ~Engine();

  // Queues a request and returns its number. Throws UsageError naming what is wrong: an empty prompt, an id outside the
  // vocabulary, max_new_tokens below 1, sampling options out of range.
  int64_t add(GenerationRequest request);
  // One chunk of waiting prompts, then one token for every running sequence. Returns the requests that ended, and
  // whether a stop token or on_token ended them, or their length. An error of the model ends all requests and is
  // thrown.
  struct Ended {
    int64_t request;
    bool by_length;
  };
  std::vector<Ended> step();
  // Ends a request that its caller has lost interest in.
  void cancel(int64_t request);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  // The most cache bytes that requests held at once, and the tensors' own.
  int64_t peak_cache_bytes() const { return peak_cache_bytes_; }
  int64_t allocated_cache_bytes() const { return decoder_.cache().bytes_allocated(); }

 private:
  struct Answer;
  void admit();
  void prefill();
  void decode();
  // Takes the next token of `answer` from its logits.
  void advance(Answer& answer, const at::Tensor& logits);
  std::vector<Ended> collect_ended();
  void end_all();
  at::Tensor read(const std::vector<TokenSpan>& spans);

  const Decoder& model_;
  EngineOptions options_;
  CachedDecoder decoder_;
  std::deque<std::unique_ptr<Answer>> waiting_;
  std::vector<std::unique_ptr<Answer>> running_;
  int64_t next_ = 0, peak_cache_bytes_ = 0;
};

// Runs the requests to their end. Returns how each of them ended, in their order: whether by its length.
std::vector<bool> run_to_end(Engine& engine, std::vector<GenerationRequest> requests);

}  // namespace uniattn
