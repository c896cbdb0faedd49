// One rank of a ProcessGroup, for tests/python/test_parallel.py: parallel_probe SCENARIO TIMEOUT_SECONDS.
// Prints one line of JSON with what this rank saw; ends like the program does, with code 1 and the message on stderr
// after an Error.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "parallel/process_group.h"
#include "support/error.h"

namespace {

using uniattn::ProcessGroup;

// rank r holds (r + 1) * (i + 1) / 7, so that float sums depend on their order.
at::Tensor sample(const ProcessGroup& group, int64_t elements, at::ScalarType dtype) {
  const at::Tensor exact = at::arange(1, elements + 1, at::kDouble) * static_cast<double>(group.rank() + 1) / 7;
  return exact.to(dtype);
}

std::vector<double> numbers(const at::Tensor& tensor) {
  const at::Tensor exact = tensor.to(at::kDouble).contiguous();
  return {exact.data_ptr<double>(), exact.data_ptr<double>() + exact.numel()};
}

size_t digest(const at::Tensor& tensor) {
  const auto* bytes = static_cast<const char*>(tensor.data_ptr());
  return std::hash<std::string_view>{}({bytes, tensor.nbytes()});
}

nlohmann::json sums(ProcessGroup& group) {
  nlohmann::json seen;
  for (auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong}) {
    at::Tensor tensor = sample(group, 20, dtype);
    group.all_reduce_sum(tensor);
    seen[c10::toString(dtype)] = numbers(tensor);
  }
  at::Tensor transposed = sample(group, 6, at::kFloat).view({2, 3}).t();
  group.all_reduce_sum(transposed);
  seen["transposed"] = numbers(transposed);

  for (int repeat = 0; repeat < 3; ++repeat) {
    at::Tensor large = sample(group, 300007, at::kFloat);
    group.all_reduce_sum(large);
    seen["digests"].push_back(digest(large));
  }
  at::Tensor sent = sample(group, 3, at::kFloat);
  group.broadcast(sent, group.world_size() - 1);
  seen["broadcast"] = numbers(sent);
  seen["sum"] = group.sum(group.rank() + 1);
  seen["double_sum"] = group.sum(0.5);
  seen["any"] = {group.any(false), group.any(group.rank() == group.world_size() - 1)};
  group.barrier();
  group.require_equal("configuration", "the same");
  group.require_equal("nothing", "");
  return seen;
}

// Until another rank is gone.
void sum_forever(ProcessGroup& group) {
  for (;;) {
    group.sum(int64_t{1});
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void run(const std::string& scenario, int64_t timeout) {
  ProcessGroup group{std::chrono::seconds(timeout)};
  nlohmann::json seen = {
      {"rank", group.rank()}, {"world_size", group.world_size()}, {"local_rank", group.local_rank()}};
  if (scenario == "sums") seen.update(sums(group));
  if (scenario == "differ") group.require_equal("configuration", group.rank() == 1 ? "mine" : "ours");
  if (scenario == "sockets") {
    // What torch opens at start is not the question: a group of one adds nothing to it.
    seen["open"] = nlohmann::json::array();
    for (int fd = 3; fd < 64; ++fd) {
      char target[256] = {};
      if (readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), target, sizeof target - 1) > 0)
        seen["open"].push_back(target);
    }
  }
  if (scenario == "stuck" && group.rank() == 1) std::this_thread::sleep_for(std::chrono::hours(1));
  if (scenario == "throw") {
    group.barrier();
    if (group.rank() == 1) uniattn::fail("out of patience");
  }
  if (scenario == "stuck" || scenario == "throw") sum_forever(group);
  std::cout << seen.dump() + "\n" << std::flush;
  if (scenario == "forever") sum_forever(group);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    run(argv[1], std::stoll(argv[2]));
    return 0;
  } catch (const uniattn::UsageError& error) {
    std::cerr << "error: " << uniattn::last_words(error) << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << uniattn::last_words(error) << "\n";
    return 1;
  }
}
