"""A whole synthetic study on disk or in a bucket: the labelled photos, unlabeled buckets and clips that `plan` lists.

Every picture has its own random stream, derived from the seed, its set and its number: the result does not depend on
how many processes draw it. A picture takes about 4 ms of a core, JPEG and file included; a remote store adds latency.
"""

import io
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ray_fer import storage
from ray_fer.errors import UserError
from ray_fer.interruption import shielded_children
from ray_fer.synthetic.action_units import sample_action_units
from ray_fer.synthetic.clips import draw_clip
from ray_fer.synthetic.config import DrawFacesConfig
from ray_fer.synthetic.face import render_face
from ray_fer.synthetic.identity import draw_identity
from ray_fer.synthetic.nuisance import draw_nuisance, encode_jpeg
from ray_fer.synthetic.plan import CLASSES, Film, Picture, identity_stream, next_subject, plan_films, plan_pictures

CLIP_FPS = 15
_POOL_FROM = 300
"""Pictures below which starting processes costs more than it saves."""

_CHUNK = 64


def _draw_pictures(config: DrawFacesConfig, pictures: Sequence[Picture]) -> None:
    """Draw and write a chunk of photos."""
    for picture in pictures:
        rng = np.random.default_rng(picture.stream)
        identity = draw_identity(identity_stream(config, picture.subject))
        vector = sample_action_units(picture.label, rng, difficulty=config.difficulty)
        nuisance = draw_nuisance(rng, config.difficulty, picture.style)
        image = render_face(identity, vector, nuisance, config.image_size)
        storage.write_bytes(storage.join(config.out, picture.path), encode_jpeg(image, nuisance.jpeg_quality))


def _draw_film(config: DrawFacesConfig, film: Film) -> tuple[str, ...]:
    """Draw and write a clip; returns the labels of its frames."""
    clip = draw_clip(
        draw_identity(identity_stream(config, film.subject)),
        np.random.default_rng(film.stream),
        classes=CLASSES,
        frames=config.clip_frames,
        fps=CLIP_FPS,
        size=config.image_size,
        difficulty=config.difficulty,
    )
    storage.write_bytes(storage.join(config.out, film.path), encode_mp4(clip.frames, CLIP_FPS))
    return clip.labels


def encode_mp4(frames: NDArray[np.uint8], fps: int) -> bytes:
    """Compress frames, uint8 RGB of shape (T, H, W, 3), H and W even, to H.264 in MP4: the same bytes every time."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # One thread: x264's frame threading may change the result.
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write_csv(config: DrawFacesConfig, name: str, header: str, rows: Sequence[tuple[object, ...]]) -> str:
    """Write `name`.csv and return its URI."""
    uri = storage.join(config.out, f"{name}.csv")
    lines = [header, *(",".join(str(value) for value in row) for row in rows)]
    storage.write_bytes(uri, ("\n".join(lines) + "\n").encode())
    return uri


def _subject(number: int) -> str:
    return f"s{number:05d}"


def _write_manifests(
    config: DrawFacesConfig,
    sets: Mapping[str, Sequence[Picture]],
    films: Mapping[str, Sequence[Film]],
    frame_labels: Mapping[str, tuple[str, ...]],
) -> dict[str, str]:
    """Write every CSV; the URIs of the manifests by name, without the buckets' true labels."""
    manifests = {}
    for name, pictures in sets.items():
        if name.startswith("bucket"):
            _write_csv(config, f"{name}.truth", "path,label", [(p.path, p.label) for p in pictures])
        elif pictures:
            rows = [(p.path, p.label, _subject(p.subject)) for p in pictures]
            manifests[name] = _write_csv(config, name, "path,label,subject", rows)
    for split, members in films.items():
        if members:
            frames = [
                (film.path, frame, label, _subject(film.subject))
                for film in members
                for frame, label in enumerate(frame_labels[film.path])
            ]
            name = f"clips-{split}"
            manifests[name] = _write_csv(config, name, "path,frame,label,subject", frames)
    return manifests


def draw_faces(config: DrawFacesConfig, *, workers: int | None = None) -> dict[str, Any]:
    """Draw the whole study.

    It writes, under `config.out`:

    - `labeled/`, `val/`, `test/` with `labeled.csv`, `val.csv`, `test.csv` (path, label, subject);
    - `bucket-a/`, `bucket-b/`, ... with JPEGs in subfolders and, beside each, `bucket-a.truth.csv` (path, label), which
      is for measuring only;
    - `clips/*.mp4` with `clips-train.csv`, `clips-val.csv`, `clips-test.csv` (path, frame, label, subject: a row per
      frame).

    Manifests are written last. Paths are relative to `config.out`.

    Args:
        config: What is drawn and where; files of the same name are replaced. Equal configs give equal files.
        workers: Number of processes; None is one per core.

    Returns:
        `out`, `manifests` (name -> URI), `buckets` (URI -> pictures), `truth` (URIs), `pictures`, `clips`, `seconds`.

    Raises:
        UserError: If `image_size` is odd and there are clips (H.264 halves the colour planes), if there are 1 or 2
            `clips` (each of the three splits needs one), or if there are more than 26 buckets.
    """
    _check(config)
    start = time.monotonic()
    sets = plan_pictures(config)
    pictures = [picture for members in sets.values() for picture in members]
    films = plan_films(config, first_subject=next_subject(sets))
    all_films = [film for members in films.values() for film in members]
    labels = _draw_all(config, workers or os.cpu_count() or 1, pictures, all_films)
    manifests = _write_manifests(config, sets, films, labels)
    buckets = [name for name in sets if name.startswith("bucket")]
    return {
        "out": config.out,
        "manifests": manifests,
        "buckets": {storage.join(config.out, name): len(sets[name]) for name in buckets},
        "truth": [storage.join(config.out, f"{name}.truth.csv") for name in buckets],
        "pictures": len(pictures),
        "clips": config.clips,
        "seconds": round(time.monotonic() - start, 2),
    }


def _check(config: DrawFacesConfig) -> None:
    if config.clips and config.image_size % 2:
        raise UserError(f"image_size: must be even when clips are drawn, got {config.image_size}")
    if config.clips in (1, 2):
        raise UserError(f"clips: must be 0 or at least 3 (train, validation, test), got {config.clips}")
    if len(config.unlabeled) > 26:
        raise UserError(f"unlabeled: at most 26 buckets (a to z), got {len(config.unlabeled)}")


def _draw_all(
    config: DrawFacesConfig, workers: int, pictures: Sequence[Picture], films: Sequence[Film]
) -> dict[str, tuple[str, ...]]:
    """Draw everything, in several processes when there is enough to draw; the frame labels of each clip, by path."""
    chunks = [pictures[start : start + _CHUNK] for start in range(0, len(pictures), _CHUNK)]
    if workers == 1 or len(pictures) + len(films) * config.clip_frames < _POOL_FROM:
        for chunk in chunks:
            _draw_pictures(config, chunk)
        return {film.path: _draw_film(config, film) for film in films}
    # Spawn, not fork: the caller may hold threads and locks (Arrow, S3 clients).
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        with shielded_children():
            drawn_films = {film.path: pool.submit(_draw_film, config, film) for film in films}
            drawn = [pool.submit(_draw_pictures, config, chunk) for chunk in chunks]
        try:
            labels = {path: future.result() for path, future in drawn_films.items()}
            for future in drawn:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return labels
