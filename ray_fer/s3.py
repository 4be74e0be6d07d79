"""Endpoint, region, addressing style and credentials of S3, resolved once for all libraries.

botocore resolves them from the ``AWS_*`` environment variables, profiles (with ``endpoint_url``, ``services`` sections
and ``s3 = addressing_style``) and instance roles. s3fs, and pyarrow through it, is built on botocore. deltalake, polars
and Lance open files themselves, through the Rust crate object_store, which reads the environment but not all of a
profile. They are given the settings that the client of s3fs has resolved.

If botocore finds no credentials, requests are not signed, as public buckets and open servers require.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import Any

import botocore.credentials
import botocore.exceptions
import botocore.session
import fsspec

from ray_fer.errors import UserError, one_line

_RETRIES = 8
_UNSIGNED = {"aws_skip_signature": "true"}
# The settings are resolved again when one of these variables changes.
_VARIABLES = (
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)


def s3_filesystem() -> Any:
    """The s3fs file system of this thread. Listings are never cached, because other processes write the same buckets.

    Raises:
        UserError: If the AWS configuration cannot be read, names a profile that does not exist, or has an endpoint that
            is not a URL.
    """
    access = _resolved()
    return _connect(access.credentials, access.region)


def object_store_options(bucket: str) -> dict[str, str]:
    """Storage options for deltalake and Lance, which use object_store and keep the options as long as a table is open.

    Credentials that expire (of roles, SSO, processes) are not among the options, which would expire with them. The
    library finds and renews such credentials by the same variables and profiles.

    Raises:
        UserError: If `s3_filesystem` raises it.
    """
    access = _resolved()
    if access.credentials is None:
        return access.place(bucket) | _UNSIGNED
    if isinstance(access.credentials, botocore.credentials.RefreshableCredentials):
        return access.place(bucket)
    return access.place(bucket) | access.keys()


def polars_arguments(bucket: str) -> dict[str, Any]:
    """Arguments for the ``scan_…`` functions of polars, which asks for credentials whenever it needs them.

    Raises:
        UserError: If `s3_filesystem` raises it.
    """
    access = _resolved()
    options: dict[str, Any] = {"max_retries": _RETRIES} | access.place(bucket)
    if access.credentials is None:
        return {"storage_options": options | _UNSIGNED, "credential_provider": None}
    # botocore renews credentials that expire, so polars has to ask again after ten minutes.
    return {"storage_options": options, "credential_provider": lambda: (access.keys(), int(time.time()) + 600)}


@dataclass(frozen=True)
class _Access:
    """The settings that botocore has resolved.

    Attributes:
        credentials: The credentials of botocore, which renew themselves if they expire; None if there are none.
        region: The configured region; None if there is none.
        endpoint: The URL without a bucket.
        signing_region: ``region``, or botocore's default if there is none.
        virtual: Whether the bucket is part of the host's name rather than of the path.
    """

    credentials: Any
    region: str | None
    endpoint: str
    signing_region: str
    virtual: bool

    def place(self, bucket: str) -> dict[str, str]:
        """The options of object_store that locate ``bucket``."""
        scheme, _, host = self.endpoint.partition("://")
        return {
            "aws_endpoint": f"{scheme}://{bucket}.{host}" if self.virtual else self.endpoint,
            "aws_region": self.signing_region,
            "aws_allow_http": str(scheme == "http").lower(),
            "aws_virtual_hosted_style_request": str(self.virtual).lower(),
        }

    def keys(self) -> dict[str, str]:
        """The options of object_store that hold the current credentials."""
        held = self.credentials.get_frozen_credentials()
        named = {"aws_access_key_id": held.access_key, "aws_secret_access_key": held.secret_key}
        return named | ({"aws_session_token": held.token} if held.token else {})


def _resolved() -> _Access:
    return _resolve(tuple(map(os.environ.get, _VARIABLES)))


@functools.lru_cache(maxsize=1)
def _resolve(settings: tuple[str | None, ...]) -> _Access:
    # Cached instances of s3fs would keep the settings that they were made with.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        session = botocore.session.get_session()
        credentials = session.get_credentials()
        # botocore itself does not know AWS_REGION, which all other SDKs read.
        region = session.get_config_variable("region") or os.environ.get("AWS_REGION")
        meta = _connect(credentials, region).s3.meta
    except (botocore.exceptions.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is not a URL
        raise UserError(f"AWS configuration: {one_line(error)}") from None
    virtual = (meta.config.s3 or {}).get("addressing_style") == "virtual"
    return _Access(credentials, region, meta.endpoint_url.rstrip("/"), meta.region_name, virtual)


def _connect(credentials: Any, region: str | None) -> Any:
    return fsspec.filesystem(
        "s3",
        anon=credentials is None,
        use_listings_cache=False,
        # Changes of an open file are detected from the answers. Conditional requests would fail behind a gateway that
        # rewrites ETags, for instance to weak ones.
        local_expiry_check=True,
        client_kwargs={"region_name": region} if region else {},
        # s3fs retries each call itself; botocore's own retries sit below it and cover throttling.
        config_kwargs={"retries": {"max_attempts": _RETRIES, "mode": "standard"}, "max_pool_connections": 64},
    )
