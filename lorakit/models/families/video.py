"""The parts that video families share: latents are (C, F, H, W), and an image is a video of one frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image


class VideoFamily(Family):
    """A family whose `predict` gets and returns (B, C, F, H, W)."""

    fps: ClassVar[float] = 16.0

    def temporal_compression(self, pipe: Any) -> int:
        """Return the number of frames of one latent; the first latent holds one frame only."""
        from lorakit.models import vae

        config = self._component_config(pipe, "vae")
        return vae.temporal_compression(config.class_name, config.config)

    def frame_multiple(self, pipe: Any) -> int:
        """Return the number that frame counts are a multiple of, plus one."""
        return self.temporal_compression(pipe)

    def latent_shape(self, pipe: Any, width: int, height: int, frames: int = 1) -> tuple[int, ...]:
        """Return the shape (C, F, H, W) of a video's latents; frames beyond `frame_multiple` are dropped."""
        channels, *sides = super().latent_shape(pipe, width, height)
        multiple = self.frame_multiple(pipe)
        latent_frames = (frames - 1) // multiple * multiple // self.temporal_compression(pipe) + 1
        return channels, latent_frames, *sides

    def sample_videos(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[list[Image.Image]]:
        """Sample one video, as its frames, for each row of `noise` (B, C, F, H, W); see `Family.sample`."""
        videos: list[Any] = super().sample(pipe, cond, negative_cond, noise, **options)
        return videos

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        """Sample one image for each row: the only frame, or the first, middle and last frame side by side."""
        from lorakit.imaging import video

        videos = self.sample_videos(pipe, cond, negative_cond, noise, **options)
        return [video.frame_strip(frames) for frames in videos]

    def _shape_arguments(self, pipe: Any, noise: torch.Tensor) -> dict[str, Any]:
        return {"num_frames": (noise.shape[2] - 1) * self.temporal_compression(pipe) + 1}
