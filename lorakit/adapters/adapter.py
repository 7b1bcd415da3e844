"""`lorakit.Adapter`: read, inspect, convert and export an adapter file of any origin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from lorakit.adapters.formats import (
    ExportedFile,
    LoadedAdapter,
    export_loaded_adapter,
    read_adapter_file,
    save_adapter,
)
from lorakit.adapters.sources import find_adapter, is_run, split_step
from lorakit.adapters.tools.inspect import inspect_adapter

PathLike = str | os.PathLike[str]
Format = Literal["diffusers", "kohya", "native"]
Consumer = Literal["comfyui", "a1111", "diffusers", "all"]
NumberType = Literal["fp16", "bf16", "fp32"]


class Adapter(LoadedAdapter):
    """An adapter in memory: LoRA, DoRA, LoHa, LoKr or OFT, from any trainer.

        adapter = lorakit.Adapter.load("theirs.safetensors")
        adapter.family, adapter.method, adapter.rank  # "sdxl", "lora", 16
        adapter.save("ours.safetensors", format="kohya")
        adapter.export("comfyui", "exports")

    `deltas` holds the delta weight of each module by `<component>.<module>` in diffusers' names, whatever
    names the file has. `metadata` is the whole metadata of the file, `lorakit_metadata` the part that lorakit
    wrote.
    """

    @classmethod
    def load(cls, path: PathLike, family: str | None = None) -> Adapter:
        """Read an adapter file, or the folder of a run or of peft; no code in it is executed.

        A run is its selected checkpoint, without an evaluation the last one: a line on stderr says which.
        RUN@STEP is the checkpoint of a step, RUN@last the last one.
        `family` names the model family, such as "sdxl", if the file does not: otherwise it is detected.
        Raises ConfigError if there is no adapter, DataError if the file is damaged or has unknown keys, and
        NumericError if it contains NaN or infinity.
        """
        source = Path(path)
        if is_run(split_step(source)[0]):
            source = find_adapter(source).print_line().path
        return cls(**vars(read_adapter_file(source, family, allow_embedding_only=True)))

    def save(
        self, path: PathLike, format: Format = "diffusers", base: PathLike | None = None
    ) -> ExportedFile:
        """Write the adapter as one .safetensors file, verified by reading it back.

        `format` is the layout: "diffusers" (dotted keys, read by diffusers, peft and ComfyUI), "kohya"
        (`lora_unet_` keys with alphas) or "native" (names of the published network). `base`, the base model's
        folder, is needed for DoRA and OFT. A method that the layout cannot store becomes the nearest LoRA;
        the result has the error. The vectors of a new token get a file of their own beside it, which is named
        after the token; the result has its path.
        Raises ConfigError for an unknown format, an uncertain family, a missing base model, and a file that
        lorakit did not write.
        """
        return save_adapter(self, Path(path), format, base=Path(base) if base is not None else None)

    def export(
        self,
        consumer: Consumer = "all",
        out: PathLike = "exports",
        *,
        base: PathLike | None = None,
        max_rank: int | None = None,
        allow_untrained: bool = False,
        include_names: bool = False,
        dtype: NumberType = "fp16",
        allow_loss: bool = False,
    ) -> list[ExportedFile]:
        """Write the files that a program reads: "comfyui", "a1111", "diffusers", or "all" that can read it.

        `out` is a folder, or the .safetensors file to write. `base`, the base model's folder, adds a check of
        modules and shapes, and is needed for OFT and for DoRA in ComfyUI and A1111. A method that the program
        does not support becomes the nearest LoRA of at most `max_rank`. `allow_untrained` accepts an adapter
        without effect; `include_names` writes the names of the file and of the base model into the metadata.
        `dtype` is the number type of the file; `allow_loss` accepts a nearest LoRA that loses more than 10 %.
        Raises ConfigError if the program cannot read the adapter, NumericError if it has no effect.
        """
        return export_loaded_adapter(
            self,
            consumer,
            Path(out),
            base=Path(base) if base is not None else None,
            max_rank=max_rank,
            allow_untrained=allow_untrained,
            include_names=include_names,
            dtype=dtype,
            allow_loss=allow_loss,
        )

    def inspect(self) -> dict[str, Any]:
        """Return a description as plain values: families, modules, ranks, norms, consumers, metadata.

        The keys are those of `lorakit inspect --json`.
        """
        return inspect_adapter(self)

    def __repr__(self) -> str:
        return (
            f"Adapter({str(self.path)!r}, family={self.family!r}, method={self.method!r}, rank={self.rank})"
        )
