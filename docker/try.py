"""Builds the image on a machine without a container engine, runs it confined, and looks whether it keeps its promises.

    python3 docker/try.py --vllm ENVIRONMENT/bin/python --lm FOLDER [--postgres URL] [--image NAME]

As root, on Linux, with buildah and debootstrap. `--image` takes one that is built already, `--postgres` an empty
database to work over too. Where there is an engine, `docker compose -f docker/compose.yaml up --wait` is the trial.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY = secrets.token_urlsafe(24)
STARTING = 300.0  # seconds
LARGEST = 1.5e9  # bytes of the image
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # of a base model: the prompt as it is
KINDS = {
    "Where is Kyoto?": "place",
    "Where does the Danube begin?": "place",
    "Which city has the Prado?": "place",
    "Who wrote Emma?": "person",
    "Who painted Guernica?": "person",
    "Who was the first woman in space?": "person",
    "How many moons has Mars?": "number",
    "How high is Mont Blanc?": "number",
    "How long is the Nile?": "number",
    "When did the Berlin Wall fall?": "date",
    "When was Bach born?": "date",
    "In what year did Apollo 11 land?": "date",
}
QUESTION = "How tall is the Eiffel Tower?"


def tell(claim: str, found: object = "") -> None:
    print(f"ok  {claim}" + (f": {found}" if found != "" else ""), flush=True)


def must(claim: str, holds: object, found: object = "") -> None:
    """Tell that a claim holds, or end."""
    if not holds:
        sys.exit(f"NOT {claim}: {found}")
    tell(claim, found)


def run(*words: str | Path) -> str:
    """What a command prints."""
    return subprocess.run([str(w) for w in words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def ask(url: str, body: Any = None, *, method: str | None = None, timeout: float = 60) -> tuple[dict[str, str], str]:
    """Headers and text of an answer that is not an error."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
        return dict(answer.headers), answer.read().decode()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> float:
    """Seconds until it answers 200."""
    started = time.monotonic()
    while time.monotonic() - started < STARTING and process.poll() is None:
        with suppress(OSError):
            ask(url, timeout=2)
            return time.monotonic() - started
        time.sleep(0.05)
    sys.exit(f"NOT started: {url}: its log ends with\n{log.read_text()[-2000:]}")


class Container:
    """One run of the image over a data folder.

    Args:
        stack: ends it at the latest.
        root: the image's files.
        config: its configuration, as `buildah inspect` tells it.
        data: the volume.
        settings: environment variables over those of the image.
    """

    def __init__(self, stack: ExitStack, root: Path, config: dict[str, Any], data: Path, **settings: str) -> None:
        self.stack = stack
        self.root = root
        self.config = config
        self.data = data
        self.log = data.with_suffix(".log")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        own = dict(word.split("=", 1) for word in config["Env"])
        self.environment = own | {"UDR_PORT": str(self.port), "UDR_KEY": KEY} | settings
        self.uid = config["User"].split(":")[0]

    def _confined(self, *words: str) -> list[str]:
        return [str(HERE / "confine.sh"), str(self.root), str(self.data), self.uid, *words]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in a container of its own beside the running one, as `docker run --rm` over the same volume."""
        own = [*self.config["Entrypoint"], *words]
        return subprocess.run(self._confined(*own), env=self.environment, capture_output=True, text=True)

    def start(self) -> float:
        """Seconds until it is ready."""
        words = self._confined(*self.config["Entrypoint"], *self.config["Cmd"])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.stack.callback(self.end)
        return wait_for(f"{self.url}/readyz", self.process, self.log)

    @property
    def pid(self) -> int:
        """Of the service, which is process 1 in there."""
        own = self.process.pid
        return int(Path(f"/proc/{own}/task/{own}/children").read_text().split()[0])

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in the running container, as `docker exec`."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd"]
        user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--bounding-set=-all"]
        return subprocess.run([*enter, *user, *words], env=self.environment, capture_output=True, text=True)

    def send(self, what: signal.Signals) -> float:
        """Seconds from a signal to the service until it has ended."""
        started = time.monotonic()
        os.kill(self.pid, what)
        self.process.wait(timeout=60)
        return time.monotonic() - started

    def status(self) -> dict[str, str]:
        """Of process 1, as the kernel tells it."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}

    def export(self) -> list[str]:
        return sorted(ask(f"{self.url}/v1/pools/kinds/export")[1].splitlines())

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


