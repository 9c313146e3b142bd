"""A place for our class on LangChain's list of what `load(…, allowed_objects="all")` may bring back.

langchain-core 1.7 has no way in for other packages: its list is a constant, with a cache of it. Without this, a
serialised `ChatTransformers` loads only where the caller names the class. Making one runs nothing and loads no weights.
"""

from __future__ import annotations

from importlib import import_module

from langchain_core.load.serializable import Serializable


def let_langchain_load(kind: type[Serializable]) -> None:
    """Let `allowed_objects="all"` include `kind`; "core" and "messages" stay as they are."""
    loading = import_module("langchain_core.load.load")  # the package has a function of the module's name
    path = tuple(kind.lc_id())
    loading.ALL_SERIALIZABLE_MAPPINGS[path] = path
    loading._default_class_paths_cache.pop("all", None)
