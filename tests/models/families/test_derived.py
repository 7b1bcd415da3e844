"""The derived family equals the family file where both exist, and refuses others with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import families
from lorakit.models.families.derived import pipeline_calls
from lorakit.models.families.derived.derived_family import derive_family
from tests import runs, tiny
from tests.models.families.common import CAPTIONS, encoded, family_of, noise_for, two_timesteps

REFUSED = {
    "anima": "its call has no argument",  # modular blocks
    "cogview4": "does not decode latents as its VAE's configuration says",
    "ernie-image": "does not decode latents as its VAE's configuration says",
    "fibo2": r"uses noise of shape \(1, 4, 12, 8\) for latents of shape \(16, 6, 4\)",  # in another order
    "flux3": "needs one denoiser, a VAE and a scheduler",  # modular blocks
    "glm-image": r"gets the noise 1\.0\d+ times",  # it generates coarse image tokens first
    "hidream": "uses noise of shape",  # it changes the requested size
    "ideogram4": r"uses noise of shape \(1, 24, 16\)",  # as tokens
    "kandinsky5": "uses noise of shape",  # it has a list of sizes
    "wan-2.2": "needs one denoiser, a VAE and a scheduler",  # two experts
    "qwen-image-2.1": "depend on more of the text than encode_prompt returns",
}
_VIDEOS = ("wan", "wan-2.2-small", "ltx", "ltx-0.9.5", "hunyuan-video", "hunyuan-video-1.5", "cogvideox")
REFUSED |= dict.fromkeys((*_VIDEOS, "cogvideox-2b", "ltx2"), "uses noise of shape")  # of several frames
EQUAL = sorted(name for name, row in tiny.ROWS.items() if name not in REFUSED and row.image_arguments is None)


@pytest.mark.parametrize("name", EQUAL)
def test_predictions_and_gradients_equal_those_of_the_family_file(name):
    written, pipe = family_of(name), tiny.build(name)
    derived = derive_family(tiny.tiny_folder(name))
    assert (derived.objective, derived.components.denoiser) == (
        written.objective,
        written.components.denoiser,
    )
    assert derived.size_multiple(pipe) % written.size_multiple(pipe) == 0
    conds = derived.encode_text(pipe, CAPTIONS)
    network = derived.denoiser(pipe)
    adapters.inject_adapter(network, rank=2, alpha=2, targets=written.target_modules)
    noise, t = noise_for(name, rows=2), two_timesteps(written)
    singles = [
        written.predict(network, noise[i, None], t[i, None], written.collate([cond]))
        for i, cond in enumerate(encoded(name))
    ]
    expected, expected_gradients = _backward(network, torch.cat(singles))
    prediction, gradients = _backward(network, derived.predict(network, noise, t, derived.collate(conds)))
    assert (expected - prediction).abs().max() <= 1e-6
    for key, gradient in expected_gradients.items():
        assert (gradient - gradients[key]).norm() <= 1e-5 * gradient.norm() + 1e-9, key


def _backward(network, prediction):
    """Return the prediction, and the gradients of B, whose values are zero."""
    prediction.square().mean().backward()
    gradients = {}
    for key, parameter in adapters.trainable_parameters(network):
        if parameter.grad is not None and key.endswith("lora_B.weight"):
            gradients[key] = parameter.grad.clone()
        parameter.grad = None
    assert gradients
    return prediction.detach(), gradients


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_pipeline_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
        derive_family(tiny.tiny_folder(name)).encode_text(tiny.tiny_pipeline(name), CAPTIONS)
    assert type(tiny.tiny_pipeline(name)).__name__ in caught.value.message
    assert "families/README.md" in str(caught.value)


@pytest.mark.parametrize("name", ["sd15", "z-image", "flux1-dev", "sana"])
@pytest.mark.parametrize("guidance", [None, "off"])
def test_images_equal_those_of_the_family_file(name, guidance):
    written, pipe = family_of(name), tiny.tiny_pipeline(name)
    derived, size = derive_family(tiny.tiny_folder(name)), tiny.ROWS[name].sizes[0]
    width, height = (side * derived.size_multiple(pipe) // written.size_multiple(pipe) for side in size)
    noise = noise_for(name, (width, height), rows=2)
    options = {"num_inference_steps": 2, "width": width, "height": height}
    options["guidance_scale"] = written.call.guidance_off if guidance else None
    derived.denoiser(pipe)
    images = []
    for family in (written, derived):
        cond, negative = (family.collate(family.encode_text(pipe, texts)) for texts in (CAPTIONS, [""]))
        images.append(family.sample(pipe, cond, negative, noise, **options))
    for mine, other in zip(*images, strict=True):
        assert mine.size == (width, height)
        assert max(abs(a - b) for a, b in zip(mine.tobytes(), other.tobytes(), strict=True)) <= 1
    with pytest.raises(ConfigError, match="negative prompt"):
        derived.sample(pipe, cond, derived.collate(derived.encode_text(pipe, ["ugly"])), noise, **options)


@pytest.fixture
def no_family_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pipeline has a family file."""
    monkeypatch.setattr(families, "FAMILIES", ())


