// SIGINT and SIGTERM ask for an orderly end: the loop finishes its step, saves and stops. A second one ends at once.
#pragma once

namespace uniattn {

void watch_signals();
bool stop_requested();

}  // namespace uniattn
