"""How well and how fast faces are found: ``python -m benchmarks.faces`` with RAY_FER_FACES naming the real face sets.

Crops from news photographs are pasted, as squares with hard edges, into photos of 1280 x 960 pixels, upright and turned
by 20 degrees. A face counts as found where the centre is off by less than a fifth of the crop's side.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ray_fer.data.crop import Picture
from ray_fer.data.decode import decode
from ray_fer.models.face_detector import FaceDetector

WIDTH, HEIGHT = 1280, 960
SIDES = (48, 64, 96, 128, 256, 512, 900)
ANGLES = (0, 20)
FACES = 100


def pasted(crop: Image.Image, side: int, angle: int, rng: np.random.Generator) -> tuple[bytes, complex]:
    """A photo, encoded, and where the face's centre is."""
    wall = Image.fromarray(rng.integers(60, 200, (9, 12, 3), np.uint8)).resize((WIDTH, HEIGHT))
    square = crop.resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
    square = square.rotate(-angle, Image.Resampling.BICUBIC, expand=True)
    x, y = (int(rng.integers(0, max(1, edge - square.width))) for edge in (WIDTH, HEIGHT))
    wall.paste(square, (x, y), square)
    buffer = io.BytesIO()
    wall.save(buffer, "JPEG", quality=92)
    return buffer.getvalue(), complex(x + square.width / 2, y + square.height / 2)


def main() -> None:
    """Prints a JSON object for each size and angle, and one with the time that a photo takes."""
    sets = os.environ.get("RAY_FER_FACES")
    if sets is None:
        sys.exit("RAY_FER_FACES has to name the folder of the real face sets")
    column = pq.ParquetFile(Path(sets, "lfw_unlabeled.parquet")).read(["image"])["image"]
    rng = np.random.default_rng(0)
    chosen = [column[number].as_py() for number in rng.choice(len(column), FACES, replace=False).tolist()]
    crops = [Image.open(io.BytesIO(data)).convert("RGB") for data in chosen]
    detector = FaceDetector()
    for side in SIDES:
        for angle in ANGLES:
            found, others, angles = 0, 0, []
            for crop in crops:
                data, centre = pasted(crop, side, angle, rng)
                faces = detector(Picture(data))
                mine = [face for face in faces if abs(complex(face.cx, face.cy) - centre) < side / 5]
                found += bool(mine)
                others += len(faces) - len(mine)
                angles += [face.angle for face in mine]
            turned = round(float(np.median(angles)), 1) if angles else None
            row = {"side": side, "angle": angle, "recall": found / FACES, "false": others, "median_angle": turned}
            print(json.dumps(row), flush=True)
    for faces_in_it in (0, 1, 3):
        wall = Image.new("RGB", (WIDTH, HEIGHT), (120, 130, 120))
        for number in range(faces_in_it):
            wall.paste(crops[number].resize((250, 250)), (60 + 400 * number, 300))
        buffer = io.BytesIO()
        wall.save(buffer, "JPEG", quality=92)
        data, out = buffer.getvalue(), np.empty((112, 112, 3), np.uint8)
        times = []
        for _ in range(20):
            started = time.process_time()
            picture = Picture(data)
            for face in detector(picture):
                picture.cut_into(face, out)
            between = time.process_time()
            decode(data, 112)
            times.append((between - started, time.process_time() - between))
        with_faces, whole = np.median(times, axis=0) * 1e3
        print(json.dumps({"faces": faces_in_it, "ms": round(with_faces, 1), "ms_whole_picture": round(whole, 1)}))


if __name__ == "__main__":
    main()
