#include "config/config.h"

#include "config/invalid.h"
#include "config/reader.h"

namespace uniattn {
namespace {

struct KeyCollector {
  std::string prefix;
  std::vector<std::string>& keys;

  template <class T>
  void operator()(const std::string& name, T&) {
    collect<T>(prefix + name);
  }

 private:
  template <Section S>
  void collect(const std::string& key) {
    KeyCollector inner{key + ".", keys};
    S{}.visit(inner);
  }
  template <class T>
  void collect(const std::string& key) {
    if constexpr (requires { requires Section<typename T::value_type>; }) {
      constexpr bool is_list = requires(T list) {
        list.size();
      };
      collect<typename T::value_type>(is_list ? key + "[]" : key);
    } else {
      keys.push_back(key);
    }
  }
};

}  // namespace

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  const YamlDocument document(path, overrides);
  const Config config = read_document<Config>(document);
  try {
    config.validate();
  } catch (const InvalidKey& error) {
    document.fail_at(error.key, error.reason);
  }
  return config;
}

std::vector<std::string> config_keys() {
  std::vector<std::string> keys;
  KeyCollector collector{"", keys};
  Config{}.visit(collector);
  return keys;
}

}  // namespace uniattn
