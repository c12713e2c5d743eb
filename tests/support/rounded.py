"""Answers with rounded numbers."""

from typing import Any


def nearly(value: Any) -> Any:
    """The value with rounded numbers: a prompt from the cache is not the same to the last bit."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: nearly(item) for key, item in value.items()}
    return [nearly(item) for item in value] if isinstance(value, list) else value
