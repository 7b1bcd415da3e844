"""A small configuration of each trainer, with settings of every kind, for images in the folder DATA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class Configuration(NamedTuple):
    """The text of a file, its name, and recipe keys that it must become."""

    name: str
    text: str
    trainer: str
    expected: dict[str, Any]


KOHYA_TOML = """
pretrained_model_name_or_path = "tiny-unet"
train_data_dir = "DATA"
output_dir = "OUT"
output_name = "kohya"
network_module = "networks.lora"
network_dim = 8
network_alpha = 4
network_train_unet_only = true
resolution = "64,64"
learning_rate = 2e-4
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.05", "betas=0.9,0.95"]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 1
lr_warmup_steps = 1
max_train_steps = 3
save_every_n_steps = 3
train_batch_size = 1
mixed_precision = "no"
seed = 7
min_snr_gamma = 5
noise_offset = 0.05
caption_dropout_rate = 0.25
keep_tokens = 1
shuffle_caption = true
cache_latents = true
clip_skip = 2
network_dropout = 0.1
ip_noise_gamma = 0.1
zz_invented = "abc"
"""
KOHYA_COMMAND = """
accelerate launch --num_cpu_threads_per_process 1 sdxl_train_network.py \\
  --pretrained_model_name_or_path="models/sd xl.safetensors" \\
  --dataset_config="dataset.toml" --output_dir="OUT" --output_name=sdxl \\
  --network_module=lycoris.kohya --network_dim=16 --network_alpha 8 \\
  --network_args "algo=lokr" "factor=8" "preset=attn-mlp" \\
  --unet_lr=1e-4 --text_encoder_lr 5e-5 5e-6 --optimizer_type=CAME --optimizer_args d_coef=2 \\
  --max_train_epochs=10 --save_every_n_epochs=1 --mixed_precision=bf16 --loss_type=huber --huber_c=0.2 \\
  --debiased_estimation_loss --sdpa --gradient_checkpointing
"""
KOHYA_DATASET = """
[general]
shuffle_caption = true
[[datasets]]
resolution = 1024
batch_size = 2
  [[datasets.subsets]]
  image_dir = "DATA"
  num_repeats = 5
  class_tokens = "sks dog"
  [[datasets.subsets]]
  is_reg = true
  image_dir = "CLASS"
"""
MUSUBI_COMMAND = """
python -m accelerate.commands.launch src/musubi_tuner/wan_train_network.py ^
  --task i2v-A14B ^
  --dit path/to/wan.safetensors --vae vae.safetensors --t5 t5.pth ^
  --dataset_config nowhere.toml --sdpa --fp8_base --optimizer_type adamw8bit --learning_rate 2e-4 ^
  --network_module networks.lora_wan --network_dim 32 --network_alpha 32 ^
  --timestep_sampling shift --discrete_flow_shift 3.0 --max_train_epochs 16 --blocks_to_swap 20 ^
  --output_dir OUT --output_name wan
"""
AI_TOOLKIT = """
---
job: extension
config:
  name: ai
  process:
    - type: 'sd_trainer'
      training_folder: OUT
      trigger_word: "sks"
      network: {type: lokr, linear: 8, linear_alpha: 8, lokr_factor: 4}
      save: {dtype: float16, save_every: 3, max_step_saves_to_keep: 2}
      datasets:
        - folder_path: DATA
          caption_ext: "txt"
          caption_dropout_rate: 0.05
          resolution: [64]
          num_repeats: 2
      train:
        batch_size: 1
        steps: 3
        gradient_accumulation_steps: 2
        optimizer: "adamw8bit"
        optimizer_params: {weight_decay: 0.02}
        lr: 1e-4
        timestep_type: sigmoid
        dtype: fp32
        seed: 3
        ema_config: {use_ema: true, ema_decay: 0.99}
        zz_invented: 7
      model: {name_or_path: tiny-dit, is_flux: true, quantize: true, qtype: qfloat8}
      sample:
        sample_every: 3
        width: 64
        height: 64
        prompts: ["a sks dog", "a cat"]
        neg: "blurry"
        seed: 42
        guidance_scale: 4
        sample_steps: 2
