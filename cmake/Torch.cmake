# LibTorch from the installed `torch` wheel, as one imported target: torch_imported.
#
# Not find_package(Torch): on a machine without the CUDA toolkit it stops because the wheel was built with CUDA, and with
# the toolkit it overrides CMAKE_CUDA_ARCHITECTURES.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python3_EXECUTABLE}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE torch_found ERROR_QUIET)
if(NOT torch_found EQUAL 0)
  message(FATAL_ERROR "PyTorch is not installed for ${Python3_EXECUTABLE}: run ./scripts/build, which sets up .venv, "
                      "or pass -DPython3_EXECUTABLE=... of an environment that has it")
endif()

add_library(torch_imported INTERFACE)
target_include_directories(torch_imported SYSTEM INTERFACE
  "${TORCH_DIR}/include" "${TORCH_DIR}/include/torch/csrc/api/include")
# libtorch exports a private copy of std::filesystem in which remove_all crashes: libstdc++ must be found first.
target_link_libraries(torch_imported INTERFACE -lstdc++
  "${TORCH_DIR}/lib/libtorch.so" "${TORCH_DIR}/lib/libtorch_cpu.so" "${TORCH_DIR}/lib/libc10.so")
# fmt is the header-only copy that PyTorch ships; at::parallel_for is serial in files compiled without -fopenmp.
target_compile_definitions(torch_imported INTERFACE FMT_HEADER_ONLY)
target_compile_options(torch_imported INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
# PyTorch's own libgomp: a second OpenMP run time would start a second pool of threads.
target_link_libraries(torch_imported INTERFACE "${TORCH_DIR}/lib/libgomp.so.1")
list(APPEND CMAKE_BUILD_RPATH "${TORCH_DIR}/lib")
