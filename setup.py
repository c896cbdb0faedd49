"""Builds the operator library and the program with CMake and puts both inside the package (uniattn/lib, uniattn/bin).

The system libraries that ./scripts/build installs must be there. `pip install .` downloads torch for an isolated build;
`.venv/bin/pip install --no-build-isolation .` builds with the environment that the scripts made.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        # pip's CMake and Ninja: the build environment need not be on PATH, and Debian's CMake is too old.
        import cmake
        import ninja

        program = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
        source, build = Path(__file__).resolve().parent, Path(self.build_temp).resolve()
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": str(Path(ninja.BIN_DIR) / "ninja"),
            "Python3_EXECUTABLE": sys.executable,
            "UNIATTN_TESTS": "OFF",
        }
        defines = [f"-D{key}={value}" for key, value in settings.items()]
        subprocess.run([program, "-S", source, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run([program, "--build", build], check=True)
        subprocess.run([program, "--install", build, "--prefix", Path(self.build_lib).resolve()], check=True)


setup(ext_modules=[Extension("uniattn.lib", sources=[])], cmdclass={"build_ext": CMakeBuild})
