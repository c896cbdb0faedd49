file(READ "${INPUT}" hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
file(WRITE "${OUTPUT}" "#include \"support/embedded.h\"\n"
  "namespace {\nconst char bytes[] = {${bytes}};\n}\n"
  "namespace uniattn::embedded {\nconst std::string_view ${NAME}(bytes, sizeof bytes);\n}\n")
