"""What a pipeline is trained to do with latents and their captions: one loss for UNets, one for SD3's transformer.

Text is encoded as the pipeline itself does it, so that nothing differs when it draws. UNets predict v at stratified
times; the noise of a picture has a mean of its own (noise offset), without which the ground's colour is soon read from
the noise and not from the text. SD3 predicts noise minus picture at logit-normal times, its sigma in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from torch import Tensor

from anymix.starter import drawn
from anymix.starter.build.diffusion.tokenizers import LENGTH

Loss = Callable[[Tensor, Sequence[str]], Tensor]
STEPS = 1000  # of the UNets' noise
LENGTHS, SHARES = (LENGTH, 77, 256), (0.86, 0.08, 0.06)  # tokens T5 is padded to: ours, and what others have as default


def loss_of(pipeline: DiffusionPipeline, offset: float = 0.0) -> Loss:
    """The training loss of a pipeline: (latents (N, 4, H, W), N captions) -> the mean over them."""
    if isinstance(pipeline, StableDiffusion3Pipeline):
        return lambda latents, captions: flow_loss(pipeline, latents, captions)
    noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    return lambda latents, captions: v_loss(pipeline, noise, latents, captions, offset)


def v_loss(
    pipeline: DiffusionPipeline, noise: DDPMScheduler, latents: Tensor, captions: Sequence[str], offset: float
) -> Tensor:
    """Squared error of the predicted v."""
    count = len(latents)
    times = (((torch.arange(count) + torch.rand(())) / count * STEPS).long() % STEPS)[torch.randperm(count)]
    added = torch.randn_like(latents) + offset * torch.randn(*latents.shape[:2], 1, 1)
    noisy = noise.add_noise(latents, added, times)
    found = predict(pipeline.unet, noisy, times, encode(pipeline, captions))
    return F.mse_loss(found, noise.get_velocity(latents, added, times))


def predict(unet: torch.nn.Module, noisy: Tensor, times: Tensor, told: tuple[Tensor, Tensor | None]) -> Tensor:
    """What a UNet says of noisy latents, told (words, pooled)."""
    words, pooled = told
    extra = None
    if pooled is not None:
        extra = {"text_embeds": pooled, "time_ids": size_of(len(noisy))}
    said: Tensor = unet(noisy, times, words, added_cond_kwargs=extra).sample
    return said


def size_of(count: int) -> Tensor:
    """(N, 6) what SDXL is told of a picture's size: as it was, its crop, as it is."""
    size = torch.tensor([[drawn.EDGE, drawn.EDGE, 0, 0, drawn.EDGE, drawn.EDGE]], dtype=torch.float32)
    return size.expand(count, 6)


def encode(pipeline: DiffusionPipeline, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """(N, L, width) of the words, and (N, width) of the whole for an SDXL."""
    first = pipeline.text_encoder(_ids(pipeline.tokenizer, captions), output_hidden_states=True)
    if not isinstance(pipeline, StableDiffusionXLPipeline):
        return first.last_hidden_state, None
    second = pipeline.text_encoder_2(_ids(pipeline.tokenizer_2, captions), output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def flow_loss(pipeline: StableDiffusion3Pipeline, latents: Tensor, captions: Sequence[str]) -> Tensor:
    """Squared error of the predicted noise minus picture."""
    count = len(latents)
    even = ((torch.arange(count) + torch.rand(count)) / count)[torch.randperm(count)]
    sigma = torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))  # logit-normal, stratified
    sigma = shifted(sigma, pipeline.scheduler.config.shift)
    noise, mixed = torch.randn_like(latents), sigma.view(-1, 1, 1, 1)
    length = LENGTHS[int(torch.multinomial(torch.tensor(SHARES), 1))]
    words, pooled = encode_three(pipeline, captions, length)
    found = pipeline.transformer(
        hidden_states=(1 - mixed) * latents + mixed * noise, timestep=sigma * STEPS, encoder_hidden_states=words,
        pooled_projections=pooled,
    ).sample  # fmt: skip
    return F.mse_loss(found, noise - latents)


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Times moved towards noise as the scheduler moves its own."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def encode_three(pipeline: StableDiffusion3Pipeline, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Words of both CLIPs, widened, and of T5 padded to `length` behind them; both CLIPs' pooled."""
    first = pipeline.text_encoder(_ids(pipeline.tokenizer, captions), output_hidden_states=True)
    second = pipeline.text_encoder_2(_ids(pipeline.tokenizer_2, captions), output_hidden_states=True)
    third = pipeline.text_encoder_3(_ids(pipeline.tokenizer_3, captions, length))[0]
    words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    words = F.pad(words, (0, third.shape[-1] - words.shape[-1]))
    return torch.cat([words, third], 1), torch.cat([first.text_embeds, second.text_embeds], -1)


def _ids(tokenizer: Callable[..., dict[str, Tensor]], captions: Sequence[str], length: int = LENGTH) -> Tensor:
    told = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return told["input_ids"]
