// The order in which a rank computes, sends and waits, by PyTorch's own marks.
#pragma once
#include <ATen/record_function.h>

#include <fstream>
#include <memory>
#include <string>

namespace uniattn::testing {

class Timeline {
 public:
  // From now on writes a line to `path` when an operator, a collective ("gloo:NAME") or the wait for one ("wait for
  // NAME") begins. Of the thread that trains: the others only finish what this one began.
  static void record(const std::string& path) {
    file().open(path);
    at::addThreadLocalCallback(at::RecordFunctionCallback(&begin).scopes(
        {at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
  }

 private:
  static std::ofstream& file() {
    static std::ofstream instance;
    return instance;
  }
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    file() << function.name() << "\n";
    return nullptr;
  }
};

}  // namespace uniattn::testing
