// A call of a registered operator, looked up once per call site.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

namespace uniattn {

// op<Signature>("uniattn::name") is the typed handle of the operator; keep it in a function-local static.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace uniattn
