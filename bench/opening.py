"""What opening a model folder costs in memory: anonymous bytes (ours) and pages of files (the system's, reclaimable).

    python bench/opening.py FOLDER [--dtype fp32|bf16] [--touch] [--image-token-id N]

--dtype converts every weight, --touch writes to every weight. Prints one JSON line. Linux only (/proc/self/status).
MALLOC_MMAP_THRESHOLD_=65536 in the environment makes glibc give freed memory back, so that the peak is the peak.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

from anymix.families.internvl2 import weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, None: None}


def resident(kind: str) -> int:
    """Bytes of RssAnon or RssFile."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--dtype", choices=["fp32", "bf16"])
    parser.add_argument("--touch", action="store_true")
    parser.add_argument("--image-token-id", type=int)
    parser.add_argument("--warm", help="a small folder opened first, so that imports are not counted")
    words = parser.parse_args()
    if words.warm:
        weights.load(words.warm, image_token_id=words.image_token_id)
    start, peak, done = resident("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident("RssAnon"))
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    net = weights.load(words.folder, dtype=DTYPES[words.dtype], image_token_id=words.image_token_id)
    if words.touch:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2)
    seconds = time.perf_counter() - began
    done.set()
    thread.join()
    size = sum(p.nbytes for p in net.parameters())
    found = {
        "weights": size,
        "peak_anonymous": max(peak, resident("RssAnon")) - start,
        "file_pages": resident("RssFile"),
    }
    print(json.dumps({**found, "ratio": round(found["peak_anonymous"] / size, 4), "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
