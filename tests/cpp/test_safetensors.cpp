#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <random>

#include "catch.h"
#include "storage/atomic_file.h"
#include "storage/hash.h"
#include "storage/json.h"
#include "storage/safetensors.h"
#include "support/error.h"
#include "temporary_directory.h"

using namespace uniattn;
using namespace uniattn::testing;
using Catch::Matchers::Contains;

namespace {

std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

std::string refusal(const std::string& bytes) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  write_bytes(path, bytes);
  const std::string message = message_of<Error>([&] { SafetensorsFile file(path); });
  if (!message.empty()) CHECK_THAT(message, Contains(path));
  return message;
}

std::string refusal(const std::string& header, size_t data_bytes) {
  return refusal(safetensors_bytes(header, std::string(data_bytes, '\0')));
}

std::string tensor_header(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

NamedTensors one_of_each_dtype() {
  NamedTensors tensors;
  for (const auto dtype : {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16,
                           at::kFloat, at::kDouble}) {
    tensors.emplace_back(std::string("layer.") + c10::toString(dtype), at::randn({3, 5}).mul(50).to(dtype));
  }
  tensors.emplace_back("empty", at::empty({0, 4}));
  tensors.emplace_back("scalar", at::scalar_tensor(2.5));
  tensors.emplace_back("transposed", at::randn({4, 6}).t());
  tensors.emplace_back("naïve \"name\"\n", at::full({2}, std::numeric_limits<double>::quiet_NaN()));
  return tensors;
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return x.scalar_type() == y.scalar_type() && x.sizes() == y.sizes() &&
         (x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
}

}  // namespace

TEST_CASE("safetensors: what is written is read back bit for bit", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors";
  const NamedTensors tensors = one_of_each_dtype();
  write_safetensors(path, tensors, {{"format", "pt"}, {"step", "7"}});

  const SafetensorsFile file(path);
  CHECK(file.names().size() == tensors.size());
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"step", "7"}});
  size_t data_begin = SIZE_MAX;
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    CHECK(same_bits(file.tensor(name), tensor));
    CHECK(file.info(name).begin % tensor.element_size() == 0);
    data_begin = std::min(data_begin, file.info(name).begin);
  }
  CHECK(data_begin % 64 == 0);
  CHECK_THAT(message_of<Error>([&] { file.tensor("nobody"); }), Contains(path) && Contains("nobody"));
}

TEST_CASE("safetensors: a tensor outlives the object that opened its file", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  write_safetensors(directory / "t", {{"a", at::arange(100)}});
  const at::Tensor a = SafetensorsFile(directory / "t").tensor("a");
  CHECK(a.sum().item<int64_t>() == 4950);
}

TEST_CASE("safetensors: elements that are not aligned are read all the same", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  const float values[2] = {1.5f, -2.0f};
  std::string data(1, '\7');
  data.append(reinterpret_cast<const char*>(values), sizeof values);
  write_bytes(directory / "t", safetensors_bytes(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                                 R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
                                                 data));
  const SafetensorsFile file(directory / "t");
  CHECK(file.tensor("f").equal(at::tensor({1.5f, -2.0f})));
  CHECK(reinterpret_cast<uintptr_t>(file.tensor("f").const_data_ptr()) % alignof(float) == 0);
}

