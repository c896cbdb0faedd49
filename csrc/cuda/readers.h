// Head maps turned round: who reads each leader head.
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "cuda/params.h"

namespace uniattn::cuda {

struct ReaderTensors {
  at::Tensor begin, order;  // int64 [heads + 1] and [layers * heads], see Readers

  // head_map: one entry per layer, int64 [heads] or nothing for the identity; the first must be nothing. The host does
  // not wait for the device.
  ReaderTensors(const c10::List<std::optional<at::Tensor>>& head_map, const at::Tensor& q) {
    const auto options = q.options().dtype(at::kLong);
    const at::Tensor identity = at::arange(q.size(1), options);
    std::vector<at::Tensor> maps;
    for (size_t i = 0; i < head_map.size(); ++i) {
      const std::optional<at::Tensor> map = head_map.get(i);
      maps.push_back(map ? map->clamp(0, q.size(1) - 1) : identity);
    }
    const auto [leaders, sorted] = at::cat(maps).sort(/*stable=*/std::optional(true), /*dim=*/0);
    order = sorted;
    begin = at::searchsorted(leaders, at::arange(q.size(1) + 1, options));
  }
  Readers pointers() const { return {begin.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()}; }
};

}  // namespace uniattn::cuda
