"""All features and scores of the images by one judge after another, so that one model at a time is in memory.

Afterwards they are in the cache, and the scoring of each variant reads them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorakit.evaluation.feature_cache import (
    FrameSource,
    PromptScorer,
    cached_features,
    cached_part_scores,
    cached_prompt_scores,
    frame_source,
)
from lorakit.evaluation.metrics.image_encoders import ImageEncoder
from lorakit.evaluation.metrics.questions import QuestionScorer
from lorakit.evaluation.on_demand import release
from lorakit.evaluation.sample_files import SampleFile

Samples = Mapping[str, Sequence[SampleFile]]


def fill_caches(
    scorers: Sequence[PromptScorer],
    encoders: Mapping[str, ImageEncoder | None],
    samples: Samples,
    references: Sequence[FrameSource],
    quiet: bool,
) -> None:
    """Compute what the cache lacks for the samples of each variant, by its name, and for the references.

    Each model is released before the next one is loaded. The last encoder stays loaded: it is CLIP, whose
    text features are needed next.
    """
    sources = {
        name: [frame_source(sample.path, sample.video) for sample in files] for name, files in samples.items()
    }
    for scorer in scorers:
        for name, files in samples.items():
            prompts = [file.prompt for file in files]
            if isinstance(scorer, QuestionScorer):
                cached_part_scores(scorer, sources[name], prompts, name, quiet)
            else:
                cached_prompt_scores(scorer, sources[name], prompts, name, quiet)
        release(scorer)
    present = [(title, encoder) for title, encoder in encoders.items() if encoder is not None]
    for number, (title, encoder) in enumerate(present, 1):
        if references:
            cached_features(encoder, references, f"references: {title}", quiet)
        for name, own in sources.items():
            cached_features(encoder, own, f"{name}: {title}", quiet)
        if number < len(present):
            release(encoder)
