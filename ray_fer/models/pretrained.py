"""Where the weights that training starts from lie: in a local folder or file, on S3, or on the Hugging Face Hub.

The Hub is asked once for a model: what `huggingface_hub` has in its cache (``HF_HOME``) is used as it is, without a
request, until ``@REVISION`` names another.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from pathlib import Path
from typing import Any

import yaml

from ray_fer import storage
from ray_fer.errors import UserError, one_line
from ray_fer.models.folder_facts import architecture_of

log = logging.getLogger(__name__)

CARD = "README.md"
_CONFIG = "config.json"
# As timm's hub writes them; the first that is there is read.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TIMM, _HUB = "timm:", "hf-hub:"


def is_on_hub(uri: str) -> bool:
    """Whether ``uri`` names a model on the Hub and no place."""
    return uri.startswith((_TIMM, _HUB))


def canonical(uri: str) -> str:
    """The one spelling of ``pretrained``: ``timm:NAME.TAG``, ``hf-hub:ORG/NAME``, or an absolute place.

    Raises:
        UserError: If it cannot be a URI.
    """
    if is_on_hub(uri):
        return uri
    if "/" not in uri and "." in uri and not storage.exists(uri):
        import timm

        if timm.models.is_model_pretrained(uri):
            return _TIMM + uri
    return storage.normalise_argument("pretrained", uri)


def local_pretrained(uri: str) -> str:
    """The local path of the pretrained folder or file ``uri``, which is downloaded if it is remote.

    Raises:
        UserError: If it does not exist, or the Hub has it not or cannot be reached.
    """
    if is_on_hub(uri):
        return str(_from_hub(uri))
    if not storage.exists(uri):
        raise UserError(f"pretrained={uri}: no such file or folder")
    if not storage.is_remote(uri):
        return storage.normalise(uri)
    if storage.is_dir(uri):
        return str(storage.local_copy(uri))
    parent, _, name = uri.rpartition("/")
    return str(storage.local_copy(parent, only=[name]) / name)


def shared_pretrained(uri: str, folder: str) -> str:
    """``uri`` as every worker of a run can read it: a model of the Hub is copied into ``folder``, if it is not there.

    So workers need no network, and all of them, also after a restart, have the same revision.
    """
    if not is_on_hub(uri):
        return uri
    place = storage.join(folder, "pretrained")
    if not storage.exists(storage.join(place, _CONFIG)):
        local = Path(local_pretrained(uri))
        for name in filter(lambda name: (local / name).exists(), (*_WEIGHTS, CARD, _CONFIG)):
            storage.write_bytes(storage.join(place, name), (local / name).read_bytes())
    return place


def pretrained_architecture(uri: str) -> str | None:
    """Timm's name of the model in the folder or on the Hub; None for a file, which does not say."""
    if is_on_hub(uri):
        return architecture_of(local_pretrained(uri), uri)
    return architecture_of(uri) if storage.is_dir(uri) else None


def start_licence(uri: str | None) -> str | None:
    """The licence of the weights at ``uri`` that their card, or else their ``config.json``, gives; None without one.

    Args:
        uri: As `local_pretrained` takes it; None for a run from scratch.
    """
    folder = Path(local_pretrained(uri)) if uri else None
    if folder is None or not folder.is_dir():
        return None
    try:
        _, front, _ = (folder / CARD).read_text().split("---\n", 2)
        if said := yaml.safe_load(front).get("license"):
            return str(said)
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        pass
    # An artifact's repeats what timm says of other weights of its architecture.
    if (folder / "provenance.json").exists():
        return None
    config = storage.read_json(str(folder / _CONFIG))
    said = config.get("license") or (config.get("pretrained_cfg") or {}).get("license")
    return str(said) if said else None


def _from_hub(uri: str) -> Path:
    """The folder of `huggingface_hub`'s cache that holds configuration and weights."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError

    repo, _, revision = _hub_name(uri).partition("@")
    what: dict[str, Any] = {"repo_id": repo, "filename": _CONFIG, "revision": revision or "main"}
    try:
        cached = try_to_load_from_cache(**what)
        if isinstance(cached, str) and any((Path(cached).parent / name).exists() for name in _WEIGHTS):
            return Path(cached).parent
        get_hf_file_metadata(hf_hub_url(**what))  # a download tries again for minutes where there is no network
        folder = Path(hf_hub_download(**what)).parent
        architecture_of(str(folder), uri)
        for name in (CARD, *_WEIGHTS):
            with contextlib.suppress(RemoteEntryNotFoundError):
                # Of this commit: a push in between does not mix two models.
                hf_hub_download(repo, name, revision=folder.name)
                if name in _WEIGHTS:
                    log.info("pretrained=%s: revision %s of the Hub", uri, folder.name)
                    return folder
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"pretrained={uri}: {one_line(error)}") from None
    except Exception as error:  # of whichever HTTP library it uses
        if isinstance(error, UserError) or getattr(error, "errno", None):
            raise
        raise UserError(
            f"pretrained={uri}: not in {constants.HF_HUB_CACHE}, and the Hub cannot be reached ({one_line(error)}); "
            f"run hf download {repo} where there is a network and give its folder, or HF_HOME with a copy of its cache"
        ) from None
    raise UserError(f"pretrained={uri}: has none of {', '.join(_WEIGHTS)}")


def _hub_name(uri: str) -> str:
    """``ORG/NAME`` or ``ORG/NAME@REVISION`` of a model on the Hub."""
    if uri.startswith(_HUB):
        return uri.removeprefix(_HUB)
    import timm

    name = uri.removeprefix(_TIMM)
    if not timm.models.is_model_pretrained(name):
        near = timm.list_pretrained(f"{name.split('.')[0]}.*") or difflib.get_close_matches(
            name, timm.list_pretrained()
        )
        raise UserError(
            f"pretrained={uri}: timm has no such weights" + (f" (near it: {', '.join(near[:5])})" if near else "")
        )
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    if not config.hf_hub_id:
        raise UserError(f"pretrained={uri}: not on the Hub; download {config.url} and give the file and backbone=")
    return str(config.hf_hub_id)
