"""DreamBooth's class pictures: what keeps a model from forgetting the class while it learns the subject.

Every picture of the subject gets all class pictures beside it, of which one is drawn each time it is seen (Ruiz et al.
2023, section 4.2: prior preservation). Those missing are drawn by the model elsewhere; here they are counted and read.
"""

from __future__ import annotations

import os

from anymix.data.captions import Rows, read
from anymix.data.folders import scan


def class_rows(rows: Rows, folder: str | None = None, prompt: str = "") -> Rows:
    """The class pictures that came along with `rows` (kohya's regularisation folders), then those of a folder.

    `prompt` is said of those without a caption. None where neither has any: a folder may be yet to be drawn into.
    Raises ValueError for pictures in the folder without a prompt."""
    classes = rows.classes.saying(prompt) if prompt else rows.classes
    if folder is None or not os.path.isdir(folder) or not scan(folder).pictures:
        return classes
    if not prompt:
        raise ValueError("dreambooth.class_prompt is not set; say what the class is called, such as: a photo of a dog")
    return classes.joined(read(folder, caption=prompt))


def missing(classes: Rows, wanted: int) -> int:
    """How many class pictures are to be drawn until there are `wanted`."""
    return max(0, wanted - len(classes))


def with_prior(rows: Rows, classes: Rows, weight: float = 1.0) -> Rows:
    """The same rows with all class pictures beside each: every row shares one tuple of them.

    `weight` is that of a class picture against the subject's. Raises ValueError where there are no class pictures,
    and SampleError for one without a caption: check them first."""
    if not len(classes):
        raise ValueError(
            "there are no class pictures; give dreambooth.class_path a folder of them, or let anymix draw them"
        )
    return rows.with_prior(tuple(classes), weight)
