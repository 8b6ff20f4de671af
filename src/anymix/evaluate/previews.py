"""What previews of a run are like: broken ones named, copies of training pictures found, sharpness and colour measured.

Cost: no forward. The training pictures are read once, 1,000 of them at most, into thumbnails of 3 KB a view.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anymix.data.images import open_image
from anymix.data.views import View, views
from anymix.evaluate import pictures, sets
from anymix.evaluate.looking import Setting, finite, spread
from anymix.families.contract import Family
from anymix.samples import Caption, SampleError
from anymix.train.checks import Check, Checked
from anymix.train.metrics import Picture

INDEXED = 1_000  # training pictures; of more, so many from all over the list

OF_ONE = {
    "sharpness": pictures.sharpness,
    "colourfulness": pictures.colourfulness,
    "clipping": pictures.clipping,
    "entropy": pictures.entropy,
}


@dataclass(frozen=True)
class Index:
    """Thumbnails (N, 32, 32, 3) of training pictures as they are trained on, and whose each is."""

    keys: Sequence[str]
    thumbnails: NDArray[np.uint8]

    def nearest(self, picture: Image.Image) -> tuple[float, str]:
        """Distance 0..1 to the nearest training picture, mirrored or not, and its key."""
        found = sets.distances(sets.thumbnail(picture), self.thumbnails)
        place = int(found.argmin())
        return float(found[place]), self.keys[place]


def index(setting: Setting) -> Index:
    """Of every view of the rows it trains on, but of no class pictures, which a model drew itself.

    Raises SampleError for a picture that cannot be read."""
    keys: list[str] = []
    found: list[NDArray[np.uint8]] = []
    for row in spread(setting.rows, INDEXED):
        thumbnails = _thumbnails(row, setting)
        keys += [row.key] * len(thumbnails)
        found += thumbnails
    return Index(keys, np.stack(found))


def _thumbnails(row: Caption, setting: Setting) -> list[NDArray[np.uint8]]:
    image = open_image(row.image, row.key)
    return [sets.thumbnail(image, _box(view)) for view in views(row, image.size, setting.look) if not view.flip]


def _box(view: View) -> tuple[float, float, float, float]:
    """What a view keeps, in pixels of the picture as opened."""
    across, down = view.original[0] / view.scaled[0], view.original[1] / view.scaled[1]
    right, bottom = min(view.original[0], (view.left + view.size[0]) * across), (view.top + view.size[1]) * down
    return view.left * across, view.top * down, right, min(view.original[1], bottom)


def judged(make: Check, setting: Setting) -> Check:
    """The check that draws previews, and of what it drew: `previews/broken` (not finite, black, of one colour; each is
    said), `previews/copies` and `previews/nearest` (share of copies, distance 0..1 to the nearest training picture),
    `previews/diversity` (among those of one caption), and means of sharpness and its like, broken ones left out."""
    trained: Index | None = None
    failed = False

    def check(family: Family, out: Path, step: int) -> Checked:
        nonlocal trained, failed
        made = make(family, out, step)
        if made.pictures and trained is None and not failed:
            try:
                trained = index(setting)
            except SampleError as error:
                failed = True
                setting.say(f"copies of training pictures are not looked for: {error}")
        values = judge(made.pictures, trained, step, setting)
        return Checked({**made.values, **finite(values, step, setting.say)}, made.pictures)

    return check


def judge(shown: Mapping[str, Picture], trained: Index | None, step: int, setting: Setting) -> dict[str, float]:
    """The values of `judged` for pictures that lie there."""
    opened = {name: _open(picture.path) for name, picture in shown.items()}
    broken = {name: fault for name, image in opened.items() if (fault := pictures.faults(pictures.floats(image)))}
    for name, fault in broken.items():
        setting.say(f"step {step}: the preview {name} is {fault} ({shown[name].path}); training goes on")
    sound = {name: image for name, image in opened.items() if name not in broken}
    values = {"previews/broken": float(len(broken))} if shown else {}
    if not sound:
        return values
    arrays = [pictures.floats(image) for image in sound.values()]
    means = {f"previews/{name}": statistics.fmean(map(measure, arrays)) for name, measure in OF_ONE.items()}
    return values | means | _copies(sound, trained, step, setting) | _diversity(sound, shown)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        picture: Image.Image = image.convert("RGB")
    return picture


def _copies(sound: Mapping[str, Image.Image], trained: Index | None, step: int, setting: Setting) -> dict[str, float]:
    if trained is None:
        return {}
    nearest = {name: trained.nearest(image) for name, image in sound.items()}
    copies = [name for name, (distance, _) in nearest.items() if distance < sets.COPY]
    if copies:
        distance, key = nearest[copies[0]]
        more = f", as are {len(copies) - 1} more of {len(sound)}" if len(copies) > 1 else ""
        setting.say(f"step {step}: the preview {copies[0]} is a copy of {key} (distance {distance:.3f}){more}")
    return {
        "previews/copies": len(copies) / len(sound),
        "previews/nearest": min(distance for distance, _ in nearest.values()),
    }


def _diversity(sound: Mapping[str, Image.Image], shown: Mapping[str, Picture]) -> dict[str, float]:
    of_caption: dict[str, list[Image.Image]] = {}
    for name, image in sound.items():
        of_caption.setdefault(shown[name].caption, []).append(image)
    found = [value for images in of_caption.values() if (value := sets.diversity(images)) is not None]
    return {"previews/diversity": statistics.fmean(found)} if found else {}
