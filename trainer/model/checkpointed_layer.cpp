#include "model/checkpointed_layer.h"

#include <ATen/ops/empty.h>

#include <tuple>
#include <utility>

#include "model/recompute.h"

namespace uniattn {
namespace {

using Tensors = std::vector<at::Tensor>;

// Takes tensors from a list in the order in which they were put there.
class Reader {
 public:
  explicit Reader(const Tensors& tensors) : tensors_(tensors) {}
  at::Tensor next() { return tensors_[at_++]; }

 private:
  const Tensors& tensors_;
  size_t at_ = 0;
};

// The tensors that an attention pattern, and keys and values, are made of, as a flat list.
void put(Tensors& tensors, const LeaderState& state) {
  if (!state.probs.empty()) {
    const Probs& any = state.probs.front();
    tensors.insert(tensors.end(), {any.q, any.k, any.lse});
    for (const Probs& p : state.probs)
      tensors.insert(tensors.end(), {p.grad_handle_out, p.grad_handle_value, p.grad_handle_delta});
  }
  // Aliases: a function's outputs are distinct tensors, and these keys may be those of the pattern.
  if (state.k.defined()) tensors.insert(tensors.end(), {state.k.alias(), state.v.alias()});
}

// What put() wrote of layer `leader`: handles for `probs` followers, and keys and values if there are any.
LeaderState take(Reader& from, int64_t probs, bool keys_and_values, const ModelConfig& config, int64_t leader,
                 const at::Tensor& cu_seqlens) {
  LeaderState state;
  if (probs > 0) {
    const at::Tensor q = from.next(), k = from.next(), lse = from.next();
    const at::Tensor tiles = at::empty({q.size(1), 0}, q.options());  // P is never kept: it is made again too
    for (int64_t i = 0; i < probs; ++i) {
      const at::Tensor out = from.next(), value = from.next(), delta = from.next();
      state.probs.push_back({q, k, lse, tiles, cu_seqlens, out, value, delta, attention_options(config, leader)});
    }
  }
  if (keys_and_values) state.k = from.next(), state.v = from.next();
  return state;
}

// What layer `index` borrows, taken out of `leaders` as attention_heads() would.
LeaderState borrow(const SharingPlan& plan, int64_t index, Leaders& leaders) {
  const LayerPlan& layer = plan.layers[index];
  if (layer.leader < 0) return {};
  LeaderState& state = leaders.at(layer.leader);
  LeaderState borrowed;
  if (layer.mode == Mode::share_probs) {
    borrowed.probs = {std::move(state.probs.back())};
    state.probs.pop_back();
  } else {
    borrowed.k = state.k, borrowed.v = state.v;
  }
  if (plan.last_follower_of(layer.leader) == index) leaders.erase(layer.leader);
  return borrowed;
}

}  // namespace

LayerStreams advance_checkpointed(const ModelConfig& config, const SharingPlan& plan, int64_t index, const Layer& layer,
                                  const at::Tensor& stream, const Sequences& sequences, Leaders& leaders) {
  const std::vector<LayerSlot> slots = layer_slots(config, plan.layers[index], index);
  Tensors inputs{stream};
  for (const LayerSlot& slot : slots) inputs.push_back(layer.*slot.member);
  put(inputs, borrow(plan, index, leaders));

  const Tensors outputs = recompute(
      [&config, &plan, index, slots, sequences](const Tensors& given) {
        Reader from(given);
        const at::Tensor before = from.next();
        Layer own;
        for (const LayerSlot& slot : slots) own.*slot.member = from.next();
        Leaders lent;
        if (const auto& [mode, leader] = std::tie(plan.layers[index].mode, plan.layers[index].leader); leader >= 0)
          lent[leader] =
              take(from, mode == Mode::share_probs, mode == Mode::share_kv, config, leader, sequences.cu_seqlens);
        const at::Tensor after_attention = add_attention(config, plan, index, own, before, sequences, lent);
        Tensors results{after_attention, add_mlp(config, own, after_attention)};
        if (plan.leads(index)) put(results, lent.at(index));
        return results;
      },
      inputs);

  Reader from(outputs);
  const LayerStreams streams{from.next(), from.next()};
  if (plan.leads(index))
    leaders[index] = take(from, count_followers(plan, index, Mode::share_probs),
                          count_followers(plan, index, Mode::share_kv) > 0, config, index, sequences.cu_seqlens);
  return streams;
}

}  // namespace uniattn
