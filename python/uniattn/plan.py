"""The sharing plan: which layers keep their own softmax attention and which borrow it. Pure data.

Modes and keys are those of docs/configuration.md (plan) and docs/export-format.md; whether a plan fits a model is checked
where the two meet, in :func:`uniattn.convert`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Optional, Sequence, Union

MODES = ("full", "share_probs", "share_kv", "linear", "skip")
LEADING_MODES = ("share_probs", "share_kv")  # that refer to a leader

Compensation = Union[Literal["none", "full"], int]  # a number is the rank


@dataclass(frozen=True)
class LayerPlan:
    """One layer. Defaults are a layer as it is in the base model."""

    mode: str = "full"
    leader: Optional[int] = None  # share_probs, share_kv: a full layer before this one
    compensation: Compensation = "none"  # share_probs, share_kv, linear
    head_map: Optional[tuple[int, ...]] = None  # share_probs: the leader's query head that each query head reads
    num_kv_heads: Optional[int] = None  # full: key/value heads, a divisor of the model's below it
    leader_mask: bool = False  # share_probs, share_kv: the leader's mask although one's own is another

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, not one of {', '.join(MODES)}")
        if (self.leader is None) == (self.mode in LEADING_MODES):
            raise ValueError(f"a layer of mode {self.mode} with leader {self.leader}: share_probs and share_kv have one")
        rank = self.compensation
        if rank not in ("none", "full") and (type(rank) is not int or rank <= 0):
            raise ValueError(f'compensation is {rank!r}; it is "none", "full", or a rank above 0')
        if rank != "none" and self.mode in ("full", "skip"):
            raise ValueError(f"a layer of mode {self.mode} has no compensation, got {rank!r}")

    def section(self) -> dict[str, Any]:
        """The entry in `uniattn.layers` of config.json."""
        entry: dict[str, Any] = {"mode": self.mode}
        if self.leader is not None:
            entry["leader"] = self.leader
        if self.compensation != "none":
            entry["compensation_rank"] = None if self.compensation == "full" else self.compensation
        if self.head_map is not None:
            entry["head_map"] = list(self.head_map)
        if self.num_kv_heads is not None:
            entry["num_kv_heads"] = self.num_kv_heads
        if self.leader_mask:
            entry["mask"] = "leader"
        return entry

    @classmethod
    def from_section(cls, entry: dict[str, Any]) -> "LayerPlan":
        rank = entry.get("compensation_rank", "none")
        return cls(
            mode=entry["mode"],
            leader=entry.get("leader"),
            compensation="full" if rank is None else rank,
            head_map=tuple(entry["head_map"]) if "head_map" in entry else None,
            num_kv_heads=entry.get("num_kv_heads"),
            leader_mask=entry.get("mask") == "leader",
        )


@dataclass(frozen=True)
class SharingPlan:
    layers: tuple[LayerPlan, ...]  # one entry per layer of the model

    @classmethod
    def regular(
        cls,
        num_layers: int,
        group: int,
        begin: int,
        end: int,
        mode: str = "share_probs",
        compensation: Compensation = "full",
        leader_mask: bool = False,
    ) -> "SharingPlan":
        """The short form: layer i of [begin, end) leads when (i - begin) % group == 0 and follows the nearest leader
        otherwise. `end` may exceed the number of layers, and the last superblock may be shorter.
        """
        if group < 1:
            raise ValueError(f"group is {group}; it is the number of layers of a superblock, at least 1")
        if not 0 <= begin < num_layers or end <= begin:
            raise ValueError(f"begin {begin} and end {end} are no range that starts in the layers 0 to {num_layers - 1}")
        layers = [LayerPlan() for _ in range(num_layers)]
        for i in range(begin, min(end, num_layers)):
            place = (i - begin) % group
            if place and mode != "full":
                leader = i - place if mode in LEADING_MODES else None
                layers[i] = LayerPlan(mode, leader, compensation, leader_mask=leader_mask)
        return cls(tuple(layers))

    @classmethod
    def from_layers(cls, num_layers: int, layers: dict[int, LayerPlan]) -> "SharingPlan":
        """The layers that change, by index; the others stay as they are."""
        for i in layers:
            if not 0 <= i < num_layers:
                raise ValueError(f"layer {i} is planned; the model's layers are 0 to {num_layers - 1}")
        return cls(tuple(layers.get(i, LayerPlan()) for i in range(num_layers)))

    @classmethod
    def from_section(cls, section: dict[str, Any]) -> "SharingPlan":
        """From the `uniattn` section of an exported config.json (docs/export-format.md)."""
        return cls(tuple(LayerPlan.from_section(entry) for entry in section["layers"]))

    def section(self, base_model_type: str) -> dict[str, Any]:
        """The `uniattn` section of config.json."""
        layers = [layer.section() for layer in self.layers]
        return {"version": 1, "base_model_type": base_model_type, "layers": layers}

    @classmethod
    def from_yaml(cls, path: Union[str, Path], num_layers: int) -> "SharingPlan":
        """From a file as `uniattn plan` writes it: a list `layers` of the layers that change."""
        import yaml  # comes with transformers

        document = yaml.safe_load(Path(path).read_text())
        if not isinstance(document, dict) or not isinstance(document.get("layers"), list):
            raise ValueError(f"{path}: expected a list `layers`, one entry per layer that changes")
        layers: dict[int, LayerPlan] = {}
        for number, entry in enumerate(document["layers"]):
            try:
                index, plan = _from_yaml_entry(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: layers[{number}]: {error}") from error
            if index in layers:
                raise ValueError(f"{path}: layer {index} is listed twice")
            layers[index] = plan
        return cls.from_layers(num_layers, layers)

    def to_yaml(self) -> str:
        """The text of such a file."""
        lines = [_yaml_entry(i, layer) for i, layer in enumerate(self.layers) if layer != LayerPlan()]
        return "\n".join(["layers:", *lines]) + "\n" if lines else "layers: []\n"

    def followers_of(self, leader: int) -> list[int]:
        return [i for i, layer in enumerate(self.layers) if layer.leader == leader]

    @property
    def shares(self) -> bool:
        """Whether any layer is not as in the base model."""
        return any(layer != LayerPlan() for layer in self.layers)

    def with_layer(self, index: int, **changes: Any) -> "SharingPlan":
        """This plan with some fields of one layer changed."""
        layers = list(self.layers)
        layers[index] = replace(layers[index], **changes)
        return SharingPlan(tuple(layers))


_YAML_KEYS = {"layer", "mode", "leader", "compensation", "head_map", "num_kv_heads", "mask"}


def _from_yaml_entry(entry: dict[str, Any]) -> tuple[int, LayerPlan]:
    unknown = set(entry) - _YAML_KEYS
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}; known are {sorted(_YAML_KEYS)}")
    if type(entry.get("layer")) is not int:
        raise ValueError(f"`layer` is {entry.get('layer')!r}, expected the number of a layer")
    if entry.get("mask", "own") not in ("own", "leader"):
        raise ValueError(f"`mask` is {entry['mask']!r}, expected own or leader")
    compensation = entry.get("compensation", "none")
    leader = entry.get("leader", -1)
    return entry["layer"], LayerPlan(
        mode=entry.get("mode", "full"),
        leader=None if leader == -1 else leader,
        compensation=compensation["rank"] if isinstance(compensation, dict) else compensation,
        head_map=tuple(entry.get("head_map", ())) or None,
        num_kv_heads=entry.get("num_kv_heads", 0) or None,
        leader_mask=entry.get("mask") == "leader",
    )


def _yaml_entry(index: int, layer: LayerPlan) -> str:
    fields = [f"layer: {index}", f"mode: {layer.mode}"]
    if layer.leader is not None:
        fields.append(f"leader: {layer.leader}")
    if layer.compensation != "none":
        rank = layer.compensation
        fields.append("compensation: full" if rank == "full" else f"compensation: {{rank: {rank}}}")
    if layer.head_map is not None:
        fields.append(f"head_map: {list(layer.head_map)}")
    if layer.num_kv_heads is not None:
        fields.append(f"num_kv_heads: {layer.num_kv_heads}")
    if layer.leader_mask:
        fields.append("mask: leader")
    return "  - {" + ", ".join(fields) + "}"
