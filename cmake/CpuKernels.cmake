# The CPU kernels, csrc/cpu/simd/*.cc, compiled once per instruction set in a namespace of that name; csrc/cpu/kernels.cpp
# chooses among them at run time.
file(GLOB simd_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cpu/simd/*.cc)

function(add_cpu_kernels isa)
  add_library(uniattn_cpu_${isa} OBJECT ${simd_sources})
  target_include_directories(uniattn_cpu_${isa} PRIVATE ${CMAKE_SOURCE_DIR}/csrc)
  target_compile_definitions(uniattn_cpu_${isa} PRIVATE UNIATTN_ISA=${isa})
  # -std=c++20 would forbid fused multiply-add; vectors stay inside one instruction set, so their ABI does not matter.
  target_compile_options(uniattn_cpu_${isa} PRIVATE -O3 -ffp-contract=fast -fno-math-errno -Wno-psabi ${ARGN})
  target_link_libraries(uniattn_cpu_${isa} PRIVATE uniattn_warnings)
  target_sources(uniattn_ops PRIVATE $<TARGET_OBJECTS:uniattn_cpu_${isa}>)
endfunction()

add_cpu_kernels(plain)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  add_cpu_kernels(avx2 -mavx2 -mfma)
  set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512)
  add_cpu_kernels(avx512 ${avx512_flags})
  add_cpu_kernels(avx512_bf16 ${avx512_flags} -mavx512bf16)
endif()
