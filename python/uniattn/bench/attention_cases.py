"""What `uniattn bench attention` times: both sides of a case on the same random tensors, and the machine's own rates."""

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Callable

import torch
import torch.nn.functional as F
import uniattn
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WARM_UP = 3  # rounds
PAGE = 64  # tokens in a page of a cache
Samples = list[tuple[float, float]]  # (ours, theirs) in milliseconds


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    group: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    device: str

    def columns(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("group", "tokens", "heads", "kv_heads", "head_dim")},
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=self.dtype, device=self.device)


def timed(function: Callable[[], Any], device: str) -> tuple[Any, float, bool]:
    """(result, milliseconds, whether the process had all of its threads on processors of their own)."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, 1e3 * wall, device != "cpu" or cpu > 0.85 * torch.get_num_threads() * wall


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def fastest_backend(call: Callable[[], Any], device: str) -> SDPBackend:
    """The SDPA back-end that runs `call` in the shortest time; back-ends that do not take it are left out."""
    times = {}
    for backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                call()
                times[backend] = min(timed(call, device)[1] for _ in range(3))
        except RuntimeError:  # "No available kernel": SDPA says no in this way only
            continue
    return min(times, key=times.__getitem__)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """q [tokens, heads, head_dim], k and v [keys, kv_heads, head_dim]."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return out.squeeze(0).transpose(0, 1)


class Superblock:
    """A leader and its followers, and as many separate layers."""

    def __init__(self, case: Case, keep_probs: bool):
        def draw(heads: int) -> list[torch.Tensor]:
            return [case.draw(case.tokens, heads, case.head_dim).requires_grad_() for _ in range(case.group)]

        self.case, self.keep_probs = case, keep_probs
        self.q, self.k, self.v = draw(case.heads), draw(case.kv_heads), draw(case.kv_heads)
        self.grads = [torch.randn_like(self.q[0]) for _ in range(case.group)]
        one = lambda: sdpa(self.q[0], self.k[0], self.v[0], causal=True).backward(self.grads[0], inputs=self.q[:1])
        self.backend = fastest_backend(one, case.device)

    def shared(self) -> list[torch.Tensor]:
        followers = len(self.v) - 1
        out, probs = uniattn.attention(
            self.q[0], self.k[0], self.v[0], followers=followers, keep_probs=self.keep_probs
        )
        return [out] + [uniattn.attend(p, v) for p, v in zip(probs, self.v[1:])]

    def separate(self) -> list[torch.Tensor]:
        with sdpa_kernel(self.backend):
            return [sdpa(q, k, v, causal=True) for q, k, v in zip(self.q, self.k, self.v)]

    def backward(self, outs: list[torch.Tensor], q: list[torch.Tensor], k: list[torch.Tensor]) -> None:
        torch.autograd.grad(outs, [*q, *k, *self.v], self.grads)


def measure_training(block: Superblock, rounds: int) -> dict[str, Samples]:
    samples: dict[str, Samples] = {"forward": [], "backward": [], "both": []}
    device = block.case.device
    for i in range(rounds + WARM_UP):
        ours, a, ok_a = timed(block.shared, device)
        theirs, b, ok_b = timed(block.separate, device)
        _, c, ok_c = timed(lambda: block.backward(ours, block.q[:1], block.k[:1]), device)
        _, d, ok_d = timed(lambda: block.backward(theirs, block.q, block.k), device)
        if i < WARM_UP:
            continue
        if ok_a and ok_b:
            samples["forward"].append((a, b))
        if ok_c and ok_d:
            samples["backward"].append((c, d))
        if ok_a and ok_b and ok_c and ok_d:
            samples["both"].append((a + c, b + d))
    return samples


def gflop(case: Case, phase: str, reuse: str | None) -> float:
    """Of the causal half of all products that are done; reuse None: of separate layers."""
    g = case.group
    if reuse is None:
        forward, backward = 2 * g, 5 * g
    else:
        rebuilds = reuse == "rebuilt"
        forward = 2 + (g - 1) * (2 if rebuilds else 1)
        backward = (g - 1) * (2 if rebuilds else 1) + g + 3 + rebuilds
    products = {"forward": forward, "backward": backward, "both": forward + backward}[phase]
    return products * 2e-9 * case.heads * case.head_dim * case.tokens * (case.tokens + 1) / 2


class Decode:
    """One new token after `tokens` cached ones: a leader's step and a follower's, and SDPA over contiguous caches."""

    def __init__(self, case: Case):
        self.case = case
        pages = math.ceil(case.tokens / PAGE)
        cache = lambda: case.draw(pages, case.kv_heads, PAGE, case.head_dim)
        self.q, self.k, self.v, self.v_1 = case.draw(1, case.heads, case.head_dim), cache(), cache(), cache()
        self.table = torch.arange(pages, dtype=torch.int32, device=case.device)[None]
        self.lengths = torch.tensor([case.tokens], dtype=torch.int32, device=case.device)
        self.contiguous = [x.transpose(1, 2).flatten(0, 1)[: case.tokens].transpose(0, 1).contiguous() for x in (self.k, self.v)]
        self.backend = fastest_backend(self.separate, case.device)

    def leader(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.uniattn.decode_attention(
            self.q, self.k, self.v, self.table, self.lengths, self.case.tokens, return_probs=True
        )

    def follower(self, probs: torch.Tensor) -> torch.Tensor:
        return torch.ops.uniattn.decode_attend(probs, self.v_1, self.table, self.lengths)

    def separate(self) -> torch.Tensor:
        k, v = (x.unsqueeze(0) for x in self.contiguous)
        return F.scaled_dot_product_attention(self.q.unsqueeze(2), k, v, enable_gqa=self.case.heads != self.case.kv_heads)

    def gigabytes(self, role: str) -> float:
        """Read from caches: K and V, or V alone."""
        one = self.case.tokens * self.case.kv_heads * self.case.head_dim * self.q.element_size() * 1e-9
        return one if role == "follower" else 2 * one


def measure_decode(decode: Decode, rounds: int, repeats: int = 10) -> dict[str, Samples]:
    """Mean times over some repeats, because a step is short. The follower is measured against SDPA as well."""
    samples: dict[str, Samples] = {"leader": [], "follower": []}
    device = decode.case.device
    for i in range(rounds + WARM_UP):
        results = {}
        for name, step in (
            ("leader", decode.leader),
            ("follower", lambda: decode.follower(results["leader"][0][-1][1])),
            ("sdpa", decode.separate),
        ):
            with sdpa_kernel(decode.backend):
                results[name] = timed(lambda: [step() for _ in range(repeats)], device)
        if i < WARM_UP or not all(ok for _, _, ok in results.values()):
            continue
        for role in samples:
            samples[role].append((results[role][1] / repeats, results["sdpa"][1] / repeats))
    return samples


def best_rate(work: Callable[[], Any], amount: float, device: str) -> float:
    """Of `amount` done by `work`: per second, in the best of many runs."""
    work()
    return amount / min(timed(work, device)[1] for _ in range(50)) * 1e3


@lru_cache
def product_rate(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a large matrix product."""
    size = 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return best_rate(lambda: uniattn.linear(a, b), 2e-9 * size**3, device)


@lru_cache
def reading_rate(size: int, device: str) -> float:
    """GB/s of a sum over so many bytes."""
    x = torch.randn(size // 4, device=device)
    return best_rate(x.sum, x.nbytes * 1e-9, device)
