"""Detectors in the shape of ultralytics' YOLO, written here: their package may not be linked with others'.

What they compute is what the models with these names compute, up to the choice among boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.case import Call, Case, image

LIBRARY = "detectors"
CLASSES, BINS = 5, 8
STRIDES = (8, 16, 32)
SIZE = 64


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inward: int, outward: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inward, outward, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outward, eps=1e-3)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class Split(nn.Module):
    """C2f: one half goes through bottlenecks, and all that they give is joined."""

    def __init__(self, inward: int, outward: int, *, shortcut: bool = False) -> None:
        super().__init__()
        self.half = outward // 2
        self.cv1, self.cv2 = Conv(inward, outward), Conv(3 * self.half, outward)
        self.m = nn.ModuleList([Bottleneck(self.half, shortcut=shortcut)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


class CrossStage(nn.Module):
    """C3 of version 5."""

    def __init__(self, inward: int, outward: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outward // 2
        self.cv1, self.cv2, self.cv3 = Conv(inward, half), Conv(inward, half), Conv(outward, outward)
        self.m = nn.Sequential(Bottleneck(half, shortcut=shortcut))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class PyramidPool(nn.Module):
    """SPPF."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        parts.extend(self.m(parts[-1]) for _ in range(3))
        return self.cv2(torch.cat(parts, 1))


class Attention(nn.Module):
    """Attention over places with a positional convolution, as versions 10 to 12 have it."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.key = self.size // 2
        self.qkv = Conv(width, width + 2 * self.key * heads)
        self.proj, self.pe = Conv(width, width), Conv(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, 2 * self.key + self.size, h * w)
        q, k, v = qkv.split([self.key, self.key, self.size], dim=2)
        weights = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(dim=-1)
        mixed = (v @ weights.transpose(-2, -1)).view(b, c, h, w)
        return x + self.proj(mixed + self.pe(v.reshape(b, c, h, w)))


class Body(nn.Module):
    """Backbone and the paths up and down: features at three strides."""

    def __init__(self, block: Callable[..., nn.Module], *, attention: bool = False, width: int = 8) -> None:
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width, 16 * width]
        self.stem = nn.Sequential(
            Conv(3, w[0], 3, 2), Conv(w[0], w[1], 3, 2), block(w[1], w[1], shortcut=True)
        )
        self.three = nn.Sequential(Conv(w[1], w[2], 3, 2), block(w[2], w[2], shortcut=True))
        self.four = nn.Sequential(Conv(w[2], w[3], 3, 2), block(w[3], w[3], shortcut=True))
        last = [Attention(w[4])] if attention else []
        self.five = nn.Sequential(
            Conv(w[3], w[4], 3, 2), block(w[4], w[4], shortcut=True), PyramidPool(w[4]), *last
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up_four, self.up_three = block(w[4] + w[3], w[3]), block(w[3] + w[2], w[2])
        self.down_four, self.down_five = Conv(w[2], w[2], 3, 2), Conv(w[3], w[3], 3, 2)
        self.out_four, self.out_five = block(w[2] + w[3], w[3]), block(w[3] + w[4], w[4])
        self.widths = w[2:]

    def forward(self, x: Tensor) -> list[Tensor]:
        three = self.three(self.stem(x))
        four = self.four(three)
        five = self.five(four)
        four = self.up_four(torch.cat((self.up(five), four), 1))
        three = self.up_three(torch.cat((self.up(four), three), 1))
        four = self.out_four(torch.cat((self.down_four(three), four), 1))
        five = self.out_five(torch.cat((self.down_five(four), five), 1))
        return [three, four, five]


def centers(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Centers of all cells, and their strides."""
    points, strides = [], []
    for feature, stride in zip(features, STRIDES, strict=True):
        h, w = feature.shape[-2:]
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        strides.append(torch.full((h * w, 1), float(stride)))
    return torch.cat(points).transpose(0, 1), torch.cat(strides).transpose(0, 1)


