# embed_file(FILE NAME): makes the text of FILE available in C++ as `extern const std::string_view embedded::NAME`
# (trainer/support/embedded.h) and adds the generated source to EMBEDDED_SOURCES.
function(embed_file file name)
  set(output "${CMAKE_BINARY_DIR}/embedded/${name}.cpp")
  add_custom_command(OUTPUT "${output}"
    COMMAND ${CMAKE_COMMAND} -DINPUT=${file} -DOUTPUT=${output} -DNAME=${name} -P ${CMAKE_SOURCE_DIR}/cmake/EmbedFileStep.cmake
    DEPENDS "${file}" "${CMAKE_SOURCE_DIR}/cmake/EmbedFileStep.cmake" VERBATIM)
  set(EMBEDDED_SOURCES ${EMBEDDED_SOURCES} "${output}" PARENT_SCOPE)
endfunction()
