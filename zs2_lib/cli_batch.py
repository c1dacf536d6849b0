"""Many clips: python -m zs2_lib batch jobs.jsonl --out DIR"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

from zs2_lib.batch.forecast import Kind, known_pace, measured_pace, time_text
from zs2_lib.batch.jobs import Planned, check_folder, read_jobs
from zs2_lib.batch.make import STAY_HERE, clean
from zs2_lib.batch.manifest import Manifest
from zs2_lib.batch.progress import GIVEN_UP, Progress
from zs2_lib.cli_help import Parser
from zs2_lib.cli_job import model_name
from zs2_lib.cli_read import read_number
from zs2_lib.cli_say import Failed, Refused, listen, say
from zs2_lib.settings.kinds import SettingsError, WholeNumber

PROGRAM = "python -m zs2_lib batch"
WORKERS, TRIES = WholeNumber(1, 10_000), 3


def main(arguments: list[str] | None = None) -> int:
    """Runs a batch and returns its exit status: 0; 2 for what cannot be done, 1 where a job was given up and for other
    failures, 130 for Ctrl-C.
    """
    listen(arguments)
    try:
        return run(parser().parse_args(arguments))
    except SettingsError as refusal:
        say(refusal, error=True)
        return 2
    except KeyboardInterrupt:
        say("interrupted; what is finished is in the manifest, the same command goes on with the others")
        return 130
    except (Refused, Failed) as error:
        say(error, error=True)
        return error.status
    except OSError as error:
        say(error, error=True)
        return 1


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        takes="JOBS --out DIR",
        allow_abbrev=False,
        description="Makes many clips, on this machine or on a cluster of Ray. Started again, it goes on where it "
        "stopped.",
    )
    parser.basics.add_argument(
        "jobs",
        help='a .jsonl file with a job a line, such as {"prompt": "a red circle", "seed": 1, "frames": 16}; a '
        ".csv file, of which the first line has the keys; or a folder of clips that carry their recipes. The keys are "
        "those of the API's settings, prompt, negative_prompt, seed, name (of the files, without suffix), formats, and "
        "the other options of the command line with _ for -. Without a seed a job has one that follows from itself.",
    )
    parser.basics.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="where the clips go, and manifest.jsonl with a line for each that is finished or given up; on a cluster a "
        "folder that all its machines have",
    )
    parser.basics.add_argument("--model", metavar="PATH", help="the checkpoint of jobs that name none")
    parser.basics.add_argument("--config", metavar="FOLDER", help="its configuration")
    parser.basics.add_argument("--skip-bad", action="store_true", help="goes on without the jobs that have a fault")
    parser.basics.add_argument(
        "--dry-run", action="store_true", help="says what would be made and for how long, and ends"
    )
    _add_workers(parser.add_argument_group("workers"))
    messages = parser.add_argument_group("messages")
    messages.add_argument("--quiet", action="store_true", help="says on stderr what goes wrong, no more")
    messages.add_argument(
        "--progress",
        default="bar",
        metavar="bar|json",
        help="json: lines of JSON on stderr, with jobs_done, jobs, given_up, done (0 to 1), seconds_left and what the "
        "workers are at, by number; with a job that is finished or given up; or with one note or error. Default bar.",
    )
    return parser


def _add_workers(group) -> None:
    group.add_argument(
        "--workers", metavar="N", help="how many clips at once; default: one for each GPU, without a GPU one"
    )
    group.add_argument("--threads", metavar="N", help="threads of each worker; default 1")
    group.add_argument(
        "--address",
        metavar="HOST:PORT|auto",
        help="a running cluster of Ray, whose machines have this package and see the same files at the same place",
    )
    group.add_argument(
        "--tries", metavar="N", help=f"a job is given up when its worker has died so often; default {TRIES}"
    )
    group.add_argument("--dashboard", action="store_true", help="starts Ray's dashboard as well, on this machine alone")


def run(options: argparse.Namespace) -> int:
    """From the options to the files."""
    if options.progress not in ("bar", "json"):
        raise Refused(f"--progress: {options.progress!r} is not allowed; give bar or json")
    folder = Path(options.out).absolute()
    workers = read_number(WORKERS, "--workers", options.workers, None)
    threads = read_number(WORKERS, "--threads", options.threads, 1)
    tries = read_number(WORKERS, "--tries", options.tries, TRIES)
    if not options.dry_run and importlib.util.find_spec("ray") is None:
        raise Refused(f"a batch runs on Ray, which is missing; install it with: {sys.executable} -m pip install ray")
    check_folder(folder)
    model = {key: value for key in ("model", "config") if (value := getattr(options, key)) is not None}
    jobs, faults = read_jobs(options.jobs, folder, model)
    for fault in faults:
        say(fault, error=True)
    if faults and not options.skip_bad:
        count = f"{len(faults)} of {len(faults) + len(jobs)} jobs"
        raise Refused(f"{count} cannot be done; nothing was made. --skip-bad makes the others")
    with ExitStack() as scope:
        manifest = Manifest(folder, write=not options.dry_run)
        if not options.dry_run:
            scope.enter_context(manifest)
        for note in manifest.notes:
            say(note)
        to_do = [_with_free_name(job, manifest) for job in jobs if not manifest.finished(job)]
        if len(to_do) < len(jobs):
            say(f"{len(jobs) - len(to_do)} of {len(jobs)} jobs are finished")
        if options.dry_run:
            forecast(to_do, manifest.records, workers or 1)
            return 0
        if not to_do:
            return 0
        clean(folder)
        scope.callback(clean, folder)
        if options.address is None:
            os.environ[STAY_HERE] = "0"
        from zs2_lib.batch.workers import Machines  # which imports Ray

        return make(to_do, folder, manifest, Machines(options.address, workers, threads, tries, options.dashboard))


def _with_free_name(job: Planned, manifest: Manifest) -> Planned:
    """A job that was given no name, and whose number and seed are those of another finished one, gets a longer name."""
    return job if job.named or not manifest.is_taken(job) else replace(job, name=f"{job.name}-{job.hash[:8]}")


def make(jobs: Sequence[Planned], folder: Path, manifest: Manifest, machines) -> int:
    """Has the jobs made; returns the exit status."""
    from zs2_lib.batch import workers

    given_up = []
    out = sys.stdout
    with (
        redirect_stdout(Notes(say)),  # Ray prints what befalls its workers, also at the end
        workers.started(machines) as count,
        Progress(jobs, count, out) as progress,
        redirect_stdout(Notes(progress.say)),
    ):

        def done(job: Planned, outcome: dict) -> None:
            about = {"name": job.name, "hash": job.hash, "seed": job.job.seed}
            about |= {"rows": job.cost.rows, "between": job.cost.between, "model": model_name(job.job.model)}
            record = {**about, **asdict(Kind.of(job)), **outcome, "finished": round(time.time(), 3)}
            if outcome["error"]:
                given_up.append(job)
            progress.done(job, outcome)
            try:
                manifest.add(record)
            except OSError as error:
                progress.say(f"{manifest.file} cannot be written now ({error}); its lines wait")

        workers.run(jobs, folder, machines, count, done, progress.show)
    try:
        manifest.write_pending()
    except OSError as error:
        waiting = f"{len(manifest.pending)} finished clips could not be noted in {manifest.file} ({error})"
        raise Failed(f"{waiting}; make room, the same command makes them again") from None
    if given_up:
        count = f"{len(given_up)} of {len(jobs)} jobs"
        say(f"{count} were {GIVEN_UP}, see {manifest.file}; the same command tries again", error=True)
    return 1 if given_up else 0


class Notes(io.TextIOBase):
    """A stream of which each line is said, without its colours."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say

    def write(self, text: str) -> int:
        for line in filter(str.strip, re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()):
            self.say(line)
        return len(text)


def forecast(jobs: Sequence[Planned], records: Sequence[dict], workers: int) -> None:
    """Says what would be made and for how long."""
    paces, loads = known_pace(records), {}
    for job in jobs:
        kind = Kind.of(job)
        if kind not in paces:
            say(f"measuring two steps of {job.job.model or 'the tiny checkpoint'} at {kind.size}")
            paces[kind], loads[kind.checkpoint] = measured_pace(job)
    total = 0.0
    for job in jobs:
        seconds = paces[Kind.of(job)].seconds(job)
        total += seconds
        print(f"{job.name}: {', '.join(job.formats)}, {job.cost.rows} UNet rows, about {time_text(seconds)}")
    per_checkpoint = Counter(job.checkpoint for job in jobs)
    loading = sum(loads.get(checkpoint, 0) for checkpoint in per_checkpoint)
    about = time_text(total / workers + loading)
    print(f"{len(jobs)} clips, {len(per_checkpoint)} checkpoints, about {about} with {workers} workers at this pace")