# -- what is looked at


def confinement(box: Container) -> None:
    status = box.status()
    must("runs as a user without rights", status["Uid"].split()[0] == box.uid != "0", f"uid {box.uid}")
    must("has no capabilities, can get none", int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0)
    must("no new privileges", status["NoNewPrivs"] == "1")
    writing = "import sys; open(sys.argv[1], 'w').close()"
    for place in ("/opt/udr/x", "/etc/x", "/var/tmp/x", "/home/x"):
        tried = box.inside("python3", "-c", writing, place)
        must(f"{place} cannot be written", "Read-only file system" in tried.stderr, last_line(tried.stderr))
    health = box.inside(*box.config["Healthcheck"]["Test"][1:])
    must("passes its health check", health.returncode == 0, health.stderr)


def filling(box: Container) -> None:
    started = time.monotonic()
    ask(f"{box.url}/v1/pools", {"name": "kinds", "front": {"style": "text", "k": 6, "budget": 400}})
    tell("a pool is made, for which the encoder is loaded", f"{time.monotonic() - started:.1f} s")
    rows = [{"id": f"k{i}", "input": x, "output": y} for i, (x, y) in enumerate(KINDS.items())]
    ask(f"{box.url}/v1/pools/kinds/demonstrations", {"mode": "upsert", "demonstrations": rows})
    must("a pool is filled", len(box.export()) == len(rows), f"{len(rows)} demonstrations")
    found = json.loads(ask(f"{box.url}/v1/retrieve", {"pool": "kinds", "queries": [QUESTION], "k": 3})[1])
    nearest = found["results"][0]["demonstrations"]
    must("retrieves by vectors", [d["output"] for d in nearest].count("number") >= 1, [d["input"] for d in nearest])
    body = {"pool": "kinds", "queries": [QUESTION], "k": 4, "budget": 300, "tokenizer": "bytes"}
    prompt = json.loads(ask(f"{box.url}/v1/prompt", body)[1])["results"][0]
    must("builds a prompt", prompt["text"].endswith(f"{QUESTION}\t"), f"{prompt['text']!r}")


def killing(box: Container) -> None:
    """Kill it while demonstrations come in; what it acknowledged must be there afterwards."""
    acknowledged: list[str] = []

    def write() -> None:
        with suppress(OSError):
            for i in range(100_000):
                row = {"id": f"w{i}", "input": f"Where is place number {i}?", "output": "place"}
                ask(f"{box.url}/v1/pools/kinds/demonstrations", {"demonstrations": [row]})
                acknowledged.append(row["id"])

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 20:
        time.sleep(0.05)
    box.send(signal.SIGKILL)
    writer.join()
    seconds = box.start()
    kept = {json.loads(line)["id"] for line in box.export()}
    lost = {*acknowledged, *(f"k{i}" for i in range(len(KINDS)))} - kept
    must("kill -9 under writes loses nothing", not lost, f"{len(acknowledged)} acknowledged, lost {sorted(lost)}")
    tell("starts again over its volume", f"ready after {seconds:.1f} s")


def restoring(box: Container, other: Container) -> None:
    """A snapshot, taken while it is served, in the volume of another container."""
    before = box.export()
    taken = box.inside("udr", "snapshot", "/data/copy.sqlite")
    must("a snapshot is taken while it serves", taken.returncode == 0, (taken.stdout + taken.stderr).strip())
    os.rename(box.data / "copy.sqlite", other.data / "copy.sqlite")
    restored = other.call("restore", "/data/copy.sqlite")
    must("is restored to another volume", restored.returncode == 0, (restored.stdout + restored.stderr).strip())
    other.start()
    must("and served from there", other.export() == before, f"{len(before)} demonstrations")
    stopping(other)


def stopping(box: Container) -> None:
    seconds = box.send(signal.SIGTERM)
    must("SIGTERM ends it in order", box.process.returncode == 0 and seconds < 25, f"{seconds:.1f} s")