"""
ONETRAINER = """
{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "base_model_name": "tiny-unet",
 "output_model_destination": "OUT/one.safetensors", "output_model_format": "KOHYA_LORA",
 "concepts": [{"path": "DATA", "balancing": 2.0, "loss_weight": 1.5, "type": "STANDARD"}],
 "resolution": "64", "batch_size": 1, "epochs": 1, "learning_rate": 0.0003, "lora_rank": 8, "lora_alpha": 4.0,
 "learning_rate_scheduler": "COSINE", "learning_rate_warmup_steps": 2, "train_dtype": "FLOAT_32",
 "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 3.0, "ema": "CPU", "ema_decay": 0.9,
 "optimizer": {"optimizer": "LION", "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1, "cautious": true},
 "unet": {"weight_dtype": "NFLOAT_4"}, "text_encoder": {"train": false}, "backup_after": 10,
 "zz_invented": "abc"}
"""
SIMPLETUNER = """
{"--model_family": "sd3", "--model_type": "lora", "--pretrained_model_name_or_path": "tiny-dit",
 "--output_dir": "OUT/simple", "--data_backend_config": "backend.json", "--lora_type": "standard",
 "--lora_rank": 8, "--lora_alpha": 16, "--learning_rate": "1e-4", "--optimizer": "optimi-lion",
 "--lr_scheduler": "polynomial", "--lr_warmup_steps": 1, "--max_train_steps": 3, "--num_train_epochs": 0,
 "--train_batch_size": 1, "--mixed_precision": "no", "--checkpoint_step_interval": 3, "--seed": 5,
 "--resolution": 64, "--resolution_type": "pixel", "--flow_schedule_shift": 3, "--use_ema": true,
 "--ema_decay": 0.95, "--caption_dropout_probability": 0.1, "--validation_prompt": "a sks dog",
 "--validation_seed": 42, "--validation_resolution": "64x64", "--validation_num_inference_steps": 2,
 "--base_model_precision": "int8-quanto", "--musubi_blocks_to_swap": 4, "--zz_invented": "abc"}
"""
SIMPLETUNER_BACKEND = """
[{"id": "dogs", "type": "local", "instance_data_dir": "DATA", "repeats": 1,
  "caption_strategy": "instanceprompt", "instance_prompt": "a sks dog"},
 {"id": "text", "dataset_type": "text_embeds"}]
"""
DIFFUSION_PIPE = """
output_dir = 'OUT/pipe'
dataset = 'pipe-dataset.toml'
epochs = 2
micro_batch_size_per_gpu = 1
gradient_accumulation_steps = 1
gradient_clipping = 0.5
warmup_steps = 1
save_every_n_epochs = 1
pipeline_stages = 1
activation_checkpointing = true
save_dtype = 'bfloat16'
zz_invented = 'abc'
[model]
type = 'sd3'
diffusers_path = 'tiny-dit'
dtype = 'float32'
timestep_sample_method = 'logit_normal'
sigmoid_scale = 1.2
[adapter]
type = 'lora'
rank = 8
[optimizer]
type = 'AdamW8bitKahan'
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.03
stabilize = true
"""
DIFFUSION_PIPE_DATASET = """
resolutions = [64]
enable_ar_bucket = true
[[directory]]
path = 'DATA'
num_repeats = 1
"""
DIFFUSERS_COMMAND = """
export MODEL_NAME="tiny-unet"
accelerate launch train_dreambooth_lora_sdxl.py \\
  --pretrained_model_name_or_path=tiny-unet --instance_data_dir=DATA --output_dir=OUT/diffusers \\
  --instance_prompt="a photo of sks dog" --resolution=64 --train_batch_size=1 --rank=8 \\
  --gradient_accumulation_steps=4 --learning_rate=1e-4 --lr_scheduler="constant" --lr_warmup_steps=0 \\
  --max_train_steps=500 --validation_prompt="A photo of sks dog" --use_8bit_adam --seed="0" --push_to_hub \\
  --adam_beta2 0.99 --adam_beta1 0.9 --snr_gamma 5.0
"""
FILES_BESIDE = {
    "dataset.toml": KOHYA_DATASET,
    "backend.json": SIMPLETUNER_BACKEND,
    "pipe-dataset.toml": DIFFUSION_PIPE_DATASET,
}
CONFIGURATIONS = {
    "kohya TOML": Configuration("kohya.toml", KOHYA_TOML, "kohya's scripts", {
        "base": "tiny-unet", "dataset": "DATA", "out": "OUT/kohya", "resolution": 64, "adapter.type": "lora",
        "adapter.rank": 8, "adapter.alpha": 4, "optimizer.name": "adamw8bit", "optimizer.lr": 2e-4,
        "optimizer.schedule": "cosine_restarts", "optimizer.weight_decay": 0.05, "optimizer.warmup": 1,
        "optimizer.betas": [0.9, 0.95], "train.steps": 3, "train.precision": "fp32", "train.seed": 7,
        "objective.weighting": "min_snr", "objective.min_snr_gamma": 5, "objective.noise_offset": 0.05,
        "caption_use.shuffle_tags": True, "caption_use.keep_first": 1, "caption_use.caption_dropout": 0.25,
    }),
    "kohya command": Configuration("kohya.sh", KOHYA_COMMAND, "kohya's scripts", {
        "base": "models/sd xl.safetensors", "out": "OUT/sdxl", "resolution": 1024, "adapter.type": "lokr",
        "adapter.factor": 8, "adapter.text_encoder": True, "adapter.text_encoder_lr": 5e-5,
        "optimizer.name": "came", "optimizer.lr": 1e-4, "optimizer.options": {"d_coef": 2},
        "objective.huber": {"c": 0.2, "schedule": "snr"}, "objective.weighting": "debiased",
        "dataset": [{"folder": "DATA", "repeats": 5, "captions": "sks dog", "class_images": "CLASS"}],
        "train.batch_size": 2,
    }),
    "musubi command": Configuration("musubi.bat", MUSUBI_COMMAND, "kohya's scripts", {
        "base": "path/to/wan.safetensors@Wan-AI/Wan2.2-I2V-A14B-Diffusers", "out": "OUT/wan",
        "adapter.rank": 32, "objective.timesteps": "logit_normal", "objective.shift": 3.0,
        "memory.quantize": "fp8",
    }),
    "ai-toolkit": Configuration("ai.yaml", AI_TOOLKIT, "ai-toolkit", {
        "base": "tiny-dit", "out": "OUT/ai", "resolution": 64, "adapter.type": "lokr", "adapter.rank": 8,
        "adapter.factor": 4, "dataset": [{"folder": "DATA", "repeats": 2, "trigger": "sks"}],
        "optimizer.name": "adamw8bit", "optimizer.weight_decay": 0.02, "optimizer.lr": 1e-4,
        "train.steps": 3, "train.accumulate": 2, "train.ema_decay": 0.99, "train.precision": "fp32",
        "train.seed": 3, "objective.timesteps": "logit_normal", "memory.quantize": "fp8",
        "samples.every": 3, "samples.num_inference_steps": 2, "samples.guidance_scale": 4,
        "caption_use.caption_dropout": 0.05,
    }),
    "OneTrainer": Configuration("one.json", ONETRAINER, "OneTrainer", {
        "base": "tiny-unet", "out": "OUT/one", "adapter.rank": 8, "adapter.alpha": 4,
        "dataset": [{"folder": "DATA", "repeats": 2, "weight": 1.5}], "optimizer.name": "lion",
        "optimizer.betas": [0.8, 0.95], "optimizer.weight_decay": 0.1, "optimizer.schedule": "cosine",
        "train.steps": 8, "train.precision": "fp32", "train.ema_decay": 0.9, "objective.weighting": "min_snr",
        "objective.min_snr_gamma": 3.0, "memory.quantize": "nf4", "export": ["a1111"],
    }),
    "SimpleTuner": Configuration("simple.json", SIMPLETUNER, "SimpleTuner", {
        "base": "tiny-dit", "out": "OUT/simple", "adapter.rank": 8, "adapter.alpha": 16,
        "dataset": [{"folder": "DATA", "repeats": 2, "captions": "a sks dog"}], "optimizer.name": "lion",
        "optimizer.schedule": "polynomial", "train.steps": 3, "train.ema_decay": 0.95,
        "objective.shift": 3, "memory.quantize": "int8", "train.save_every": 3,
    }),
    "diffusion-pipe": Configuration("pipe.toml", DIFFUSION_PIPE, "diffusion-pipe", {
        "base": "tiny-dit", "out": "OUT/pipe", "dataset": "DATA", "resolution": 64, "adapter.rank": 8,
        "adapter.alpha": 8, "optimizer.name": "adamw8bit", "optimizer.betas": [0.9, 0.99],
        "optimizer.max_grad_norm": 0.5, "train.steps": 8, "train.save_every": 4,
        "objective.timesteps": "logit_normal", "objective.logit_std": 1.2, "train.precision": "fp32",
    }),
    "diffusers command": Configuration("diffusers.sh", DIFFUSERS_COMMAND, "diffusers' scripts", {
        "base": "tiny-unet", "out": "OUT/diffusers", "adapter.rank": 8, "adapter.alpha": 8,
        "dataset": [{"folder": "DATA", "captions": "a photo of sks dog"}], "optimizer.name": "adamw8bit",
        "optimizer.betas": [0.9, 0.99], "train.steps": 500, "train.accumulate": 4, "train.precision": "fp32",
        "objective.weighting": "min_snr", "objective.min_snr_gamma": 5.0,
    }),
}  # fmt: skip


def write(folder: Path, name: str, data: Path, text: str | None = None) -> Path:
    """Write a configuration and the files beside it, for the images in `data`; return its path."""
    configuration = CONFIGURATIONS[name]

    def filled(words: str) -> str:
        return words.replace("DATA", data.as_posix()).replace("OUT", (folder / "runs").as_posix())

    for beside, words in FILES_BESIDE.items():
        (folder / beside).write_text(filled(words), encoding="utf-8")
    file = folder / configuration.name
    file.write_text(filled(configuration.text if text is None else text), encoding="utf-8")
    return file
