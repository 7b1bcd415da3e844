"""What families of clips share: latents (C, F, H, W), in which a picture is a clip of one frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image


class VideoFamily(Family):
    """A family whose `predict` takes and gives (B, C, F, H, W)."""

    clips = True
    fps: ClassVar[float] = 16.0

    def frame_step(self, pipe: Any) -> int:
        """Frames that one latent stands for, but for the first, which has a frame of its own."""
        from lorakit.models import vae

        return vae.temporal_compression(*self._config(pipe, "vae"))

    def frame_grid(self, pipe: Any) -> int:
        """Clips have one frame more than a multiple of this."""
        return self.frame_step(pipe)

    def latent_shape(self, pipe: Any, width: int, height: int, frames: int = 1) -> tuple[int, ...]:
        """(C, F, H, W) of a clip's latents; frames beyond the grid are left out."""
        channels, *sides = super().latent_shape(pipe, width, height)
        grid = self.frame_grid(pipe)
        return channels, (frames - 1) // grid * grid // self.frame_step(pipe) + 1, *sides

    def films(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[list[Image.Image]]:
        """One clip, as its frames, for each row of `noise` (B, C, F, H, W); options as in `sample`."""
        made: list[Any] = super().sample(pipe, cond, negative, noise, **options)
        return made

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        """One picture for each row: the clip's only frame, or its first, middle and last side by side."""
        from lorakit.imaging import video

        return [video.frame_strip(film) for film in self.films(pipe, cond, negative, noise, **options)]

    def _extent(self, pipe: Any, noise: torch.Tensor) -> dict[str, Any]:
        return {"num_frames": (noise.shape[2] - 1) * self.frame_step(pipe) + 1}
