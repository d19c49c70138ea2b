# SPDX-License-Identifier: GPL-2.0-only
"""/metrics and the terminal view, each with the program that users look at them with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.command import end, wait_for
from deploy.demo import free_port
from tests.pipeline.hosts import BIN, DEADLINE_S, Hosts, MakeHosts, make_hosts, tool

__all__ = ["make_hosts"]  # a fixture

ROOT = Path(__file__).parent.parent.parent
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            assert key not in found.setdefault(sample.name, {})
            found[sample.name][key] = sample.value
    return found


def only(samples: Samples, name: str) -> float:
    (value,) = samples[name].values()
    return value


@pytest.fixture
def watched(make_hosts: MakeHosts) -> tuple[Hosts, int, int]:
    ports = free_port(), free_port()
    hosts = make_hosts(source={"metrics_port": ports[0]}, target={"metrics_port": ports[1]})
    hosts.start()
    return hosts, *ports


def test_metrics_are_what_happened(watched: tuple[Hosts, int, int]) -> None:
    hosts, source_port, target_port = watched
    before = scrape(source_port), scrape(target_port)
    for at in range(300):
        hosts.volume.client.write(at * 8192, at.to_bytes(2, "big") * 4096)
    hosts.volume.settle()
    slots = hosts.volume.capture.status().head

    def is_seen() -> bool:
        samples = scrape(source_port)
        return (
            only(samples, "bdr_acknowledged_slots_total") == slots
            and only(samples, "bdr_sent_slots_total") >= slots
        )

    wait_for(is_seen, what="the last report", timeout_s=DEADLINE_S)
    source, target = scrape(source_port), scrape(target_port)
    assert only(source, "bdr_captured_slots_total") == slots
    assert only(source, "bdr_captured_bytes_total") == slots * 4096
    assert only(source, "bdr_sent_bytes_total") >= slots * 4104
    assert only(source, "bdr_seconds_behind") == only(source, "bdr_bytes_behind") == 0
    assert only(source, "bdr_ring_capacity_slots") == 8192
    assert only(source, "bdr_connected") == only(target, "bdr_connected") == 1
    assert {dict(k)["process"]: v for k, v in source["bdr_process_reporting"].items()} == {
        "v1-reader": 1.0,
        "v1-scanner-1": 1.0,
        "v1-sender-1": 1.0,
    }
    for samples in (source, target):
        healths = {dict(key)["health"]: value for key, value in samples["bdr_health"].items()}
        assert [word for word, value in healths.items() if value] == ["healthy"]
    wait_for(
        lambda: (
            only(scrape(target_port), "bdr_applied_bytes_total")
            - only(before[1], "bdr_applied_bytes_total")
            >= 300 * 8192
        ),
        what="the applier's report",
        timeout_s=DEADLINE_S,
    )
    # Every metric that exists is documented, and the other way round.
    documented = set(re.findall(r"`(bdr_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    # Scraped anew: what the applier has not reported yet has no sample.
    names = {name for port in (source_port, target_port) for name in scrape(port)}
    assert names <= documented
    optional = {
        *("bdr_journal_bytes", "bdr_journal_size_bytes", "bdr_catch_up_seconds"),
        *("bdr_held_age_seconds", "bdr_verify_differing_bytes", "bdr_verified_timestamp_seconds"),
    }
    assert documented - names <= optional


@contextmanager
def prometheus(directory: Path, targets: list[int]) -> Iterator[str]:
    """Debian's Prometheus, with BDR's rules, scraping every second."""
    port = free_port()
    shutil.copy(ROOT / "deploy" / "prometheus-rules.yml", directory)
    (directory / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        "rule_files: [prometheus-rules.yml]\n"
        "scrape_configs:\n- job_name: bdr\n  static_configs:\n"
        f"  - targets: {json.dumps([f'127.0.0.1:{target}' for target in targets])}\n"
    )
    process = subprocess.Popen(
        [
            tool("prometheus"),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        end(process)


def ask(api: str, path: str, **parameters: str) -> list[dict[str, object]]:
    try:
        with urllib.request.urlopen(
            f"{api}/{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            data = json.load(answer)["data"]
    except OSError:
        return []  # not up yet
    return list(data.get("result") or data.get("alerts") or [])


def test_a_real_prometheus_scrapes_and_alerts(
    watched: tuple[Hosts, int, int], directory: Path
) -> None:
    hosts, source_port, target_port = watched
    place = directory / "prometheus"
    place.mkdir()
    with prometheus(place, [source_port, target_port]) as api:
        wait_for(
            lambda: (
                {
                    str(dict(found["metric"])["role"])  # type: ignore[call-overload]
                    for found in ask(api, "query", query='bdr_health{health="healthy"} == 1')
                }
                == {"source", "target"}
            ),
            what="both sides in Prometheus",
            timeout_s=DEADLINE_S,
        )
        assert not ask(api, "alerts")
        hosts.target.supervisorctl("stop", "v1-applier")
        wait_for(
            lambda: any(
                dict(alert["labels"])["alertname"] == "BdrBroken"  # type: ignore[call-overload]
                for alert in ask(api, "alerts")
            ),
            what="the alert",
            timeout_s=DEADLINE_S,
        )


def test_alert_rules_are_valid_and_fire(directory: Path) -> None:
    for words in (
        ["check", "rules", "prometheus-rules.yml"],
        ["test", "rules", "prometheus-rules-test.yml"],
    ):
        done = subprocess.run(
            [tool("promtool"), *words],
            cwd=ROOT / "deploy",
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    documented = set(re.findall(r"`(bdr_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    assert len(expressions) > 8
    for expression in expressions:
        assert set(re.findall(r"\bbdr_\w+", expression)) <= documented


class Terminal:
    """A tmux session of its own, with one command."""

    def __init__(self, directory: Path, command: str) -> None:
        self._socket = str(directory / "tmux.sock")
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "110", "-y", "40", command)

    def _tmux(self, *words: str) -> str:
        return subprocess.run(
            [tool("tmux"), "-S", self._socket, *words], check=False, capture_output=True, text=True
        ).stdout

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def is_open(self) -> bool:
        return bool(self._tmux("list-sessions"))

    def close(self) -> None:
        self._tmux("kill-server")


def test_top_shows_what_happens_in_a_real_terminal(make_hosts: MakeHosts, directory: Path) -> None:
    hosts = make_hosts(writes=1024)
    hosts.start()
    config = hosts.source.config
    terminal = Terminal(
        directory, f"{BIN / 'bdr'} top --config {config}; {sys.executable} -c 'input()'"
    )

    def shows(*patterns: str) -> None:
        wait_for(
            lambda: all(re.search(pattern, terminal.screen()) for pattern in patterns),
            what=f"{patterns} on the screen",
            timeout_s=DEADLINE_S,
        )

    try:
        shows(
            r"v1 \(source\): healthy   replica consistent",
            r"behind +0\.0 s, 0 B",
            r"ring +\[\.{24}\]   0 %  0 of 1024 slots",
            r"v1-reader +reporting",
            r"v1-sender-1 +reporting",
        )
        hosts.target.supervisorctl("stop", "v1-applier")
        for at in range(512):
            hosts.volume.client.write(at * 4096, b"z" * 4096)
        shows(
            r"v1 \(source\): broken",
            r"! no connection to the target",
            r"behind +\d+\.\d s, 2\.0 MiB, not catching up",
            r"ring +\[#{12}\.{12}\]  50 %  512 of 1024 slots",
            r"written +\S+ [KM]iB/s +▁+[▂▃▄▅▆▇█]",
        )
        hosts.target.supervisorctl("start", "v1-applier")
        shows(r"v1 \(source\): healthy", r"acknowledged .*/s +▁+[▂▃▄▅▆▇█]")
        hosts.source.supervisorctl("stop", "v1-sender:*")
        shows(r"v1 \(source\): broken", r"v1-sender-1 +stopped")
        hosts.source.supervisorctl("stop", "v1-monitor")
        shows(r"v1: unknown", r"its monitor has been silent for \d+ s")
        terminal.press("q")
        wait_for(lambda: "unknown" not in terminal.screen(), what="its end", timeout_s=DEADLINE_S)
        assert terminal.is_open()
    finally:
        terminal.close()


def test_completion_completes_commands_and_volumes(make_hosts: MakeHosts) -> None:
    hosts = make_hosts()
    hosts.source.write_config()
    script = hosts.source.bdr("completion", "bash").stdout
    path = hosts.source.directory / "completion"
    path.write_text(script)
    for words, wanted in ((["bdr", "sta"], "status"), (["bdr", "status", "v"], "v1")):
        typed = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["bash", "-c", f". {path}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
             '_bdr_completion bdr; echo "${COMPREPLY[@]}"'],
            check=False, capture_output=True, text=True, timeout=DEADLINE_S,
            env={"PATH": f"{BIN}:/usr/bin:/bin", "BDR_CONFIG": str(hosts.source.config)},
        )  # fmt: skip
        assert wanted in done.stdout.split(), done.stdout + done.stderr
