"""Dialled numbers made by arithmetic: the two tones of each key in noise, and a network that reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import Dataset
from torchmetrics import Metric

KEYS = "123456789*0#"  # key k is class k + 1; 0 is CTC's blank
LOW, HIGH = torch.tensor([697.0, 770, 852, 941]), torch.tensor([1209.0, 1336, 1477])  # hertz (ITU-T Q.23)
RATE, FRAME = 8000, 256  # samples a second; samples of a frame, of which each shares a half with the next
NOISE = 2.0  # the noise's standard deviation; a tone's amplitude is 1
Sample = tuple[Tensor, Tensor]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class Calls(Dataset[Sample]):
    """Four to ten keys, each 40 to 120 ms long, with as long a pause or none; in noise of four times their power.

    Args:
        samples: How many calls.
        seed: Another seed is another set of calls.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        """A call's waveform [T] and its keys as classes [K]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + index)
        keys = torch.randint(12, (int(torch.randint(4, 11, (), generator=generator)),), generator=generator)
        pieces = []
        for key in keys:
            tone, pause = (torch.randint(low, 960, (), generator=generator) for low in (320, 160))
            angle = 2 * torch.pi * torch.arange(int(tone)) / RATE
            pieces += [(LOW[key // 3] * angle).sin() + (HIGH[key % 3] * angle).sin(), torch.zeros(int(pause))]
        wave = torch.cat(pieces)
        return wave + NOISE * torch.randn(len(wave), generator=generator), keys + 1


def padded(samples: Sequence[Sample]) -> Batch:
    """A batch: waveforms [N, T], keys [N, K], and how many frames and keys each call has."""
    waves, keys = ([sample[part] for sample in samples] for part in (0, 1))
    frames = torch.tensor([2 * len(wave) // FRAME - 1 for wave in waves])
    return pad_sequence(waves, True), pad_sequence(keys, True), frames, torch.tensor([len(one) for one in keys])


class Listener(nn.Module):
    """A spectrogram, a convolution, and a GRU in both directions; what a call is padded with changes nothing."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME), persistent=False)
        self.window: Tensor
        self.convolution = nn.Conv1d(FRAME // 4, width, kernel_size=3, padding=1)
        self.recurrent = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 1 + len(KEYS))

    def forward(self, waves: Tensor, frames: Tensor) -> Tensor:
        """Maps waveforms [N, T] and their frames [N] to log-probabilities [frames, N, 13], as CTCLoss wants them."""
        framed = waves.unfold(1, FRAME, FRAME // 2) * self.window
        spectrum = torch.fft.rfft(framed).abs()[..., : FRAME // 4]  # up to 2 kHz
        is_heard = torch.arange(framed.shape[1], device=waves.device) < frames[:, None]
        loudness = (1 + spectrum).log() * is_heard[..., None]
        x = self.convolution(loudness.transpose(1, 2)).relu().transpose(1, 2)
        packed = pack_padded_sequence(x, frames.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        scores: Tensor = self.head(x).log_softmax(-1)
        return scores.transpose(0, 1)


class KeyErrorRate(Metric):
    """Keys to put in, take out or replace, over all keys."""

    wrong: Tensor
    all: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("wrong", "all"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, keys: Tensor, frames: Tensor, counts: Tensor) -> None:
        """Reads each call as the best class of each frame, told once while it lasts, without blanks."""
        best = scores.argmax(-1).T
        for row, call in enumerate(best):
            told = torch.unique_consecutive(call[: frames[row]])
            self.wrong += distance(told[told > 0].tolist(), keys[row, : counts[row]].tolist())
        self.all += counts.sum()

    def compute(self) -> Tensor:
        """The share of all batches."""
        return self.wrong / self.all


def distance(told: Sequence[int], true: Sequence[int]) -> int:
    """Levenshtein's."""
    row = list(range(len(true) + 1))
    for number, key in enumerate(told, start=1):
        above, row = row, [number]
        for column, other in enumerate(true):
            row.append(min(above[column] + (key != other), above[column + 1] + 1, row[column] + 1))
    return row[-1]


def baseline() -> float:
    """The key error rate of who takes the loudest of each group of tones in each frame, where both are loud."""
    return min(_loudest(threshold) for threshold in range(20, 100, 5))


def _loudest(threshold: float) -> float:
    rate, window = KeyErrorRate(), torch.hann_window(FRAME)
    for wave, keys in map(Calls(samples=200, seed=2).__getitem__, range(200)):
        spectrum = torch.fft.rfft(wave.unfold(0, FRAME, FRAME // 2) * window).abs()
        low, high = (spectrum[:, (hertz * FRAME / RATE).round().long()].max(1) for hertz in (LOW, HIGH))
        classes = torch.where(torch.minimum(low[0], high[0]) > threshold, 3 * low[1] + high[1] + 1, 0)
        scores = nn.functional.one_hot(classes, 13)[:, None]
        rate.update(scores, keys[None], torch.tensor([len(classes)]), torch.tensor([len(keys)]))
    return float(rate.compute())


if __name__ == "__main__":
    print(f"key error rate of the loudest tones: {baseline():.3f}")
