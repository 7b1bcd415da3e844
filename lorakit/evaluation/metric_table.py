"""The table of metrics: titles, directions and formats."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Title, direction and format of a metric; `direction` is 1 if higher is better, -1 if lower, else 0.

    Reports show `scale` times the value with `digits` decimals. A description that starts with "%" marks a
    percentage.
    """

    title: str
    direction: int
    description: str
    scale: float = 100.0
    digits: int = 1

    @property
    def is_share(self) -> bool:
        """True for a percentage of right answers or the like: every value lies between 0 and 1."""
        return self.description.startswith("%")


METRICS: dict[str, Metric] = {
    "clip_t": Metric("CLIP-T", 1, "100 x cosine of an image and its text"),
    "dino_i": Metric(
        "DINO-I", 1, "100 x mean cosine of an image with all reference images, by the image encoder"
    ),
    "clip_i": Metric("CLIP-I", 1, "100 x mean cosine of an image with all reference images, by CLIP"),
    "masked_i": Metric(
        "Masked subject", 1, "100 x mean cosine of the subject alone with that of all reference images"
    ),
    "face_identity": Metric(
        "Face identity", 1, "100 x mean cosine of the face with all reference faces, by the face model"
    ),
    "drift": Metric(
        "Drift", -1, "100 x (1 - cosine) with the base model's image of the same prompt and noise"
    ),
    "nearest_train_similarity": Metric(
        "Nearest training image", 0, "100 x cosine with the most similar training image"
    ),
    "sscd": Metric("SSCD", -1, "100 x cosine with the most similar training image, by the copy detector"),
    "diversity": Metric("Diversity", 1, "100 x (1 - mean cosine over all pairs of a prompt's seeds)"),
    "clip_accuracy": Metric(
        "CLIP accuracy", 1, "% of images for which CLIP ranks the right text first", digits=0
    ),
    "clip_t_shuffled": Metric(
        "CLIP-T, shuffled prompts", 0, "100 x mean cosine of an image with the texts of other prompts"
    ),
    "clipscore": Metric("CLIPScore", 1, "2.5 max(cosine, 0), texts prefixed with 'A photo depicts '", 1.0, 3),
    "vqascore": Metric("VQAScore", 1, "% probability of the answer Yes to 'Does this figure show ...?'"),
    "questions": Metric(
        "Questions", 1, "% probability of the right answers to the prompt's questions, their geometric mean"
    ),
    "pickscore": Metric("PickScore", 1, "predicted human preference, by PickScore", 1.0, 2),
    "hpsv2": Metric("HPSv2", 1, "predicted human preference, by HPSv2"),
    "ocr_accuracy": Metric(
        "Text accuracy", 1, "% of the text quoted in the prompt that OCR reads in the image", digits=0
    ),
    "vendi": Metric("Vendi", 1, "effective number of different images", 1.0, 1),
    "cmmd": Metric("CMMD", -1, "1000 x squared distance from the references' CLIP features", 1.0, 1),
    "validation_loss": Metric("Validation loss", -1, "loss on held-out images, same noise each time", 1.0, 4),
    "generalization_gap": Metric(
        "Generalization gap", 0, "validation loss minus the loss on training images", 1.0, 4
    ),
}


def metric_spec(name: str) -> Metric:
    """Return the metric of a name; `clip_t@MODEL` is CLIP-T by a second model."""
    base_name, _, model = name.partition("@")
    spec = METRICS[base_name]
    return Metric(f"{spec.title} ({model})", spec.direction, spec.description) if model else spec
