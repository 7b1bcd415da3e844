"""Flux.2 dev and klein: a transformer over packed 2 x 2 latent patches, trained with rectified flow.

A dataset whose images have sources trains it on references: their tokens follow those of the noisy latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import ConditionedFamily, to_pil_images
from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, ConditioningTensors
from lorakit.models.families.packing import pack_latents, position_ids, small_vector, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ConditioningSpec, LatentSpec

if TYPE_CHECKING:
    import torch

REFERENCE_OFFSET = 10  # in the first coordinate, from one reference to the next
_DOUBLE = "|".join(name.replace(".", r"\.") for name in ATTENTION_TARGETS)


class Flux2(ConditionedFamily):
    """Black Forest Labs 2025, https://bfl.ai/blog/flux-2."""

    name = "flux2"
    title = "Flux.2 dev / klein"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    rank16_parameters = "18.7 M (klein 4B), 83.4 M (dev)"
    license = "Apache-2.0 (klein 4B); FLUX non-commercial (dev, klein 9B)"
    # The single blocks fuse q, k, v and the MLP, and their `to_out` is a layer where the double blocks' is a
    # list: name endings cannot tell them apart, and without them half of the attention would be missed.
    target_modules = (
        rf"transformer_blocks\.\d+\.attn\.({_DOUBLE})|"
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )
    latents = LatentSpec(scheduler_shift=False)
    # the pipeline would use all references for every image of a batch
    conditioning = ConditioningSpec(accepted=("source",), multiple_sources=True, one_prompt_per_call=True)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        length = max_sequence_length(pipe, pipe.tokenizer_max_length)
        embeds, _ = pipe.encode_prompt(captions, device=pipe.text_encoder.device, max_sequence_length=length)
        return {"prompt_embeds": embeds}  # (B, L, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, (height, width) = cond["prompt_embeds"], noisy_latents.shape[2:]
        tokens = [pack_latents(noisy_latents, 1)]
        positions = [position_ids(1, height, width, 1, device=noisy_latents.device)]
        sources = cond["source_latents"].unbind(1) if "source_latents" in cond else ()
        for number, source in enumerate(sources, 1):
            tokens.append(pack_latents(source, 1))
            offset = small_vector([REFERENCE_OFFSET * number, 0, 0, 0], positions[0])
            positions.append(position_ids(1, *source.shape[2:], 1, device=noisy_latents.device) + offset)
        prediction = denoiser(
            hidden_states=torch.cat(tokens, dim=1),
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            # guidance is distilled into dev, and 1 switches it off; klein has no such input and ignores it
            guidance=noisy_latents.new_ones(len(noisy_latents)),
            encoder_hidden_states=text,
            txt_ids=position_ids(1, 1, 1, text.shape[1], device=noisy_latents.device),
            img_ids=torch.cat(positions),
            return_dict=False,
        )[0]
        return unpack_latents(prediction[:, : height * width], height, width, 1)

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"image": to_pil_images(images["source"][0])} if "source" in images else {}
