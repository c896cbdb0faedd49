"""The transformers side of `uniattn bench train`: reads a number of steps per line, does them, and writes one JSON line."""

import json
import os
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from uniattn.bench.process import high_water


def read_rows(file: Path) -> torch.Tensor:
    """[rows, length]"""
    return torch.tensor([[int(i) for i in line.split()] for line in file.read_text().splitlines()])


class Trainer:
    """Float32 weights and AdamW, as ours; bfloat16 is autocast's, which keeps them in float32."""

    def __init__(self, settings: dict):
        self.model = LlamaForCausalLM.from_pretrained(settings["model"], dtype=torch.float32, attn_implementation="sdpa")
        self.model.train()
        self.forward = torch.compile(self.model) if settings["compiled"] else self.model
        self.autocast = settings["dtype"] == "bfloat16"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
        self.rows, self.batch, self.next = read_rows(Path(settings["documents"])), settings["rows"], 0

    def step(self) -> float:
        """Seconds that one step took."""
        start = time.perf_counter()
        rows = self.rows[[(self.next + i) % len(self.rows) for i in range(self.batch)]]
        self.next += self.batch
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.forward(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - start


def main() -> None:
    trainer = Trainer(json.loads(sys.argv[1]))
    for line in sys.stdin:
        seconds = [trainer.step() for _ in range(int(line))]
        print(json.dumps({"seconds": seconds, "peak_bytes": high_water(os.getpid())}), flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew: loading and compiling do not count


if __name__ == "__main__":
    main()
