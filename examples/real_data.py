"""Real inputs that ship inside installed packages: photographs (scikit-image) and English prose (Python).

Nothing is downloaded: the pictures are read from the folder that scikit-image installs, not through
`skimage.data`, which fetches what the wheel leaves out.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# The pictures of the wheel that a vision encoder can be asked about: scenes, textures, science.
PICTURES = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "photographer": "camera.png",
    "coins": "coins.png",
    "clock": "clock_motion.png",
    "galaxies": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "tissue": "ihc.png",
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "page": "page.png",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # what DINOv2 and most timm models were trained with
IMAGENET_STD = (0.229, 0.224, 0.225)


def picture(name: str) -> Image.Image:
    """One of `PICTURES`, as RGB."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "scikit-image is not installed: pip install 'tersor[models]'", name="skimage"
        )
    with Image.open(Path(spec.origin).parent / "data" / PICTURES[name]) as image:
        return image.convert("RGB")


def photographs(
    size: int = 224, crops: int = 1, names: Sequence[str] = tuple(PICTURES), seed: int = 0
) -> torch.Tensor:
    """Normalised crops, float32 `[len(names) * crops, 3, size, size]`; see `photograph_crops`."""
    return photograph_crops(size, crops, names, seed)[0]


def photograph_crops(
    size: int = 224, crops: int = 1, names: Sequence[str] = tuple(PICTURES), seed: int = 0
) -> tuple[torch.Tensor, list[str]]:
    """Crops `[len(names) * crops, 3, size, size]`, and for each the name of the picture it is from.

    A picture's crops lie side by side.  Its first is the central square; the others are random squares of 40 to
    90% of the shorter side, half of them mirrored.  The same arguments give the same crops everywhere.
    """
    pixels, labels = [], []
    for number, name in enumerate(names):
        image = picture(name)
        rng = np.random.default_rng([seed, number])
        for index in range(crops):
            pixels.append(normalise(_crop(image, size, None if index == 0 else rng)))
            labels.append(name)
    return torch.stack(pixels), labels


def _crop(image: Image.Image, size: int, rng: np.random.Generator | None) -> Image.Image:
    width, height = image.size
    side = float(min(width, height))
    left, top = (width - side) / 2, (height - side) / 2
    if rng is not None:
        side *= rng.uniform(0.4, 0.9)
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        if rng.random() < 0.5:
            image, left = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), width - left - side
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def normalise(image: Image.Image) -> torch.Tensor:
    """RGB image -> float32 `[3, h, w]`, ImageNet mean and deviation taken out."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std).contiguous()


def prose(min_chars: int = 200) -> list[tuple[str, str]]:
    """Sections of the Python language manual, `(title, text)`; see `prose_sections`."""
    return [(title, text) for title, text, _ in prose_sections(min_chars)]


def prose_sections(min_chars: int = 200) -> list[tuple[str, str, str]]:
    """Sections of the Python language manual, `(title, text, page)`, titles unique, in a fixed order.

    The text is the section's own, without its title and without its sub-sections, so that finding the title of a
    text is a retrieval task with one right answer; the page is the first one that has it.  How many there are depends
    a little on the Python version.
    """
    from pydoc_data.topics import topics

    sections: dict[str, tuple[str, str]] = {}
    for page in sorted(topics):
        for title, text in _sections(topics[page]):
            if len(text) >= min_chars:
                sections.setdefault(title, (text, page))
    # The manual prints some sections under two topics: one text must not be the answer to two titles.
    unique = {text: title for title, (text, _) in reversed(sections.items())}
    return [(title, text, page) for title, (text, page) in sections.items() if unique[text] == title]


_HEADING = re.compile(r"^(?P<title>\S.*)\n(?P<line>([*=\-^\"~])\3{3,})$", re.MULTILINE)


def _sections(text: str) -> list[tuple[str, str]]:
    found = [m for m in _HEADING.finditer(text) if len(m["line"]) >= len(m["title"])]
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        (match["title"].replace('"', ""), text[match.end() : end].strip())
        for match, end in zip(found, ends, strict=True)
    ]
