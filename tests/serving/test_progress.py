"""An engine that has work and takes no step is noticed."""

from __future__ import annotations

from engine_lib.serving.progress import Progress


def test_only_an_engine_with_work_that_takes_no_step_grows_old() -> None:
    has_work, steps, now = [False], [7], [100.0]
    progress = Progress(lambda: has_work[0], lambda: steps[0], lambda: now[0])
    now[0] += 50
    assert progress.stalled_seconds() == 0.0, "it has nothing to do"
    has_work[0] = True
    assert progress.stalled_seconds() == 0.0
    now[0] += 20
    assert progress.stalled_seconds() == 20.0
    steps[0] += 1
    assert progress.stalled_seconds() == 0.0, "it has stepped"
    now[0] += 40
    assert progress.stalled_seconds() == 40.0
    has_work[0] = False
    assert progress.stalled_seconds() == 0.0
