"""LongCat-Image, also for edits: Flux.1's transformer conditioned on Qwen2.5-VL, with quoted words letter by
letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.models.families import prompt_override
from lorakit.models.families.conditioned import ConditionedFamily, source_images, to_pil_images
from lorakit.models.families.family import Conditioning, ConditioningTensors, Family
from lorakit.models.families.packing import pack_latents, position_ids, small_vector, unpack_latents
from lorakit.models.families.qwen_image_edit import fixed_source_size
from lorakit.models.families.specs import CallSpec, ComponentSpec, ConditioningSpec, LatentSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image


class LongCatImage(Family):
    """Meituan 2025, https://arxiv.org/abs/2512.07584."""

    name = "longcat-image"
    title = "LongCat-Image"
    pipelines = ("LongCatImagePipeline",)
    rank16_parameters = "13.8 M"
    license = "Apache-2.0"
    call = CallSpec(extra_arguments={"enable_prompt_rewrite": False})
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        return {"prompt_embeds": pipe.encode_prompt(captions)[0]}  # (1, 512, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy_latents.shape[2:]
        images = [noisy_latents, *self._sources(cond)]
        grid, count = (height // 2, width // 2), cond["prompt_embeds"].shape[1]
        positions = position_ids(
            1, *grid, device=noisy_latents.device
        )  # whole numbers: half precision rounds
        prediction = denoiser(
            hidden_states=torch.cat([pack_latents(each) for each in images], dim=1),
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=_text_positions(count, noisy_latents.device),
            # images start after the text
            img_ids=torch.cat(
                [
                    positions + small_vector([number, count, count], positions)
                    for number in range(1, len(images) + 1)
                ]
            ),
            return_dict=False,
        )[0]
        return unpack_latents(prediction[:, : len(positions)], height, width)

    def _sources(self, cond: Conditioning) -> list[torch.Tensor]:
        """Return the latents (B, C, H, W) of edited images."""
        return []

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        # the pipeline accepts `prompt_embeds`, but then counts prompts that are None
        import torch

        def encode_rows(rows: list[Conditioning], _: Any) -> tuple[torch.Tensor, torch.Tensor]:
            embeds = torch.stack([row["prompt_embeds"] for row in rows])
            return embeds, _text_positions(embeds.shape[1], embeds.device)

        with prompt_override.lookup_encode_prompt(pipe, cond, negative_cond, encode_rows) as captions:
            return pipe(**captions, **settings)[0]

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)


class LongCatImageEdit(ConditionedFamily, LongCatImage):
    """Meituan 2025, https://arxiv.org/abs/2512.07584. The text encoder sees the source at half its size, and
    the source's tokens follow the noisy latents."""

    name = "longcat-image-edit"
    title = "LongCat-Image-Edit"
    pipelines = ("LongCatImageEditPipeline",)
    components = ComponentSpec(always_loaded=("text_processor",))
    call = CallSpec()
    conditioning = ConditioningSpec(
        accepted=("source",), required=("source",), read_by_text_encoder=True, one_prompt_per_call=True
    )

    def encode_text(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        images: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Encode instructions about `images["source"]`."""
        import torch

        (source,) = source_images(images)
        half = pipe.image_processor.resize(source, source.height // 2, source.width // 2)
        with torch.no_grad():
            return [
                {"prompt_embeds": pipe.encode_prompt([caption], image=half)[0][0].clone()}
                for caption in captions
            ]  # (tokens of the image + 512, D)

    def _sources(self, cond: Conditioning) -> list[torch.Tensor]:
        return [cond["source_latents"][:, 0]]

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"image": to_pil_images(images["source"][0])[0]}

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        # its call takes the size of the source, resized to a megapixel
        options = {name: value for name, value in settings.items() if name not in ("width", "height")}
        with fixed_source_size(pipe, settings["width"], settings["height"]):
            return super()._call_pipeline(pipe, cond, negative_cond, options)


def _text_positions(count: int, device: torch.device) -> torch.Tensor:
    """Return positions (count, 3): 0, and twice the token's number."""
    import torch

    tokens = torch.arange(count, device=device)
    return tokens[:, None] * small_vector([0, 1, 1], tokens)
