"""What the server counts of its requests."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from airflow_invocations.server.metrics import CountRequests, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(dict, lambda: 0)


def test_an_answer_that_says_that_the_app_broke_is_counted(metrics: Metrics) -> None:
    app = FastAPI()

    @app.get("/broken/{number}")
    def broken(number: int) -> float:
        return 1 / number

    client = TestClient(CountRequests(app, metrics), raise_server_exceptions=False)
    assert [client.get(f"/broken/{number}").status_code for number in (0, 0, 1)] == [500, 500, 200]
    counted = metrics.text().decode()
    line = 'invocations_http_requests_total{method="GET",route="/broken/{number}",status="%s"} %s'
    assert line % (500, 2.0) in counted
    assert line % (200, 1.0) in counted
