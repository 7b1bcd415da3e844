"""Trackers that send a run to a service: wandb, Comet, ClearML, SwanLab."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.training.trackers.backend import IMAGES, Backend, read_pixels
from lorakit.training.trackers.labels import DEFAULT_PROJECT

WANDB_SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "host": "",
    "program": "lorakit",
    "x_disable_meta": True,
    "x_save_requirements": False,
}
"""Console, code, repository, packages and machine of the tracker's process have nothing to do with a run."""


class Wandb(Backend):
    """Weights & Biases. Its own step counts rows, for it drops rows that are not above the last one; the
    charts are over `step`."""

    sends_settings_always = True  # each offline session has a file of its own

    def create(self) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        self.wandb = wandb
        self.record.id = self.record.id or secrets.token_hex(4)
        self.project = self.labels.project or wandb.setup().settings.project or DEFAULT_PROJECT
        return WandBTracker(
            self.project,
            entity=self.labels.entity,
            group=self.labels.group,
            name=self.labels.run_name,
            tags=self.labels.tags or None,
            id=self.record.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(self.run),
            settings=wandb.Settings(**WANDB_SETTINGS),
        )

    def start(self) -> None:
        super().start()
        run = self.tracker.tracker
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        # A server may have less than was handed over, if an earlier session could not reach it.
        if not run.offline and run.starting_step <= self.record.last_index:
            self.record.forget_after(run.starting_step - 1 - (self.record.last_index - self.record.last_step))
            self.record.last_index = run.starting_step - 1

    def log(self, step: int, metrics: Mapping[str, float], images: list[Path]) -> None:
        values: dict[str, Any] = {"step": step, **metrics}
        if images:
            values[IMAGES] = [self.wandb.Image(str(file), caption=file.stem) for file in images]
        self.record.last_index = max(self.record.last_index + 1, step)
        self.tracker.log(values, step=self.record.last_index, commit=True)

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.log(step, {}, [file])

    def finish(self, *, done: bool) -> None:
        self.tracker.tracker.finish(exit_code=0 if done else 1)

    def url(self) -> str:
        run = self.tracker.tracker
        if run.disabled:
            return "switched off by its environment (WANDB_MODE)"
        if run.offline:
            return f"offline in {Path(run.dir).parent} (upload it with `wandb sync`)"
        return str(run.url)


class CometML(Backend):
    """Comet."""

    def create(self) -> Any:
        import comet_ml
        from accelerate.tracking import CometMLTracker

        self.record.id = self.record.id or secrets.token_hex(16)
        config = comet_ml.ExperimentConfig(
            name=self.labels.run_name,
            tags=self.labels.tags or None,
            log_code=False,
            log_graph=False,
            parse_args=False,
            log_git_metadata=False,
            log_git_patch=False,
            log_env_details=False,
            log_env_host=False,
            auto_output_logging=False,
            auto_param_logging=False,
            auto_metric_logging=False,
            auto_log_co2=False,
            display_summary_level=0,
            offline_directory=os.environ.get("COMET_OFFLINE_DIRECTORY") or str(self.run / "comet"),
        )
        return CometMLTracker(
            self.project,
            workspace=self.labels.entity,
            experiment_key=self.record.id,
            mode="get_or_create",
            experiment_config=config,
        )

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.tracker.tracker.log_image(str(file), name=name, step=step)

    def url(self) -> str:
        return str(getattr(self.tracker.tracker, "url", None) or self.run / "comet")


_CLEARML_PRIVATE = {
    "CLEARML_LOG_TASK_TO_BACKEND": "0",
    "CLEARML_VCS_ENTRY_POINT": "lorakit",
    "CLEARML_VCS_WORK_DIR": ".",
    "CLEARML_VCS_DIFF": "",
    "CLEARML_WORKER_NAME": "lorakit",
}
"""Instead of the script, repository and machine of this process."""


class ClearML(Backend):
    """ClearML."""

    def create(self) -> Any:
        from accelerate.tracking import ClearMLTracker

        for name, value in _CLEARML_PRIVATE.items():
            os.environ.setdefault(name, value)
        return ClearMLTracker(
            project_name=self.project,
            task_name=self.labels.run_name,
            tags=self.labels.tags or None,
            reuse_last_task_id=False,
            continue_last_task=self.record.id or False,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )

    def start(self) -> None:
        super().start()
        self.tracker.tracker.set_initial_iteration(0)  # our steps count from the start of the run
        self.record.id = self.tracker.tracker.id

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.tracker.log_images({name: read_pixels(file)}, step=step)

    def url(self) -> str:
        return str(self.tracker.tracker.get_output_log_web_page())


class SwanLab(Backend):
    """SwanLab."""

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return Path(os.environ.get("SWANLAB_LOG_DIR") or self.run / "swanlab")

    def create(self) -> Any:
        import swanlab
        from accelerate.tracking import SwanLabTracker

        self.swanlab = swanlab
        self.record.id = self.record.id or secrets.token_hex(8)
        swanlab.merge_settings(
            swanlab.Settings(
                probe=swanlab.Settings.Probe(
                    hardware=False,
                    runtime=False,
                    requirements=False,
                    conda=False,
                    git=False,
                    swanlab=False,
                    monitor=False,
                )
            )
        )
        return SwanLabTracker(
            self.project,
            workspace=self.labels.entity,
            group=self.labels.group,
            name=self.labels.run_name,
            tags=self.labels.tags or None,
            id=self.record.id,
            resume="allow",
            log_dir=str(self.folder),
        )

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.tracker.log({name: self.swanlab.Image(str(file), caption=file.stem)}, step=step)

    def url(self) -> str:
        try:
            return str(self.tracker.tracker.url)
        except ValueError:  # it is not online
            folder = self.folder
            return f"offline in {folder} (upload it with `swanlab sync`)"
