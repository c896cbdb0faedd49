// One rank that works through several configurations, for tests/python/test_shard.py: starting the program for each
// would take longer than the training. train_ranks CONFIG[@STEPS] ...: as `uniattn train CONFIG --stop-after STEPS`,
// also where the program refuses to imitate a GPU (parallel.offload). Prints, for each, the most bytes that this rank's
// tensors took. TRAIN_RANKS_TIMELINE=FILE: rank 0 writes there what it computed, sent and waited for.
#include <iostream>

#include "commands/pipeline.h"
#include "counting_allocator.h"
#include "support/error.h"
#include "support/log.h"
#include "timeline.h"

namespace {

using namespace uniattn;
using testing::Timeline;

void train_one(const std::string& argument, ProcessGroup& group) {
  const size_t at = argument.find('@');
  const int64_t stop_after = at == std::string::npos ? 0 : std::stoll(argument.substr(at + 1));
  const Session session = open_session(argument.substr(0, at), {});
  const RunDirectory run = create_run_directory(session.config, /*accept_changes=*/false);
  const PreparedData data = prepare_data(session, run);
  train_run(session, run, data, group, {.stop_after = stop_after});
}

}  // namespace

int main(int argc, char** argv) {
  try {
    CountingAllocator& memory = CountingAllocator::install();
    log::only_warnings();
    ProcessGroup group{std::chrono::seconds(120)};
    const char* timeline = std::getenv("TRAIN_RANKS_TIMELINE");
    if (timeline && group.rank() == 0) Timeline::record(timeline);
    for (int i = 1; i < argc; ++i) {
      memory.reset_peak();
      const size_t before = memory.bytes();
      train_one(argv[i], group);
      std::cout << memory.peak() - before << std::endl;
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << last_words(error) << "\n";
    return 1;
  }
}
