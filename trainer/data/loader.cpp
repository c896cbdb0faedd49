#include "data/loader.h"

#include <cmath>

#include "data/packing.h"
#include "data/random.h"
#include "support/error.h"

namespace uniattn {

struct Loader::Epoch {
  int64_t number;
  std::vector<int64_t> documents;
  Packing packing;             // of numbers into `documents`
  std::vector<int64_t> order;  // of the packing's rows
};

Loader::Loader(TokenShards shards, Options options) : shards_(std::move(shards)), options_(options) {
  for (int64_t i = 0; i < shards_.size(); ++i) {
    const auto source = static_cast<size_t>(shards_.source(i));
    if (source >= by_source_.size()) by_source_.resize(source + 1);
    by_source_[source].push_back(i);
  }
  for (size_t s = 0; s < by_source_.size(); ++s)
    Random({options_.seed, static_cast<int64_t>(s)}).shuffle(by_source_[s]);
  first_ = latest_ = lay_out(0);
  if (first_->order.empty()) fail("no documents to load: every data source has weight 0 or is empty");
}

std::vector<int64_t> Loader::documents_of(int64_t epoch) const {
  std::vector<int64_t> chosen;
  for (const std::vector<int64_t>& documents : by_source_) {
    if (documents.empty()) continue;
    const double weight = shards_.weight(documents[0]);
    const auto copies = static_cast<int64_t>(weight);
    for (int64_t copy = 0; copy < copies; ++copy) chosen.insert(chosen.end(), documents.begin(), documents.end());
    const auto size = static_cast<int64_t>(documents.size());
    const int64_t extra = std::llround((weight - static_cast<double>(copies)) * static_cast<double>(size));
    for (int64_t k = 0; k < extra; ++k) chosen.push_back(documents[static_cast<size_t>((epoch * extra + k) % size)]);
  }
  return chosen;
}

std::shared_ptr<const Loader::Epoch> Loader::lay_out(int64_t number) const {
  auto epoch = std::make_shared<Epoch>();
  epoch->number = number;
  epoch->documents = documents_of(number);
  if (options_.pack) {
    std::vector<int64_t> lengths;
    for (const int64_t i : epoch->documents) lengths.push_back(static_cast<int64_t>(shards_.document(i).tokens.size()));
    epoch->packing = pack_best_fit(lengths, options_.max_length);
  } else {
    epoch->packing = one_per_row(static_cast<int64_t>(epoch->documents.size()));
  }
  epoch->order = one_per_row(epoch->packing.rows()).items;
  Random({options_.seed, number, 1}).shuffle(epoch->order);
  const size_t rows = first_ ? first_->order.size() : epoch->order.size();
  for (size_t r = 0; epoch->order.size() < rows; ++r) epoch->order.push_back(epoch->order[r]);
  epoch->order.resize(rows);
  return epoch;
}

int64_t Loader::steps_per_epoch() const {
  const auto rows = static_cast<int64_t>(first_->order.size());
  return (rows + options_.rows_per_step - 1) / options_.rows_per_step;
}

double Loader::packing_efficiency() const {
  size_t tokens = 0;
  for (const int64_t i : first_->documents) tokens += shards_.document(i).tokens.size();
  return static_cast<double>(tokens) / static_cast<double>(first_->packing.rows() * options_.max_length);
}

std::vector<std::vector<Document>> Loader::rows(int64_t step) const {
  const int64_t epoch = step / steps_per_epoch();
  if (latest_->number != epoch) latest_ = lay_out(epoch);
  const auto begin = static_cast<size_t>(step % steps_per_epoch() * options_.rows_per_step);
  const size_t end = std::min(begin + static_cast<size_t>(options_.rows_per_step), latest_->order.size());
  std::vector<std::vector<Document>> rows(end - begin);
  for (size_t r = begin; r < end; ++r) {
    for (const int64_t item : latest_->packing.row(latest_->order[r])) {
      rows[r - begin].push_back(shards_.document(latest_->documents[static_cast<size_t>(item)]));
    }
  }
  return rows;
}

}  // namespace uniattn
