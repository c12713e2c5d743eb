"""What the API's description promises is what the API does, whatever is sent: schemathesis over every operation."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient
from support.engine import FakeEngine

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

# Left out: that whatever is not described is refused. Clients send more than that, and must be understood.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(create_app(Settings(), FakeEngine(), model_name="tiny").openapi())
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app(Settings(), FakeEngine(), model_name="tiny")) as made:
        yield made


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_keeps_its_word(client, label):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=OPERATIONS[label].as_strategy())
    def keeps_its_word(case):
        sent = case.as_transport_kwargs(base_url="http://testserver")
        sent.pop("cookies", None)  # there are none
        response = client.request(**sent)
        case.validate_response(response, checks=CHECKS)

    keeps_its_word()
