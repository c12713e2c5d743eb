"""The client's options are the fields of the server's native wire."""

import inspect

from superdraft.client.client import Superdraft
from superdraft.client.wire import DraftsOptions
from superdraft.server.wires.native.schemas import DraftsRequest

# Fields that are no options: arguments of their own, and `stream`, which the method decides.
ARGUMENTS = {"prompt", "num_drafts", "max_tokens"}
BY_METHOD = {"stream"}


def test_options_are_the_fields_of_the_native_schema():
    assert set(DraftsOptions.__annotations__) == set(DraftsRequest.model_fields) - ARGUMENTS - BY_METHOD


def test_exceptions_are_arguments_of_the_methods():
    for method in (Superdraft.complete, Superdraft.stream):
        assert set(inspect.signature(method).parameters) >= ARGUMENTS
