"""What the guide promises of the running service, one after the other. The first that is broken ends the run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.containers.composed import SECRETS, STAYING, WORKERS, Composed, run, say, wait

_ALL_WELL = dict.fromkeys(STAYING, 1) | {"ray-worker": WORKERS}
_NO_GPU = 'could not select device driver "nvidia"'


def check(compose: Composed, space: str) -> None:
    """Everything, in containers that have been built."""
    up(compose)
    _token_is_demanded(compose)
    crashed = _train(compose, space, disturbed=True)
    _confined(compose)
    _gpu_profile(compose)
    _volumes_lost_and_restored(compose)
    alone = _train(compose, space.replace("study: tiny", "study: undisturbed"), disturbed=False)
    _expect(crashed == alone, f"a sweep that was killed has other trials than one that was not: {crashed}, {alone}")
    _confined(compose)
    _logs_are_clean(compose)


def up(compose: Composed) -> None:
    """Start what is not running, and wait for its health."""
    compose("up --detach")
    _wait_for_health(compose)


def _wait_for_health(compose: Composed) -> None:
    wait("all services are healthy", lambda: compose.healthy() == _ALL_WELL, compose.healthy)


def _token_is_demanded(compose: Composed) -> None:
    for token in ("", "another"):
        answer = compose.ask("/api/v1/studies", token=token)
        _expect(answer == {"status": 401}, f"without the token the API answers {answer}")


def _train(compose: Composed, space: str, *, disturbed: bool) -> list[dict[str, Any]]:
    """Submit a sweep and wait for its verified report; its trials. disturbed: everything is killed once meanwhile."""
    (study,) = re.findall(r"^study: (\S+)$", space, flags=re.MULTILINE)
    submitted = compose.ask("/api/v1/submissions", {"space": space, "submitted_by": "a trial"})
    _expect("id" in submitted, f"not taken: {submitted}")

    def submission() -> dict[str, Any]:
        answer: dict[str, Any] = compose.ask(f"/api/v1/submissions/{submitted['id']}")
        return answer

    def ended() -> bool:
        return submission().get("state") not in ("QUEUED", "RUNNING", None)

    if disturbed:
        _kill_everything(compose, study, ended)
    wait(f"{study} has ended", ended, lambda: _progress(compose, study))
    last, detail = submission(), compose.ask(f"/api/v1/studies/{study}")
    _expect((last["state"], last["exit_code"]) == ("DONE", 0), f"{last}")
    trials = _trials(compose, study)
    _expect(
        detail["trials"] == {"COMPLETE": detail["planned"]}, f"not every trial was counted once: {detail['trials']}"
    )
    _expect([each["number"] for each in trials] == list(range(detail["planned"])), f"numbers of trials: {trials}")
    _expect(detail["verified"] in ("yes", "no gain"), f"not verified: {detail['verified']} {detail['verification']}")
    findings = compose.ask("/api/v1/doctor").get("findings")
    _expect(findings == [], f"the doctor found {findings}")
    _report_is_there(compose, study)
    say(
        f"{study}: {len(trials)} trials, each counted once, attempts {last['attempts']}, verified: {detail['verified']}"
    )
    return trials


def _kill_everything(compose: Composed, study: str, ended: Callable[[], bool]) -> None:
    """One service after the other is killed in the midst of the sweep. Between two of them it makes headway."""
    for number, name in enumerate(("ray-worker", "scheduler", "database", "web")):
        _wait_for_trials(compose, study, number + 1, ended)
        _crash(compose, name)
    _wait_for_trials(compose, study, 5, ended)
    compose("kill ray-head")  # which the restart policy does not undo
    _expect(not ended(), "the sweep has ended before the head of the cluster was killed")
    up(compose)


def _wait_for_trials(compose: Composed, study: str, count: int, ended: Callable[[], bool]) -> None:
    wait(
        f"{count} trials have ended",
        lambda: _progress(compose, study).get("COMPLETE", 0) >= count or ended(),
        lambda: _progress(compose, study),
    )
    _expect(not ended(), f"the sweep has ended before everything was killed: {_progress(compose, study)}")


def _crash(compose: Composed, service: str) -> None:
    """Kill all processes in the containers of a service from within; the restart policy brings them back."""
    before = _restarts(compose, service)
    for index in range(len(before)):
        compose.attempt(f"exec -T --index={index + 1} {service} sh -c 'kill -s KILL -- -1'")
    say(f"killed {service}")
    wait(f"{service} was started again", lambda: all(map(int.__lt__, before, _restarts(compose, service))))
    _wait_for_health(compose)


def _restarts(compose: Composed, service: str) -> list[int]:
    return [each["RestartCount"] for each in sorted(compose.inspected(service), key=lambda each: str(each["Name"]))]


def _confined(compose: Composed) -> None:
    """Users without rights, read-only roots, one port on the loopback, no way out, no secret where one can look."""
    found = compose.inspected()
    for each in found:
        name, host = each["Config"]["Labels"]["com.docker.compose.service"], each["HostConfig"]
        _expect(each["Config"]["User"] in ("10001:10001", "999:999"), f"{name} runs as {each['Config']['User']}")
        _expect(host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], f"{name} is not confined: {host}")
        addresses = [bound["HostIp"] for ports in (host["PortBindings"] or {}).values() for bound in ports]
        _expect(addresses == ["127.0.0.1"] * (name == "web"), f"{name} has ports on {addresses}")
        joined = json.loads(
            run("docker network", ["docker", "network", "inspect", *each["NetworkSettings"]["Networks"]])[1]
        )
        outside = [network["Name"] for network in joined if not network["Internal"]]
        _expect(bool(outside) == (name == "web"), f"{name} has a way out by {outside}")
        if name in STAYING:
            running = run("docker top", ["docker", "top", each["Id"], "-eo", "uid,pid,args"])[1].decode()
            users = {line.split()[0] for line in running.splitlines()[1:]}
            _expect(users in ({"10001"}, {"999"}), f"processes of {name} belong to {users}")
            _holds_no_secret(compose, f"an argument of a process of {name}", running)
    _holds_no_secret(compose, "docker inspect", json.dumps(found))
    _holds_no_secret(
        compose, "an image", run("docker history", ["docker", "history", "--no-trunc", "automl-lora:local"])[1].decode()
    )
    say("all services are confined, and no secret is in arguments, environments or the image")


def _holds_no_secret(compose: Composed, where: str, text: str) -> None:
    _expect(bool(text), f"nothing to look at in {where}")
    _expect([name for name in SECRETS if compose.secret(name) in text] == [], f"{where} holds a secret")


def _gpu_profile(compose: Composed) -> None:
    """It starts where there is a GPU; elsewhere the engine says so, and the others stay as they are."""
    status, _, complaint = compose.attempt("--profile gpu up --detach ray-worker-gpu")
    if status == 0:
        well = _ALL_WELL | {"ray-worker-gpu": 1}
        wait("the worker with GPUs is healthy", lambda: compose.healthy() == well, compose.healthy)
    else:
        _expect(_NO_GPU in complaint, f"the profile gpu: {complaint}")
        say("the profile gpu was not tried further: this engine has no GPUs")
    compose("--profile gpu rm --force --stop ray-worker-gpu")
    _wait_for_health(compose)


def _volumes_lost_and_restored(compose: Composed) -> None:
    """Backup, copies elsewhere, all volumes destroyed, restored: the same studies, files and schedules."""
    compose("exec -T scheduler automl schedule add data/nightly.yaml --cron '0 2 * * *' --timezone Europe/Berlin")
    before = _everything(compose)
    compose("run --rm -T migrate automl db backup /backups --keep 7")
    backups = compose.raw("run --rm --no-deps -T migrate tar --create --directory=/backups .")
    files = compose.raw("exec -T scheduler tar --create --directory=/srv/automl/automl-output tiny")
    compose("down --volumes")
    up(compose)
    _expect(compose.ask("/api/v1/studies") == [], "studies are left without their volume")
    compose("run --rm --no-deps -T migrate tar --extract --directory=/backups", backups)
    (name,) = compose("run --rm --no-deps -T migrate ls /backups").split()
    compose("exec -T scheduler mkdir --parents automl-output")
    compose("exec -T scheduler tar --extract --directory=/srv/automl/automl-output", files)
    compose("stop scheduler web")
    compose(f"run --rm -T migrate automl db restore /backups/{name} --overwrite")
    up(compose)
    after = _everything(compose)
    _expect(after == before, f"restored is another state: {before}, {after}")
    said = compose("exec -T scheduler automl doctor tiny")
    _expect("all invariants hold" in said, f"the doctor says of the restored study: {said}")
    _report_is_there(compose, "tiny")
    say("all volumes were destroyed; studies, files and schedules are restored as they were")


def _everything(compose: Composed) -> dict[str, Any]:
    schedules = [each["name"] for each in compose.ask("/api/v1/schedules")]
    studies = compose.ask("/api/v1/studies")
    submissions = compose.ask("/api/v1/submissions")
    return {"studies": studies, "trials": _trials(compose, "tiny"), "schedules": schedules, "submissions": submissions}


def _trials(compose: Composed, study: str) -> list[dict[str, Any]]:
    """Trials without their times, by number."""
    newest_first = compose.ask(f"/api/v1/studies/{study}/trials?limit=200")["trials"]
    listed = sorted(newest_first, key=lambda each: int(each["number"]))
    return [{key: each[key] for key in ("number", "state", "step", "params", "value")} for each in listed]


def _progress(compose: Composed, study: str) -> dict[str, int]:
    return dict(compose.ask(f"/api/v1/studies/{study}").get("trials") or {})


def _report_is_there(compose: Composed, study: str) -> None:
    _expect("LoRA search report" in compose.ask(f"/studies/{study}/report"), f"no report of {study}")


def _logs_are_clean(compose: Composed) -> None:
    text = compose("logs --no-color")
    _holds_no_secret(compose, "a log", text)
    Path(compose.folder / "logs").write_text(text, encoding="utf-8")
    traces = [line for line in text.splitlines() if "Traceback (most recent call last)" in line]
    _expect(not traces, f"tracebacks in the logs: {traces[:3]}")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        sys.exit(otherwise[:4000])
