"""One process that renders: the only one, or a rank of a mesh."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sd3par.launch import endings
from sd3par.launch.endings import Place
from sd3par.launch.environment import importing
from sd3par.launch.flags import DEFAULT_PROMPT, render_parser
from sd3par.launch.job import Job
from sd3par.plan import check_world
from sd3par.static.reader import begin

PROG = "text_to_image.py"
DESCRIPTION = """\
Draws pictures with Stable Diffusion 3.
On one device:
  python launch/text_to_image.py --prompt "a red circle on a blue background"
On four GPUs; on the CPU, --nproc_per_node 4 takes the place of --gpus:
  python -m paddle.distributed.launch --gpus 0,1,2,3 launch/text_to_image.py --mp_size 2 --dp_size 2"""


def main(argv: Sequence[str] | None = None) -> int:
    """Renders what `argv` asks for; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return endings.run(lambda: _main(words), Place(), "--debug" in words)


def _main(argv: Sequence[str]) -> int:
    place = Place.here()
    with place.door():
        options = render_parser(PROG, DESCRIPTION, prompt_flag=True).parse(argv)
        if options.prompt is None and options.prompts_file is None:
            options.prompt = DEFAULT_PROMPT
        job = Job.of(options, place.world)
        check_world(job.parallel, place.world)
    return work(job, Place.here(options.run_dir))


def work(job: Job, place: Place) -> int:
    """Checks and renders a job in this process; returns the exit code."""
    attach(place)
    return endings.run(lambda: _work(job, place), place, job.options.debug)


def attach(place: Place) -> None:
    """Lets the command that started this process end it."""
    if place.run_dir is not None:
        (place.run_dir / f"pid.{place.rank}").write_text(str(os.getpid()), encoding="ascii")
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def _work(job: Job, place: Place) -> int:
    with _reading(job, place) as job:
        with importing():
            with place.door():
                job = job.check(writes=place.rank == 0)
            endings.prepare(place)
            from sd3par.launch.render import render

        report = render(job)
    if place.rank == 0 and (job.options.benchmark is not None or not job.options.quiet):
        place.show(report)
    return endings.DONE


@contextmanager
def _reading(job: Job, place: Place) -> Iterator[Job]:
    """Yields a job whose model, if it is an exported one, is read while Paddle is imported."""
    reader = begin(job.model, place.rank, text_encoder_3=not job.options.no_t5)
    try:
        yield dataclasses.replace(job, reader=reader)
    finally:
        if reader is not None:
            reader.close()


def _end_with_stdin() -> None:
    """Ends this process when the `sd3par` command, which holds the other end of stdin, closes it or dies."""
    while os.read(0, 4096):
        pass
    os._exit(endings.TERMINATED)
