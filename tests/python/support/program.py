"""Calls of the `uniattn` program."""

import json
import os
import subprocess


class Program:
    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *arguments, timeout=300):
        """The parsed result of a command run with --json."""
        done = self.run(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, f"uniattn {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    def run(self, *arguments, timeout=300, prefix=()):
        """The finished process, whatever its exit code; prefix: a launcher such as torchrun and its options."""
        command = [*map(str, prefix), str(self.binary), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)

    def fails(self, code, *arguments, naming=()):
        """Asserts that the command ends with `code` and that its message names every string in `naming`."""
        done = self.run(*arguments)
        where = f"uniattn {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, f"expected exit {code}; {where}"
        for text in naming:
            assert str(text) in done.stderr, f"expected the message to name {text!r}; {where}"
        return done
