// The generation engine for Python: uniattn/generation.py is what users see.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "commands/inference_options.h"
#include "inference/engine.h"
#include "inference/text_stream.h"
#include "support/error.h"

namespace py = pybind11;

namespace uniattn {
namespace {

using Prompt = std::variant<std::string, std::vector<int64_t>>;

std::vector<int64_t> encode(const InferenceModel& model, const std::string& text) {
  std::vector<int64_t> ids;
  if (model.tokenizer->bos_id() >= 0) ids.push_back(model.tokenizer->bos_id());
  for (const int32_t id : model.tokenizer->encode(text)) ids.push_back(id);
  return ids;
}

// One call of generate or stream: its own caches, one step at a time.
class Run {
 public:
  struct Token {
    int64_t index, id;
    std::string text;  // what may be shown now; empty for prompts of ids
  };

  Run(const InferenceModel& model, const std::vector<Prompt>& prompts, int64_t max_new_tokens,
      const SamplingOptions& sampling, const std::vector<std::string>& stops, bool ignore_eos,
      const EngineOptions& options)
      : engine_(model.decoder, options), reasons_(prompts.size()) {
    for (const std::string& stop : stops)
      if (stop.empty()) fail_usage("a stop string must not be empty");
    for (size_t i = 0; i < prompts.size(); ++i) {
      const bool is_text = std::holds_alternative<std::string>(prompts[i]);
      streams_.push_back(is_text ? std::make_unique<TextStream>(*model.tokenizer, stops) : nullptr);
      engine_.add(
          {is_text ? encode(model, std::get<std::string>(prompts[i])) : std::get<std::vector<int64_t>>(prompts[i]),
           max_new_tokens, sampling, ignore_eos ? std::vector<int64_t>{} : model.end_tokens,
           [this, i](int64_t id) { return take(i, id); }});
    }
  }

  // The tokens of one step of the engine; at the end of an answer the text that was held back, as the id -1.
  std::vector<Token> step() {
    {
      const py::gil_scoped_release release;
      for (const Engine::Ended& ended : engine_.step()) {
        const auto index = static_cast<size_t>(ended.request);
        reasons_[index] = ended.by_length ? "length" : "stop";
        if (streams_[index]) tokens_.push_back({ended.request, -1, streams_[index]->finish()});
      }
    }
    return std::exchange(tokens_, {});
  }
  bool done() const { return engine_.idle(); }
  int64_t cache_bytes() const { return engine_.peak_cache_bytes(); }
  const std::vector<std::string>& finish_reasons() const { return reasons_; }

 private:
  bool take(size_t index, int64_t id) {
    TextStream* stream = streams_[index].get();
    tokens_.push_back({static_cast<int64_t>(index), id, stream ? stream->push(static_cast<int32_t>(id)) : ""});
    return stream == nullptr || !stream->stopped();
  }

  Engine engine_;
  std::vector<std::unique_ptr<TextStream>> streams_;
  std::vector<std::string> reasons_;
  std::vector<Token> tokens_;
};

// Forward passes to be timed, after a past of random keys and values: reading a long one takes minutes, and its content
// changes no time.
class Passes {
 public:
  explicit Passes(const InferenceModel& model) : model_(model), decoder_(model.decoder) {}

  // `batch` sequences of `tokens` each, in place of those before.
  void pretend(int64_t batch, int64_t tokens) {
    for (const TokenSpan& span : spans_) decoder_.cache().close(span.sequence);
    spans_.clear();
    std::vector<SequenceSpan> past;
    for (int64_t b = 0; b < batch; ++b) {
      spans_.push_back({decoder_.cache().open(), {1}});
      past.push_back({spans_.back().sequence, tokens});
    }
    if (tokens == 0) return;
    const at::InferenceMode inference;
    decoder_.cache().begin(past, false);
    decoder_.cache().end(past);
    for (size_t layer = 0; layer < model_.decoder.layers.size(); ++layer)
      for (at::Tensor cache : {decoder_.cache().keys(layer), decoder_.cache().values(layer)})
        if (cache.defined()) cache.normal_();
  }
  // Reads `tokens` more of every sequence, in chunks, and returns the seconds it took.
  double read(int64_t tokens, int64_t chunk) {
    const py::gil_scoped_release release;
    const auto start = std::chrono::steady_clock::now();
    for (int64_t first = 0; first < tokens; first += chunk) {
      for (TokenSpan& span : spans_) {
        span.tokens.resize(static_cast<size_t>(std::min(chunk, tokens - first)));
        for (int64_t& id : span.tokens) id = ++last_ % model_.decoder.config.vocab_size;
      }
      decoder_.read(spans_);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  int64_t cache_bytes() const { return decoder_.cache().bytes_used(); }

 private:
  const InferenceModel& model_;
  CachedDecoder decoder_;
  std::vector<TokenSpan> spans_;
  int64_t last_ = 0;
};

std::unique_ptr<InferenceModel> load(const std::string& directory, const std::string& dtype) {
  const py::gil_scoped_release release;
  return std::make_unique<InferenceModel>(open_inference_model({directory, dtype}));
}

}  // namespace

PYBIND11_MODULE(_engine, m) {
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const UsageError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const Error& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
  });
  py::class_<SamplingOptions>(m, "SamplingOptions")
      .def(py::init([](double temperature, int64_t top_k, double top_p, uint64_t seed) {
             return SamplingOptions{temperature, top_k, top_p, seed};
           }),
           py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("seed"));
  py::class_<EngineOptions>(m, "EngineOptions")
      .def(py::init([](int64_t max_batch, int64_t prefill_chunk) {
             return EngineOptions{max_batch, prefill_chunk};
           }),
           py::arg("max_batch"), py::arg("prefill_chunk"));
  py::class_<InferenceModel>(m, "Model")
      .def(py::init(&load), py::arg("directory"), py::arg("dtype"))
      .def("encode", &encode, py::arg("text"))
      .def("decode",
           [](const InferenceModel& model, const std::vector<int32_t>& ids) { return model.tokenizer->decode(ids); });
  py::class_<Passes>(m, "Passes")
      .def(py::init<const InferenceModel&>(), py::arg("model"), py::keep_alive<1, 2>())
      .def("pretend", &Passes::pretend, py::arg("batch"), py::arg("tokens"))
      .def("read", &Passes::read, py::arg("tokens"), py::arg("chunk"))
      .def_property_readonly("cache_bytes", &Passes::cache_bytes);
  py::class_<Run::Token>(m, "Token")
      .def_readonly("index", &Run::Token::index)
      .def_readonly("id", &Run::Token::id)
      .def_readonly("text", &Run::Token::text);
  py::class_<Run>(m, "Run")
      .def(py::init<const InferenceModel&, const std::vector<Prompt>&, int64_t, const SamplingOptions&,
                    const std::vector<std::string>&, bool, const EngineOptions&>(),
           py::arg("model"), py::arg("prompts"), py::arg("max_new_tokens"), py::arg("sampling"), py::arg("stops"),
           py::arg("ignore_eos"), py::arg("options"), py::keep_alive<1, 2>())
      .def("step", &Run::step)
      .def_property_readonly("done", &Run::done)
      .def_property_readonly("cache_bytes", &Run::cache_bytes)
      .def_property_readonly("finish_reasons", &Run::finish_reasons);
}

}  // namespace uniattn
