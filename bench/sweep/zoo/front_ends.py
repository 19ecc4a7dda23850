"""Front ends of sound as torchaudio has them, from PyTorch's own operators, each in front of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.case import Call, Case, numbers

LIBRARY = "front ends"
RATE, FFT, HOP, MELS, LENGTH = 8000, 128, 32, 16, 640
BINS = FFT // 2 + 1


def mel_filters(bins: int = BINS, mels: int = MELS, rate: int = RATE) -> Tensor:
    """Triangles at equal distances on the mel scale: bins x mels."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2) / 2595) - 1)
    slopes = edges.unsqueeze(0) - torch.linspace(0, rate / 2, bins).unsqueeze(1)
    width = edges[1:] - edges[:-1]
    down, up = -slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]
    return torch.minimum(down, up).clamp(min=0)


def cosines(count: int = 8, mels: int = MELS) -> Tensor:
    """The discrete cosine transform: mels x count, orthonormal."""
    places = torch.arange(mels).float() + 0.5
    table = torch.cos(math.pi / mels * places.unsqueeze(1) * torch.arange(count)) * math.sqrt(2 / mels)
    table[:, 0] *= math.sqrt(0.5)
    return table


class Spectrogram(nn.Module):
    def __init__(self, power: float | None = 2.0, *, center: bool = True, normalized: bool = False) -> None:
        super().__init__()
        self.power, self.center, self.normalized = power, center, normalized
        self.register_buffer("window", torch.hann_window(FFT))

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave,
            FFT,
            HOP,
            window=self.window,
            center=self.center,
            normalized=self.normalized,
            return_complex=True,
        )
        return torch.view_as_real(spectrum) if self.power is None else spectrum.abs().pow(self.power)


class MelSpectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spectrogram = Spectrogram()
        self.register_buffer("filters", mel_filters())

    def forward(self, wave: Tensor) -> Tensor:
        return (self.spectrogram(wave).transpose(-1, -2) @ self.filters).transpose(-1, -2)


class Decibels(nn.Module):
    """With the range of 80 dB below the loudest."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram()

    def forward(self, wave: Tensor) -> Tensor:
        loud = 10 * torch.log10(self.mel(wave).clamp(min=1e-10))
        return torch.maximum(loud, loud.amax((-2, -1), keepdim=True) - 80)


class Cepstrum(nn.Module):
    """MFCC."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = Decibels()
        self.register_buffer("cosines", cosines(MELS))

    def forward(self, wave: Tensor) -> Tensor:
        return (self.loud(wave).transpose(-1, -2) @ self.cosines).transpose(-1, -2)


class WhisperMel(nn.Module):
    """The last frame is left out, and the range is compressed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT))
        self.register_buffer("filters", mel_filters().transpose(0, 1).contiguous())

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, FFT, HOP, window=self.window, return_complex=True)
        mel = self.filters @ spectrum[..., :-1].abs() ** 2
        loud = mel.clamp(min=1e-10).log10()
        return (torch.maximum(loud, loud.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class KaldiBanks(nn.Module):
    """Frames with pre-emphasis, a power spectrum by `rfft`, log of filter banks, mean over time taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT, periodic=False).pow(0.85))
        self.register_buffer("filters", mel_filters())

    def forward(self, wave: Tensor) -> Tensor:
        frames = wave.unfold(-1, FFT, HOP)
        frames = frames - frames.mean(-1, keepdim=True)
        before = functional.pad(frames, (1, 0), mode="replicate")[..., :-1]
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.window)
        energies = (spectrum.abs() ** 2 @ self.filters).clamp(min=1e-10).log()
        return (energies - energies.mean(1, keepdim=True)).transpose(-1, -2)


