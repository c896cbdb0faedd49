# What every script needs first: system packages, the Python environment, the build. Sourced from the repository root; running it again costs a second.
# Everything is looked up before it is installed, so a machine that is ready needs neither root nor a network.

# Libraries and tools that pip does not bring. CMake and Ninja come from pip, LibTorch from the torch wheel.
apt_packages=(build-essential git python3-dev libsentencepiece-dev libyaml-cpp-dev libcli11-dev nlohmann-json3-dev
  libpcre2-dev libspdlog-dev libfmt-dev libgloo-dev libxxhash-dev libcpp-httplib-dev catch2 mold ccache)

# Threads that wait for each other sleep instead of spinning: on a machine that others use too, spinning costs more than all the work.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }

# step NAME COMMAND...: runs the command and says how long it took.
step() {
  local name=$1 begin=$SECONDS
  shift
  say "$name"
  "$@"
  say "$name: done in $((SECONDS - begin)) s"
}

# The pinned packages need Python 3.11; Ubuntu 22.04 has it beside its own 3.10.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

# install_system_packages PACKAGE...
install_system_packages() {
  if ! command -v apt-get >/dev/null; then
    echo "This machine has no apt: where the build stops, install what these Debian packages hold: $*" >&2
    return
  fi
  local package missing=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    echo "all there: $*"
    return
  fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Missing system packages. Ask an administrator to run: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_python_packages FILE: a stamp per file holds a hash of all pins, and nothing is done until they change.
install_python_packages() {
  local file=$1 hash
  hash=$(cat requirements.txt requirements-dev.txt | sha256sum)
  if [ "$(cat ".venv/$file.sha256" 2>/dev/null)" = "$hash" ]; then
    echo ".venv is as $file asks"
    return
  fi
  local python
  python=$(find_python)
  if [ -z "$python" ]; then
    echo "No Python 3.11 or newer was found (python3 is $(python3 --version 2>&1)): install one, then run this again" >&2
    exit 1
  fi
  [ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
  # Byte code is left to the first import of each module: compiling all of torch takes longer than installing it.
  .venv/bin/pip install --quiet --disable-pip-version-check --no-compile -r "$file"
  echo "$hash" >".venv/$file.sha256"
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  .venv/bin/cmake --preset "$preset"
  .venv/bin/cmake --build "build/$preset" --target "${@:-all}"
}

# Downloads of apt and pip go side by side, as soon as Python can make an environment.
install_packages() {
  local requirements=$1
  install_system_packages python3-venv
  [ -n "$(find_python)" ] || install_system_packages python3.11 python3.11-venv python3.11-dev
  install_system_packages "${apt_packages[@]}" &
  local system=$!
  install_python_packages "$requirements"
  wait "$system"
}

# set_up REQUIREMENTS: requirements.txt, or with what the tests use requirements-dev.txt
set_up() {
  step "System packages and Python environment" install_packages "$1"
  export PATH="$PWD/.venv/bin:$PATH"  # CMake looks for Ninja there
}