def _train(name: str, folder: Path, run_name: str) -> list[float]:
    data = folder / "data" if (folder / "data").is_dir() else runs.make_dataset(folder / "data")
    samples = {"prompts": str(runs.make_prompts(folder / "p.jsonl")), "every": 3, "num_inference_steps": 1}
    recipe = runs.make_recipe(
        folder / f"{run_name}.json",
        tiny.tiny_folder(name),
        data,
        folder / run_name,
        train={"steps": 3, "batch_size": 2, "precision": "fp32"},
        samples=samples,
        export=["diffusers"],
    )
    run = runs.train(recipe)
    assert len(list((run / "exports").glob("*.safetensors"))) == 1
    assert len(list((run / "samples/step-00000003").glob("*.png"))) == 3
    return [row["loss"] for row in storage.read_jsonl(run / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("name", ["sd15", "z-image"])
def test_a_run_without_a_family_file_has_the_same_losses(name, tmp_path, monkeypatch):
    """With text encoders and network loaded one after the other, as in every run."""
    written = _train(name, tmp_path, "written")
    monkeypatch.setattr(families, "FAMILIES", ())
    assert _train(name, tmp_path, "derived") == pytest.approx(written, rel=1e-5)


@pytest.mark.usefixtures("no_family_files")
def test_a_refusal_comes_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match="there is no family for CogView4Pipeline"):
        _train("cogview4", tmp_path, "run")
    assert not (tmp_path / "run/checkpoints").exists()


def _derived(name: str = "sd15"):
    """Return (family, a new pipeline, one collated `Conditioning`)."""
    family, pipe = derive_family(tiny.tiny_folder(name)), tiny.build(name)
    return family, pipe, family.collate(family.encode_text(pipe, CAPTIONS[:1]))


def test_a_call_without_gradients_is_refused(monkeypatch):
    family, pipe, cond = _derived()
    network = family.denoiser(pipe)
    adapters.inject_adapter(network, rank=2, alpha=2, targets=family.target_modules)
    monkeypatch.setattr(network, "forward", torch.no_grad()(network.forward))
    with pytest.raises(ConfigError, match="no gradient passes"):
        family.predict(network, noise_for("sd15"), torch.tensor([321]), cond)


def test_a_network_that_is_called_twice_is_refused(monkeypatch):
    family, pipe, cond = _derived()
    network = family.denoiser(pipe)
    monkeypatch.setattr(network, "time_embedding", CallsNetworkAgain(network, network.time_embedding))
    with pytest.raises(ConfigError, match="called 2 times"):
        family.predict(network, noise_for("sd15"), torch.tensor([321]), cond)


class CallsNetworkAgain(torch.nn.Module):
    """A module that calls the network that contains it once more."""

    def __init__(self, network, module):
        super().__init__()
        self.__dict__.update(network=network, inside=False, module=module)

    def forward(self, *arguments):
        if not self.inside:
            self.__dict__["inside"] = True
            self.network(torch.zeros(1, 4, 8, 8), torch.tensor(1), torch.zeros(1, 77, 16))
        return self.module(*arguments)


def test_a_pipeline_that_changes_its_noise_is_refused(monkeypatch):
    family, pipe, cond = _derived()
    original = pipe.prepare_latents
    monkeypatch.setattr(pipe, "prepare_latents", lambda *a, **o: original(*a, **o) * 2)
    with pytest.raises(ConfigError, match="changes the values of its noise"):
        family.predict(family.denoiser(pipe), noise_for("sd15"), torch.tensor([321]), cond)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_train_timesteps": 500}, "500 timesteps instead of 1000"),
        ({"_class_name": "OtherScheduler"}, "objective of its OtherScheduler is unknown"),
    ],
)
def test_an_unknown_objective_is_refused(changes, reason, tmp_path):
    for file in tiny.tiny_folder("sd3").rglob("*.json"):
        storage.copy_file(file, tmp_path / file.relative_to(tiny.tiny_folder("sd3")))
    file = tmp_path / "scheduler/scheduler_config.json"
    storage.write_json(file, storage.read_json(file) | changes)
    with pytest.raises(ConfigError, match=reason):
        derive_family(tmp_path)


def test_recorded_text_keeps_its_nesting():
    values = [(torch.ones(2), None, [torch.zeros(1, 2), 3]), "text", True]
    tensors = pipeline_calls.flatten_nested(values, "plain")
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    again = pipeline_calls.restore_nested(tensors, "plain")
    assert pipeline_calls.without_tensors(again) == pipeline_calls.without_tensors(values)
    pairs = zip(pipeline_calls.nested_tensors(again), pipeline_calls.nested_tensors(values), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(pipeline_calls.UnsupportedPipeline, match="returns a dict"):
        pipeline_calls.flatten_nested([{}], "plain")
