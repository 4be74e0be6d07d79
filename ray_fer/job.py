"""The frame around every job: arguments in, one JSON line out, an exit status that means something.

Human-readable progress goes to stderr. The last line of stdout is the summary as one JSON object. Exit status 0: done;
2: the user can mend it (one line on stderr says what); 130: interrupted; 1: anything else, in one line where a file
system or a store has failed, else with a traceback.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from ray_fer import storage
from ray_fer.config import job_help, load_config
from ray_fer.errors import explained


def main(job: str, function: Callable[[Any], dict[str, Any]]) -> None:
    """Runs ``function`` on the config of ``job`` made from the command line, and exits.

    Args:
        job: the job's name, which is also its file in ``conf/``.
        function: takes the validated config, returns a JSON-able summary.
    """
    arguments = sys.argv[1:]
    if any(argument in {"-h", "--help", "help"} for argument in arguments):
        print(f"usage: python jobs/{job}.py key=value …\n\n{job_help(job)}")
        sys.exit(0)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("botocore", "aiobotocore", "s3fs", "fsspec", "httpx", "matplotlib", "openvino", "timm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    started = time.time()
    try:
        config = load_config(job, arguments)
        for key, uri in config.outputs().items():
            storage.check_writable(key, uri, folder=not config.writes_file)
        summary = function(config)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sys.exit(_report(error))
    finally:
        _disconnect()
    print(storage.to_json({"job": job, **summary, "seconds": round(time.time() - started, 1)}), flush=True)


def _report(error: Exception) -> int:
    found = explained(error)
    if found is None:
        traceback.print_exception(error)
        return 1
    status, line = found
    print("error:", line, file=sys.stderr)
    return status


def _disconnect() -> None:
    # Before the summary is printed, or a worker's log line could follow it on stdout.
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