TEST_CASE("safetensors: malformed headers are refused", "[storage][safetensors]") {
  CHECK(refusal(tensor_header("F32", "[2,3]", "[0,24]"), 24).empty());  // the well-formed one that the others distort
  CHECK(refusal("{}", 0).empty());

  CHECK_THAT(refusal(""), Contains("cut off"));
  CHECK_THAT(refusal("1234567"), Contains("cut off"));
  CHECK_THAT(refusal(std::string(8, '\xff')), Contains("header of 18446744073709551615 bytes"));
  CHECK_THAT(refusal(safetensors_bytes("{}", "").substr(0, 9)), Contains("header of 2 bytes"));
  CHECK_THAT(refusal("", 0), Contains("invalid JSON"));
  CHECK_THAT(refusal("[]", 0), Contains("not a JSON object"));
  CHECK_THAT(refusal("{\"a\":", 0), Contains("invalid JSON"));
  CHECK_THAT(refusal("{\"\xff\":1}", 0), Contains("invalid JSON"));
  CHECK_THAT(refusal("{} x", 0), Contains("invalid JSON"));
  CHECK_THAT(refusal(R"({"a":1})", 0), Contains("expected an object"));
  CHECK_THAT(refusal(R"({"a":{"dtype":"F32","shape":[]}})", 0), Contains("data_offsets"));
  CHECK_THAT(refusal(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4), Contains("shape"));
  CHECK_THAT(refusal(R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4), Contains("dtype"));
  CHECK_THAT(refusal(tensor_header("F33", "[2,3]", "[0,24]"), 24), Contains("unknown dtype \"F33\""));
  CHECK_THAT(refusal(R"({"a":{"dtype":3,"shape":[],"data_offsets":[0,4]}})", 4), Contains("unknown dtype 3"));
  CHECK_THAT(refusal(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],)"
                     R"("data_offsets":[0,1]}})",
                     1),
             Contains("\"a\" appears twice"));
  CHECK_THAT(refusal(R"({"__metadata__":{"a":1}})", 0), Contains("__metadata__"));
  CHECK_THAT(refusal(R"({"__metadata__":[]})", 0), Contains("__metadata__"));

  for (const auto* shape : {"[-2,3]", "[2.5]", "[\"2\"]", "[18446744073709551615]", "[null]"}) {
    CHECK_THAT(refusal(tensor_header("F32", shape, "[0,24]"), 24), Contains("non-negative"));
  }
  CHECK_THAT(refusal(tensor_header("F32", "6", "[0,24]"), 24), Contains("list of sizes"));
  CHECK_THAT(refusal(tensor_header("F32", "[4294967296,4294967296]", "[0,24]"), 24), Contains("overflows"));
  CHECK_THAT(refusal(tensor_header("U8", "[0,9223372036854775807,3]", "[0,0]"), 0), Contains("overflows"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,4]", "[0,24]"), 24), Contains("needs 32 bytes"));
  CHECK_THAT(refusal(tensor_header("BF16", "[2,3]", "[0,24]"), 24), Contains("needs 12 bytes"));

  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[24,0]"), 24), Contains("out of range"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[0,24]"), 23), Contains("out of range"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[9223372036854775784,9223372036854775807]"), 24),
             Contains("out of range"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[-24,0]"), 24), Contains("non-negative"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[0,24,48]"), 24), Contains("two data_offsets"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[0,24]"), 25), Contains("1 bytes follow"));
  CHECK_THAT(refusal(tensor_header("F32", "[2,3]", "[4,28]"), 28), Contains("hole"));
  const std::string two = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],)";
  CHECK_THAT(refusal(two + R"("data_offsets":[3,7]}})", 7), Contains("overlap"));
  CHECK_THAT(refusal(two + R"("data_offsets":[5,9]}})", 9), Contains("hole"));
}

TEST_CASE("safetensors: BOOL data must be 0 or 1", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  write_bytes(directory / "t", safetensors_bytes(tensor_header("BOOL", "[2]", "[0,2]"), "\1\2"));
  CHECK_THAT(message_of<Error>([&] { SafetensorsFile(directory / "t").tensor("a"); }), Contains("BOOL"));
}

TEST_CASE("safetensors: a damaged file is either read within bounds or refused", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  write_safetensors(directory / "t", one_of_each_dtype(), {{"k", "v"}});
  const std::string whole = read_bytes(directory / "t");
  uint64_t header_size;
  std::memcpy(&header_size, whole.data(), 8);
  const std::string digits = "0123456789[]{}\",:-eE. \\";
  std::mt19937_64 random(1);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = whole;
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      const size_t at = random() % std::min<size_t>(8 + header_size, bytes.size());
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = digits[random() % digits.size()];
          break;
        case 2:
          bytes.erase(at, 1 + random() % 3);
          break;
        case 3:
          bytes.resize(1 + random() % bytes.size());
          break;
      }
    }
    write_bytes(directory / "m", bytes);
    try {
      const SafetensorsFile file(directory / "m");
      for (const auto& name : file.names()) file.tensor(name).clone();
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 1500);
}

TEST_CASE("safetensors: bad tensors are not written", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  const at::Tensor a = at::ones({2});
  CHECK_THAT(message_of<Error>([&] { write_safetensors(directory / "t", {{"a", a}, {"a", a}}); }), Contains("twice"));
  CHECK_THAT(message_of<Error>([&] {
               write_safetensors(directory / "t", {{"__metadata__", a}});
             }),
             Contains("reserved"));
  CHECK_THAT(message_of<Error>([&] {
               write_safetensors(directory / "t", {{"a", a.to(at::kComplexFloat)}});
             }),
             Contains("no dtype"));
  CHECK(directory.files() == 0);
}

TEST_CASE("sharded weights: written and opened as one", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  NamedTensors tensors;
  for (int i = 0; i < 7; ++i) tensors.emplace_back("t" + std::to_string(i), at::randn({10 + i}));
  const size_t limit = GENERATE(as<size_t>(), 1, 100, 1 << 20);
  ShardedWriter writer(directory.path(), limit);
  for (const auto& [name, tensor] : tensors) writer.add(name, tensor);
  writer.finish();

  const auto source = open_model_tensors(directory.path());
  CHECK(source->names().size() == tensors.size());
  for (const auto& [name, tensor] : tensors) CHECK(same_bits(source->tensor(name), tensor));
  CHECK(directory.files() == (limit == 1 ? 8u : limit == 100 ? 6u : 1u));
  CHECK_THAT(message_of<Error>([&] { source->info("nobody"); }), Contains("nobody"));
}

