// The generation engine for Python: uniattn/generation.py is what users see.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

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
