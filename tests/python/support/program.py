"""Calls of the `uniattn` program."""

import json
import os
import resource
import subprocess


class Program:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in the same order in every run

    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *arguments, timeout=300):
        """The parsed result of a command run with --json."""
        done = self.run(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, f"uniattn {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    def run(self, *arguments, timeout=300, prefix=(), largest_file=None):
        """The finished process, whatever its exit code.

        prefix: a launcher and its options, as torchrun; largest_file: bytes after which writes fail, as on a full disk.
        """
        command = [*map(str, prefix), str(self.binary), *map(str, arguments)]
        limits = {}
        if (
            largest_file is not None
        ):  # Python ignores SIGXFSZ and the child keeps that, so that a write returns an error
            limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            limits = {"preexec_fn": limit, "restore_signals": False}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=self.environment, **limits)

    def start(self, *arguments):
        """A running process with --json, to be signalled and waited for."""
        command = [str(self.binary), *map(str, arguments), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment)

    def fails(self, code, *arguments, naming=()):
        """Asserts that the command ends with `code` and that its message names every string in `naming`."""
        done = self.run(*arguments)
        where = f"uniattn {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, f"expected exit {code}; {where}"
        for text in naming:
            assert str(text) in done.stderr, f"expected the message to name {text!r}; {where}"
        return done