TEST_CASE("sharded weights: an abandoned writer leaves nothing", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  {
    ShardedWriter writer(directory.path(), 1);
    for (const auto* name : {"a", "b", "c"}) writer.add(name, at::ones({4}));
    CHECK(directory.files() == 2);
  }
  CHECK(directory.files() == 0);
}

TEST_CASE("sharded weights: an index is not trusted", "[storage][safetensors]") {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "model");
  const std::string model = directory / "model", index = model + "/model.safetensors.index.json";
  write_safetensors(directory / "outside.safetensors", {{"a", at::ones({1})}});
  write_safetensors(model + "/inside.safetensors", {{"a", at::ones({1})}});
  const auto refused = [&](const std::string& name, const std::string& file) {
    write_bytes(index, nlohmann::json{{"weight_map", {{name, file}}}}.dump());
    return message_of<Error>([&] { open_model_tensors(model); });
  };
  CHECK(refused("a", "inside.safetensors").empty());
  CHECK_THAT(refused("a", "../outside.safetensors"), Contains("inside the directory"));
  CHECK_THAT(refused("a", "x/../../outside.safetensors"), Contains("inside the directory"));
  CHECK_THAT(refused("a", directory / "outside.safetensors"), Contains("inside the directory"));
  CHECK_THAT(refused("a", ""), Contains("inside the directory"));
  CHECK_THAT(refused("a", std::string("inside.safetensors\0x", 20)), Contains("inside the directory"));
  CHECK_THAT(refused("a", "missing.safetensors"), Contains("missing.safetensors") && Contains("No such file"));
  CHECK_THAT(refused("b", "inside.safetensors"), Contains("tensor \"b\" is not in inside.safetensors"));
  for (const auto* text : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})", "{"}) {
    write_bytes(index, text);
    CHECK_THAT(message_of<Error>([&] { open_model_tensors(model); }), Contains(index));
  }
  CHECK_THAT(message_of<Error>([&] { open_model_tensors(directory.path()); }), Contains("no weights"));
}

TEST_CASE("atomic files: the old file stays until the new one is whole", "[storage]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "f";
  write_file_atomically(path, "old");
  CHECK_THROWS_AS(write_file_atomically(path,
                                        [](FileWriter& file) {
                                          file.write("half", 4);
                                          throw std::runtime_error("interrupted");
                                        }),
                  std::runtime_error);
  CHECK(read_bytes(path) == "old");

  // A limit on file size stands in for a full disk: write() fails half-way.
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = message_of<Error>([&] { write_safetensors(path, {{"a", at::ones({5000})}}); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  CHECK_THAT(message, Contains("cannot write '" + path));
  CHECK(read_bytes(path) == "old");
  CHECK(directory.files() == 1);

  write_file_atomically(path, "new");
  CHECK(read_bytes(path) == "new");
  CHECK(directory.files() == 1);
  CHECK_THAT(message_of<Error>([&] { write_file_atomically(directory / "no/f", "x"); }),
             Contains("directory does not exist"));
}

TEST_CASE("hash: depends on every byte and not on the pieces", "[storage]") {
  const TemporaryDirectory directory;
  std::string bytes(1000, 'x');
  Hasher pieces;
  for (size_t i = 0; i < bytes.size(); i += 7) pieces.update(std::string_view(bytes).substr(i, 7));
  write_bytes(directory / "f", bytes);
  const std::string whole = file_hash(directory / "f");
  CHECK(whole == pieces.hex());
  CHECK(whole.size() == 32);
  bytes[999] ^= 1;
  write_bytes(directory / "f", bytes);
  CHECK(file_hash(directory / "f") != whole);
  // XXH3_128bits of no input, from the algorithm's specification.
  CHECK(Hasher().hex() == "99aa06d3014798d86001c324468d497f");
}

// Driven by tests/python/test_safetensors.py, which compares both files.
TEST_CASE("safetensors: copies a file of another writer", "[.][interop]") {
  const char* from = std::getenv("UNIATTN_COPY_FROM");
  const char* to = std::getenv("UNIATTN_COPY_TO");
  REQUIRE((from && to));
  const SafetensorsFile file(from);
  NamedTensors tensors;
  for (const auto& name : file.names()) tensors.emplace_back(name, file.tensor(name));
  write_safetensors(to, tensors, file.metadata());
}
