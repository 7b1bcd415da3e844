"""The derived family equals the written one where both exist, and says why where it refuses."""

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
from tests.models.families.common import CAPTIONS, encoded, family_of, noise_for, times

REFUSED = {
    "cogview4": "decodes latents otherwise than its autoencoder's settings say",
    "ernie-image": "decodes latents otherwise than its autoencoder's settings say",
    "fibo2": r"draws noise of shape \(1, 4, 12, 8\) for latents \(16, 6, 4\)",  # in another order
    "flux3": "no single denoiser, autoencoder and scheduler",  # modular blocks
    "glm-image": r"sees the noise 1\.0\d+ times",  # draws a coarse picture first
    "hidream": "draws noise of shape",  # another size than it is asked for
    "ideogram4": r"draws noise of shape \(1, 24, 16\)",  # as tokens
    "kandinsky5": "draws noise of shape",  # has a list of sizes
    "wan-2.2": "no single denoiser, autoencoder and scheduler",  # two experts
    "qwen-image-2.1": "depend on the text by more than encode_prompt returns",
}
_CLIPS = ("wan", "wan-2.2-small", "ltx", "ltx-0.9.5", "hunyuan-video", "hunyuan-video-1.5", "cogvideox")
REFUSED |= dict.fromkeys((*_CLIPS, "cogvideox-2b", "ltx2"), "draws noise of shape")  # has a number of frames
EQUAL = sorted(name for name, row in tiny.ROWS.items() if name not in REFUSED and row.shown is None)


@pytest.mark.parametrize("name", EQUAL)
def test_predictions_and_gradients_equal_the_written_familys(name):
    written, pipe = family_of(name), tiny.build(name)
    derived = derive_family(tiny.tiny_folder(name))
    assert (derived.objective, derived.component) == (written.objective, written.component)
    assert derived.size_step(pipe) % written.size_step(pipe) == 0
    conds = derived.encode(pipe, CAPTIONS)
    network = derived.denoiser(pipe)
    adapters.inject_adapter(network, rank=2, alpha=2, targets=written.targets)
    noise, t = noise_for(name, rows=2), times(written)
    singles = [
        written.predict(network, noise[i, None], t[i, None], written.collate([cond]))
        for i, cond in enumerate(encoded(name))
    ]
    expected, gradients = _learnt(network, torch.cat(singles))
    found, same = _learnt(network, derived.predict(network, noise, t, derived.collate(conds)))
    assert (expected - found).abs().max() <= 1e-6
    for key, gradient in gradients.items():
        assert (gradient - same[key]).norm() <= 1e-5 * gradient.norm() + 1e-9, key


def _learnt(network, prediction):
    """The prediction, and the gradients of B, whose values are zero."""
    prediction.square().mean().backward()
    found = {}
    for key, parameter in adapters.trainable_parameters(network):
        if parameter.grad is not None and key.endswith("lora_B.weight"):
            found[key] = parameter.grad.clone()
        parameter.grad = None
    assert found
    return prediction.detach(), found


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_cannot_be_followed_is_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
        derive_family(tiny.tiny_folder(name)).encode(tiny.tiny_pipeline(name), CAPTIONS)
    assert type(tiny.tiny_pipeline(name)).__name__ in caught.value.message
    assert "how to add one" in str(caught.value)