class Distances(nn.Module):
    """The head without anchors: distances to four sides as distributions over bins."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()

        def branch(inward: int, outward: int) -> nn.Module:
            return nn.Sequential(Conv(inward, 16, 3), Conv(16, 16, 3), nn.Conv2d(16, outward, 1))

        self.boxes = nn.ModuleList(branch(w, 4 * BINS) for w in widths)
        self.classes = nn.ModuleList(branch(w, CLASSES) for w in widths)
        self.register_buffer(
            "bins", torch.arange(BINS, dtype=torch.float).view(1, BINS, 1, 1), persistent=False
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        batch = features[0].shape[0]
        boxes = torch.cat([f(x).flatten(2) for f, x in zip(self.boxes, features, strict=True)], 2)
        classes = torch.cat([f(x).flatten(2) for f, x in zip(self.classes, features, strict=True)], 2)
        chances = boxes.view(batch, 4, BINS, -1).transpose(1, 2).softmax(1)
        left_top, right_bottom = functional.conv2d(chances, self.bins).squeeze(1).chunk(2, 1)
        points, strides = centers(features)
        first, second = points - left_top, points + right_bottom
        sides = torch.cat(((first + second) / 2, second - first), 1) * strides
        return torch.cat((sides, classes.sigmoid()), 1)


class Anchors(nn.Module):
    """The head of version 5: three boxes in each cell."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(w, 3 * (5 + CLASSES), 1) for w in widths)
        sizes = torch.tensor([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326])
        self.register_buffer("anchors", sizes.float().view(3, 1, 3, 1, 1, 2))

    def forward(self, features: list[Tensor]) -> Tensor:
        found = []
        for layer, anchors, stride, x in zip(self.m, self.anchors, STRIDES, features, strict=True):
            b, _, h, w = x.shape
            y = layer(x).view(b, 3, 5 + CLASSES, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            cell = torch.stack((columns, rows), 2).expand(1, 3, h, w, 2).float() - 0.5
            y[..., 0:2] = (y[..., 0:2] * 2 + cell) * stride
            y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * anchors
            found.append(y.view(b, -1, 5 + CLASSES))
        return torch.cat(found, 1)


class Best(nn.Module):
    """The end of version 10: the best boxes without suppression."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.head = Distances(widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        boxes, scores = self.head(features).transpose(1, 2).split([4, CLASSES], -1)
        _, places = scores.amax(-1).topk(10)
        chosen = torch.cat((boxes, scores), -1)
        return chosen.gather(1, places.unsqueeze(-1).expand(-1, -1, 4 + CLASSES))


class Masks(nn.Module):
    """Boxes, and masks as sums of prototypes."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.head = Distances(widths)
        self.coefficients = nn.ModuleList(nn.Conv2d(w, 6, 1) for w in widths)
        self.prototypes = nn.Sequential(
            Conv(widths[0], 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), Conv(8, 8, 3), Conv(8, 6)
        )

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        how = torch.cat([f(x).flatten(2) for f, x in zip(self.coefficients, features, strict=True)], 2)
        kinds = self.prototypes(features[0])
        masks = (how.transpose(1, 2) @ kinds.flatten(2)).sigmoid()
        return self.head(features), masks.view(*masks.shape[:2], *kinds.shape[-2:])


class Detector(nn.Module):
    def __init__(self, body: Body, head: Callable[[list[int]], nn.Module]) -> None:
        super().__init__()
        self.body, self.head = body, head(body.widths)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.head(self.body(images))


def detector(
    block: Callable[..., nn.Module], head: Callable[[list[int]], nn.Module], *, attention: bool = False
) -> Callable[[], Call]:
    return lambda: Call(Detector(Body(block, attention=attention), head), (image(SIZE),))


def cases() -> list[Case]:
    models = {
        "YOLOv5-like": detector(CrossStage, Anchors),
        "YOLOv8-like": detector(Split, Distances),
        "YOLOv8-like, masks": detector(Split, Masks),
        "YOLOv10-like": detector(Split, Best, attention=True),
        "YOLO11-like": detector(Split, Distances, attention=True),
    }
    return [Case(LIBRARY, "YOLO", name, make) for name, make in models.items()]
