"""The page in a real Airflow, in a browser: navigation, DAG run, live updates, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from airflow_invocations.demo.standalone import StandaloneAirflow

from .conftest import SystemServer
from .test_airflow import PATIENCE, states, until

DAG_ID, TASK_ID = "sensor_anomalies", "find_anomalies"

#: Longest time for steps that involve several components while a browser runs, in seconds.
LONG = 240.0

#: Selector of the frame in which Airflow shows the page.
FRAME = "iframe[title=Invocations]"

#: Removes folders from paths in the displayed parameters.
WITHOUT_FOLDERS = """body => {
    for (const value of body.querySelectorAll(".values dd")) {
        value.textContent = value.textContent.replace(/^.*[/]/, "/data/");
    }
}"""


class Answers:
    """The responses to the page's requests; a navigation discards unread ones."""

    def __init__(self) -> None:
        self._finished: list[Any] = []
        self.bodies: list[bytes] = []

    def note(self, request: Any) -> None:
        """Record the response to a request of the tab."""
        if "/invocations/" in request.url:
            self._finished.append(request)

    def read(self) -> None:
        """Read the responses since the last call."""
        self.bodies += [body for request in self._finished if (body := body_of(request))]
        self._finished.clear()


@pytest.fixture
def answers() -> Answers:
    """Return the responses of the test's tab."""
    return Answers()


@pytest.fixture
def tab(browser: Any, airflow: StandaloneAirflow, server: SystemServer, answers: Answers) -> Iterator[Any]:
    """Yield a logged-in tab; fail the test for an error in the page, and for a token that reached it."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    context.set_default_timeout(PATIENCE * 1000)
    user, password = airflow.login
    answer = httpx.post(
        f"{airflow.url}/auth/token",
        json={"username": user, "password": password},
        trust_env=False,
        timeout=30,
    )
    token = answer.raise_for_status().json()["access_token"]
    context.add_cookies([{"name": "_token", "value": token, "url": airflow.url}])
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("requestfinished", answers.note)
    tab.on(
        "pageerror", lambda error: wrong.append(str(error)) if "/invocations/" in f"{error.stack}" else None
    )
    tab.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    yield tab
    answers.read()
    context.close()
    assert answers.bodies
    assert not [body for body in answers.bodies if server.token.encode() in body]
    assert wrong == []


def body_of(request: Any) -> bytes:
    """Return the body of a response; empty if a navigation has discarded it."""
    from playwright.sync_api import Error

    try:
        return bytes(request.response().body())
    except Error:
        return b""


@pytest.fixture
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any, str], None]:
    """Take a picture of a tab: into the folder of --screenshots if there is one, in 256 colours.

    The picture doesn't show folders of this machine.
    """
    folder = request.config.getoption("--screenshots", None)

    def take(tab: Any, name: str) -> None:
        from PIL import Image

        path = Path(folder or tmp_path) / f"{name}.png"
        tab.route("**/invocations/facts**", lambda route: route.abort())
        tab.frame_locator(FRAME).locator("body").evaluate(WITHOUT_FOLDERS)
        tab.screenshot(path=path)
        tab.unroute("**/invocations/facts**")
        assert path.read_bytes().startswith(b"\x89PNG")
        with Image.open(path) as seen:
            seen.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)

    return take


def run_address(airflow: StandaloneAirflow, run_id: str) -> str:
    return f"{airflow.url}/dags/{DAG_ID}/runs/{quote(run_id, safe='')}"


def brightness(frame: Any) -> float:
    """Return the luminance of the page's background, from 0 to 1."""
    return float(
        frame.locator("body").evaluate(
            """body => {
                const canvas = document.createElement("canvas").getContext("2d");
                canvas.fillStyle = getComputedStyle(body).backgroundColor;
                canvas.fillRect(0, 0, 1, 1);
                const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
                return (red + green + blue) / 765;
            }"""
        )
    )


