"""The command line of every job: it takes arguments, prints one JSON line and exits with a status.

Human-readable progress goes to stderr. The last line of stdout is the summary as one JSON object. The exit status is

- 0 if the job is done;
- 2 if the user can fix an error, which is one line on stderr;
- 130 if the job was interrupted;
- 1 after any other error, which is one line if a file system or a store has failed, else a traceback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from ray_fer import interruption
from ray_fer.errors import UserError, explained


def main(job: str, function: Callable[[Any], dict[str, Any]]) -> None:
    """Runs ``function`` on the config of ``job`` made from the command line, and exits.

    Args:
        job: The job's name, which is also the name of its file in ``conf/``.
        function: Takes the validated config and returns a JSON-able summary.
    """
    interruption.listen()
    try:
        status = _run(job, function)
        interruption.end(status)
    except KeyboardInterrupt:
        status = _interrupted()
    if status:
        # The interpreter's own exit takes seconds if torch is loaded and waits for threads. It may crash if a thread of
        # an abandoned training is inside Ray.
        sys.stderr.flush()
        os._exit(status)


def _run(job: str, function: Callable[[Any], dict[str, Any]]) -> int:
    # Imported here, or a signal during the import would print a traceback.
    from ray_fer import storage
    from ray_fer.config import job_help, load_config
    from ray_fer.writable import check_writable

    arguments = sys.argv[1:]
    if any(argument in {"-h", "--help", "help"} for argument in arguments):
        try:
            print(f"usage: python jobs/{job}.py key=value …\n\n{job_help(job, arguments)}")
        except UserError as error:
            return _report(error)
        return 0
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("botocore", "aiobotocore", "s3fs", "fsspec", "httpx", "matplotlib", "openvino", "timm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    started = time.time()
    try:
        config = load_config(job, arguments)
        for key, uri in config.outputs().items():
            check_writable(key, uri, folder=not config.writes_file)
        summary = function(config)
        _disconnect()
        print(storage.to_json({"job": job, **summary, "seconds": round(time.time() - started, 1)}), flush=True)
    except Exception as error:
        if interruption.begun():  # a library has converted the KeyboardInterrupt
            raise KeyboardInterrupt from None
        status = _report(error)
        _disconnect()
        return status
    return 0


def _report(error: Exception) -> int:
    found = explained(error)
    if found is None:
        traceback.print_exception(error)
        return 1
    status, line = found
    print("error:", line, file=sys.stderr)
    return status


def _interrupted() -> int:
    interruption.end(interruption.STATUS)
    print(interruption.MESSAGE, file=sys.stderr, flush=True)
    logging.disable()
    with contextlib.suppress(Exception):  # Ray may be starting, or half imported
        _disconnect()
    return interruption.STATUS


def _disconnect() -> None:
    # This comes before the summary is printed, or a worker's log line could follow it on stdout.
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
