// The order in which a rank computes, sends and waits, by PyTorch's own marks.
#pragma once
#include <ATen/record_function.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>

namespace uniattn::testing {

class Timeline {
 public:
  // From now on writes a line to `path` when the calling thread begins an operator, starts a collective of training
  // ("start NAME") or waits for one ("wait for NAME").
  static void record(const std::string& path) {
    file().open(path);
    at::addThreadLocalCallback(
        at::RecordFunctionCallback(&begin).scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
  }

 private:
  static std::ofstream& file() {
    static std::ofstream instance;
    return instance;
  }
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    static const std::thread::id trainer = std::this_thread::get_id();
    if (std::this_thread::get_id() == trainer) file() << function.name() << "\n";  // others inherit the callback
    return nullptr;
  }
};

}  // namespace uniattn::testing
