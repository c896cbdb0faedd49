"""Generation with the engine of the program: caches laid out by the sharing plan, ragged batches without padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uniattn import _library

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Generation:
    """What followed one prompt: new token ids, without the one that ended it, and for a prompt of text their text."""

    ids: list[int]
    text: str | None
    finish_reason: str  # "stop" (an end token or a stop string) or "length"


class Model:
    """A model directory, plain or exported by uniattn, with its weights mapped into memory."""

    def __init__(self, directory, dtype: str | None = None):
        self._engine = _library.engine()
        self._model = self._engine.Model(directory=str(directory), dtype=dtype or "")

    def generate(self, prompts: Prompt | Sequence[Prompt], **options) -> Generation | list[Generation]:
        """Continues one prompt, or a batch of prompts of any lengths as a list, in which case it returns a list.

        A prompt is text, before which BOS is put, or a sequence of token ids, taken as they stand. Options:

            max_new_tokens (64), temperature (0: greedy), top_k (0: all), top_p (1.0), seed (0), stop (strings that end
            an answer and are not part of it), ignore_eos (False), max_batch (32: more prompts wait their turn),
            prefill_chunk (1024: tokens of prompts read in one pass).

        Raises ValueError for arguments that make no sense, RuntimeError for what goes wrong in the model.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        batch = [prompts] if single else list(prompts)
        run = self._start(batch, **options)
        ids, texts = [[] for _ in batch], [[] for _ in batch]
        while not run.done:
            for token in run.step():
                texts[token.index].append(token.text)
                if token.id >= 0:
                    ids[token.index].append(token.id)
        results = [
            Generation(i, "".join(t) if isinstance(prompt, str) else None, reason)
            for prompt, i, t, reason in zip(batch, ids, texts, run.finish_reasons)
        ]
        return results[0] if single else results

    def stream(self, prompt: Prompt, **options) -> Iterator[str] | Iterator[int]:
        """Continues one prompt and yields what comes as it comes: pieces of text, or ids for a prompt of ids.

        Options are those of :meth:`generate`; they are checked at once. Dropping the iterator ends the generation.
        """
        run = self._start([prompt], **options)
        return self._pieces(run) if isinstance(prompt, str) else self._ids(run)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, BOS in front where the model has one."""
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(list(ids))

    @staticmethod
    def _pieces(run) -> Iterator[str]:
        while not run.done:
            yield from (token.text for token in run.step() if token.text)

    @staticmethod
    def _ids(run) -> Iterator[int]:
        while not run.done:
            yield from (token.id for token in run.step() if token.id >= 0)

    def _start(
        self, prompts, *, max_new_tokens=64, temperature=0.0, top_k=0, top_p=1.0, seed=0, stop=(), ignore_eos=False,
        max_batch=32, prefill_chunk=1024,
    ):  # fmt: skip
        sampling = self._engine.SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        options = self._engine.EngineOptions(max_batch=max_batch, prefill_chunk=prefill_chunk)
        prompts = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        stops = [stop] if isinstance(stop, str) else list(stop)
        return self._engine.Run(self._model, prompts, max_new_tokens, sampling, stops, ignore_eos, options)


def load(directory, dtype: str | None = None) -> Model:
    """Opens a model directory for generation; dtype "float32" or "bfloat16", the checkpoint's by default."""
    return Model(directory, dtype)
