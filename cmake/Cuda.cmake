# CUDA kernels of the operator library, csrc/cuda, when nvcc is found.
if(UNIATTN_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real")
    enable_language(CUDA)
    set_target_properties(uniattn_ops PROPERTIES
      CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}" CUDA_STANDARD 20 CUDA_RUNTIME_LIBRARY Shared)
    file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cpp)
    target_sources(uniattn_ops PRIVATE ${cuda_sources})
    # PyTorch's CUDA headers include those of the toolkit.
    target_include_directories(uniattn_ops SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    target_link_libraries(uniattn_ops PUBLIC "${TORCH_DIR}/lib/libtorch_cuda.so" "${TORCH_DIR}/lib/libc10_cuda.so")
    # Machines without the toolkit have the runtime that came with PyTorch.
    set_property(TARGET uniattn_ops APPEND PROPERTY BUILD_RPATH "${TORCH_DIR}/lib;${TORCH_DIR}/../nvidia/cu13/lib")
    message(STATUS "CUDA kernels: built with ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")
  else()
    message(STATUS "CUDA kernels: left out, no nvcc was found")
  endif()
endif()
