"""Files, objects in buckets, and run folders that live in both. Every process uses it; boto3 is loaded on first use."""

from graceful.addresses import is_remote
from graceful.files import guarded
from graceful.storage.cached_objects import cached_file, object_cache, read_cached
from graceful.storage.local import (
    read_bytes,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
    write_text,
)
from graceful.storage.mirror import Mirror
from graceful.storage.objects import (
    StoredObject,
    list_objects,
    read_object,
    read_range,
    split_uri,
)

__all__ = [
    "Mirror",
    "StoredObject",
    "cached_file",
    "guarded",
    "is_remote",
    "list_objects",
    "object_cache",
    "read_bytes",
    "read_cached",
    "read_object",
    "read_range",
    "sha256_file",
    "sha256_json",
    "split_uri",
    "write_bytes",
    "write_json",
    "write_text",
]
