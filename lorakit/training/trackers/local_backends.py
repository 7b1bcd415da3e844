"""Trackers that write files on this machine, if their environment names no server."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from lorakit.training.trackers.backend import IMAGES, Backend, read_pixels
from lorakit.training.trackers.labels import remove_credentials


class TensorBoard(Backend):
    """TensorBoard: event files in the run's folder."""

    @property
    def folder(self) -> Path:
        """The folder of the event files."""
        return self.run / "tensorboard"

    def create(self) -> Any:
        from accelerate.tracking import TensorBoardTracker

        self.forget_if_gone(self.folder)
        # Readers skip what a session handed over and could not record: it is sent again.
        purge = {"purge_step": self.record.last_step + 1} if self.folder.exists() else {}
        return TensorBoardTracker(self.folder.name, self.run, **purge)

    def send_settings(self, *, is_new: bool) -> None:
        lines = [f"| {key} | {value} |" for key, value in self.settings.items()]
        table = "\n".join(["| setting | value |", "|---|---|", *lines])
        self.tracker.log({"settings": table}, step=0)

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.tracker.log_images({name: read_pixels(file)}, step=step, dataformats="HWC")

    def url(self) -> str:
        return f"{self.folder} (view it with `tensorboard --logdir {self.folder}`)"


class Mlflow(Backend):
    """MLflow: the tracking server of the environment, or a database in the run's folder."""

    def create(self) -> Any:
        import mlflow
        from accelerate.tracking import MLflowTracker

        self.mlflow = mlflow
        artifacts = None
        if not self.labels.server:
            self.forget_if_gone(self.run / "mlflow.db")
            if not self.record.sent:
                self.record.id = None
            mlflow.set_tracking_uri(f"sqlite:///{(self.run / 'mlflow.db').as_posix()}")
            artifacts = (self.run / "mlflow-artifacts").as_uri()
        tags = dict(tag.partition("=")[::2] for tag in self.labels.tags)
        hidden = {"mlflow.user": "lorakit", "mlflow.source.name": "lorakit"}  # not user, path and repository
        hidden |= {f"mlflow.source.git.{key}": "" for key in ("commit", "branch", "repoURL")}
        for variable in ("MLFLOW_TAGS", "MLFLOW_RUN_ID"):  # the class would prefer them
            os.environ.pop(variable, None)
        return MLflowTracker(
            self.project,
            logging_dir=artifacts,
            run_id=self.record.id,
            run_name=self.labels.run_name,
            tags=tags | hidden,
        )

    def start(self) -> None:
        super().start()
        self.record.id = self.tracker.tracker.info.run_id

    def send_settings(self, *, is_new: bool) -> None:
        if is_new:  # its parameters cannot change
            super().send_settings(is_new=is_new)

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.tracker.log_artifact(str(file), f"{IMAGES}/step-{step:08d}")

    def finish(self, *, done: bool) -> None:
        self.mlflow.end_run("FINISHED" if done else "KILLED")

    def url(self) -> str:
        address = remove_credentials(self.mlflow.get_tracking_uri())
        return f"{address}, experiment {self.project}, run {self.record.id}"


class Trackio(Backend):
    """Trackio, which finds a run by its name: it ends in our id."""

    def create(self) -> Any:
        import trackio
        from accelerate.tracking import TrackioTracker

        self.trackio = trackio
        resume = "allow" if self.record.id else "never"
        self.record.id = self.record.id or f"{self.labels.run_name}-{secrets.token_hex(3)}"
        return TrackioTracker(
            self.project,
            name=self.record.id,
            group=self.labels.group,
            resume=resume,
            embed=False,
            config=self.settings,
        )

    def send_settings(self, *, is_new: bool) -> None:
        pass  # it takes them at its start

    def log_image(self, step: int, name: str, file: Path) -> None:
        self.tracker.log({name: self.trackio.Image(str(file), caption=file.stem)}, step=step)

    def url(self) -> str:
        return f"run {self.record.id} (view it with `trackio show --project {self.project}`)"


class Aim(Backend):
    """Aim: a repository in the run's folder."""

    def create(self) -> Any:
        from accelerate.tracking import AimTracker

        self.forget_if_gone(self.run / ".aim")
        if not self.record.sent:
            self.record.id = None
        return AimTracker(
            self.labels.run_name,
            str(self.run),
            run_hash=self.record.id,
            experiment=self.project,
            system_tracking_interval=None,
            log_system_params=False,
            capture_terminal_logs=False,
        )

    def start(self) -> None:
        super().start()
        self.record.id = self.tracker.tracker.hash
        for tag in set(self.labels.tags).difference(self.tracker.tracker.tags):
            self.tracker.tracker.add_tag(tag)

    def log_image(self, step: int, name: str, file: Path) -> None:
        from PIL import Image

        with Image.open(file) as image:
            self.tracker.log_images({name: (image.convert("RGB"), file.stem)}, step=step)

    def url(self) -> str:
        return f"{self.run / '.aim'} (view it with `aim up --repo {self.run}`)"


class DVCLive(Backend):
    """DVCLive: files in the run's folder."""

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.run / "dvclive"

    def create(self) -> Any:
        from accelerate.tracking import DVCLiveTracker

        self.forget_if_gone(self.folder)
        return DVCLiveTracker(dir=str(self.folder), resume=True, save_dvc_exp=False, dvcyaml=None)

    def log_image(self, step: int, name: str, file: Path) -> None:
        live = self.tracker.tracker
        live.step = step
        live.log_image(f"{name}-{step:08d}.png", file)

    def url(self) -> str:
        return str(self.folder)