@pytest.mark.parametrize("name", ["sd15", "z-image", "flux1-dev", "sana"])
@pytest.mark.parametrize("guidance", [None, "off"])
def test_pictures_equal_the_written_familys(name, guidance):
    written, pipe = family_of(name), tiny.tiny_pipeline(name)
    derived, size = derive_family(tiny.tiny_folder(name)), tiny.ROWS[name].sizes[0]
    width, height = (side * derived.size_step(pipe) // written.size_step(pipe) for side in size)
    noise = noise_for(name, (width, height), rows=2)
    options = {"steps": 2, "width": width, "height": height}
    options["guidance"] = written.unguided if guidance else None
    derived.denoiser(pipe)
    pictures = []
    for family in (written, derived):
        cond, negative = (family.collate(family.encode(pipe, texts)) for texts in (CAPTIONS, [""]))
        pictures.append(family.sample(pipe, cond, negative, noise, **options))
    for mine, other in zip(*pictures, strict=True):
        assert mine.size == (width, height)
        assert max(abs(a - b) for a, b in zip(mine.tobytes(), other.tobytes(), strict=True)) <= 1
    with pytest.raises(ConfigError, match="negative prompt"):
        derived.sample(pipe, cond, derived.collate(derived.encode(pipe, ["ugly"])), noise, **options)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pipeline has a family."""
    monkeypatch.setattr(families, "FAMILIES", ())


def _trained(name: str, folder: Path, kind: str) -> list[float]:
    data = folder / "data" if (folder / "data").is_dir() else runs.make_dataset(folder / "data")
    samples = {"prompts": str(runs.make_prompts(folder / "p.jsonl")), "every": 3, "steps": 1}
    recipe = runs.make_recipe(
        folder / f"{kind}.json",
        tiny.tiny_folder(name),
        data,
        folder / kind,
        train={"steps": 3, "batch_size": 2, "precision": "fp32"},
        samples=samples,
        export=["diffusers"],
    )
    run = runs.train(recipe)
    assert len(list((run / "exports").glob("*.safetensors"))) == 1
    assert len(list((run / "samples/step-00000003").glob("*.png"))) == 3
    return [row["loss"] for row in storage.read_jsonl(run / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("name", ["sd15", "z-image"])
def test_a_run_without_a_written_family_has_the_same_losses(name, tmp_path, monkeypatch):
    """With text encoders and network loaded one after the other, as runs do."""
    written = _trained(name, tmp_path, "written")
    monkeypatch.setattr(families, "FAMILIES", ())
    assert _trained(name, tmp_path, "derived") == pytest.approx(written, rel=1e-5)


@pytest.mark.usefixtures("unknown")
def test_a_refusal_comes_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match="no family for CogView4Pipeline"):
        _trained("cogview4", tmp_path, "run")
    assert not (tmp_path / "run/checkpoints").exists()


def _derived(name: str = "sd15"):
    """(family, pipeline of its own, one collated condition)."""
    family, pipe = derive_family(tiny.tiny_folder(name)), tiny.build(name)
    return family, pipe, family.collate(family.encode(pipe, CAPTIONS[:1]))


def test_a_call_without_gradients_is_refused(monkeypatch):
    family, pipe, cond = _derived()
    network = family.denoiser(pipe)
    adapters.inject_adapter(network, rank=2, alpha=2, targets=family.targets)
    monkeypatch.setattr(network, "forward", torch.no_grad()(network.forward))
    with pytest.raises(ConfigError, match="no gradient passes"):
        family.predict(network, noise_for("sd15"), torch.tensor([321]), cond)


def test_a_network_that_is_called_twice_is_refused(monkeypatch):
    family, pipe, cond = _derived()
    network = family.denoiser(pipe)
    own = type(network).forward
    monkeypatch.setattr(network, "time_embedding", Twice(network, own, network.time_embedding))
    with pytest.raises(ConfigError, match="called 2 times"):
        family.predict(network, noise_for("sd15"), torch.tensor([321]), cond)


class Twice(torch.nn.Module):
    """Calls the network it is part of once more."""

    def __init__(self, network, forward, own):
        super().__init__()
        self.__dict__.update(network=network, inside=False, own=own)

    def forward(self, *arguments):
        if not self.inside:
            self.__dict__["inside"] = True
            noisy = torch.zeros(1, 4, 8, 8)
            self.network(noisy, torch.tensor(1), torch.zeros(1, 77, 16))
        return self.own(*arguments)


def test_noise_that_is_changed_is_refused(monkeypatch):
    family, pipe, cond = _derived()
    own = pipe.prepare_latents
    monkeypatch.setattr(pipe, "prepare_latents", lambda *a, **o: own(*a, **o) * 2)
    with pytest.raises(ConfigError, match="more to its noise than to reorder it"):
        family.predict(family.denoiser(pipe), noise_for("sd15"), torch.tensor([321]), cond)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_train_timesteps": 500}, "500 times instead of 1000"),
        ({"_class_name": "OtherScheduler"}, "OtherScheduler is not known"),
    ],
)
def test_an_objective_that_is_not_known_is_refused(changes, reason, tmp_path):
    for file in tiny.tiny_folder("sd3").rglob("*.json"):
        storage.copy_file(file, tmp_path / file.relative_to(tiny.tiny_folder("sd3")))
    file = tmp_path / "scheduler/scheduler_config.json"
    storage.write_json(file, storage.read_json(file) | changes)
    with pytest.raises(ConfigError, match=reason):
        derive_family(tmp_path)


def test_conditions_keep_their_nesting():
    values = [(torch.ones(2), None, [torch.zeros(1, 2), 3]), "text", True]
    packed = pipeline_calls.flatten_nested(values, "plain")
    assert all(isinstance(value, torch.Tensor) for value in packed.values())
    again = pipeline_calls.restore_nested(packed, "plain")
    assert pipeline_calls.without_tensors(again) == pipeline_calls.without_tensors(values)
    pairs = zip(pipeline_calls.nested_tensors(again), pipeline_calls.nested_tensors(values), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(pipeline_calls.UnsupportedPipeline, match="hold a dict"):
        pipeline_calls.flatten_nested([{}], "plain")