def test_view_of_a_dag_run_is_updated_live(
    airflow: StandaloneAirflow,
    server: SystemServer,
    tab: Any,
    answers: Answers,
    picture: Callable[[Any, str], None],
) -> None:
    run_id = airflow.trigger(DAG_ID, {"pace_seconds": 20})
    until("deferred task", lambda: "deferred" in states(airflow, DAG_ID, run_id).values(), LONG)
    tab.goto(run_address(airflow, run_id))
    tab.get_by_role("link", name="Invocations").click()
    frame = tab.frame_locator(FRAME)
    frame.locator("#rows tr").first.wait_for()
    until("three invocations", lambda: frame.locator("#rows tr").count() == 3)
    frame.locator("body").evaluate("body => { body.dataset.loadedOnce = 'yes' }")
    running = frame.locator("#rows tr:has([data-status=Processing])").first
    running.wait_for()
    ran = running.locator(".duration.going").inner_text()
    until("a span that grows", lambda: running.locator(".duration.going").inner_text() != ran)
    # A click opens its row even if the row changes between press and release of the button.
    placed = running.locator(".duration.going").get_attribute("data-seconds")
    running.locator(".duration.going").hover()
    tab.mouse.down()
    frame.locator("body").evaluate("() => { version = '' }")  # the next look brings all rows
    until("new rows", lambda: running.locator(".duration.going").get_attribute("data-seconds") != placed)
    tab.mouse.up()
    frame.locator("#facts h2").wait_for()
    frame.locator("#log .line").first.wait_for()
    assert frame.locator("#platforms").inner_text() == "roboto_default Roboto (invocation API)"
    picture(tab, "page-run-light")

    # Airflow's own switch between light and dark reaches the page without a reload.
    light = brightness(frame)
    tab.evaluate("document.documentElement.classList.replace('light', 'dark')")
    until("a dark page", lambda: brightness(frame) < 0.3)
    assert light > 0.8
    picture(tab, "page-run-dark")

    until("three ends", lambda: frame.locator("#rows [data-status=Completed]").count() == 3, LONG)
    until("no span that grows", lambda: frame.locator("#rows .duration.going").count() == 0, LONG)
    assert frame.locator("body").get_attribute("data-loaded-once") == "yes"
    until("the log's end", lambda: "are in dataset" in frame.locator("#log .line").last.inner_text())
    for index in range(3):
        result = airflow.xcom(DAG_ID, run_id, TASK_ID, map_index=index)
        row = frame.locator(f'#rows tr[data-id="{result["invocation_id"]}"]')
        ran, waited = (
            float(row.locator(".duration").nth(place).get_attribute("data-seconds")) for place in range(2)
        )
        assert ran >= 20
        assert 0 < waited < LONG

    # The frame blocks navigation to the outside, except for the page's links.
    row = frame.locator("#rows tr").first
    invocation_id, index = row.get_attribute("data-id"), row.locator(".task a").inner_text()[-2]
    row.locator(".action a").click()
    with tab.context.expect_page() as opened:
        frame.get_by_role("link", name="Invocation on its platform").click()
    assert opened.value.url.startswith(f"{server.endpoint}/actions/invocations/{invocation_id}")
    opened.value.close()
    answers.read()
    row.locator(".task a").click()
    tab.wait_for_url(f"**/tasks/{TASK_ID}/mapped/{index}**")


def test_navigation_leads_to_all_invocations_of_airflow(
    airflow: StandaloneAirflow, tab: Any, picture: Callable[[Any, str], None]
) -> None:
    run_ids = [airflow.trigger("sensed"), airflow.trigger("refused_and_failed")]
    for dag_id, run_id in zip(("sensed", "refused_and_failed"), run_ids, strict=True):
        *_, _ = airflow.watch(dag_id, run_id, timeout=180)
    tab.goto(airflow.url)
    tab.get_by_role("button", name="Browse").click()
    tab.get_by_role("menuitem", name="Invocations").click()
    frame = tab.frame_locator(FRAME)
    frame.locator("#rows tr").first.wait_for()
    for run_id in run_ids:
        frame.locator(f'#rows tr[data-run="{run_id}"]').first.wait_for()
    failed = frame.locator(f'#rows tr[data-run="{run_ids[1]}"]').first
    assert failed.locator("[data-status=Failed]").get_attribute("title") == "exit code 3: no such topic"
    picture(tab, "page-all-light")
    tab.evaluate("localStorage.setItem('theme', 'dark')")
    tab.reload()  # the page of Airflow also links back
    frame.locator("#rows tr").first.wait_for()
    assert brightness(frame) < 0.3
    failed.locator(".action a").focus()
    tab.keyboard.press("Enter")
    frame.locator("#facts .problem").wait_for()
    texts = until("lines", lambda: frame.locator("#log .line span").all_inner_texts())
    assert {"begun", "no such topic"} <= set(texts)
    picture(tab, "page-all-dark")
    tab.keyboard.press("Escape")
    frame.locator("#detail").wait_for(state="hidden")


def test_page_shows_an_outage_of_airflow_and_recovers(airflow: StandaloneAirflow, tab: Any) -> None:
    tab.goto(f"{airflow.url}/invocations/")
    tab.wait_for_selector("#link[data-state=live]")
    tab.route("**/invocations/rows**", lambda route: route.abort())
    tab.wait_for_selector("#link[data-state=lost]")
    tab.unroute("**/invocations/rows**")
    tab.wait_for_selector("#link[data-state=live]")
    tab.context.clear_cookies()
    tab.wait_for_selector("#link[data-state=ended]")
    assert "log in to Airflow again" in tab.inner_text("#link")


def test_page_requires_a_login(airflow: StandaloneAirflow) -> None:
    about = {"dag_id": DAG_ID, "run_id": "x", "conn_id": "roboto_default", "invocation_id": "iv_1"}
    for path in ("", "run", "rows", "run/rows", "facts", "log"):
        answer = httpx.get(f"{airflow.url}/invocations/{path}", params=about, trust_env=False, timeout=30)
        assert answer.status_code == 401
        assert "You aren't logged in to Airflow." in answer.text.replace("&#39;", "'")


def test_plugin_is_loaded_without_an_error(airflow: StandaloneAirflow) -> None:
    plugins = airflow.api.get("plugins").raise_for_status().json()["plugins"]
    (ours,) = [plugin for plugin in plugins if plugin["name"] == "invocations"]
    assert [view["destination"] for view in ours["external_views"]] == ["nav", "dag_run"]
    assert airflow.api.get("plugins/importErrors").raise_for_status().json()["import_errors"] == []