def chatting(box: Container) -> None:
    body = {"model": "kinds@lm", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "temperature": 0}
    headers, text = ask(f"{box.url}/v1/chat/completions", body, timeout=600)
    told = {name.lower(): value for name, value in headers.items()}["x-udr-demonstrations"]
    answer = json.loads(text)
    said = answer["choices"][0]["message"]["content"]
    must("a real LLM server answers through it", said and told, f"{said!r} with {told}, usage {answer['usage']}")


def refusing(box: Container) -> None:
    box.environment["UDR_KEY"] = ""
    tried = box.call("serve")
    refused = tried.returncode == 2 and "set UDR_KEY" in tried.stderr
    must("does not start without a key", refused, tried.stderr.strip())


# -- put together


def llm_server(stack: ExitStack, python: Path, lm: Path, folder: Path) -> str:
    """A vLLM server on this machine, by its address."""
    port, log = free_port(), stack.enter_context((folder / "vllm.log").open("wb"))
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    words = [str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={lm}", "--served-model-name=lm"]
    words += [
        "--dtype=float32",
        "--max-model-len=2048",
        "--enforce-eager",
        f"--port={port}",
        f"--chat-template={template}",
    ]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    stack.callback(server.wait)
    stack.callback(os.killpg, server.pid, signal.SIGKILL)
    url = f"http://127.0.0.1:{port}"
    tell("a vLLM server is there", f"after {wait_for(f'{url}/health', server, folder / 'vllm.log'):.0f} s")
    return url


def unpacked(stack: ExitStack, image: str) -> tuple[Path, dict[str, Any]]:
    """The image's files, and its configuration."""
    config = json.loads(run("buildah", "inspect", "--type=image", image))["Docker"]["config"]
    container = run("buildah", "from", image)
    stack.callback(run, "buildah", "rm", container)
    root = Path(run("buildah", "mount", container))
    bytes_ = int(run("du", "-s", "--block-size=1", "--apparent-size", root).split()[0])
    must("the image is small", bytes_ < LARGEST, f"{bytes_ / 1e9:.2f} GB of files")
    return root, config


def volume(folder: Path, name: str, uid: str) -> Path:
    place = folder / name
    place.mkdir()
    os.chown(place, int(uid), int(uid))
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="Python of an environment that has vLLM")
    parser.add_argument("--lm", type=Path, required=True, help="folder of a causal LM")
    parser.add_argument("--postgres", help="postgresql+psycopg://USER@127.0.0.1:PORT/NAME")
    parser.add_argument("--image", help="do not build: take this one")
    given = parser.parse_args()
    image = given.image or "localhost/udr:try"
    if not given.image:
        started = time.monotonic()
        run(HERE / "build.sh", image)
        tell("built from a clean clone", f"{time.monotonic() - started:.0f} s")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="udr-try-")))
        folder.chmod(0o755)  # the user of the image passes through
        root, config = unpacked(stack, image)
        upstream = llm_server(stack, given.vllm, given.lm, folder)

        def container(name: str, **settings: str) -> Container:
            place = volume(folder, name, config["User"].split(":")[0])
            return Container(stack, root, config, place, UDR_UPSTREAM=upstream, **settings)

        over_sqlite(container("volume"), container("other", UDR_WORKERS="2"))
        if given.postgres:
            box = container("beside", UDR_DATABASE=given.postgres)
            tell("starts over PostgreSQL", f"ready after {box.start():.1f} s")
            for step in (filling, killing, chatting, stopping):
                step(box)


def over_sqlite(box: Container, other: Container) -> None:
    """Everything that the image promises of its default database."""
    tell("starts over an empty volume", f"ready after {box.start():.1f} s")
    for step in (confinement, filling, chatting, killing):
        step(box)
    restoring(box, other)  # with two worker processes
    chatting(box)
    tell("memory of the service", f"at most {int(box.status()['VmHWM'].split()[0]) / 1e6:.1f} GB")
    tell("in its volume", sorted(p.name for p in box.data.iterdir()))
    stopping(box)
    refusing(box)


if __name__ == "__main__":
    main()