class Resample(nn.Module):
    """From 3 to 2 samples by windowed sines, as one convolution with a stride; then a spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        width = 9
        times = (torch.arange(-width, width + 3).float() / 3 - torch.arange(2).float().unsqueeze(1) / 2) * 1.9
        kernel = torch.sinc(times) * torch.cos(times * math.pi / 26).square()
        self.width = width
        self.register_buffer("kernel", (kernel * 1.9 / 3).unsqueeze(1))
        self.spectrogram = Spectrogram(power=1.0, center=False)

    def forward(self, wave: Tensor) -> Tensor:
        padded = functional.pad(wave, (self.width, self.width + 3)).unsqueeze(1)
        return self.spectrogram(functional.conv1d(padded, self.kernel, stride=3).transpose(1, 2).flatten(1))


class Deltas(nn.Module):
    """Differences over time beside the cepstrum."""

    def __init__(self) -> None:
        super().__init__()
        self.cepstrum = Cepstrum()
        self.register_buffer("kernel", torch.arange(-2, 3).float().repeat(MELS, 1, 1) / 10)

    def forward(self, wave: Tensor) -> Tensor:
        found = self.cepstrum(wave)
        padded = functional.pad(found, (2, 2), mode="replicate")
        return torch.cat((found, functional.conv1d(padded, self.kernel, groups=MELS)), 1)


class ChannelEnergy(nn.Module):
    """Energies normalized by what came before them (PCEN), smoothed over frames one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram()
        self.alpha = nn.Parameter(torch.full((MELS, 1), 0.9))
        self.delta = nn.Parameter(torch.full((MELS, 1), 2.0))

    def forward(self, wave: Tensor) -> Tensor:
        mel = self.mel(wave)
        smooth = [mel[..., 0]]
        for frame in mel.unbind(-1)[1:]:
            smooth.append(0.975 * smooth[-1] + 0.025 * frame)
        level = torch.stack(smooth, -1)
        delta = self.delta.abs()
        return (mel / (level + 1e-6) ** self.alpha + delta).sqrt() - delta.sqrt()


class WithLayer(nn.Module):
    def __init__(self, front: nn.Module, width: int) -> None:
        super().__init__()
        self.front, self.layer = front, nn.Conv1d(width, 8, 3, padding=1)

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        found = self.front(wave)
        return found, self.layer(found)


class PhaseLayer(nn.Module):
    """A layer on real and imaginary parts."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.layer = Spectrogram(power=None, normalized=True), nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, wave: Tensor) -> Tensor:
        return self.layer(self.front(wave).permute(0, 3, 1, 2))


class Enhance(nn.Module):
    """A mask on the spectrum, and back to a wave by the inverse transform."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT))
        self.layer = nn.Conv1d(BINS, BINS, 3, padding=1)

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, FFT, HOP, window=self.window, return_complex=True)
        masked = spectrum * self.layer(spectrum.abs()).sigmoid()
        return torch.istft(masked, FFT, HOP, window=self.window, length=wave.shape[-1])


def front(make: Callable[[], nn.Module], width: int) -> Callable[[], Call]:
    return lambda: Call(WithLayer(make(), width), (numbers(2, LENGTH),))


def cases() -> list[Case]:
    models: dict[str, Callable[[], Call]] = {
        "spectrogram": front(Spectrogram, BINS),
        "spectrogram, magnitudes, not centered": front(lambda: Spectrogram(1.0, center=False), BINS),
        "spectrogram, complex": lambda: Call(PhaseLayer(), (numbers(2, LENGTH),)),
        "mel spectrogram": front(MelSpectrogram, MELS),
        "decibels": front(Decibels, MELS),
        "MFCC": front(Cepstrum, MELS),
        "MFCC with differences": front(Deltas, 2 * MELS),
        "mel of Whisper": front(WhisperMel, MELS),
        "filter banks of Kaldi": front(KaldiBanks, MELS),
        "resampling": front(Resample, BINS),
        "PCEN": front(ChannelEnergy, MELS),
        "mask and inverse STFT": lambda: Call(Enhance(), (numbers(2, LENGTH),)),
    }
    return [Case(LIBRARY, "torch", name, make) for name, make in models.items()]
