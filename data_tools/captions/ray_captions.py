"""Captions by Ray Data: a local model on every GPU of a machine or a cluster, which share the folder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.captioners import Captioner, CaptionerOptions, CaptionFailure, CaptionResponse, load_captioner
from data_tools.captions.caption_jobs import CaptionJob, CaptionResult, JobResult, run_jobs
from lorakit.core import ray_data
from lorakit.core.errors import ConfigError

IMAGES_AT_A_TIME = 32  # that a worker gets; so many are lost if everything ends


@dataclass(frozen=True)
class RayRunner:
    """Runs caption jobs on the workers of the cluster at `address`; each loads the model by itself."""

    options: CaptionerOptions
    address: str

    def __post_init__(self) -> None:
        if self.options.server:
            remedy = (
                "leave --ray out, and raise --concurrency: requests to a server run at the same time anyway"
            )
            raise ConfigError(
                "--ray is for a model that runs here, not for a server", where="ray", remedy=remedy
            )

    def __call__(
        self, folder: Path, jobs: Sequence[CaptionJob], captioner: Captioner, max_side: int
    ) -> Generator[JobResult]:
        """Yield the results as the workers return them."""
        arguments = (self.options, str(folder.resolve()), max_side)
        results = ray_data.map_on_workers(self.address, _RayCaptioner, arguments, jobs, IMAGES_AT_A_TIME)
        for index, row in results:
            yield jobs[index], _result(row)


class _RayCaptioner:
    """The captioner in a worker."""

    def __init__(self, options: CaptionerOptions, folder: str, max_side: int) -> None:
        self._captioner, self._folder, self._max_side = load_captioner(options), Path(folder), max_side

    def __call__(self, jobs: list[CaptionJob]) -> list[dict[str, Any]]:
        results = {
            job.key: _row(r) for job, r in run_jobs(self._folder, jobs, self._captioner, self._max_side)
        }
        return [results[job.key] for job in jobs]


def _row(result: CaptionResult) -> dict[str, Any]:
    if isinstance(result, CaptionFailure):
        return {"code": result.code, "message": result.message, "fatal": result.fatal}
    return {"text": result.text, "tags": result.tags, "notes": result.notes}


def _result(row: dict[str, Any]) -> CaptionResult:
    if "code" in row:
        return CaptionFailure(row["code"], row["message"], fatal=row["fatal"])
    return CaptionResponse(row["text"], tuple(row["tags"]), notes=tuple(row["notes"]))
