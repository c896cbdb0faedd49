// Objects that threads borrow and give back: as many are made as are in use at once.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace uniattn {

template <class Object>
class Pool {
 public:
  using Loan = std::unique_ptr<Object, std::function<void(Object*)>>;

  // An object of the caller's own until the loan ends, which must be before the pool does.
  Loan borrow() {
    const auto give_back = [this](Object* object) {
      const std::lock_guard lock(mutex_);
      free_.emplace_back(object);
    };
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        Object* object = free_.back().release();
        free_.pop_back();
        return {object, give_back};
      }
    }
    return {new Object, give_back};
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Object>> free_;
};

}  // namespace uniattn
