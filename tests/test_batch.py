"""Batches: what is refused before anything is made, the manifest, and workers of Ray that die, bit for bit."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("av")

from zs2_lib import __main__ as program
from zs2_lib import cli
from zs2_lib.batch.jobs import check_name, read_jobs
from zs2_lib.batch.make import UNFINISHED, Maker
from zs2_lib.batch.manifest import MANIFEST, Manifest
from zs2_lib.batch.turns import Turns
from zs2_lib.cli_say import Refused
from zs2_lib.hosts.diffusers import checkpoints
from zs2_lib.settings.kinds import SettingsError

ROOT = Path(__file__).parent.parent
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
SMALL = {"prompt": "a red circle on a blue background", "frames": 3, "steps": 2, "size": 64}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """What the command line sets for its process is undone."""
    for name in ("HF_HUB_OFFLINE", "DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, "error" if "VERBOSITY" in name else "1"))


def jsonl(file: Path, jobs) -> Path:
    file.write_text("".join((job if isinstance(job, str) else json.dumps(job)) + "\n" for job in jobs))
    return file


def planned(tmp_path, *jobs):
    """The jobs of these values, none of which has a fault."""
    found, faults = read_jobs(str(jsonl(tmp_path / "planned.jsonl", jobs)), tmp_path / "out", {})
    assert faults == []
    return found


# --- what is refused -----------------------------------------------------------------------------------


def test_all_faults_are_told_at_once(tmp_path, capsys):
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    faults = [
        ("{", "no JSON"),
        ("[1]", "is no object"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        ({**SMALL, "fames": 3}, "'fames' is no key of a job"),
        ({**SMALL, "frames": 0}, "frames: 0 is not allowed; give a whole number from 1"),
        ({**SMALL, "frames": "3"}, "frames: '3' is not allowed"),
        ({**SMALL, "size": 65}, "size: '65' is not allowed"),
        ({**SMALL, "seed": -1}, "seed: -1 is not allowed"),
        ({**SMALL, "formats": ["mp5"]}, "formats: "),
        ({**SMALL, "name": "../a"}, "name: '../a' is not allowed"),
        ({**SMALL, "model": str(tmp_path / "none.safetensors")}, "there is no"),
        ({**SMALL, "model": str(tmp_path / "model.ckpt")}, "can run code"),
        ({"seed": 1}, "there is no prompt"),
        ({**SMALL, "prompt": 1}, "prompt: 1 is not allowed"),
        ({**SMALL, "name": "taken"}, None),
        ({**SMALL, "name": "Taken"}, "line 15 has it"),
        ({**SMALL, "recipe": str(tmp_path / "none.mp4")}, "none.mp4"),
        ({**SMALL, "enabled": False}, "enabled: False"),
    ]
    file, out = jsonl(tmp_path / "jobs.jsonl", [job for job, _ in faults]), tmp_path / "out"
    assert program.main(["batch", str(file), "--out", str(out), "--dry-run"]) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    expected = [(number, words) for number, (_, words) in enumerate(faults, 1) if words]
    assert len(lines) == len(expected)
    for line, (number, words) in zip(lines, expected):
        assert line.startswith(f"zs2: error: {file}, line {number}: ") and words in line
    assert f"{len(expected)} of {len(faults)} jobs cannot be done; nothing was made" in last and not out.exists()


@pytest.mark.parametrize("name", ["", " a", "a/b", "a\\b", ".a", "-a", "a.", "a\n", MANIFEST, "ä" * 76, None, True])
def test_names_that_no_file_can_have(name):
    with pytest.raises(SettingsError, match="name: "):
        check_name(name)


def test_a_batch_without_jobs_and_a_file_of_another_kind(tmp_path):
    for file in (jsonl(tmp_path / "a.jsonl", [""]), jsonl(tmp_path / "a.txt", ["{}"]), tmp_path / "no.jsonl"):
        with pytest.raises(Refused, match=file.name):
            read_jobs(str(file), tmp_path, {})


def test_without_ray(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else object())
    file = jsonl(tmp_path / "jobs.jsonl", [SMALL])
    assert program.main(["batch", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "runs on Ray, which is missing; install it with" in capsys.readouterr().err


# --- jobs ----------------------------------------------------------------------------------------------


def test_csv_says_the_same(tmp_path):
    """Of a job in a CSV all values are texts."""
    values = {"prompt": "a, b", "negative_prompt": "c", "frames": 4, "motion": "0:0.01, 2:0.05", "loop": "ping-pong"}
    values |= {"seed": 7, "steps": 2, "cfg": 1.5, "size": "64x128", "formats": ["gif", "png"], "sidecar": True}
    (job,) = planned(tmp_path, values)
    file = tmp_path / "jobs.csv"
    file.write_text(
        'prompt,negative_prompt,frames,motion,loop,seed,steps,cfg,size,formats,sidecar,name\n"a, b",c,4,'
        '"0:0.01, 2:0.05",ping-pong,7,2,1.5,64x128,gif png,True,\n\n"a\nb",,2,,,,,,,,,x\na,b,c,d,e,f,g,h,i,j,k,l,m\n'
    )
    (same, other), faults = read_jobs(str(file), tmp_path / "out", {})
    assert same.hash == job.hash and same.arguments == job.arguments and same.name == job.name == "00001-7"
    assert (other.job.prompt, other.job.settings.frames, other.name) == ("a\nb", 2, "x")
    assert len(faults) == 1 and faults[0].startswith(f"{file}, line 6: 13 values for the 12 keys")


def test_the_hash_is_of_all_that_a_clip_depends_on(tmp_path):
    def hashes(*jobs):
        return [job.hash for job in planned(tmp_path, *jobs)]

    base = {**SMALL, "seed": 1}
    same = [base, {**base, "name": "a"}, {**base, "cfg": 5, "motion": 0.05}]
    others = [{**base, key: value} for key, value in (("seed", 2), ("prompt", "b"), ("cfg", 4), ("formats", ["gif"]))]
    others += [{**base, key: value} for key, value in (("motion", 0.1), ("negative_prompt", "c"), ("sidecar", True))]
    assert len(set(hashes(*same))) == 1 and len(set(hashes(base, *others))) == 1 + len(others)


def test_seeds_and_names_follow_from_the_jobs(tmp_path):
    one, two, three = (job.job.seed for job in planned(tmp_path, SMALL, {**SMALL, "steps": 3}, SMALL))
    assert len({one, two, three}) == 3
    again = planned(tmp_path, {**SMALL, "steps": 3}, SMALL, SMALL)
    assert [job.job.seed for job in again] == [two, one, three]
    assert [job.name for job in again] == [f"00001-{two}", f"00002-{one}", f"00003-{three}"]


# --- manifest and turns --------------------------------------------------------------------------------


def test_manifest(tmp_path):
    """A finished job is known by its hash and its files; a line that was not finished does not count."""
    out = tmp_path / "out"
    one, two, three = planned(tmp_path, {**SMALL, "name": "a"}, SMALL, {**SMALL, "name": "c"})
    with Manifest(out) as manifest:
        for job in (one, two):
            (out / f"{job.name}.mp4").write_bytes(b"four")
            manifest.add({"name": job.name, "hash": job.hash, "files": {f"{job.name}.mp4": 4}})
        manifest.add({"name": three.name, "hash": three.hash, "files": {}, "error": "it failed"})
        if os.name != "nt":
            with pytest.raises(Refused, match="another batch"):
                Manifest(out)
    whole = (out / MANIFEST).read_bytes()
    (out / MANIFEST).write_bytes(b"torn by hand\n" + whole + b'{"name": "torn", "ha')
    (moved,) = planned(tmp_path, {**SMALL, "name": "b"})
    with Manifest(out) as manifest:
        assert manifest.finished(one) and manifest.finished(two) and not manifest.finished(three)
        assert not manifest.finished(moved)  # asked for under another name
        assert len(manifest.notes) == 1 and "line 1 is no record" in manifest.notes[0]
        (out / f"{two.name}.mp4").write_bytes(b"other")
        assert not manifest.finished(two)
    assert (out / MANIFEST).read_bytes() == b"torn by hand\n" + whole


def test_a_manifest_on_a_full_disk(tmp_path, monkeypatch):
    """A line that cannot be written waits, and no half of it stays."""
    with Manifest(tmp_path) as manifest:
        manifest.add({"name": "a", "hash": "1", "files": {}})
        write = os.write
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda file, data: write(file, data[:5]))
            with pytest.raises(OSError, match="no space left"):
                manifest.add({"name": "b", "hash": "2", "files": {}})
        assert len((tmp_path / MANIFEST).read_bytes().splitlines()) == 1
        manifest.add({"name": "c", "hash": "3", "files": {}})
    names = [json.loads(line)["name"] for line in (tmp_path / MANIFEST).read_bytes().splitlines()]
    assert names == ["a", "b", "c"]


def test_turns():
    turns = Turns([("A", 1), ("B", 10), ("A", 2), ("A", 3), ("B", 11)])
    assert [turns.next("x"), turns.next("y"), turns.next("y"), turns.next("x")] == [1, 10, 11, 2]
    turns.put_back("A", 2)
    turns.lost("x")
    assert [turns.next("y"), turns.next("x"), len(turns)] == [2, 3, 0]
    with pytest.raises(IndexError):
        turns.next("x")


# --- clips ---------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, but the manifest."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def records(out: Path) -> list[dict]:
    file = out / MANIFEST
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_maker_on_a_full_disk(tmp_path):
    """A file that cannot be whole is an error of its job, leaves nothing behind, and the next job is made."""
    big, small = planned(tmp_path, {**SMALL, "frames": 8, "formats": ["gif", "apng"], "size": 128}, SMALL)
    maker, out = Maker(tmp_path / "out", threads=1), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        failed = maker.make(big.name, big.arguments, big.formats)
        assert failed["files"] == {} and "OSError" in failed["error"] and list((out / UNFINISHED).iterdir()) == []
        made = maker.make(small.name, small.arguments, small.formats)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert made["error"] is None and made["files"] == {f"{small.name}.mp4": (out / f"{small.name}.mp4").stat().st_size}
    again = maker.make(big.name, big.arguments, big.formats)
    assert again["error"] is None and list(again["files"]) == [f"{big.name}.apng", f"{big.name}.gif"]


def test_a_folder_of_recipes(tmp_path):
    """Clips are made again, in the formats that they have, bit for bit."""
    maker = Maker(tmp_path / "first", threads=1)
    for job in planned(tmp_path, {**SMALL, "name": "a", "formats": ["gif", "mp4"]}, {**SMALL, "formats": ["png"]}):
        assert maker.make(job.name, job.arguments, job.formats)["error"] is None
    (tmp_path / "first/notes.txt").write_text("no clip")
    found, faults = read_jobs(str(tmp_path / "first"), tmp_path / "second", {})
    assert faults == [] and len(found) == 2
    again = Maker(tmp_path / "second", threads=1)
    for job in found:
        assert again.make(job.name, job.arguments, job.formats)["error"] is None
    assert content(tmp_path / "second") == {
        name: data for name, data in content(tmp_path / "first").items() if name != "notes.txt"
    }


def test_edits_share_a_checkpoint(tmp_path, monkeypatch):
    """Jobs that differ in pictures and strength alone load it once; one with a mask has another pipeline."""
    for name, colour in (("a", "red"), ("b", "blue"), ("mask", "white")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    edits = [{"image": str(tmp_path / "a.png")}, {"image": str(tmp_path / "b.png"), "strength": 0.5}]
    edits.append({**edits[1], "mask": str(tmp_path / "mask.png")})
    jobs = planned(tmp_path, *({**SMALL, **edit, "seed": 1, "name": f"{n}"} for n, edit in enumerate(edits)))
    assert jobs[0].checkpoint == jobs[1].checkpoint != jobs[2].checkpoint
    load, loaded = checkpoints.load_pipeline, []
    monkeypatch.setattr(checkpoints, "load_pipeline", lambda *given: loaded.append(given) or load(*given))
    maker = Maker(tmp_path / "out", threads=1)
    for job in jobs[:2]:
        assert maker.make(job.name, job.arguments, job.formats)["error"] is None
    assert len(loaded) == 1
    assert Maker(tmp_path / "alone", threads=1).make(jobs[1].name, jobs[1].arguments, jobs[1].formats)["error"] is None
    assert content(tmp_path / "out")["1.mp4"] == content(tmp_path / "alone")["1.mp4"]


def begin(file: Path, out: Path, *arguments, folder=ROOT, **how) -> subprocess.Popen:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "zs2_lib", "batch", str(file), "--out", str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, **how)


def workers_of(pid: int, at: str = "") -> list[int]:
    """The processes of workers that a batch has started, or those that are `at` one of their methods."""
    parents, workers = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cmdline").read_bytes().startswith(f"ray::Worker.{at}".encode() if at else b"ray::Worker"):
                workers.append(int(process.name))
        except (OSError, ValueError):
            continue

    def line(process: int):
        while process := parents.get(process, 0):
            yield process

    return [worker for worker in workers if pid in line(worker)]


def wait_until(condition, process: subprocess.Popen, seconds: float = 300):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_nothing_is_lost_and_nothing_made_twice(tmp_path, capsys, monkeypatch):
    """24 jobs on 2 workers: a bad line, a worker killed, the batch killed and begun again; as if made one by one."""
    formats = (["mp4"], ["apng", "gif"], ["png"])
    jobs = [{**SMALL, "seed": n, "name": f"clip {n}", "formats": formats[n % 3]} for n in range(24)]
    for n in (8, 9, 16, 17):
        jobs[n] |= {"frames": 16, "steps": 8}  # there is time to kill them
    file, out = jsonl(tmp_path / "jobs.jsonl", [*jobs[:5], '{"prompt"', *jobs[5:]]), tmp_path / "out"
    assert program.main(["batch", str(file), "--out", str(out), "--workers", "2"]) == 2
    assert "line 6: no JSON" in capsys.readouterr().err and not out.exists()

    def at_work_on(*names: str) -> bool:
        return all((out / UNFINISHED / name).exists() for name in names)

    batch = begin(file, out, "--skip-bad", "--workers", "2")
    wait_until(lambda: at_work_on("clip 8", "clip 9"), batch)  # the longest come first
    os.kill(workers_of(batch.pid)[0], signal.SIGKILL)
    wait_until(lambda: len(records(out)) > 8 and {"clip 8", "clip 9"} <= {one["name"] for one in records(out)}, batch)
    batch.kill()
    batch.wait()
    before = records(out)
    batch = begin(file, out, "--skip-bad", "--workers", "2")
    _, said = batch.communicate()
    assert batch.returncode == 0, said
    assert f"{len(before)} of 24 jobs are finished" in said

    made = records(out)
    assert made[: len(before)] == before and all(record["error"] is None for record in made)
    assert sorted(record["name"] for record in made) == sorted(job["name"] for job in jobs)  # each of them once
    assert sorted(record["tries"] for record in made) == [1] * 23 + [2]
    pipe = checkpoints.load_pipeline()
    monkeypatch.setattr(checkpoints, "load_pipeline", lambda *_, **__: pipe)
    for job in jobs:
        ends = [
            argument for format in job["formats"] for argument in ("-o", f"{tmp_path / 'one' / job['name']}.{format}")
        ]
        how = [f"--{key}={job[key]}" for key in ("frames", "steps", "size", "seed")]
        assert cli.main([job["prompt"], *how, *ends]) == 0
    assert content(out) == content(tmp_path / "one")
    assert sorted(os.listdir(out)) == sorted([*os.listdir(tmp_path / "one"), MANIFEST])


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_long_clip_is_spread(tmp_path, monkeypatch):
    """Workers that have no job decode frames and write files for one that has, and one of them is killed."""
    clip = {**SMALL, "frames": 96, "steps": 3, "size": 128, "seed": 1, "loop": "ping-pong"}
    formats, out = ["mp4", "webm", "apng", "gif", "png"], tmp_path / "out"
    file = jsonl(tmp_path / "jobs.jsonl", [{**clip, "name": "long", "formats": formats}])
    batch = begin(file, out, "--workers", "3", "--progress", "json")
    os.kill(wait_until(lambda: workers_of(batch.pid, "decode"), batch)[0], signal.SIGKILL)
    _, said = batch.communicate()
    assert batch.returncode == 0, said
    (record,) = records(out)
    assert record["error"] is None and record["tries"] == 1
    lines = [json.loads(line) for line in said.splitlines()]
    at = [worker for line in lines for worker in line.get("workers", {}).values()]
    assert {"helps": "long"} in at and {"long"} == {worker["job"] for worker in at if "job" in worker}
    (last,) = [line for line in lines if "files" in line]
    assert (last["job"], last["files"], last["jobs_done"], last["jobs"]) == ("long", record["files"], 1, 1)

    how = [f"--{key}={value}" for key, value in clip.items() if key != "prompt"]
    ends = [argument for format in formats for argument in ("-o", f"{tmp_path / 'one' / 'long'}.{format}")]
    assert cli.main([clip["prompt"], *how, *ends]) == 0
    assert content(out) == content(tmp_path / "one")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("no small file system can be mounted here: it takes root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@needs_ray
def test_a_full_disk(tmp_path, small_disk):
    """Clips that fit are made, and the other is given up in words."""
    jobs = [{**SMALL, "seed": n, "name": f"{n}"} for n in range(3)]
    jobs.insert(1, {**SMALL, "name": "big", "size": 128, "frames": 16, "formats": ["png", "apng"]})
    file, out = jsonl(tmp_path / "jobs.jsonl", jobs), small_disk / "out"
    batch = begin(file, out, stdout=subprocess.PIPE)
    told, said = batch.communicate()
    assert batch.returncode == 1 and "1 of 4 jobs were given up" in said and "given up: OSError" in told, told + said
    errors = {record["name"]: record["error"] for record in records(out)}
    assert "No space left" in errors.pop("big") and errors == {"0": None, "1": None, "2": None}
    assert sorted(os.listdir(out)) == ["0.mp4", "1.mp4", "2.mp4", MANIFEST]
