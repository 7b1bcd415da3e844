"""Flux.2 dev and klein: a transformer over packed 2 x 2 latent patches, trained with rectified flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.families.base import ATTENTION, Cond, Family
from lorakit.families.folder import max_sequence_length

if TYPE_CHECKING:
    import torch

_DOUBLE = "|".join(name.replace(".", r"\.") for name in ATTENTION)


class Flux2(Family):
    """Black Forest Labs 2025, https://bfl.ai/blog/flux-2."""

    name = "flux2"
    title = "Flux.2 dev / klein"
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    # The single blocks fuse q, k, v and the MLP, and their `to_out` is a layer where the double blocks' is a
    # list: name endings cannot tell them apart, and without them half of the attention would be missed.
    targets = (
        rf"transformer_blocks\.\d+\.attn\.({_DOUBLE})|"
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    def _encode(self, pipe: Any, captions: list[str]) -> Cond:
        length = max_sequence_length(pipe, pipe.tokenizer_max_length)
        embeds, _ = pipe.encode_prompt(captions, device=pipe.text_encoder.device, max_sequence_length=length)
        return {"prompt_embeds": embeds}  # (B, L, D)

    def predict(self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        import torch

        text = cond["prompt_embeds"]
        _, _, height, width = noisy.shape
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),  # (B, H*W, C)
            timestep=t.to(noisy.dtype) / 1000,
            # dev has guidance distilled in, and 1 is "none"; klein has no such input and ignores it
            guidance=torch.ones(len(noisy), device=noisy.device),
            encoder_hidden_states=text,
            txt_ids=_ids(1, 1, text.shape[1], noisy.device),
            img_ids=_ids(height, width, 1, noisy.device),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2).unflatten(2, (height, width))

    def size_step(self, pipe: Any) -> int:
        return int(
            2 ** len(self._config(pipe, "vae")[1]["block_out_channels"])
        )  # the autoencoder's factor, twice


def _ids(height: int, width: int, length: int, device: torch.device) -> torch.Tensor:
    """Positions (N, 4) on the axes time, row, column and text; a picture or a text, never both."""
    import torch

    axes = [torch.arange(n, device=device) for n in (1, height, width, length)]
    return torch.cartesian_prod(*axes)
