"""Flux.2 dev and klein: a transformer over packed 2 x 2 latent patches, trained with rectified flow.

A dataset whose images have sources trains it on references: their tokens follow those of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import ConditionedFamily, to_pil_images
from lorakit.models.families.family import ATTENTION_TARGETS, Conditioning, ConditioningTensors
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch

APART = 10  # in the first position, from one reference to the next
_DOUBLE = "|".join(name.replace(".", r"\.") for name in ATTENTION_TARGETS)


class Flux2(ConditionedFamily):
    """Black Forest Labs 2025, https://bfl.ai/blog/flux-2."""

    name = "flux2"
    title = "Flux.2 dev / klein"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    rank16 = "18.7 M (klein 4B), 83.4 M (dev)"
    licence = "Apache-2.0 (klein 4B); FLUX non-commercial (dev, klein 9B)"
    own_shift = True
    takes = ("source",)
    several = True
    alone = True  # the pipeline shows all references to all pictures of a batch
    # The single blocks fuse q, k, v and the MLP, and their `to_out` is a layer where the double blocks' is a
    # list: name endings cannot tell them apart, and without them half of the attention would be missed.
    targets = (
        rf"transformer_blocks\.\d+\.attn\.({_DOUBLE})|"
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        length = max_sequence_length(pipe, pipe.tokenizer_max_length)
        embeds, _ = pipe.encode_prompt(captions, device=pipe.text_encoder.device, max_sequence_length=length)
        return {"prompt_embeds": embeds}  # (B, L, D)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, (height, width) = cond["prompt_embeds"], noisy.shape[2:]
        tokens, places = [pack_latents(noisy, 1)], [position_ids(1, height, width, 1, device=noisy.device)]
        sources = cond["source_latents"].unbind(1) if "source_latents" in cond else ()
        for number, source in enumerate(sources, 1):
            tokens.append(pack_latents(source, 1))
            apart = places[0].new_tensor([APART * number, 0, 0, 0])
            places.append(position_ids(1, *source.shape[2:], 1, device=noisy.device) + apart)
        prediction = denoiser(
            hidden_states=torch.cat(tokens, dim=1),
            timestep=t.to(noisy.dtype) / 1000,
            # dev has guidance distilled in, and 1 is "none"; klein has no such input and ignores it
            guidance=noisy.new_ones(len(noisy)),
            encoder_hidden_states=text,
            txt_ids=position_ids(1, 1, 1, text.shape[1], device=noisy.device),
            img_ids=torch.cat(places),
            return_dict=False,
        )[0]
        return unpack_latents(prediction[:, : height * width], height, width, 1)

    def _show(self, pictures: ConditioningTensors, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"image": to_pil_images(pictures["source"][0])} if "source" in pictures else {}
